// Copies of images with ranked pixels replaced, in one launch.
//
// images, fill (N, C, H, W) float and ranks (N, H, W) int, any strides; counts (N, S); out (N, S, C, H * W).
// grid (blocks, N): threads run along pixels, so a warp writes neighbouring addresses; a thread reads the rank, the
// pixel and its fill once for all S copies. A fill of one value a channel and the counts are brought over from the
// host.
#include <algorithm>

#include "core/cuda_check.h"
#include "kernels/remove.h"

namespace finercam {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    remove_kernel(const __grid_constant__ RemoveArgs args, const std::int32_t* __restrict__ counts,
                  const float* __restrict__ fill) {
  const std::int64_t image = blockIdx.y;
  const std::int64_t pixels = args.pixels();
  const int steps = static_cast<int>(args.steps);
  const int channels = static_cast<int>(args.channels);
  const int width = static_cast<int>(args.width);
  const std::int32_t* limits = counts + image * steps;
  const int step_size = static_cast<int>(gridDim.x) * kThreads;
  for (std::int64_t p = blockIdx.x * kThreads + threadIdx.x; p < pixels; p += step_size) {
    const std::int64_t y = p / width;
    const std::int64_t x = p % width;
    const auto offset = [image, y, x](const Strides& strides) {
      return image * strides.batch + y * strides.row + x * strides.column;
    };
    const std::int32_t rank = args.ranks[offset(args.rank_strides)];
    const float* kept = args.images + offset(args.image_strides);
    const float* filled = fill + offset(args.fill_strides);
    float* out = args.out + image * steps * channels * pixels + p;
    for (int c = 0; c < channels; ++c) {
      const float pixel = kept[c * args.image_strides.channel];
      const float replacement = filled[c * args.fill_strides.channel];
      for (int s = 0; s < steps; ++s) {
        out[(static_cast<std::int64_t>(s) * channels + c) * pixels] = rank < limits[s] ? replacement : pixel;
      }
    }
  }
}

}  // namespace

void remove_cuda(const RemoveArgs& args, int device, void* stream) {
  FINERCAM_CHECK(args.batch <= 65535, "remove", "expected a batch of at most 65535 on CUDA, got ", args.batch);
  const DeviceScope scope(device);
  const auto on = static_cast<cudaStream_t>(stream);
  int processors = 0;
  FINERCAM_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  const std::size_t counts_bytes = sizeof(std::int32_t) * static_cast<std::size_t>(args.batch * args.steps);
  const std::size_t fill_bytes = args.fill_on_host ? sizeof(float) * static_cast<std::size_t>(args.channels) : 0;
  char* brought = nullptr;
  FINERCAM_CUDA_CHECK(cudaMallocAsync(reinterpret_cast<void**>(&brought), counts_bytes + fill_bytes, on));
  // From pageable memory: the values are taken before the call returns.
  cudaError_t failed = cudaMemcpyAsync(brought, args.counts, counts_bytes, cudaMemcpyHostToDevice, on);
  if (failed == cudaSuccess && args.fill_on_host) {
    failed = cudaMemcpyAsync(brought + counts_bytes, args.fill, fill_bytes, cudaMemcpyHostToDevice, on);
  }
  if (failed == cudaSuccess) {
    const std::int64_t needed = (args.pixels() + kThreads - 1) / kThreads;
    const std::int64_t wanted = (16 * processors + args.batch - 1) / args.batch;
    const dim3 grid(static_cast<unsigned>(std::min(needed, wanted)), static_cast<unsigned>(args.batch));
    const float* fill = args.fill_on_host ? reinterpret_cast<const float*>(brought + counts_bytes) : args.fill;
    remove_kernel<<<grid, kThreads, 0, on>>>(args, reinterpret_cast<const std::int32_t*>(brought), fill);
    failed = cudaGetLastError();
  }
  FINERCAM_CUDA_CHECK(cudaFreeAsync(brought, on));
  FINERCAM_CUDA_CHECK(failed);
}

}  // namespace finercam
