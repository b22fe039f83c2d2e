// The arithmetic of preprocess, one definition for the CPU and CUDA.
//
// Pillow, up to version 12, resizes along x, rounds to bytes, resizes along y, and rounds again; so does this. (Version
// 13 begins with y where that is less work.) Its weights are fixed-point numbers of 22 bits, these are floats: a level
// may differ by one where the sum lies between two.
#pragma once

#include <cmath>

#include "core/host_device.h"
#include "kernels/preprocess.h"

namespace finercam {

// The source cells of one target cell along one axis: [first, end), and how far apart two of them are in the filter.
struct Taps {
  std::int32_t first, end;
  float offset;  // from the target's centre to the centre of cell `first`, in source cells
  float step;    // 1 / (the filter's width, in source cells, of one of its own units)
};

FINERCAM_HOST_DEVICE float filter_support(ResizeFilter filter) {
  return filter == ResizeFilter::kBilinear ? 1.0f : 2.0f;
}

// Source: Pillow, precompute_coeffs in src/libImaging/Resample.c. The centre (target + 1/2) * source / resized is split
// into whole cells and a rest in exact integers.
FINERCAM_HOST_DEVICE Taps taps_of(std::int32_t target, std::int32_t source, std::int32_t resized, float support) {
  const std::int64_t numerator = (2 * static_cast<std::int64_t>(target) + 1) * source;
  const std::int64_t denominator = 2 * static_cast<std::int64_t>(resized);
  const auto whole = static_cast<std::int32_t>(numerator / denominator);
  const float rest = static_cast<float>(numerator % denominator) / static_cast<float>(denominator);
  const float scale = source > resized ? static_cast<float>(source) / static_cast<float>(resized) : 1.0f;
  const float reach = support * scale;
  const std::int32_t before = static_cast<std::int32_t>(floorf(rest - reach + 0.5f));
  const std::int32_t after = static_cast<std::int32_t>(floorf(rest + reach + 0.5f));
  const std::int32_t first = whole + before > 0 ? whole + before : 0;
  const std::int32_t end = whole + after < source ? whole + after : source;
  return {first, end, static_cast<float>(first - whole) + 0.5f - rest, 1.0f / scale};
}

// The weight of a source cell before the weights are divided by their sum; distance in the filter's own units.
FINERCAM_HOST_DEVICE float filter_weight(ResizeFilter filter, float distance) {
  const float x = fabsf(distance);
  if (filter == ResizeFilter::kBilinear) return x < 1.0f ? 1.0f - x : 0.0f;
  // Keys' cubic convolution with a = -1/2.
  if (x < 1.0f) return (1.5f * x - 2.5f) * x * x + 1.0f;
  return x < 2.0f ? ((-0.5f * x + 2.5f) * x - 4.0f) * x + 2.0f : 0.0f;
}

// A sum of weighted levels as a level.
FINERCAM_HOST_DEVICE float level_of(float sum) { return fminf(fmaxf(floorf(sum + 0.5f), 0.0f), 255.0f); }

FINERCAM_HOST_DEVICE float normalised(float level, float mean, float std) { return (level / 255.0f - mean) / std; }

}  // namespace finercam
