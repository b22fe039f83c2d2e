// Min-max, bilinear resize, colour and blend of a batch of maps in one launch.
//
// maps (N, h, w) float, any strides. values (N, H, W) float or rgba (N, H, W) of 4 bytes; photos (N, H, W, 3) bytes,
// any strides. grid (blocks, N): the blocks of an image each find its range by themselves (a map is small and lies in
// L2 after the first block), keep it normalised in shared memory where it fits, and draw rows blockIdx.x, + gridDim.x,
// ... Threads run along x, so a warp writes one line of memory. Where a pixel lies in the map takes two divisions an
// axis, far more than a pixel of 4 bytes may cost at the memory's speed: of columns they are done once per thread and
// column, of rows once per block, into shared memory.
#include <algorithm>

#include "core/cuda_check.h"
#include "kernels/render.h"
#include "kernels/render_math.h"

namespace finercam {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 4;  // of a multiprocessor; left to itself the compiler makes room for more, with a stack
constexpr int kWarp = 32;
constexpr int kSharedCells = 4096;  // maps of up to 64 x 64 are kept in 16 KiB of shared memory
constexpr int kSharedRows = 256;    // so many rows of a block are found at a time: 4 KiB

// Where a row of the image lies in the map, and whether it lies in the box.
struct alignas(16) RowSource {
  int low, high;
  float weight;
  int inside;
};

struct Palette {
  std::uint8_t rgb[768];
};

// What is drawn, known when compiling so that each kernel holds the registers of one case only.
enum class Picture { kNone, kValues, kColors, kBlend };

__device__ __forceinline__ MapRange merged(const MapRange& a, const MapRange& b) {
  return {fminf(a.minimum, b.minimum), fmaxf(a.maximum, b.maximum), a.finite && b.finite};
}

__device__ MapRange block_range(const RenderArgs& args, const float* map) {
  __shared__ MapRange of_warp[kThreads / kWarp];
  const int width = static_cast<int>(args.map_width);
  const int cells = static_cast<int>(args.map_height) * width;
  MapRange range{INFINITY, -INFINITY, true};
  for (int i = threadIdx.x; i < cells; i += kThreads) {
    const float value = map[i / width * args.map_row_stride + i % width * args.map_column_stride];
    range = merged(range, {value, value, isfinite(value)});
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    range = merged(
        range, {__shfl_xor_sync(0xffffffffu, range.minimum, step), __shfl_xor_sync(0xffffffffu, range.maximum, step),
                __shfl_xor_sync(0xffffffffu, static_cast<int>(range.finite), step) != 0});
  }
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = range;
  __syncthreads();
  range = of_warp[0];
  for (int warp = 1; warp < kThreads / kWarp; ++warp) range = merged(range, of_warp[warp]);
  return range;
}

// How the cells of a normalised map are read: from shared memory, or normalised at each reading.
struct SharedMap {
  const float* cells;
  int width;
  __device__ __forceinline__ float at(int y, int x) const { return cells[y * width + x]; }
};

struct GlobalMap {
  const float* map;
  std::int64_t row_stride, column_stride;
  MapRange range;
  __device__ __forceinline__ float at(int y, int x) const {
    return normalized(map[y * row_stride + x * column_stride], range);
  }
};

__device__ __forceinline__ const std::uint8_t* photo_at(const RenderArgs& args, int image, int y, int x) {
  return args.photos + image * args.photo_batch_stride + y * args.photo_row_stride + x * args.photo_column_stride;
}

// What the kernel knows of the two axes, computed once on the host.
struct Axes {
  Axis rows, columns;
};

// All threads of the block must call it; it begins with a barrier, behind which the map and the colours are read.
template <Picture kPicture, bool kBoxed, typename Map>
__device__ void draw(const RenderArgs& args, const Axes& axes, const Map& map, const std::uint8_t* rgb,
                     RowSource* sources, int image) {
  const int height = static_cast<int>(args.height);
  const int width = static_cast<int>(args.width);
  const int step = static_cast<int>(gridDim.x);
  const float photo_opacity = 1.0f - args.opacity;
  for (int start = blockIdx.x; start < height; start += kSharedRows * step) {
    const int rows = min(kSharedRows, (height - start + step - 1) / step);
    __syncthreads();
    for (int k = threadIdx.x; k < rows; k += kThreads) {
      const int y = start + k * step;
      const Source row = kBoxed ? source_in_box(y, axes.rows) : source_of(y, static_cast<int>(args.map_height), height);
      sources[k] = {row.low, row.high, row.weight, !kBoxed || axes.rows.holds(y)};
    }
    __syncthreads();
    for (int x = threadIdx.x; x < width; x += kThreads) {
      const Source column =
          kBoxed ? source_in_box(x, axes.columns) : source_of(x, static_cast<int>(args.map_width), width);
      const bool in_columns = !kBoxed || axes.columns.holds(x);
      std::int64_t pixel = (static_cast<std::int64_t>(image) * height + start) * width + x;
      const std::uint8_t* photo = kPicture == Picture::kBlend ? photo_at(args, image, start, x) : nullptr;
      for (int k = 0; k < rows; ++k, pixel += static_cast<std::int64_t>(step) * width) {
        const RowSource row = sources[k];
        const bool inside = !kBoxed || (in_columns && row.inside != 0);
        const float top = lerp(map.at(row.low, column.low), map.at(row.low, column.high), column.weight);
        const float bottom = lerp(map.at(row.high, column.low), map.at(row.high, column.high), column.weight);
        const float value = lerp(top, bottom, row.weight);
        if constexpr (kPicture == Picture::kValues) {
          args.values[pixel] = inside ? value : NAN;
          continue;
        }
        const std::uint8_t* color = rgb + 3 * color_index(value);
        uchar4 out = make_uchar4(color[0], color[1], color[2], 255);
        if (!inside) out = make_uchar4(0, 0, 0, kPicture == Picture::kBlend ? 255 : 0);
        if constexpr (kPicture == Picture::kBlend) {
          const std::int64_t channel = args.photo_channel_stride;
          out.x = blended(out.x, args.opacity, photo[0], photo_opacity);
          out.y = blended(out.y, args.opacity, photo[channel], photo_opacity);
          out.z = blended(out.z, args.opacity, photo[2 * channel], photo_opacity);
          photo += step * args.photo_row_stride;
        }
        reinterpret_cast<uchar4*>(args.rgba)[pixel] = out;
      }
    }
  }
}

// Where the map explains nothing: zeros, or the photograph as it is.
template <Picture kPicture>
__device__ void leave_blank(const RenderArgs& args, const Axes& axes, int image) {
  const int height = static_cast<int>(args.height);
  const int width = static_cast<int>(args.width);
  for (int y = blockIdx.x; y < height; y += gridDim.x) {
    for (int x = threadIdx.x; x < width; x += kThreads) {
      const std::int64_t pixel = (static_cast<std::int64_t>(image) * height + y) * width + x;
      if constexpr (kPicture == Picture::kValues) {
        args.values[pixel] = axes.columns.holds(x) && axes.rows.holds(y) ? 0.0f : NAN;
        continue;
      }
      uchar4 out = make_uchar4(0, 0, 0, 0);
      if constexpr (kPicture == Picture::kBlend) {
        const std::uint8_t* photo = photo_at(args, image, y, x);
        const std::int64_t step = args.photo_channel_stride;
        out = make_uchar4(photo[0], photo[step], photo[2 * step], 255);
      }
      reinterpret_cast<uchar4*>(args.rgba)[pixel] = out;
    }
  }
}

template <Picture kPicture, bool kBoxed>
__global__ void __launch_bounds__(kThreads, kBlocks)
    render_kernel(const __grid_constant__ RenderArgs args, const __grid_constant__ Axes axes,
                  const __grid_constant__ Palette palette) {
  __shared__ float cells[kSharedCells];
  __shared__ RowSource sources[kSharedRows];
  __shared__ std::uint8_t rgb[sizeof(Palette)];
  const int image = blockIdx.y;
  const float* map = args.maps + image * args.map_batch_stride;
  const MapRange range = block_range(args, map);
  const MapStatus status = status_of(range);
  if (blockIdx.x == 0 && threadIdx.x == 0) args.status[image] = static_cast<std::uint8_t>(status);
  if constexpr (kPicture == Picture::kNone) return;
  if (status != MapStatus::kOk) {
    leave_blank<kPicture>(args, axes, image);
    return;
  }
  if constexpr (kPicture != Picture::kValues) {
    for (int i = threadIdx.x; i < static_cast<int>(sizeof(Palette)); i += kThreads) rgb[i] = palette.rgb[i];
  }
  const int map_width = static_cast<int>(args.map_width);
  const int count = static_cast<int>(args.map_height) * map_width;
  const GlobalMap global{map, args.map_row_stride, args.map_column_stride, drawn_range(args, range)};
  if (count <= kSharedCells) {
    for (int i = threadIdx.x; i < count; i += kThreads) cells[i] = global.at(i / map_width, i % map_width);
    draw<kPicture, kBoxed>(args, axes, SharedMap{cells, map_width}, rgb, sources, image);
  } else {
    draw<kPicture, kBoxed>(args, axes, global, rgb, sources, image);
  }
}

template <Picture kPicture>
void launch(const RenderArgs& args, int device, cudaStream_t stream) {
  Palette palette{};
  if (args.colors != nullptr) std::copy_n(args.colors, sizeof palette.rgb, palette.rgb);
  int processors = 0;
  FINERCAM_CUDA_CHECK_AS(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
                         "reading the number of multiprocessors");
  const std::int64_t wanted = (8 * processors + args.batch - 1) / args.batch;
  const auto blocks = static_cast<unsigned>(kPicture == Picture::kNone ? 1 : std::min(args.height, wanted));
  const dim3 grid(blocks, static_cast<unsigned>(args.batch));
  // For the status alone there is no image, and no pixel of one in a box.
  const Axes axes = kPicture == Picture::kNone ? Axes{} : Axes{rows_of(args), columns_of(args)};
  // The arithmetic of a box takes registers, which pictures without one should not pay for.
  const bool whole = kPicture == Picture::kNone || (axes.rows.is_whole() && axes.columns.is_whole());
  const auto kernel = whole ? &render_kernel<kPicture, false> : &render_kernel<kPicture, true>;
  kernel<<<grid, kThreads, 0, stream>>>(args, axes, palette);
  FINERCAM_CUDA_CHECK_AS(cudaGetLastError(), "its launch");
}

}  // namespace

void render_cuda(const RenderArgs& args, int device, void* stream) {
  FINERCAM_CHECK(args.batch <= 65535, "render", "expected a batch of at most 65535 on CUDA, got ", args.batch);
  const DeviceScope scope(device);
  const auto start = args.values != nullptr   ? &launch<Picture::kValues>
                     : args.photos != nullptr ? &launch<Picture::kBlend>
                     : args.rgba != nullptr   ? &launch<Picture::kColors>
                                              : &launch<Picture::kNone>;
  start(args, device, static_cast<cudaStream_t>(stream));
}

}  // namespace finercam
