// From photographs of any size to the classifier's input: resized as Pillow does it, cropped, normalised.
#pragma once

#include "core/host_device.h"
#include "core/view.h"

namespace finercam {

// Pillow's filters: both widen with the scale where they make smaller, so that nothing aliases.
enum class ResizeFilter { kBilinear, kBicubic };

// A photograph (height, width, C) of bytes, strides in bytes, and where its crop lies: it is resized to
// (resized_height, resized_width), and of that the crop begins at (top, left), which may be negative.
struct Photograph {
  const std::uint8_t* pixels;
  std::int64_t row_stride, column_stride, channel_stride;
  std::int32_t height, width;
  std::int32_t resized_height, resized_width;
  std::int32_t top, left;
};

// out (N, C, H, W), contiguous: (level / 255 - mean[c]) / std[c] of the crop's level. view, where it is not null, (N,
// H, W, C) of bytes, contiguous: the levels. Where the crop reaches beyond the resized photograph the level is fill[c].
// Three channels are resized together, and those of any other number one by one.
struct PreprocessArgs {
  std::int64_t batch;
  std::int32_t channels, height, width;
  const Photograph* photographs;  // on the host
  ResizeFilter filter;
  const float *mean, *std;   // (C,) on the host
  const std::uint8_t* fill;  // (C,) on the host
  DType dtype;
  void* out;
  std::uint8_t* view;
};

void preprocess(const PreprocessArgs& args, const Execution& execution);

void preprocess_cpu(const PreprocessArgs& args, int threads);

// Queues the kernel on stream (a cudaStream_t) of the device and returns; throws where the build has no CUDA.
void preprocess_cuda(const PreprocessArgs& args, int device, void* stream);

}  // namespace finercam
