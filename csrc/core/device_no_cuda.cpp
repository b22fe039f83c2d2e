#include "core/check.h"
#include "core/device.h"

#define FINERCAM_NO_CUDA FINERCAM_CHECK(false, "device", "expected a build with CUDA, got one without")

namespace finercam {

CudaStatus cuda_status() { return {0, "this build of finercam-rt has no CUDA kernels"}; }

int compute_capability(int) { FINERCAM_NO_CUDA; }

std::string device_name(int) { FINERCAM_NO_CUDA; }

Former make_current(int) { FINERCAM_NO_CUDA; }

void restore_current(const Former&) noexcept {}

MemoryInfo memory_info(int) { FINERCAM_NO_CUDA; }

DeviceMemory::DeviceMemory(std::size_t bytes, int device) : bytes_(bytes), device_(device) { FINERCAM_NO_CUDA; }

void DeviceMemory::release() noexcept {}

PinnedMemory::PinnedMemory(std::size_t bytes, int device) : bytes_(bytes), device_(device) { FINERCAM_NO_CUDA; }

void PinnedMemory::release() noexcept {}

}  // namespace finercam
