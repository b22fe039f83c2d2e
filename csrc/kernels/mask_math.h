// The arithmetic of mask, one definition for the CPU and CUDA.
#pragma once

#include <cmath>

#include "core/host_device.h"
#include "kernels/mask.h"
#include "kernels/resize_math.h"

namespace finercam {

FINERCAM_HOST_DEVICE Source mask_row(const MaskArgs& args, std::int32_t y) {
  const auto source = static_cast<std::int32_t>(args.map_height), target = static_cast<std::int32_t>(args.height);
  return args.align_corners ? aligned_source_of(y, source, target) : source_of(y, source, target);
}

FINERCAM_HOST_DEVICE Source mask_column(const MaskArgs& args, std::int32_t x) {
  const auto source = static_cast<std::int32_t>(args.map_width), target = static_cast<std::int32_t>(args.width);
  return args.align_corners ? aligned_source_of(x, source, target) : source_of(x, source, target);
}

// The resized map's values as a mask: (value - minimum) * scale.
struct MaskRange {
  float minimum, scale;
};

FINERCAM_HOST_DEVICE MaskRange mask_range(float minimum, float maximum, bool finite) {
  return {minimum, finite ? 1.0f / (maximum - minimum + 1e-8f) : NAN};
}

}  // namespace finercam
