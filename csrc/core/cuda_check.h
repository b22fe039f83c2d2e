// CUDA errors as exceptions, and the current device as a scope. For .cu files only.
#pragma once

#include <cuda_runtime.h>
#include <optional>
#include <sstream>
#include <string>

#include "core/cuda_error.h"
#include "core/device.h"

namespace finercam {

// Errors after which CUDA says that the process must be ended: its context is lost.
inline bool is_fatal(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorAssert:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorMisalignedAddress:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
#if CUDART_VERSION >= 12080
    case cudaErrorContained:
    case cudaErrorTensorMemoryLeak:
#endif
      return true;
    default:
      return false;
  }
}

inline std::string cuda_message(cudaError_t error, const std::string& what, const char* file, int line) {
  return "[cuda] " + what + " failed: " + cudaGetErrorString(error) + " (" + file + ':' + std::to_string(line) + ')';
}

template <typename... Parts>
std::string in_words(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

template <typename... Parts>
void cuda_check(cudaError_t error, const char* file, int line, const Parts&... what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the error is reported here, not by the next caller
  throw CudaError(cuda_message(error, in_words(what...), file, line), is_fatal(error));
}

// The same of an allocation: where memory is what is missing, with the bytes that were asked for.
template <typename... Parts>
void cuda_check_allocated(cudaError_t error, const char* file, int line, std::size_t bytes, const Parts&... where) {
  if (error != cudaErrorMemoryAllocation) {
    return cuda_check(error, file, line, "allocating ", bytes, " bytes", where...);
  }
  cudaGetLastError();
  throw CudaMemoryError(cuda_message(error, in_words("allocating ", bytes, " bytes", where...), file, line), bytes);
}

// What is done, in words: FINERCAM_CUDA_CHECK_AS(cudaFree(p), "freeing ", bytes, " bytes of cuda:", device);
// Where a kernel is launched, the operation, its shape and the device come from on_cuda (core/operation.h).
#define FINERCAM_CUDA_CHECK_AS(call, ...) ::finercam::cuda_check((call), __FILE__, __LINE__, __VA_ARGS__)
// FINERCAM_CUDA_ALLOCATED(cudaMalloc(&p, bytes), bytes, " of cuda:", device);
#define FINERCAM_CUDA_ALLOCATED(call, ...) ::finercam::cuda_check_allocated((call), __FILE__, __LINE__, __VA_ARGS__)

// Makes a device current, see make_current, and puts the former one back at the end of the scope.
class DeviceScope {
 public:
  explicit DeviceScope(int device) : former_(make_current(device)) {}
  ~DeviceScope() { restore_current(former_); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  Former former_;
};

// What is done in the scope is no part of a capture that this thread may be in, and does not end it.
class OutsideCapture {
 public:
  OutsideCapture() { FINERCAM_CUDA_CHECK_AS(cudaThreadExchangeStreamCaptureMode(&mode_), "leaving a capture"); }
  ~OutsideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  OutsideCapture(const OutsideCapture&) = delete;
  OutsideCapture& operator=(const OutsideCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// For destructors: never throws, is quiet where the driver has gone before (at interpreter exit), and may run in a
// thread that captures a stream, where freeing would otherwise be refused and end the capture.
class ReleaseScope {
 public:
  explicit ReleaseScope(int device) noexcept {
    try {
      device_.emplace(device);
      outside_.emplace();
    } catch (...) {
    }
  }
  ReleaseScope(const ReleaseScope&) = delete;
  ReleaseScope& operator=(const ReleaseScope&) = delete;

  bool usable() const { return outside_.has_value(); }

 private:
  std::optional<DeviceScope> device_;
  std::optional<OutsideCapture> outside_;
};

}  // namespace finercam
