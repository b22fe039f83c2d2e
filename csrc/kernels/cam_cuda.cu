// ReLU(sum_k w_k A_k), w_k from the sum of G_k over its positions, in one launch.
//
// A, G: (N, C, h, w) through any strides, T. map: (N, h * w) float, contiguous.
// grid (chunks, N): a block takes one chunk of the channels of one image.
//   1. pool: the weights of its channels, in shared memory. planar: a warp per channel, lanes along positions;
//      otherwise threads along channels.
//   2. weighted sum: its part of the map. planar: threads along positions; otherwise a warp per position, lanes along
//      channels. Where threads run along less than a block's worth, groups of them share the other axis.
//   3. The last block of an image to finish adds up the parts of all, always in the order of the chunks, and rectifies:
//      the result does not depend on the order in which blocks ran. With one chunk the block writes the map itself.
// Either way a warp reads neighbouring addresses of each input, and each input is read once.
#include <algorithm>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <type_traits>

#include "core/cuda_check.h"
#include "kernels/cam.h"
#include "kernels/cam_methods.h"

namespace finercam {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxChunk = 512;  // channels of a block: its weights take 2 KiB of shared memory
constexpr int kMinChunk = 32;   // below this a block's reading does not repay its part of the reduction

__device__ __forceinline__ float load(const float* value) { return *value; }
__device__ __forceinline__ float load(const Half* value) { return __half2float(__ushort_as_half(value->bits)); }
__device__ __forceinline__ float load(const BFloat16* value) {
  return __bfloat162float(__ushort_as_bfloat16(value->bits));
}

template <typename T>
struct Feature {
  const T* data;
  std::int64_t batch_stride, channel_stride, column_stride;
  std::int64_t row_gap;  // elements between the end of a row and the next; zero spares a division per element
  int width;

  __device__ __forceinline__ const T* channel(int image, int index) const {
    return data + image * batch_stride + index * channel_stride;
  }
  __device__ __forceinline__ std::int64_t offset(int position) const {
    if (row_gap == 0) return position * column_stride;
    return position * column_stride + position / width * row_gap;
  }
};

__device__ __forceinline__ float warp_sum(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// In the first `span` threads: the sum over the groups, each of `span` threads. All threads of the block must call
// this.
__device__ __forceinline__ float group_sum(float value, int span, int groups, float* scratch) {
  if (groups == 1) return value;
  scratch[threadIdx.x] = value;
  __syncthreads();
  for (int other = 1; threadIdx.x < span && other < groups; ++other) value += scratch[other * span + threadIdx.x];
  __syncthreads();
  return value;
}

struct CamSizes {
  int channels, positions, chunk;
};

template <typename Policy, bool kPlanar, typename T>
__device__ void pool(const Feature<T>& gradients, const CamSizes& sizes, int image, int first, int count,
                     float* weights, float* scratch) {
  const float positions = static_cast<float>(sizes.positions);
  if constexpr (kPlanar) {
    const int lane = threadIdx.x % kWarp;
    for (int k = threadIdx.x / kWarp; k < count; k += kWarps) {
      const T* channel = gradients.channel(image, first + k);
      float sum = 0.0f;
      for (int p = lane; p < sizes.positions; p += kWarp) sum += load(channel + gradients.offset(p));
      sum = warp_sum(sum);
      if (lane == 0) weights[k] = Policy::weight(sum, positions);
    }
  } else {
    const int span = min((count + kWarp - 1) / kWarp * kWarp, kThreads);
    const int groups = kThreads / span;
    const int group = threadIdx.x / span;
    for (int start = 0; start < count; start += span) {
      const int k = start + threadIdx.x % span;
      float sum = 0.0f;
      if (group < groups && k < count) {
        const T* channel = gradients.channel(image, first + k);
        for (int p = group; p < sizes.positions; p += groups) sum += load(channel + gradients.offset(p));
      }
      sum = group_sum(sum, span, groups, scratch);
      if (group == 0 && k < count) weights[k] = Policy::weight(sum, positions);
    }
  }
}

// Calls write(position, sum) once for each position, from one thread. All threads of the block must call this.
template <bool kPlanar, typename T, typename Write>
__device__ void weighted_sum(const Feature<T>& activations, const CamSizes& sizes, int image, int first, int count,
                             const float* weights, float* scratch, const Write& write) {
  if constexpr (kPlanar) {
    const int span = min((sizes.positions + kWarp - 1) / kWarp * kWarp, kThreads);
    const int groups = kThreads / span;
    const int group = threadIdx.x / span;
    for (int start = 0; start < sizes.positions; start += span) {
      const int position = start + threadIdx.x % span;
      float sum = 0.0f;
      if (group < groups && position < sizes.positions) {
        const std::int64_t offset = activations.offset(position);
        for (int k = group; k < count; k += groups) {
          sum = fmaf(weights[k], load(activations.channel(image, first + k) + offset), sum);
        }
      }
      sum = group_sum(sum, span, groups, scratch);
      if (group == 0 && position < sizes.positions) write(position, sum);
    }
  } else {
    const int lane = threadIdx.x % kWarp;
    for (int position = threadIdx.x / kWarp; position < sizes.positions; position += kWarps) {
      const std::int64_t offset = activations.offset(position);
      float sum = 0.0f;
      for (int k = lane; k < count; k += kWarp) {
        sum = fmaf(weights[k], load(activations.channel(image, first + k) + offset), sum);
      }
      sum = warp_sum(sum);
      if (lane == 0) write(position, sum);
    }
  }
}

// parts: (N, chunks, positions) float; finished: (N,) zeroed counters. Both are unused with one chunk.
template <typename Policy, bool kPlanarGradients, bool kPlanarActivations, typename T>
__global__ void __launch_bounds__(kThreads)
    cam_kernel(const Feature<T> activations, const Feature<T> gradients, const CamSizes sizes,
               float* __restrict__ parts, unsigned* __restrict__ finished, float* __restrict__ map) {
  __shared__ float weights[kMaxChunk];
  __shared__ float scratch[kThreads];
  __shared__ bool is_last;
  const int chunks = gridDim.x;
  const int image = blockIdx.y;
  const int first = blockIdx.x * sizes.chunk;
  const int count = min(sizes.chunk, sizes.channels - first);
  float* out = map + static_cast<std::int64_t>(image) * sizes.positions;

  pool<Policy, kPlanarGradients>(gradients, sizes, image, first, count, weights, scratch);
  __syncthreads();
  if (chunks == 1) {
    weighted_sum<kPlanarActivations>(activations, sizes, image, first, count, weights, scratch,
                                     [&](int position, float sum) { out[position] = rectify(sum); });
    return;
  }
  float* part = parts + (static_cast<std::int64_t>(image) * chunks + blockIdx.x) * sizes.positions;
  weighted_sum<kPlanarActivations>(activations, sizes, image, first, count, weights, scratch,
                                   [&](int position, float sum) { part[position] = sum; });
  __threadfence();  // the part is visible to every block before the counter says so
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(finished + image, 1u) == static_cast<unsigned>(chunks - 1);
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  const float* all = parts + static_cast<std::int64_t>(image) * chunks * sizes.positions;
  for (int position = threadIdx.x; position < sizes.positions; position += kThreads) {
    float sum = 0.0f;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      sum += __ldcg(all + static_cast<std::int64_t>(chunk) * sizes.positions + position);
    }
    out[position] = rectify(sum);
  }
}

template <typename T>
Feature<T> feature_of(const FeatureView& view) {
  return {static_cast<const T*>(view.data),
          view.batch_stride,
          view.channel_stride,
          view.width > 1 ? view.column_stride : view.row_stride,
          view.width > 1 && view.height > 1 ? view.row_stride - view.width * view.column_stride : 0,
          static_cast<int>(view.width)};
}

// Whether neighbouring threads should walk along positions rather than channels.
bool is_planar(const FeatureView& view) {
  if (view.positions() == 1) return false;
  const std::int64_t step = view.width > 1 ? view.column_stride : view.row_stride;
  return view.channels == 1 || std::abs(step) <= std::abs(view.channel_stride);
}

// Enough blocks for two on every multiprocessor, of chunks that repay their part of the reduction.
int chunk_of(const FeatureView& view, int device) {
  int processors = 0;
  FINERCAM_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  const std::int64_t wanted = (2 * processors + view.batch - 1) / view.batch;
  const std::int64_t chunk = (view.channels + wanted - 1) / wanted;
  return static_cast<int>(std::clamp<std::int64_t>(chunk, kMinChunk, kMaxChunk));
}

template <typename Policy, typename T>
void launch(const FeatureView& activations, const FeatureView& gradients, float* map, int device, cudaStream_t stream) {
  const int chunk = chunk_of(activations, device);
  const CamSizes sizes{static_cast<int>(activations.channels), static_cast<int>(activations.positions()), chunk};
  const int chunks = (sizes.channels + chunk - 1) / chunk;
  const auto batch = static_cast<unsigned>(activations.batch);
  const std::size_t counters = batch * sizeof(unsigned);
  unsigned* finished = nullptr;
  if (chunks > 1) {
    const std::size_t parts = sizeof(float) * batch * static_cast<std::size_t>(chunks) * sizes.positions;
    FINERCAM_CUDA_CHECK(
        cudaMallocAsync(reinterpret_cast<void**>(&finished), (counters + 255) / 256 * 256 + parts, stream));
    FINERCAM_CUDA_CHECK(cudaMemsetAsync(finished, 0, counters, stream));
  }
  float* parts = chunks == 1 ? nullptr : reinterpret_cast<float*>(finished) + (counters + 255) / 256 * 64;
  const dim3 grid(static_cast<unsigned>(chunks), batch);
  const Feature<T> a = feature_of<T>(activations);
  const Feature<T> g = feature_of<T>(gradients);
  const auto start = [&](auto planar_gradients, auto planar_activations) {
    cam_kernel<Policy, decltype(planar_gradients)::value, decltype(planar_activations)::value>
        <<<grid, kThreads, 0, stream>>>(a, g, sizes, parts, finished, map);
  };
  if (is_planar(gradients)) {
    is_planar(activations) ? start(std::true_type{}, std::true_type{}) : start(std::true_type{}, std::false_type{});
  } else {
    is_planar(activations) ? start(std::false_type{}, std::true_type{}) : start(std::false_type{}, std::false_type{});
  }
  const cudaError_t launched = cudaGetLastError();
  if (finished != nullptr) FINERCAM_CUDA_CHECK(cudaFreeAsync(finished, stream));
  FINERCAM_CUDA_CHECK(launched);
}

}  // namespace

void cam_cuda(Method method, const FeatureView& activations, const FeatureView& gradients, float* map, int device,
              void* stream) {
  constexpr std::int64_t kMaxInt = 2147483647;
  FINERCAM_CHECK(activations.batch <= 65535, "cam", "expected a batch of at most 65535 on CUDA, got ",
                 activations.batch);
  FINERCAM_CHECK(activations.positions() <= kMaxInt && activations.channels <= kMaxInt, "cam",
                 "expected sizes below 2^31 on CUDA, got (", activations.batch, ", ", activations.channels, ", ",
                 activations.height, ", ", activations.width, ")");
  const DeviceScope scope(device);
  visit_dtype(activations.dtype, "cam", [&](auto zero) {
    using T = decltype(zero);
    switch (method) {
      case Method::kGradCam:
        return launch<GradCam, T>(activations, gradients, map, device, static_cast<cudaStream_t>(stream));
    }
  });
}

}  // namespace finercam
