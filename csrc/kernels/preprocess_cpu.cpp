// Photographs are independent. Of each, the rows that the crop reads are resized along x into bytes, then those along
// y.
#include <algorithm>
#include <array>
#include <vector>

#include "core/parallel.h"
#include "kernels/preprocess_math.h"

namespace finercam {
namespace {

// The taps of one target cell with their weights, which sum to 1.
struct WeightedTaps {
  std::int32_t first;
  std::vector<float> weights;
};

WeightedTaps weighted(ResizeFilter filter, std::int32_t target, std::int32_t source, std::int32_t resized) {
  const Taps taps = taps_of(target, source, resized, filter_support(filter));
  WeightedTaps found{taps.first, {}};
  float sum = 0.0f;
  for (std::int32_t i = 0; i < taps.end - taps.first; ++i) {
    found.weights.push_back(filter_weight(filter, (taps.offset + static_cast<float>(i)) * taps.step));
    sum += found.weights.back();
  }
  for (float& weight : found.weights) weight /= sum;
  return found;
}

// The crop's cells along one axis that lie in the resized photograph: [first, end).
struct Inside {
  std::int32_t first, end;
};

Inside inside(std::int32_t start, std::int32_t crop, std::int32_t resized) {
  return {std::clamp(-start, 0, crop), std::clamp(resized - start, 0, crop)};
}

// (height, width, kPlanes) of bytes: the crop of the channels from `first` on.
template <int kPlanes>
void crop_of(const Photograph& photograph, const PreprocessArgs& args, std::int32_t first, std::uint8_t* crop) {
  const std::int64_t width = args.width;
  const std::uint8_t* fill = args.fill + first;
  for (std::int64_t i = 0; i < args.height * width; ++i) std::copy(fill, fill + kPlanes, crop + kPlanes * i);
  const Inside rows = inside(photograph.top, args.height, photograph.resized_height);
  const Inside columns = inside(photograph.left, args.width, photograph.resized_width);
  if (rows.first >= rows.end || columns.first >= columns.end) return;

  std::vector<WeightedTaps> of_row, of_column;
  for (std::int32_t y = rows.first; y < rows.end; ++y) {
    of_row.push_back(weighted(args.filter, photograph.top + y, photograph.height, photograph.resized_height));
  }
  for (std::int32_t x = columns.first; x < columns.end; ++x) {
    of_column.push_back(weighted(args.filter, photograph.left + x, photograph.width, photograph.resized_width));
  }

  const std::int32_t begin = of_row.front().first;
  const std::int32_t end = of_row.back().first + static_cast<std::int32_t>(of_row.back().weights.size());
  const std::size_t line = kPlanes * of_column.size();
  const std::uint8_t* pixels = photograph.pixels + first * photograph.channel_stride;
  std::vector<float> narrow(static_cast<std::size_t>(end - begin) * line);
  for (std::int32_t row = begin; row < end; ++row) {
    const std::uint8_t* source = pixels + row * photograph.row_stride;
    float* target = narrow.data() + static_cast<std::size_t>(row - begin) * line;
    for (const WeightedTaps& taps : of_column) {
      float sums[kPlanes] = {};
      for (std::size_t i = 0; i < taps.weights.size(); ++i) {
        const std::uint8_t* pixel = source + (taps.first + static_cast<std::int64_t>(i)) * photograph.column_stride;
        for (int c = 0; c < kPlanes; ++c) sums[c] += taps.weights[i] * pixel[c * photograph.channel_stride];
      }
      for (int c = 0; c < kPlanes; ++c) *target++ = level_of(sums[c]);
    }
  }

  std::vector<float> sums(line);
  for (std::size_t y = 0; y < of_row.size(); ++y) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (std::size_t i = 0; i < of_row[y].weights.size(); ++i) {
      const float weight = of_row[y].weights[i];
      const float* source = narrow.data() + (static_cast<std::size_t>(of_row[y].first - begin) + i) * line;
      for (std::size_t x = 0; x < line; ++x) sums[x] += weight * source[x];
    }
    std::uint8_t* target = crop + kPlanes * ((rows.first + static_cast<std::int64_t>(y)) * width + columns.first);
    for (std::size_t x = 0; x < line; ++x) target[x] = static_cast<std::uint8_t>(level_of(sums[x]));
  }
}

template <typename T, int kPlanes>
void preprocess_planes(const PreprocessArgs& args, int threads) {
  const std::int64_t pixels = static_cast<std::int64_t>(args.height) * args.width;
  // Normalising is a look-up, and so is the conversion to a narrower type.
  std::vector<std::array<T, 256>> values(static_cast<std::size_t>(args.channels));
  for (std::int32_t c = 0; c < args.channels; ++c) {
    for (std::size_t level = 0; level < 256; ++level) {
      const float value = normalised(static_cast<float>(level), args.mean[c], args.std[c]);
      values[static_cast<std::size_t>(c)][level] = from_float<T>(value);
    }
  }
  const std::int64_t groups = args.channels / kPlanes;
  const bool in_view = args.view != nullptr && groups == 1;
  parallel_for(args.batch * groups, threads, [&](std::int64_t item) {
    const std::int64_t n = item / groups;
    const auto first = static_cast<std::int32_t>(item % groups) * kPlanes;
    std::vector<std::uint8_t> scratch(in_view ? 0 : static_cast<std::size_t>(kPlanes * pixels));
    std::uint8_t* crop = in_view ? args.view + kPlanes * n * pixels : scratch.data();
    crop_of<kPlanes>(args.photographs[n], args, first, crop);
    T* out = static_cast<T*>(args.out) + (args.channels * n + first) * pixels;
    const std::array<T, 256>* tables = values.data() + first;
    for (std::int64_t i = 0; i < pixels; ++i) {
      for (int c = 0; c < kPlanes; ++c) out[c * pixels + i] = tables[c][crop[kPlanes * i + c]];
    }
    if (args.view == nullptr || in_view) return;
    std::uint8_t* view = args.view + args.channels * n * pixels + first;
    for (std::int64_t i = 0; i < pixels; ++i)
      std::copy(crop + kPlanes * i, crop + kPlanes * (i + 1), view + args.channels * i);
  });
}

}  // namespace

void preprocess_cpu(const PreprocessArgs& args, int threads) {
  visit_dtype(args.dtype, "preprocess", [&](auto zero) {
    using T = decltype(zero);
    if (args.channels == 3) {
      preprocess_planes<T, 3>(args, threads);
    } else {
      preprocess_planes<T, 1>(args, threads);
    }
  });
}

}  // namespace finercam
