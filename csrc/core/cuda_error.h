// What a CUDA call that failed throws; bindings make Python exceptions of these.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

namespace finercam {

// fatal: the error stays with the process, whose every later CUDA call fails as well.
class CudaError : public std::runtime_error {
 public:
  CudaError(const std::string& message, bool fatal) : std::runtime_error(message), fatal(fatal) {}
  const bool fatal;
};

// Memory that there is not: `bytes` were asked for.
class CudaMemoryError : public CudaError {
 public:
  CudaMemoryError(const std::string& message, std::size_t bytes) : CudaError(message, false), bytes(bytes) {}
  const std::size_t bytes;
};

}  // namespace finercam
