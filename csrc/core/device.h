// CUDA devices and their memory, for bindings that know nothing of CUDA.
#pragma once

#include <cstddef>
#include <string>

namespace finercam {

struct CudaStatus {
  int devices;         // usable CUDA devices
  std::string reason;  // why there is none; empty where there is one
};

CudaStatus cuda_status();

// 10 * major + minor of a device, such as 89. Throws std::runtime_error.
int compute_capability(int device);

// Memory of a device; freeing waits for the work that may still use it. Throws std::runtime_error.
void* device_allocate(std::size_t bytes, int device);
void device_free(void* memory, int device) noexcept;

}  // namespace finercam
