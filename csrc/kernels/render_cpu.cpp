// Each map is normalised once. Bands of output rows are then independent: a source row is resized to the output's
// width once, and every output row is a blend of two of those, so the loop over pixels reads memory in order.
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "core/clones.h"
#include "core/parallel.h"
#include "kernels/render.h"
#include "kernels/render_math.h"

namespace finercam {
namespace {

constexpr std::int64_t kBandRows = 32;

// The colours as the row loops want them.
struct Palette {
  std::uint32_t rgba[256];  // the bytes R, G, B, 255 in memory order
  float weighted[256][4];   // opacity * (R, G, B), and 255
};

Palette palette_of(const std::uint8_t* colors, float opacity) {
  Palette palette;
  for (int i = 0; i < 256; ++i) {
    const std::uint8_t* rgb = colors + 3 * i;
    const std::uint8_t pixel[4] = {rgb[0], rgb[1], rgb[2], 255};
    std::memcpy(&palette.rgba[i], pixel, sizeof pixel);
    for (int k = 0; k < 3; ++k) palette.weighted[i][k] = opacity * static_cast<float>(rgb[k]);
    palette.weighted[i][3] = 255.0f;
  }
  return palette;
}

FINERCAM_CLONES void resize_row(const float* row, const Source* columns, float* out, std::int64_t width) {
  for (std::int64_t x = 0; x < width; ++x) {
    out[x] = lerp(row[columns[x].low], row[columns[x].high], columns[x].weight);
  }
}

FINERCAM_CLONES void value_row(const float* top, const float* bottom, float weight, float* __restrict out,
                               std::int64_t width) {
  for (std::int64_t x = 0; x < width; ++x) out[x] = lerp(top[x], bottom[x], weight);
}

FINERCAM_CLONES void index_row(const float* top, const float* bottom, float weight, std::int32_t* __restrict out,
                               std::int64_t width) {
  for (std::int64_t x = 0; x < width; ++x) out[x] = color_index(lerp(top[x], bottom[x], weight));
}

FINERCAM_CLONES void blend_row(const std::int32_t* index, const Palette& palette, const std::uint8_t* photo,
                               float photo_opacity, std::uint8_t* __restrict out, std::int64_t width) {
  for (std::int64_t x = 0; x < width; ++x) {
    const float* color = palette.weighted[index[x]];
    for (int k = 0; k < 3; ++k) out[4 * x + k] = blended(color[k], photo[3 * x + k], photo_opacity);
    out[4 * x + 3] = 255;
  }
}

MapRange range_of(const RenderArgs& args, std::int64_t image) {
  MapRange range{std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), true};
  float poison = 0.0f;  // 0 * value is NaN for a NaN and for an infinity, and 0 otherwise
  for (std::int64_t y = 0; y < args.map_height; ++y) {
    const float* row = args.maps + image * args.map_batch_stride + y * args.map_row_stride;
    for (std::int64_t x = 0; x < args.map_width; ++x) {
      const float value = row[x * args.map_column_stride];
      range.minimum = value < range.minimum ? value : range.minimum;
      range.maximum = value > range.maximum ? value : range.maximum;
      poison += 0.0f * value;
    }
  }
  range.finite = poison == 0.0f;
  return range;
}

// Renders the rows [first, last) of one image.
class BandRenderer {
 public:
  BandRenderer(const RenderArgs& args, const Palette* palette, const Source* columns)
      : args_(args),
        palette_(palette),
        columns_(columns),
        rows_{std::vector<float>(width()), std::vector<float>(width())},
        index_(args.rgba != nullptr ? width() : 0) {}

  void draw(std::int64_t image, const float* map, std::int64_t first, std::int64_t last) {
    cached_[0] = cached_[1] = -1;
    for (std::int64_t y = first; y < last; ++y) {
      const Source source = source_of(static_cast<std::int32_t>(y), static_cast<std::int32_t>(args_.map_height),
                                      static_cast<std::int32_t>(args_.height));
      const float* top = source_row(map, source.low);
      const float* bottom = source_row(map, source.high);
      const std::int64_t row = image * args_.height + y;
      if (args_.values != nullptr) {
        value_row(top, bottom, source.weight, args_.values + row * args_.width, args_.width);
        continue;
      }
      index_row(top, bottom, source.weight, index_.data(), args_.width);
      std::uint8_t* out = args_.rgba + row * args_.width * 4;
      if (args_.photos != nullptr) {
        blend_row(index_.data(), *palette_, photo_row(image, y), 1.0f - args_.opacity, out, args_.width);
      } else {
        for (std::int64_t x = 0; x < args_.width; ++x) {
          std::memcpy(out + 4 * x, &palette_->rgba[index_[static_cast<std::size_t>(x)]], 4);
        }
      }
    }
  }

  // Where the map explains nothing: zeros, or the photograph as it is.
  void leave_blank(std::int64_t image, std::int64_t first, std::int64_t last) {
    for (std::int64_t y = first; y < last; ++y) {
      const std::int64_t row = image * args_.height + y;
      if (args_.values != nullptr) {
        std::fill_n(args_.values + row * args_.width, args_.width, 0.0f);
      } else if (args_.photos == nullptr) {
        std::fill_n(args_.rgba + row * args_.width * 4, args_.width * 4, std::uint8_t{0});
      } else {
        std::uint8_t* out = args_.rgba + row * args_.width * 4;
        const std::uint8_t* photo = photo_row(image, y);
        for (std::int64_t x = 0; x < args_.width; ++x) {
          for (int k = 0; k < 3; ++k) out[4 * x + k] = photo[3 * x + k];
          out[4 * x + 3] = 255;
        }
      }
    }
  }

 private:
  std::size_t width() const { return static_cast<std::size_t>(args_.width); }

  // Source rows y and y + 1 have different parity, so each has a slot of its own.
  const float* source_row(const float* map, std::int32_t y) {
    std::vector<float>& slot = rows_[y % 2];
    if (cached_[y % 2] != y) {
      resize_row(map + y * args_.map_width, columns_, slot.data(), args_.width);
      cached_[y % 2] = y;
    }
    return slot.data();
  }

  // Row y of the photograph as contiguous RGB.
  const std::uint8_t* photo_row(std::int64_t image, std::int64_t y) {
    const std::uint8_t* row = args_.photos + image * args_.photo_batch_stride + y * args_.photo_row_stride;
    if (args_.photo_column_stride == 3 && args_.photo_channel_stride == 1) return row;
    photo_.resize(3 * width());
    for (std::int64_t x = 0; x < args_.width; ++x) {
      for (std::int64_t k = 0; k < 3; ++k) {
        photo_[static_cast<std::size_t>(3 * x + k)] =
            row[x * args_.photo_column_stride + k * args_.photo_channel_stride];
      }
    }
    return photo_.data();
  }

  const RenderArgs& args_;
  const Palette* palette_;
  const Source* columns_;
  std::vector<float> rows_[2];
  std::int32_t cached_[2] = {-1, -1};
  std::vector<std::int32_t> index_;
  std::vector<std::uint8_t> photo_;
};

}  // namespace

void render_cpu(const RenderArgs& args, int threads) {
  const bool draws = args.values != nullptr || args.rgba != nullptr;
  const std::int64_t cells = args.map_height * args.map_width;
  std::vector<float> maps(draws ? static_cast<std::size_t>(args.batch * cells) : 0);
  for (std::int64_t image = 0; image < args.batch; ++image) {
    const MapRange range = range_of(args, image);
    const MapStatus status = status_of(range);
    args.status[image] = static_cast<std::uint8_t>(status);
    if (!draws || status != MapStatus::kOk) continue;
    float* out = maps.data() + image * cells;
    for (std::int64_t y = 0; y < args.map_height; ++y) {
      const float* row = args.maps + image * args.map_batch_stride + y * args.map_row_stride;
      for (std::int64_t x = 0; x < args.map_width; ++x) *out++ = normalized(row[x * args.map_column_stride], range);
    }
  }
  if (!draws) return;

  Palette palette;
  if (args.colors != nullptr) palette = palette_of(args.colors, args.opacity);
  std::vector<Source> columns(static_cast<std::size_t>(args.width));
  for (std::int64_t x = 0; x < args.width; ++x) {
    columns[static_cast<std::size_t>(x)] = source_of(
        static_cast<std::int32_t>(x), static_cast<std::int32_t>(args.map_width), static_cast<std::int32_t>(args.width));
  }
  const std::int64_t bands = (args.height + kBandRows - 1) / kBandRows;
  parallel_for(args.batch * bands, threads, [&](std::int64_t unit) {
    const std::int64_t image = unit / bands;
    const std::int64_t first = unit % bands * kBandRows;
    const std::int64_t last = std::min(first + kBandRows, args.height);
    BandRenderer renderer(args, &palette, columns.data());
    if (static_cast<MapStatus>(args.status[image]) == MapStatus::kOk) {
      renderer.draw(image, maps.data() + image * cells, first, last);
    } else {
      renderer.leave_blank(image, first, last);
    }
  });
}

}  // namespace finercam
