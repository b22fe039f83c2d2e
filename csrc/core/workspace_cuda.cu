#include <map>
#include <mutex>

#include "core/cuda_check.h"
#include "core/workspace.h"

namespace finercam {
namespace {

cudaMemPool_t new_pool(int device) {
  const OutsideCapture scope;
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;  // the only type there is
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  cudaMemPool_t pool = nullptr;
  FINERCAM_CUDA_CHECK_AS(cudaMemPoolCreate(&pool, &properties), "making a memory pool");
  auto kept = Workspace::kKeptBytes;
  const cudaError_t set = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept);
  if (set != cudaSuccess) cudaMemPoolDestroy(pool);
  FINERCAM_CUDA_CHECK_AS(set, "setting up a memory pool");
  return pool;
}

// The driver frees the pools when the process ends: at its exit streams may still be at work.
cudaMemPool_t pool_of(int device) {
  static std::mutex mutex;
  static auto& pools = *new std::map<int, cudaMemPool_t>;
  const std::scoped_lock lock(mutex);
  const auto found = pools.find(device);
  if (found != pools.end()) return found->second;
  return pools[device] = new_pool(device);
}

}  // namespace

Workspace::Workspace(std::size_t bytes, int device, cudaStream_t stream) : stream_(stream) {
  if (bytes == 0) return;
  FINERCAM_CUDA_ALLOCATED(cudaMallocFromPoolAsync(&memory_, bytes, pool_of(device), stream), bytes);
}

Workspace::~Workspace() {
  // It fails where the device is lost, which the call before it has said.
  if (memory_ != nullptr && cudaFreeAsync(memory_, stream_) != cudaSuccess) cudaGetLastError();
}

}  // namespace finercam
