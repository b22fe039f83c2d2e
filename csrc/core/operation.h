// CUDA errors with the operation, the shape and the device that they came in.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/cuda_error.h"

namespace finercam {

// "[cuda] cam of (2, 1, 64, 7, 7) on cuda:0: " and what the error says.
inline std::string operation_message(const char* name, std::initializer_list<std::int64_t> shape, int device,
                                     const std::string& error) {
  std::string text = std::string("[cuda] ") + name + " of (";
  const char* comma = "";
  for (const std::int64_t size : shape) {
    text += comma + std::to_string(size);
    comma = ", ";
  }
  constexpr const char kPrefix[] = "[cuda] ";
  const bool prefixed = error.rfind(kPrefix, 0) == 0;
  return text + ") on cuda:" + std::to_string(device) + ": " + (prefixed ? error.substr(sizeof kPrefix - 1) : error);
}

// What a call gives that queues an operation on a device: on_cuda("cam", {n, c, h, w}, device, [&] { ... });
template <typename Call>
auto on_cuda(const char* name, std::initializer_list<std::int64_t> shape, int device, Call&& call) {
  try {
    return call();
  } catch (const CudaMemoryError& error) {
    throw CudaMemoryError(operation_message(name, shape, device, error.what()), error.bytes);
  } catch (const CudaError& error) {
    throw CudaError(operation_message(name, shape, device, error.what()), error.fatal);
  }
}

}  // namespace finercam
