#include "core/cuda_check.h"
#include "core/device.h"

namespace finercam {
namespace {

// The former mode of this thread into `mode`. An error is not left to the next caller.
cudaError_t exchange_mode(cudaStreamCaptureMode& mode) noexcept {
  const cudaError_t error = cudaThreadExchangeStreamCaptureMode(&mode);
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

// A function of the driver, which the runtime has loaded; null where there is none.
void* driver_function(const char* name) noexcept {
  void* found = nullptr;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, 11000, cudaEnableDefault);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault);
#endif
  if (error != cudaSuccess) cudaGetLastError();
  return error == cudaSuccess ? found : nullptr;
}

// Whether a device has the context that cudaSetDevice would make there.
bool has_context(int device) noexcept {
  using GetState = int (*)(int device, unsigned* flags, int* active);  // with CUdevice and CUresult as they are
  static const auto get_state = reinterpret_cast<GetState>(driver_function("cuDevicePrimaryCtxGetState"));
  unsigned flags = 0;
  int active = 0;
  return get_state == nullptr || get_state(device, &flags, &active) != 0 || active != 0;
}

void restore_device(int former) noexcept {
  if (former >= 0 && has_context(former) && cudaSetDevice(former) != cudaSuccess) cudaGetLastError();
}

}  // namespace

CudaStatus cuda_status() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return {0, cudaGetErrorString(error)};
  }
  return {devices, devices > 0 ? "" : "there is no CUDA device"};
}

int compute_capability(int device) {
  int major = 0, minor = 0;
  FINERCAM_CUDA_CHECK_AS(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                         "reading the compute capability of cuda:", device);
  FINERCAM_CUDA_CHECK_AS(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
                         "reading the compute capability of cuda:", device);
  return 10 * major + minor;
}

std::string device_name(int device) {
  cudaDeviceProp properties{};
  FINERCAM_CUDA_CHECK_AS(cudaGetDeviceProperties(&properties, device), "reading the name of cuda:", device);
  return properties.name;
}

Former make_current(int device) {
  Former former{-1, cudaStreamCaptureModeGlobal};
  int current = 0;
  FINERCAM_CUDA_CHECK_AS(cudaGetDevice(&current), "using the device cuda:", device);
  if (current != device) {
    FINERCAM_CUDA_CHECK_AS(cudaSetDevice(device), "using the device cuda:", device);
    former.device = current;
  }
  // Only now: in a thread without a context the runtime makes one for this call, on the current device.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal;
  const cudaError_t failed = exchange_mode(mode);
  if (failed == cudaSuccess) {
    former.mode = mode;
    if (mode == cudaStreamCaptureModeRelaxed) exchange_mode(mode);  // it was freer
  } else {
    restore_device(former.device);
  }
  FINERCAM_CUDA_CHECK_AS(failed, "using the device cuda:", device);
  return former;
}

void restore_current(const Former& former) noexcept {
  auto mode = static_cast<cudaStreamCaptureMode>(former.mode);
  exchange_mode(mode);
  restore_device(former.device);
}

MemoryInfo memory_info(int device) {
  const DeviceScope scope(device);
  MemoryInfo info{};
  FINERCAM_CUDA_CHECK_AS(cudaMemGetInfo(&info.free, &info.total), "reading the memory of cuda:", device);
  return info;
}

DeviceMemory::DeviceMemory(std::size_t bytes, int device) : bytes_(bytes), device_(device) {
  const DeviceScope scope(device);
  FINERCAM_CUDA_ALLOCATED(cudaMalloc(&memory_, bytes), bytes, " of cuda:", device);
}

void DeviceMemory::release() noexcept {
  if (memory_ == nullptr) return;
  const ReleaseScope scope(device_);
  if (scope.usable()) cudaFree(memory_);
  memory_ = nullptr;
}

PinnedMemory::PinnedMemory(std::size_t bytes, int device) : bytes_(bytes), device_(device) {
  const DeviceScope scope(device);
  FINERCAM_CUDA_ALLOCATED(cudaHostAlloc(&memory_, bytes, cudaHostAllocPortable), bytes, " of the host, locked,");
}

void PinnedMemory::release() noexcept {
  if (memory_ == nullptr) return;
  const ReleaseScope scope(device_);
  if (scope.usable()) cudaFreeHost(memory_);
  memory_ = nullptr;
}

}  // namespace finercam
