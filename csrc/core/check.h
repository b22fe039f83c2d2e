// Errors of the kernels: thrown, never aborted; std::invalid_argument becomes Python's ValueError.
#pragma once

#include <sstream>
#include <stdexcept>

namespace finercam {

template <typename... Parts>
[[noreturn]] void fail(const char* file, int line, const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << '[' << op << "] ";
  (message << ... << parts);
  message << " (" << file << ':' << line << ')';
  throw std::invalid_argument(message.str());
}

}  // namespace finercam

// FINERCAM_CHECK(n > 0, "cam", "expected a batch of at least 1, got ", n);
#define FINERCAM_CHECK(condition, op, ...)                                   \
  do {                                                                       \
    if (!(condition)) ::finercam::fail(__FILE__, __LINE__, op, __VA_ARGS__); \
  } while (false)
