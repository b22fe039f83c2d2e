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

// RGB bytes as one RGBA pixel, and 256 colours as such.
std::uint32_t pixel_of(std::uint8_t red, std::uint8_t green, std::uint8_t blue) {
  const std::uint8_t bytes[4] = {red, green, blue, 255};
  std::uint32_t pixel;
  std::memcpy(&pixel, bytes, sizeof pixel);
  return pixel;
}

struct Palette {
  std::uint32_t pixels[256];
};

Palette palette_of(const std::uint8_t* colors) {
  Palette palette;
  for (int i = 0; i < 256; ++i) palette.pixels[i] = pixel_of(colors[3 * i], colors[3 * i + 1], colors[3 * i + 2]);
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

// Not vectorised on purpose: gathers are slower than loads here.
void color_row(const std::int32_t* index, const Palette& palette, std::uint32_t* out, std::int64_t width) {
  for (std::int64_t x = 0; x < width; ++x) out[x] = palette.pixels[index[x]];
}

// All bytes alike: alpha is 255 in both and stays so.
FINERCAM_CLONES void blend_row(const std::uint8_t* __restrict photo, float photo_opacity, float opacity,
                               std::uint8_t* __restrict row, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; ++i) row[i] = blended(row[i], opacity, photo[i], photo_opacity);
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
  BandRenderer(const RenderArgs& args, const Palette* palette, const Source* sources)
      : args_(args),
        rows_axis_(rows_of(args)),
        columns_axis_(columns_of(args)),
        palette_(palette),
        sources_(sources),
        rows_{std::vector<float>(width()), std::vector<float>(width())},
        index_(args.rgba != nullptr ? width() : 0),
        photo_(args.photos != nullptr ? width() : 0) {}

  void draw(std::int64_t image, const float* map, std::int64_t first, std::int64_t last) {
    cached_[0] = cached_[1] = -1;
    for (std::int64_t y = first; y < last; ++y) {
      const std::int64_t row = image * args_.height + y;
      fill_outside(row, y);
      if (rows_axis_.holds(y)) draw_inside(row, map, static_cast<std::int32_t>(y));
      if (args_.photos == nullptr) continue;
      read_photo(image, y, photo_.data());
      blend_row(reinterpret_cast<const std::uint8_t*>(photo_.data()), 1.0f - args_.opacity, args_.opacity,
                reinterpret_cast<std::uint8_t*>(rgba_row(row)), args_.width * 4);
    }
  }

  // Where the map explains nothing: zeros, or the photograph as it is.
  void leave_blank(std::int64_t image, std::int64_t first, std::int64_t last) {
    for (std::int64_t y = first; y < last; ++y) {
      const std::int64_t row = image * args_.height + y;
      if (args_.values != nullptr) {
        std::fill_n(args_.values + row * args_.width, args_.width, 0.0f);
        fill_outside(row, y);
      } else if (args_.photos == nullptr) {
        std::fill_n(rgba_row(row), args_.width, 0u);
      } else {
        read_photo(image, y, rgba_row(row));
      }
    }
  }

 private:
  std::size_t width() const { return static_cast<std::size_t>(args_.width); }

  // The pixels of row y that the map does not cover; black ones are then blended with the photograph.
  void fill_outside(std::int64_t row, std::int64_t y) {
    const std::int64_t first = rows_axis_.holds(y) ? columns_axis_.first : args_.width;
    const std::int64_t last = rows_axis_.holds(y) ? columns_axis_.last : args_.width;
    if (args_.values != nullptr) {
      float* out = args_.values + row * args_.width;
      std::fill(out, out + first, std::numeric_limits<float>::quiet_NaN());
      std::fill(out + last, out + args_.width, std::numeric_limits<float>::quiet_NaN());
    } else {
      const std::uint32_t pixel = args_.photos != nullptr ? pixel_of(0, 0, 0) : 0u;
      std::fill(rgba_row(row), rgba_row(row) + first, pixel);
      std::fill(rgba_row(row) + last, rgba_row(row) + args_.width, pixel);
    }
  }

  void draw_inside(std::int64_t row, const float* map, std::int32_t y) {
    const Source source = source_of(y, rows_axis_);
    const float* top = source_row(map, source.low);
    const float* bottom = source_row(map, source.high);
    const std::int64_t first = columns_axis_.first, count = columns_axis_.last - first;
    if (args_.values != nullptr) {
      value_row(top, bottom, source.weight, args_.values + row * args_.width + first, count);
    } else {
      index_row(top, bottom, source.weight, index_.data(), count);
      color_row(index_.data(), *palette_, rgba_row(row) + first, count);
    }
  }

  // Source rows y and y + 1 have different parity, so each has a slot of its own.
  const float* source_row(const float* map, std::int32_t y) {
    std::vector<float>& slot = rows_[y % 2];
    if (cached_[y % 2] != y) {
      resize_row(map + y * args_.map_width, sources_, slot.data(), columns_axis_.last - columns_axis_.first);
      cached_[y % 2] = y;
    }
    return slot.data();
  }

  std::uint32_t* rgba_row(std::int64_t row) const {
    return reinterpret_cast<std::uint32_t*>(args_.rgba) + row * args_.width;
  }

  // Row y of the photograph as RGBA.
  void read_photo(std::int64_t image, std::int64_t y, std::uint32_t* out) const {
    const std::uint8_t* row = args_.photos + image * args_.photo_batch_stride + y * args_.photo_row_stride;
    const std::int64_t step = args_.photo_channel_stride;
    std::int64_t x = 0;
    if (args_.photo_column_stride == 3 && step == 1) {
      // One load of four bytes for three, but for the last pixel, after which the photograph may end.
      static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the fourth byte must be the highest one");
      for (; x + 1 < args_.width; ++x) {
        std::uint32_t pixel;
        std::memcpy(&pixel, row + 3 * x, sizeof pixel);
        out[x] = pixel | 0xff000000u;
      }
    }
    for (; x < args_.width; ++x) {
      const std::uint8_t* pixel = row + x * args_.photo_column_stride;
      out[x] = pixel_of(pixel[0], pixel[step], pixel[2 * step]);
    }
  }

  const RenderArgs& args_;
  const Axis rows_axis_, columns_axis_;
  const Palette* palette_;
  const Source* sources_;  // of the columns in the box
  std::vector<float> rows_[2];
  std::int32_t cached_[2] = {-1, -1};
  std::vector<std::int32_t> index_;
  std::vector<std::uint32_t> photo_;
};

}  // namespace

void render_cpu(const RenderArgs& args, int threads) {
  const bool draws = args.values != nullptr || args.rgba != nullptr;
  const std::int64_t cells = args.map_height * args.map_width;
  std::vector<float> maps(draws ? static_cast<std::size_t>(args.batch * cells) : 0);
  for (std::int64_t image = 0; image < args.batch; ++image) {
    const MapRange own = range_of(args, image);
    const MapStatus status = status_of(own);
    args.status[image] = static_cast<std::uint8_t>(status);
    if (!draws || status != MapStatus::kOk) continue;
    const MapRange range = drawn_range(args, own);
    float* out = maps.data() + image * cells;
    for (std::int64_t y = 0; y < args.map_height; ++y) {
      const float* row = args.maps + image * args.map_batch_stride + y * args.map_row_stride;
      for (std::int64_t x = 0; x < args.map_width; ++x) *out++ = normalized(row[x * args.map_column_stride], range);
    }
  }
  if (!draws) return;

  Palette palette;
  if (args.colors != nullptr) palette = palette_of(args.colors);
  const Axis columns = columns_of(args);
  std::vector<Source> sources;
  sources.reserve(static_cast<std::size_t>(columns.last - columns.first));
  for (std::int32_t x = columns.first; x < columns.last; ++x) sources.push_back(source_of(x, columns));
  const std::int64_t bands = (args.height + kBandRows - 1) / kBandRows;
  parallel_for(args.batch * bands, threads, [&](std::int64_t unit) {
    const std::int64_t image = unit / bands;
    const std::int64_t first = unit % bands * kBandRows;
    const std::int64_t last = std::min(first + kBandRows, args.height);
    BandRenderer renderer(args, &palette, sources.data());
    if (static_cast<MapStatus>(args.status[image]) == MapStatus::kOk) {
      renderer.draw(image, maps.data() + image * cells, first, last);
    } else {
      renderer.leave_blank(image, first, last);
    }
  });
}

}  // namespace finercam
