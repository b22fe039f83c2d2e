// Bilinear resize: which two source cells an output cell lies between, one definition for the CPU and CUDA.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace finercam {

// The two source cells of an output cell and the weight of the second.
struct Source {
  std::int32_t low, high;
  float weight;
};

// Half-pixel centres, edges clamped: source = (target + 1/2) * source_size / target_size - 1/2, in exact integers.
FINERCAM_HOST_DEVICE Source source_of(std::int32_t target, std::int32_t source_size, std::int32_t target_size) {
  const std::int64_t scaled = static_cast<std::int64_t>(2 * target + 1) * source_size - target_size;
  if (scaled <= 0) return {0, 0, 0.0f};
  // Below 2^32 for sizes up to kMaxSide: a 32-bit division is several times faster on a GPU.
  const auto numerator = static_cast<std::uint32_t>(scaled);
  const auto denominator = static_cast<std::uint32_t>(2 * target_size);
  const auto low = static_cast<std::int32_t>(numerator / denominator);
  if (low >= source_size - 1) return {source_size - 1, source_size - 1, 0.0f};
  return {low, low + 1, static_cast<float>(numerator % denominator) / static_cast<float>(denominator)};
}

// Corner cells on corner cells: source = target * (source_size - 1) / (target_size - 1), in exact integers; a single
// output cell lies on the first source cell.
FINERCAM_HOST_DEVICE Source aligned_source_of(std::int32_t target, std::int32_t source_size, std::int32_t target_size) {
  if (target_size == 1) return {0, 0, 0.0f};
  const auto numerator = static_cast<std::uint32_t>(target) * static_cast<std::uint32_t>(source_size - 1);
  const auto denominator = static_cast<std::uint32_t>(target_size - 1);
  const auto low = static_cast<std::int32_t>(numerator / denominator);
  if (low >= source_size - 1) return {source_size - 1, source_size - 1, 0.0f};
  return {low, low + 1, static_cast<float>(numerator % denominator) / static_cast<float>(denominator)};
}

FINERCAM_HOST_DEVICE float lerp(float first, float second, float weight) { return first + weight * (second - first); }

}  // namespace finercam
