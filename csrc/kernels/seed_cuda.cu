// The seed of each contrast, in one launch: the arithmetic of seed_math.h.
//
// grid (N * P): a block per contrast. Each class that is to be found, the target by its rank and the automatic
// references by their distance, takes one reading of the K logits: the block's smallest key behind the last one found.
// The logits of an image lie in the L2 after the first. One thread does the arithmetic of the 1 + R values.
#include "core/cuda_check.h"
#include "kernels/seed.h"
#include "kernels/seed_math.h"

namespace finercam {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 4;  // of a multiprocessor; left to itself the compiler makes room for more, with a stack
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;

__device__ __forceinline__ ClassKey smaller(ClassKey a, ClassKey b) { return a < b ? a : b; }

// The first class of an order behind `last`, of those that `key` does not give kNoClass, in every thread. All threads
// of the block must call it.
template <typename Key>
__device__ __forceinline__ ClassKey next(int classes, bool any, ClassKey last, const Key& key) {
  __shared__ ClassKey of_warp[kWarps];
  ClassKey best = kNoClass;
  for (int k = threadIdx.x; k < classes; k += kThreads) {
    const ClassKey own = key(k);
    if (!any || own > last) best = smaller(best, own);
  }
  for (int step = kWarp / 2; step > 0; step /= 2) best = smaller(best, __shfl_xor_sync(0xffffffffu, best, step));
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = best;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) best = smaller(best, of_warp[warp]);
  __syncthreads();
  return best;
}

__global__ void __launch_bounds__(kThreads, kBlocks) seed_kernel(const __grid_constant__ SeedArgs args) {
  const SeedRow row = seed_row(args, blockIdx.x);
  const int classes = static_cast<int>(args.classes);
  std::int64_t target = args.target[row.number];
  if (target < 0) {
    ClassKey found = 0;
    for (std::int64_t rank = 0; rank <= target_rank(args, target); ++rank) {
      found = next(classes, rank > 0, found, [&](int k) { return logit_key(row.logits[k], k); });
    }
    target = class_of(found);
  }
  if (threadIdx.x == 0) args.target_class[row.number] = target;
  const float target_logit = target < args.classes ? row.logits[target] : 0.0f;
  ClassKey nearest = 0;
  bool any = false;
  for (std::int64_t r = 0; r < args.references; ++r) {
    std::int64_t reference = pinned(row, target, r);
    if (row.reference[r] == kAutomatic && target < args.classes && nearest != kNoClass) {
      nearest = next(classes, any, nearest, [&](int k) {
        return is_taken(args, row, target, k) ? kNoClass : distance_key(row.logits[k], target_logit, k);
      });
      any = true;
      if (nearest != kNoClass) reference = class_of(nearest);
    }
    if (threadIdx.x == 0) row.reference_classes[r] = reference;
  }
  if (args.dense != nullptr) {
    float* dense = args.dense + row.number * args.classes;
    for (int k = threadIdx.x; k < classes; k += kThreads) dense[k] = 0.0f;
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  write_values<float>(args, row, target);
  if (args.dense != nullptr) scatter_values(args, row);
}

}  // namespace

void seed_cuda(const SeedArgs& args, int device, void* stream) {
  const std::int64_t contrasts = args.batch * args.contrasts;
  FINERCAM_CHECK(contrasts <= 2147483647, "seed", "expected less than 2^31 contrasts on CUDA, got ", contrasts);
  const DeviceScope scope(device);
  seed_kernel<<<static_cast<unsigned>(contrasts), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  FINERCAM_CUDA_CHECK_AS(cudaGetLastError(), "its launch");
}

}  // namespace finercam
