// Copies of a batch of images, each masked by a map: what Score-CAM looks at.
#pragma once

#include "core/host_device.h"
#include "core/view.h"

namespace finercam {

// out (N, K, C, H, W), contiguous: out[n, k, c, p] = images[n, c, p] * (U[p] - min U) / (max U - min U + 1e-8), where U
// is maps[n, k] resized bilinearly to (H, W). images (N, C, H, W) and maps (N, K, h, w) float32, any strides.
// A map with a value that is not finite makes its copy NaN.
struct MaskArgs {
  std::int64_t batch, maps_per_image, channels, height, width;
  const float* images;
  Strides image_strides;
  const float* maps;
  Strides map_strides;
  std::int64_t map_height, map_width;
  bool align_corners;  // corner pixels lie on corner cells; else half-pixel centres, edges clamped
  float* out;

  FINERCAM_HOST_DEVICE std::int64_t pixels() const { return height * width; }
};

constexpr std::int64_t kMaxMaskSide = 32767;

void mask(const MaskArgs& args, const Execution& execution);

void mask_cpu(const MaskArgs& args, int threads);

// Queues the kernel on stream (a cudaStream_t) of the device and returns; throws where the build has no CUDA.
void mask_cuda(const MaskArgs& args, int device, void* stream);

}  // namespace finercam
