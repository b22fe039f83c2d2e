// Each copy is a unit of its own. The resized map is computed twice, row by row, once for its range and once to
// multiply with: that costs less than to keep it, and no mask is ever in memory.
#include <algorithm>
#include <limits>
#include <vector>

#include "core/clones.h"
#include "core/parallel.h"
#include "kernels/mask.h"
#include "kernels/mask_math.h"

namespace finercam {
namespace {

struct Range {
  float minimum, maximum, poison;  // poison: 0 where all values are finite, else NaN
};

FINERCAM_CLONES void resize_columns(const float* row, std::int64_t stride, const Source* columns, float* out,
                                    std::int64_t width) {
  for (std::int64_t x = 0; x < width; ++x) {
    out[x] = lerp(row[columns[x].low * stride], row[columns[x].high * stride], columns[x].weight);
  }
}

FINERCAM_CLONES void blend_rows(const float* top, const float* bottom, float weight, float* __restrict out,
                                std::int64_t width) {
  for (std::int64_t x = 0; x < width; ++x) out[x] = lerp(top[x], bottom[x], weight);
}

// Sixteen lanes side by side: the loop vectorises though minimum and maximum do not commute with NaN.
FINERCAM_CLONES void widen_range(const float* row, std::int64_t width, Range* range) {
  constexpr std::int64_t kLanes = 16;
  float minimum[kLanes], maximum[kLanes], poison[kLanes] = {};
  std::fill_n(minimum, kLanes, range->minimum);
  std::fill_n(maximum, kLanes, range->maximum);
  std::int64_t x = 0;
  for (; x + kLanes <= width; x += kLanes) {
    for (std::int64_t i = 0; i < kLanes; ++i) {
      const float value = row[x + i];
      minimum[i] = value < minimum[i] ? value : minimum[i];
      maximum[i] = value > maximum[i] ? value : maximum[i];
      poison[i] += 0.0f * value;
    }
  }
  for (std::int64_t i = 0; x + i < width; ++i) {
    const float value = row[x + i];
    minimum[i] = value < minimum[i] ? value : minimum[i];
    maximum[i] = value > maximum[i] ? value : maximum[i];
    poison[i] += 0.0f * value;
  }
  for (std::int64_t i = 0; i < kLanes; ++i) {
    range->minimum = minimum[i] < range->minimum ? minimum[i] : range->minimum;
    range->maximum = maximum[i] > range->maximum ? maximum[i] : range->maximum;
    range->poison += poison[i];
  }
}

FINERCAM_CLONES void normalize(float* row, const MaskRange& range, std::int64_t width) {
  for (std::int64_t x = 0; x < width; ++x) row[x] = (row[x] - range.minimum) * range.scale;
}

FINERCAM_CLONES void multiply(const float* mask, const float* pixels, std::int64_t stride, float* __restrict out,
                              std::int64_t width) {
  if (stride == 1) {
    for (std::int64_t x = 0; x < width; ++x) out[x] = mask[x] * pixels[x];
  } else {
    for (std::int64_t x = 0; x < width; ++x) out[x] = mask[x] * pixels[x * stride];
  }
}

// The rows of one resized map.
class ResizedMap {
 public:
  ResizedMap(const MaskArgs& args, const Source* rows, const Source* columns, const float* map)
      : args_(args),
        rows_(rows),
        columns_(columns),
        map_(map),
        source_rows_{std::vector<float>(width()), std::vector<float>(width())},
        row_(width()) {}

  float* row(std::int64_t y) {
    const Source& source = rows_[y];
    blend_rows(source_row(source.low), source_row(source.high), source.weight, row_.data(), args_.width);
    return row_.data();
  }

 private:
  std::size_t width() const { return static_cast<std::size_t>(args_.width); }

  // Source rows y and y + 1 have different parity, so each has a slot of its own.
  const float* source_row(std::int32_t y) {
    std::vector<float>& slot = source_rows_[y % 2];
    if (cached_[y % 2] != y) {
      resize_columns(map_ + y * args_.map_strides.row, args_.map_strides.column, columns_, slot.data(), args_.width);
      cached_[y % 2] = y;
    }
    return slot.data();
  }

  const MaskArgs& args_;
  const Source *rows_, *columns_;
  const float* map_;
  std::vector<float> source_rows_[2];
  std::int32_t cached_[2] = {-1, -1};
  std::vector<float> row_;
};

}  // namespace

void mask_cpu(const MaskArgs& args, int threads) {
  std::vector<Source> rows, columns;
  for (std::int32_t y = 0; y < args.height; ++y) rows.push_back(mask_row(args, y));
  for (std::int32_t x = 0; x < args.width; ++x) columns.push_back(mask_column(args, x));
  parallel_for(args.batch * args.maps_per_image, threads, [&](std::int64_t unit) {
    const std::int64_t image = unit / args.maps_per_image;
    const float* map =
        args.maps + image * args.map_strides.batch + unit % args.maps_per_image * args.map_strides.channel;
    ResizedMap resized(args, rows.data(), columns.data(), map);
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    Range found{kInfinity, -kInfinity, 0.0f};
    for (std::int64_t y = 0; y < args.height; ++y) widen_range(resized.row(y), args.width, &found);
    const MaskRange range = mask_range(found.minimum, found.maximum, found.poison == 0.0f);
    for (std::int64_t y = 0; y < args.height; ++y) {
      float* row = resized.row(y);
      normalize(row, range, args.width);
      for (std::int64_t c = 0; c < args.channels; ++c) {
        const Strides& strides = args.image_strides;
        const float* pixels = args.images + image * strides.batch + c * strides.channel + y * strides.row;
        float* out = args.out + ((unit * args.channels + c) * args.height + y) * args.width;
        multiply(row, pixels, strides.column, out, args.width);
      }
    }
  });
}

}  // namespace finercam
