// Copies of a batch of images with their most important pixels replaced.
#pragma once

#include "core/host_device.h"
#include "core/view.h"

namespace finercam {

// out (N, S, C, H, W), contiguous: out[n, s, c, p] = ranks[n, p] < counts[n, s] ? fill[n, c, p] : images[n, c, p].
// images and fill (N, C, H, W) float32, ranks (N, H, W) int32, any strides; counts (N, S), contiguous, on the host.
struct RemoveArgs {
  std::int64_t batch, steps, channels, height, width;
  const float* images;
  Strides image_strides;
  const std::int32_t* ranks;
  Strides rank_strides;
  const std::int32_t* counts;
  const float* fill;
  Strides fill_strides;
  bool fill_on_host;  // then it is (C,) contiguous, one value a channel
  float* out;

  FINERCAM_HOST_DEVICE std::int64_t pixels() const { return height * width; }
};

void remove(const RemoveArgs& args, const Execution& execution);

void remove_cpu(const RemoveArgs& args, int threads);

// Queues the kernel on stream (a cudaStream_t) of the device and returns; throws where the build has no CUDA.
void remove_cuda(const RemoveArgs& args, int device, void* stream);

}  // namespace finercam
