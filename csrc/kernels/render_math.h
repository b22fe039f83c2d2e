// The arithmetic of render, one definition for the CPU and CUDA.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/host_device.h"
#include "kernels/render.h"
#include "kernels/resize_math.h"

namespace finercam {

// Smallest and largest value of a raw map, and whether a NaN or an infinity is among them.
struct MapRange {
  float minimum, maximum;
  bool finite;
};

FINERCAM_HOST_DEVICE MapStatus status_of(const MapRange& range) {
  if (!range.finite) return MapStatus::kNonFinite;
  if (range.maximum <= 0.0f) return MapStatus::kNoPositiveEvidence;
  // the difference, by which is divided: where the processor takes subnormal numbers for 0 it may be 0 of two values
  return range.maximum - range.minimum > 0.0f ? MapStatus::kOk : MapStatus::kConstant;
}

// What is drawn as 0 and as 1: the caller's range, or the map's own.
FINERCAM_HOST_DEVICE MapRange drawn_range(const RenderArgs& args, const MapRange& own) {
  return args.high > args.low ? MapRange{args.low, args.high, true} : own;
}

// (ReLU(value) - minimum) / (maximum - minimum) within [0, 1], and 0 where that is not a number, since it becomes an
// index; only for maps whose status is ok.
FINERCAM_HOST_DEVICE float normalized(float value, const MapRange& range) {
  const float minimum = range.minimum > 0.0f ? range.minimum : 0.0f;
  const float result = ((value > 0.0f ? value : 0.0f) - minimum) / (range.maximum - minimum);
  return result > 0.0f ? (result < 1.0f ? result : 1.0f) : 0.0f;
}

// One axis of a map that lies in [start, start + extent) of an image; the pixels [first, last) have their centres
// there.
struct Axis {
  std::int32_t source_size, target_size;
  double start, extent;
  std::int32_t first, last;

  FINERCAM_HOST_DEVICE bool is_whole() const { return start == 0.0 && extent == target_size; }
  FINERCAM_HOST_DEVICE bool holds(std::int64_t target) const { return first <= target && target < last; }
};

inline Axis axis_of(std::int64_t source_size, std::int64_t target_size, double start, double end) {
  const auto bounded = [target_size](double edge) {
    return static_cast<std::int32_t>(std::clamp(std::ceil(edge - 0.5), 0.0, static_cast<double>(target_size)));
  };
  return {static_cast<std::int32_t>(source_size),
          static_cast<std::int32_t>(target_size),
          start,
          end - start,
          bounded(start),
          bounded(end)};
}

inline Axis rows_of(const RenderArgs& args) {
  return axis_of(args.map_height, args.height, args.box.top, args.box.bottom);
}

inline Axis columns_of(const RenderArgs& args) {
  return axis_of(args.map_width, args.width, args.box.left, args.box.right);
}

// The same where the map lies in a part of the image: (target + 1/2 - start) * source_size / extent - 1/2.
FINERCAM_HOST_DEVICE Source source_in_box(std::int32_t target, const Axis& axis) {
  const std::int32_t last = axis.source_size - 1;
  const double position = (target + 0.5 - axis.start) * axis.source_size / axis.extent - 0.5;
  if (position <= 0.0) return {0, 0, 0.0f};
  if (position >= last) return {last, last, 0.0f};
  const auto low = static_cast<std::int32_t>(position);
  return {low, low + 1, static_cast<float>(position - low)};
}

FINERCAM_HOST_DEVICE Source source_of(std::int32_t target, const Axis& axis) {
  return axis.is_whole() ? source_of(target, axis.source_size, axis.target_size) : source_in_box(target, axis);
}

// Index into the 256 colours of a value in [0, 1]; halves round up.
FINERCAM_HOST_DEVICE std::int32_t color_index(float value) { return static_cast<std::int32_t>(value * 255.0f + 0.5f); }

// opacity * color + photo_opacity * photo, where the opacities add up to 1; halves round up.
FINERCAM_HOST_DEVICE std::uint8_t blended(std::uint8_t color, float opacity, std::uint8_t photo, float photo_opacity) {
  const float sum = opacity * static_cast<float>(color) + photo_opacity * static_cast<float>(photo);
  return static_cast<std::uint8_t>(static_cast<std::int32_t>(sum + 0.5f));
}

}  // namespace finercam
