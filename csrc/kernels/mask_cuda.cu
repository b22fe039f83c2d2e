// Masked copies of images in one launch.
//
// images (N, C, H, W), maps (N, K, h, w) float, any strides; out (N, K, C, H * W).
// grid (N * K, parts): a block keeps its map in shared memory where it fits, finds the range of the whole resized map
// (every part by itself: reading shared memory costs nothing beside the writing), then writes rows blockIdx.y,
// + gridDim.y, ... Threads run along x, so a warp writes one line of memory; the mask is never written. Where a row
// lies in the map takes divisions, so a block finds out once for all its threads, for so many rows at a time.
#include <algorithm>

#include "core/cuda_check.h"
#include "kernels/mask.h"
#include "kernels/mask_math.h"

namespace finercam {
namespace {

constexpr int kThreads = 256;
// Of a multiprocessor. Left to itself the compiler makes room for five on some devices, with a stack.
constexpr int kBlocks = 4;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kSharedCells = 4096;  // maps of up to 64 x 64 are kept in 16 KiB of shared memory
constexpr int kSharedRows = 256;    // of the image, whose sources are kept in 4 KiB
constexpr std::int64_t kMaxParts = 65535;

struct alignas(16) RowSource {
  Source source;
};

// Calls use(start, rows) for the rows start + k * step of the image with k < rows, whose sources are sources[k] then.
// All threads of the block must call it; it begins with a barrier.
template <typename Use>
__device__ __forceinline__ void for_rows(const MaskArgs& args, RowSource* sources, int first, int step,
                                         const Use& use) {
  const int height = static_cast<int>(args.height);
  for (int start = first; start < height; start += kSharedRows * step) {
    const int rows = min(kSharedRows, (height - start + step - 1) / step);
    __syncthreads();
    for (int k = threadIdx.x; k < rows; k += kThreads) sources[k].source = mask_row(args, start + k * step);
    __syncthreads();
    use(start, rows);
  }
}

struct SharedMap {
  const float* cells;
  int width;
  __device__ __forceinline__ float at(int y, int x) const { return cells[y * width + x]; }
};

struct GlobalMap {
  const float* map;
  std::int64_t row_stride, column_stride;
  __device__ __forceinline__ float at(int y, int x) const { return map[y * row_stride + x * column_stride]; }
};

template <typename Map>
__device__ __forceinline__ float resized(const Map& map, const Source& row, const Source& column) {
  const float top = lerp(map.at(row.low, column.low), map.at(row.low, column.high), column.weight);
  const float bottom = lerp(map.at(row.high, column.low), map.at(row.high, column.high), column.weight);
  return lerp(top, bottom, row.weight);
}

// All threads of the block must call it.
template <typename Map>
__device__ MaskRange block_range(const MaskArgs& args, const Map& map, RowSource* sources) {
  __shared__ float minima[kWarps], maxima[kWarps];
  const int width = static_cast<int>(args.width);
  float minimum = INFINITY, maximum = -INFINITY;
  bool finite = true;
  for_rows(args, sources, 0, 1, [&](int, int rows) {
    for (int x = threadIdx.x; x < width; x += kThreads) {
      const Source column = mask_column(args, x);
      for (int k = 0; k < rows; ++k) {
        const float value = resized(map, sources[k].source, column);
        minimum = fminf(minimum, value);
        maximum = fmaxf(maximum, value);
        finite = finite && isfinite(value);
      }
    }
  });
  for (int step = kWarp / 2; step > 0; step /= 2) {
    minimum = fminf(minimum, __shfl_xor_sync(0xffffffffu, minimum, step));
    maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, step));
  }
  if (threadIdx.x % kWarp == 0) {
    minima[threadIdx.x / kWarp] = minimum;
    maxima[threadIdx.x / kWarp] = maximum;
  }
  const bool all_finite = __syncthreads_and(finite) != 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    minimum = fminf(minimum, minima[warp]);
    maximum = fmaxf(maximum, maxima[warp]);
  }
  return mask_range(minimum, maximum, all_finite);
}

template <typename Map>
__device__ void write_masked(const MaskArgs& args, const Map& map, RowSource* sources) {
  const MaskRange range = block_range(args, map, sources);
  const int width = static_cast<int>(args.width);
  const int channels = static_cast<int>(args.channels);
  const Strides& strides = args.image_strides;
  const float* image = args.images + blockIdx.x / args.maps_per_image * strides.batch;
  float* out = args.out + static_cast<std::int64_t>(blockIdx.x) * channels * args.pixels();
  const int step = static_cast<int>(gridDim.y);
  for_rows(args, sources, blockIdx.y, step, [&](int start, int rows) {
    for (int x = threadIdx.x; x < width; x += kThreads) {
      const Source column = mask_column(args, x);
      for (int k = 0; k < rows; ++k) {
        const float weight = (resized(map, sources[k].source, column) - range.minimum) * range.scale;
        const int y = start + k * step;
        const std::int64_t pixel = static_cast<std::int64_t>(y) * width + x;
        for (int c = 0; c < channels; ++c) {
          out[c * args.pixels() + pixel] = weight * image[c * strides.channel + y * strides.row + x * strides.column];
        }
      }
    }
  });
}

__global__ void __launch_bounds__(kThreads, kBlocks) mask_kernel(const __grid_constant__ MaskArgs args) {
  __shared__ float cells[kSharedCells];
  __shared__ RowSource sources[kSharedRows];
  const Strides& strides = args.map_strides;
  const float* map =
      args.maps + blockIdx.x / args.maps_per_image * strides.batch + blockIdx.x % args.maps_per_image * strides.channel;
  const int width = static_cast<int>(args.map_width);
  const int count = static_cast<int>(args.map_height) * width;
  const GlobalMap global{map, strides.row, strides.column};
  if (count <= kSharedCells) {
    for (int i = threadIdx.x; i < count; i += kThreads) cells[i] = global.at(i / width, i % width);
    write_masked(args, SharedMap{cells, width}, sources);
  } else {
    write_masked(args, global, sources);
  }
}

}  // namespace

void mask_cuda(const MaskArgs& args, int device, void* stream) {
  const std::int64_t copies = args.batch * args.maps_per_image;
  FINERCAM_CHECK(copies <= 2147483647, "mask", "expected less than 2^31 copies on CUDA, got ", copies);
  const DeviceScope scope(device);
  int processors = 0;
  FINERCAM_CUDA_CHECK_AS(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
                         "reading the number of multiprocessors");
  const std::int64_t wanted = (4 * processors + copies - 1) / copies;
  const dim3 grid(static_cast<unsigned>(copies), static_cast<unsigned>(std::min({args.height, wanted, kMaxParts})));
  mask_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  FINERCAM_CUDA_CHECK_AS(cudaGetLastError(), "its launch");
}

}  // namespace finercam
