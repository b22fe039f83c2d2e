// Copies of images with ranked pixels replaced, in one launch.
//
// images, fill (N, C, H, W) float and ranks (N, H, W) int, any strides; counts (N, S); out (N, S, C, H * W).
// grid (blocks, N): threads run along pixels, so a warp writes neighbouring addresses; a thread reads the ranks, the
// pixels and their fills once for all S copies: of four pixels at a time, 16 bytes, where all planes are contiguous and
// aligned, else of one. A fill of one value a channel and the counts are brought over from the host.
#include <algorithm>
#include <cstring>

#include "core/cuda_check.h"
#include "core/workspace.h"
#include "kernels/remove.h"

namespace finercam {
namespace {

constexpr int kThreads = 256;

template <typename T, int V>
struct Pixels {
  T of[V];
};

template <int V, typename T>
__device__ __forceinline__ Pixels<T, V> load(const T* values) {
  static_assert(sizeof(T) == 4);
  Pixels<T, V> found;
  if constexpr (V == 4) {
    const uint4 raw = __ldg(reinterpret_cast<const uint4*>(values));
    memcpy(found.of, &raw, sizeof raw);
  } else {
    found.of[0] = *values;
  }
  return found;
}

template <int V>
__global__ void __launch_bounds__(kThreads)
    remove_kernel(const __grid_constant__ RemoveArgs args, const std::int32_t* __restrict__ counts,
                  const float* __restrict__ fill) {
  const std::int64_t image = blockIdx.y;
  const std::int64_t pixels = args.pixels();
  const int steps = static_cast<int>(args.steps);
  const int channels = static_cast<int>(args.channels);
  const int width = static_cast<int>(args.width);
  const std::int32_t* limits = counts + image * steps;
  const std::int64_t step_size = static_cast<std::int64_t>(gridDim.x) * kThreads * V;
  for (std::int64_t p = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V; p < pixels;
       p += step_size) {
    const auto offset = [image, p, width](const Strides& strides) {
      if constexpr (V > 1) return image * strides.batch + p * strides.column;
      return image * strides.batch + p / width * strides.row + p % width * strides.column;
    };
    const Pixels<std::int32_t, V> ranks = load<V>(args.ranks + offset(args.rank_strides));
    const float* kept = args.images + offset(args.image_strides);
    const float* filled = fill + offset(args.fill_strides);
    float* out = args.out + image * steps * channels * pixels + p;
    for (int c = 0; c < channels; ++c) {
      const Pixels<float, V> pixel = load<V>(kept + c * args.image_strides.channel);
      Pixels<float, V> replacement;
      if (V > 1 && args.fill_strides.column == 0) {
#pragma unroll
        for (int i = 0; i < V; ++i) replacement.of[i] = filled[c * args.fill_strides.channel];
      } else {
        replacement = load<V>(filled + c * args.fill_strides.channel);
      }
      for (int s = 0; s < steps; ++s) {
        Pixels<float, V> copy;
#pragma unroll
        for (int i = 0; i < V; ++i) copy.of[i] = ranks.of[i] < limits[s] ? replacement.of[i] : pixel.of[i];
        float* place = out + (static_cast<std::int64_t>(s) * channels + c) * pixels;
        if constexpr (V == 4) {
          __stwb(reinterpret_cast<float4*>(place),
                 make_float4(copy.of[0], copy.of[1], copy.of[2], copy.of[3]));  // a plain store is taken apart
        } else {
          *place = copy.of[0];
        }
      }
    }
  }
}

// Whether planes can be read by four values: contiguous, and each starts on 16 bytes.
bool has_vectors(const RemoveArgs& args, const void* data, const Strides& strides) {
  return strides.is_flat(args.height, args.width) && strides.column == 1 && strides.batch % 4 == 0 &&
         strides.channel % 4 == 0 && reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
}

bool by_vectors(const RemoveArgs& args) {
  const Strides& fill = args.fill_strides;
  const bool one_fill = fill.column == 0 && fill.row == 0;
  return args.pixels() % 4 == 0 && reinterpret_cast<std::uintptr_t>(args.out) % 16 == 0 &&
         has_vectors(args, args.images, args.image_strides) && has_vectors(args, args.ranks, args.rank_strides) &&
         (one_fill || has_vectors(args, args.fill, fill));
}

}  // namespace

void remove_cuda(const RemoveArgs& args, int device, void* stream) {
  FINERCAM_CHECK(args.batch <= 65535, "remove", "expected a batch of at most 65535 on CUDA, got ", args.batch);
  const DeviceScope scope(device);
  const auto on = static_cast<cudaStream_t>(stream);
  cudaStreamCaptureStatus captured = cudaStreamCaptureStatusNone;
  FINERCAM_CUDA_CHECK_AS(cudaStreamIsCapturing(on, &captured), "asking whether its stream is captured");
  // A graph would copy the counts and the fill from the host's memory at each launch, when it is someone else's.
  FINERCAM_CHECK(captured == cudaStreamCaptureStatusNone, "remove", "expected a stream that is not captured");
  int processors = 0;
  FINERCAM_CUDA_CHECK_AS(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
                         "reading the number of multiprocessors");
  const std::size_t counts_bytes = sizeof(std::int32_t) * static_cast<std::size_t>(args.batch * args.steps);
  const std::size_t fill_bytes = args.fill_on_host ? sizeof(float) * static_cast<std::size_t>(args.channels) : 0;
  const Workspace workspace(counts_bytes + fill_bytes, device, on);
  auto* brought = static_cast<char*>(workspace.address());
  // From pageable memory: the values are taken before the call returns.
  FINERCAM_CUDA_CHECK_AS(cudaMemcpyAsync(brought, args.counts, counts_bytes, cudaMemcpyHostToDevice, on),
                         "copying its counts");
  if (args.fill_on_host) {
    FINERCAM_CUDA_CHECK_AS(cudaMemcpyAsync(brought + counts_bytes, args.fill, fill_bytes, cudaMemcpyHostToDevice, on),
                           "copying its fill");
  }
  const bool vectors = by_vectors(args);
  const std::int64_t values = vectors ? args.pixels() / 4 : args.pixels();
  const std::int64_t needed = (values + kThreads - 1) / kThreads;
  const std::int64_t wanted = (16 * processors + args.batch - 1) / args.batch;
  const dim3 grid(static_cast<unsigned>(std::min(needed, wanted)), static_cast<unsigned>(args.batch));
  const float* fill = args.fill_on_host ? reinterpret_cast<const float*>(brought + counts_bytes) : args.fill;
  const auto kernel = vectors ? &remove_kernel<4> : &remove_kernel<1>;
  kernel<<<grid, kThreads, 0, on>>>(args, reinterpret_cast<const std::int32_t*>(brought), fill);
  FINERCAM_CUDA_CHECK_AS(cudaGetLastError(), "its launch");
}

}  // namespace finercam
