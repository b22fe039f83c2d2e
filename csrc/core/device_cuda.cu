#include "core/cuda_check.h"
#include "core/device.h"

namespace finercam {

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

int make_current(int device) {
  int former = 0;
  FINERCAM_CUDA_CHECK_AS(cudaGetDevice(&former), "using the device cuda:", device);
  if (former != device) FINERCAM_CUDA_CHECK_AS(cudaSetDevice(device), "using the device cuda:", device);
  return former;
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
