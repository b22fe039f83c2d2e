// Plain descriptions of arrays that someone else owns. Strides are in elements and may be zero or negative.
#pragma once

#include <array>
#include <cstdint>

#include "core/dtype.h"
#include "core/host_device.h"

namespace finercam {

// An array as a framework hands it over: up to five axes.
struct ArrayView {
  const void* data;
  DType dtype;
  int rank;
  std::array<std::int64_t, 5> sizes;
  std::array<std::int64_t, 5> strides;
};

// Activations or gradients, whatever their layout: element (n, c, y, x) lies at
// data[n * batch_stride + c * channel_stride + y * row_stride + x * column_stride].
struct FeatureView {
  const void* data;
  DType dtype;
  std::int64_t batch, channels, height, width;
  std::int64_t batch_stride, channel_stride, row_stride, column_stride;

  FINERCAM_HOST_DEVICE std::int64_t positions() const { return height * width; }
};

// Of images (N, C, H, W), or of maps (N, H, W), which have no channels.
struct Strides {
  std::int64_t batch, channel, row, column;

  // Whether the pixels of a plane lie one after the other.
  bool is_flat(std::int64_t height, std::int64_t width) const {
    return (width == 1 || column == 1) && (height == 1 || row == width);
  }
};

// Where a kernel runs. threads: how many, at least 1 (CPU only). stream: a cudaStream_t, null for the default one (CUDA
// only).
struct Execution {
  bool cuda = false;
  int device = 0;
  int threads = 1;
  void* stream = nullptr;
};

}  // namespace finercam
