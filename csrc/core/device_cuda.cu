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
  FINERCAM_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  FINERCAM_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return 10 * major + minor;
}

void* device_allocate(std::size_t bytes, int device) {
  const DeviceScope scope(device);
  void* memory = nullptr;
  FINERCAM_CUDA_CHECK(cudaMalloc(&memory, bytes));
  return memory;
}

void device_free(void* memory, int device) noexcept {
  // At interpreter exit the driver may be gone already; then there is nothing left to free.
  int former = 0;
  if (cudaGetDevice(&former) != cudaSuccess || cudaSetDevice(device) != cudaSuccess) return;
  cudaFree(memory);
  cudaSetDevice(former);
}

}  // namespace finercam
