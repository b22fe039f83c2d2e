// CUDA errors as exceptions, and the current device as a scope. For .cu files only.
#pragma once

#include <cuda_runtime.h>
#include <stdexcept>
#include <string>

namespace finercam {

inline void cuda_check(cudaError_t error, const char* what, const char* file, int line) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the error is reported here, not by the next caller
  throw std::runtime_error(std::string("[cuda] ") + what + " failed: " + cudaGetErrorString(error) + " (" + file + ':' +
                           std::to_string(line) + ')');
}

#define FINERCAM_CUDA_CHECK(call) ::finercam::cuda_check((call), #call, __FILE__, __LINE__)

// Makes a device current and puts the former one back at the end of the scope.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    FINERCAM_CUDA_CHECK(cudaGetDevice(&former_));
    FINERCAM_CUDA_CHECK(cudaSetDevice(device));
  }
  ~DeviceScope() { cudaSetDevice(former_); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int former_ = 0;
};

}  // namespace finercam
