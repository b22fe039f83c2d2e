// A radix sort of each map from the least significant digit, four of 8 bits, by one block a map.
//
// maps (N, H, W) float, any strides; ranks (N, H * W), contiguous; items (N, 2, H * W): key and pixel, the two buffers
// of the passes. The warps of a block share a map's items out in order, each a chunk. In a pass every warp counts the
// digits of its chunk; a scan over (digit, warp) turns the counts into places; then every warp walks its chunk again,
// 32 items at a time, and lanes with equal digits take places in the order of the lanes (__match_any_sync). So the sort
// is stable, whatever order the warps run in. The last pass writes ranks and no items.
#include <vector>

#include "core/cuda_check.h"
#include "core/workspace.h"
#include "kernels/rank.h"
#include "kernels/rank_key.h"

namespace finercam {
namespace {

constexpr int kThreads = 512;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBits = 8;
constexpr int kBuckets = 1 << kBits;
constexpr int kDigits = 32 / kBits;
constexpr unsigned kAllLanes = 0xffffffffu;

// The key of a pixel above, its index below.
using Item = unsigned long long;

__device__ __forceinline__ int digit_of(Item item, int digit) {
  return static_cast<int>(item >> (32 + digit * kBits)) & (kBuckets - 1);
}

// counts[warp][digit] becomes the place of the warp's first item of that digit. All threads of the block must call it.
__device__ void scan(unsigned (*counts)[kBuckets], unsigned* sums) {
  const int bucket = threadIdx.x;
  unsigned total = 0;
  if (bucket < kBuckets) {
    for (int warp = 0; warp < kWarps; ++warp) total += counts[warp][bucket];
    sums[bucket] = total;
  }
  __syncthreads();
  for (int step = 1; step < kBuckets; step *= 2) {
    const unsigned before = bucket < kBuckets && bucket >= step ? sums[bucket - step] : 0u;
    __syncthreads();
    if (bucket < kBuckets) sums[bucket] += before;
    __syncthreads();
  }
  if (bucket < kBuckets) {
    unsigned place = sums[bucket] - total;
    for (int warp = 0; warp < kWarps; ++warp) {
      const unsigned count = counts[warp][bucket];
      counts[warp][bucket] = place;
      place += count;
    }
  }
  __syncthreads();
}

// Calls use(item, place) for the items [first, last) of a warp's chunk, in which place counts up for each digit from
// next[digit]. All lanes of the warp must call it.
template <typename Load, typename Use>
__device__ void for_places(const Load& load, int first, int last, int digit, unsigned* next, const Use& use) {
  const unsigned lane = threadIdx.x % kWarp;
  for (int start = first; start < last; start += kWarp) {
    const int i = start + static_cast<int>(lane);
    const unsigned active = __ballot_sync(kAllLanes, i < last);
    if (i < last) {
      const Item item = load(i);
      const int bucket = digit_of(item, digit);
      const unsigned peers = __match_any_sync(active, bucket);
      const unsigned place = next[bucket] + __popc(peers & ((1u << lane) - 1u));
      __syncwarp(active);  // every lane has read its place before the first of them moves it on
      if (__ffs(peers) - 1 == static_cast<int>(lane)) next[bucket] += __popc(peers);
      use(item, place);
    }
    __syncwarp();
  }
}

__global__ void __launch_bounds__(kThreads)
    rank_kernel(const __grid_constant__ RankArgs args, Item* __restrict__ items, unsigned char* __restrict__ wrong) {
  __shared__ unsigned counts[kWarps][kBuckets];
  __shared__ unsigned sums[kBuckets];
  const std::int64_t image = blockIdx.x;
  const int pixels = static_cast<int>(args.pixels());
  const int width = static_cast<int>(args.width);
  const float* map = args.maps + image * args.strides.batch;
  std::int32_t* ranks = args.ranks + image * pixels;
  Item* from = items + 2 * image * pixels;
  Item* to = from + pixels;

  bool finite = true;
  for (int i = threadIdx.x; i < pixels; i += kThreads) {
    const RankKey found = rank_key(map[i / width * args.strides.row + i % width * args.strides.column]);
    finite = finite && found.finite;
    from[i] = static_cast<Item>(found.key) << 32 | static_cast<unsigned>(i);
  }
  const bool is_wrong = __syncthreads_or(!finite) != 0;
  if (threadIdx.x == 0) wrong[image] = is_wrong;
  if (is_wrong) return;

  const int warp = threadIdx.x / kWarp;
  const std::int64_t chunk = (static_cast<std::int64_t>(pixels) + kWarps - 1) / kWarps;
  const int first = static_cast<int>(min(warp * chunk, static_cast<std::int64_t>(pixels)));
  const int last = static_cast<int>(min((warp + 1) * chunk, static_cast<std::int64_t>(pixels)));
  for (int digit = 0; digit < kDigits; ++digit) {
    const auto load = [from](int i) { return from[i]; };
    for (int i = threadIdx.x; i < kWarps * kBuckets; i += kThreads) counts[i / kBuckets][i % kBuckets] = 0u;
    __syncthreads();
    for_places(load, first, last, digit, counts[warp], [](Item, unsigned) {});
    __syncthreads();
    scan(counts, sums);
    if (digit < kDigits - 1) {
      for_places(load, first, last, digit, counts[warp], [to](Item item, unsigned place) { to[place] = item; });
    } else {
      for_places(load, first, last, digit, counts[warp],
                 [ranks](Item item, unsigned place) { ranks[item & 0xffffffffu] = static_cast<std::int32_t>(place); });
    }
    __syncthreads();
    Item* const sorted = to;
    to = from;
    from = sorted;
  }
}

}  // namespace

std::int64_t rank_cuda(const RankArgs& args, int device, void* stream) {
  const DeviceScope scope(device);
  const auto on = static_cast<cudaStream_t>(stream);
  const auto batch = static_cast<std::size_t>(args.batch);
  const std::size_t bytes = sizeof(Item) * 2 * batch * static_cast<std::size_t>(args.pixels());
  const Workspace workspace(bytes + batch, device, on);
  auto* items = static_cast<Item*>(workspace.address());
  auto* wrong = static_cast<unsigned char*>(workspace.address()) + bytes;
  rank_kernel<<<static_cast<unsigned>(batch), kThreads, 0, on>>>(args, items, wrong);
  FINERCAM_CUDA_CHECK_AS(cudaGetLastError(), "its launch");
  std::vector<unsigned char> found(batch);
  FINERCAM_CUDA_CHECK_AS(cudaMemcpyAsync(found.data(), wrong, batch, cudaMemcpyDeviceToHost, on),
                         "its copy to the host");
  FINERCAM_CUDA_CHECK_AS(cudaStreamSynchronize(on), "waiting for it");
  for (std::size_t image = 0; image < batch; ++image) {
    if (found[image] != 0) return static_cast<std::int64_t>(image);
  }
  return -1;
}

}  // namespace finercam
