// Raw maps made visible: min-max, bilinear resize, and optionally a colour map and a blend with the photograph.
#pragma once

#include "core/view.h"

namespace finercam {

// What a raw map is; the same numbers as finercam_rt.ops.Status.
enum class MapStatus : std::uint8_t { kOk = 0, kNoPositiveEvidence = 1, kConstant = 2, kNonFinite = 3 };

// Where the maps lie in the image, in pixels: the centre of pixel x is x + 1/2, and a box may reach beyond the image.
struct Box {
  double left, top, right, bottom;
};

// maps (N, h, w) float32, any strides. photos (N, H, W, 3) uint8, any strides, or null.
// Exactly one of these is written: values (N, H, W) float32 in [0, 1]; rgba (N, H, W, 4) uint8 from the colours; or
// neither, for the status alone (H, W and box are then ignored). status (N,) is always written.
// A pixel whose centre is outside of the box is NaN, transparent, or the photograph under black of the same opacity.
struct RenderArgs {
  const float* maps;
  std::int64_t batch, map_height, map_width;
  std::int64_t map_batch_stride, map_row_stride, map_column_stride;

  std::int64_t height, width;
  Box box;
  float low, high;             // the values drawn as 0 and 1; where both are 0, each map's own least and greatest
  const std::uint8_t* colors;  // (256, 3) on the host, or null
  const std::uint8_t* photos;
  std::int64_t photo_batch_stride, photo_row_stride, photo_column_stride, photo_channel_stride;
  float opacity;  // of the colours over the photographs, in [0, 1]

  float* values;
  std::uint8_t* rgba;
  std::uint8_t* status;
};

// Sizes of maps and images are at most this, so that resize positions are exact in 32-bit integers.
constexpr std::int64_t kMaxSide = 32767;
constexpr double kMaxBox = 1 << 30;

void render(const RenderArgs& args, const Execution& execution);

void render_cpu(const RenderArgs& args, int threads);

// Queues the kernel on stream (a cudaStream_t) of the device and returns; throws where the build has no CUDA.
void render_cuda(const RenderArgs& args, int device, void* stream);

}  // namespace finercam
