// Photographs of any size resized, cropped and normalised, in one launch for up to 480 of them and their three
// channels; other numbers of channels take a launch each.
//
// grid (tiles along x, tiles along y, N): a block draws a tile of 32 x 16 cells of the crop. It goes through the rows
// of the photograph that the tile reads, eight at a time: each warp resizes one of them along x into shared memory,
// then each thread adds the eight to the sums of its two cells. So a pixel is read once by the tiles of a row of tiles,
// and rows at most (16 + twice the filter's reach) / 16 times. Weights are computed where they are used, and the sums
// divided by theirs: there is no table to make before, and nothing goes through global memory in between.
#include <algorithm>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/cuda_check.h"
#include "kernels/preprocess_math.h"

namespace finercam {
namespace {

constexpr int kColumns = 32;
constexpr int kWarps = 8;
constexpr int kRowsPerThread = 2;
constexpr int kRows = kWarps * kRowsPerThread;
constexpr int kFew = 16,
              kMany = 480;  // photographs of one launch: the kernel's parameters hold them, at most 32764 bytes

template <int kCount, int kPlanes>
struct Parameters {
  std::int32_t height, width;
  std::int32_t channels, first_channel;
  float mean[kPlanes], std[kPlanes];
  std::uint8_t fill[kPlanes];
  void* out;
  std::uint8_t* view;
  Photograph photographs[kCount];
};

__device__ __forceinline__ void store(float* out, float value) { *out = value; }
__device__ __forceinline__ void store(Half* out, float value) { out->bits = __half_as_ushort(__float2half_rn(value)); }
__device__ __forceinline__ void store(BFloat16* out, float value) {
  out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

// The levels of one target column in one row of the photograph; `pixels` is where its first channel begins.
template <ResizeFilter kFilter, int kPlanes>
__device__ __forceinline__ void resize_row(const Photograph& photograph, const std::uint8_t* pixels, const Taps& taps,
                                           std::int32_t row, float (&levels)[kPlanes]) {
  const std::uint8_t* pixel = pixels + row * photograph.row_stride + taps.first * photograph.column_stride;
  float sums[kPlanes] = {}, total = 0.0f;
  for (std::int32_t i = 0; i < taps.end - taps.first; ++i, pixel += photograph.column_stride) {
    const float weight = filter_weight(kFilter, (taps.offset + static_cast<float>(i)) * taps.step);
    total += weight;
    for (int c = 0; c < kPlanes; ++c) sums[c] += weight * static_cast<float>(pixel[c * photograph.channel_stride]);
  }
  for (int c = 0; c < kPlanes; ++c) levels[c] = level_of(sums[c] / total);
}

template <typename T, ResizeFilter kFilter, int kCount, int kPlanes>
__global__ void __launch_bounds__(kColumns* kWarps)
    preprocess_kernel(const __grid_constant__ Parameters<kCount, kPlanes> args, int first_image) {
  __shared__ float rows[kWarps][kPlanes][kColumns];
  const Photograph& photograph = args.photographs[blockIdx.z];
  const std::uint8_t* pixels = photograph.pixels + args.first_channel * photograph.channel_stride;
  const float support = filter_support(kFilter);
  const std::int32_t x = static_cast<std::int32_t>(blockIdx.x) * kColumns + static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t tile = static_cast<std::int32_t>(blockIdx.y) * kRows;
  const std::int32_t column = x + photograph.left;
  const bool has_column = x < args.width && column >= 0 && column < photograph.resized_width;
  Taps across{0, 0, 0.0f, 0.0f};
  if (has_column) across = taps_of(column, photograph.width, photograph.resized_width, support);

  // The rows of the resized photograph that this tile shows, and those of the photograph that they read.
  const std::int32_t top = max(tile + photograph.top, 0);
  const std::int32_t bottom = min(min(tile + kRows, args.height) + photograph.top, photograph.resized_height);
  std::int32_t begin = 0, end = 0;
  if (top < bottom) {
    begin = taps_of(top, photograph.height, photograph.resized_height, support).first;
    end = taps_of(bottom - 1, photograph.height, photograph.resized_height, support).end;
  }

  Taps along[kRowsPerThread];
  float sums[kRowsPerThread][kPlanes] = {}, totals[kRowsPerThread] = {};
#pragma unroll
  for (int k = 0; k < kRowsPerThread; ++k) {
    const std::int32_t row = tile + static_cast<std::int32_t>(threadIdx.y) + k * kWarps + photograph.top;
    along[k] = {0, 0, 0.0f, 0.0f};
    if (row >= top && row < bottom) {
      along[k] = taps_of(row, photograph.height, photograph.resized_height, support);
    }
  }

  for (std::int32_t start = begin; start < end; start += kWarps) {
    const std::int32_t mine = start + static_cast<std::int32_t>(threadIdx.y);
    if (mine < end && has_column) {
      float levels[kPlanes];
      resize_row<kFilter, kPlanes>(photograph, pixels, across, mine, levels);
      for (int c = 0; c < kPlanes; ++c) rows[threadIdx.y][c][threadIdx.x] = levels[c];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kRowsPerThread; ++k) {
      const std::int32_t from = max(start, along[k].first), to = min(start + kWarps, along[k].end);
      for (std::int32_t row = from; row < to; ++row) {
        const float distance = along[k].offset + static_cast<float>(row - along[k].first);
        const float weight = filter_weight(kFilter, distance * along[k].step);
        totals[k] += weight;
        for (int c = 0; c < kPlanes; ++c) sums[k][c] += weight * rows[row - start][c][threadIdx.x];
      }
    }
    __syncthreads();
  }

  if (x >= args.width) return;
  const std::int64_t plane = static_cast<std::int64_t>(args.height) * args.width;
  const std::int64_t image = first_image + static_cast<std::int64_t>(blockIdx.z);
#pragma unroll
  for (int k = 0; k < kRowsPerThread; ++k) {
    const std::int32_t y = tile + static_cast<std::int32_t>(threadIdx.y) + k * kWarps;
    if (y >= args.height) break;
    const bool shown = has_column && along[k].end > along[k].first;
    const std::int64_t at = static_cast<std::int64_t>(y) * args.width + x;
    const std::int64_t first = args.channels * image + args.first_channel;
    for (int c = 0; c < kPlanes; ++c) {
      const float level = shown ? level_of(sums[k][c] / totals[k]) : static_cast<float>(args.fill[c]);
      store(static_cast<T*>(args.out) + (first + c) * plane + at, normalised(level, args.mean[c], args.std[c]));
      if (args.view != nullptr) {
        args.view[args.channels * (image * plane + at) + args.first_channel + c] = static_cast<std::uint8_t>(level);
      }
    }
  }
}

template <typename T, ResizeFilter kFilter, int kCount, int kPlanes>
void launch(const PreprocessArgs& args, std::int32_t channel, std::int64_t start, std::int64_t count,
            cudaStream_t stream) {
  Parameters<kCount, kPlanes> parameters{args.height, args.width, args.channels, channel,   {},
                                         {},          {},         args.out,      args.view, {}};
  std::copy(args.mean + channel, args.mean + channel + kPlanes, parameters.mean);
  std::copy(args.std + channel, args.std + channel + kPlanes, parameters.std);
  std::copy(args.fill + channel, args.fill + channel + kPlanes, parameters.fill);
  std::copy(args.photographs + start, args.photographs + start + count, parameters.photographs);
  const dim3 grid(static_cast<unsigned>((args.width + kColumns - 1) / kColumns),
                  static_cast<unsigned>((args.height + kRows - 1) / kRows), static_cast<unsigned>(count));
  preprocess_kernel<T, kFilter, kCount, kPlanes>
      <<<grid, dim3(kColumns, kWarps), 0, stream>>>(parameters, static_cast<int>(start));
  FINERCAM_CUDA_CHECK_AS(cudaGetLastError(), "its launch");
}

template <typename T, ResizeFilter kFilter, int kPlanes>
void launch_all(const PreprocessArgs& args, cudaStream_t stream) {
  for (std::int64_t start = 0; start < args.batch; start += kMany) {
    const std::int64_t count = std::min<std::int64_t>(kMany, args.batch - start);
    for (std::int32_t channel = 0; channel < args.channels; channel += kPlanes) {
      if (count <= kFew) {
        launch<T, kFilter, kFew, kPlanes>(args, channel, start, count, stream);
      } else {
        launch<T, kFilter, kMany, kPlanes>(args, channel, start, count, stream);
      }
    }
  }
}

template <typename T, int kPlanes>
void launch_filter(const PreprocessArgs& args, cudaStream_t stream) {
  if (args.filter == ResizeFilter::kBilinear) {
    launch_all<T, ResizeFilter::kBilinear, kPlanes>(args, stream);
  } else {
    launch_all<T, ResizeFilter::kBicubic, kPlanes>(args, stream);
  }
}

}  // namespace

void preprocess_cuda(const PreprocessArgs& args, int device, void* stream) {
  FINERCAM_CHECK(args.height <= 16 * 65535, "preprocess", "expected at most ", 16 * 65535, " rows, got ", args.height);
  const DeviceScope scope(device);
  const auto on = static_cast<cudaStream_t>(stream);
  visit_dtype(args.dtype, "preprocess", [&](auto zero) {
    using T = decltype(zero);
    if (args.channels == 3) {
      launch_filter<T, 3>(args, on);
    } else {
      launch_filter<T, 1>(args, on);
    }
  });
}

}  // namespace finercam
