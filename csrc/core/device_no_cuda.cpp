#include "core/check.h"
#include "core/device.h"

namespace finercam {

CudaStatus cuda_status() { return {0, "this build of finercam-rt has no CUDA kernels"}; }

int compute_capability(int) { FINERCAM_CHECK(false, "device", "expected a build with CUDA, got one without"); }

void* device_allocate(std::size_t, int) {
  FINERCAM_CHECK(false, "device", "expected a build with CUDA, got one without");
}

void device_free(void*, int) noexcept {}

}  // namespace finercam
