// Photographs are independent. Of each, the rows that the crop reads are resized along x into bytes, then those along
// y.
#include <algorithm>
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

// (height, width, 3) of bytes: the crop.
void crop_of(const Photograph& photograph, const PreprocessArgs& args, std::uint8_t* crop) {
  const std::int64_t width = args.width;
  for (std::int64_t i = 0; i < args.height * width; ++i) std::copy(args.fill, args.fill + 3, crop + 3 * i);
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
  const std::size_t line = 3 * of_column.size();
  std::vector<float> narrow(static_cast<std::size_t>(end - begin) * line);
  for (std::int32_t row = begin; row < end; ++row) {
    const std::uint8_t* source = photograph.pixels + row * photograph.row_stride;
    float* target = narrow.data() + static_cast<std::size_t>(row - begin) * line;
    for (const WeightedTaps& taps : of_column) {
      float sums[3] = {0.0f, 0.0f, 0.0f};
      for (std::size_t i = 0; i < taps.weights.size(); ++i) {
        const std::uint8_t* pixel = source + (taps.first + static_cast<std::int64_t>(i)) * photograph.column_stride;
        for (int c = 0; c < 3; ++c) sums[c] += taps.weights[i] * pixel[c * photograph.channel_stride];
      }
      for (int c = 0; c < 3; ++c) *target++ = level_of(sums[c]);
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
    std::uint8_t* target = crop + 3 * ((rows.first + static_cast<std::int64_t>(y)) * width + columns.first);
    for (std::size_t x = 0; x < line; ++x) target[x] = static_cast<std::uint8_t>(level_of(sums[x]));
  }
}

}  // namespace

void preprocess_cpu(const PreprocessArgs& args, int threads) {
  const std::int64_t pixels = static_cast<std::int64_t>(args.height) * args.width;
  // Normalising is a look-up, and so is the conversion to a narrower type.
  float table[3][256];
  for (int c = 0; c < 3; ++c) {
    for (int level = 0; level < 256; ++level) {
      table[c][level] = normalised(static_cast<float>(level), args.mean[c], args.std[c]);
    }
  }
  visit_dtype(args.dtype, "preprocess", [&](auto zero) {
    using T = decltype(zero);
    T values[3][256];
    for (int c = 0; c < 3; ++c) std::transform(table[c], table[c] + 256, values[c], from_float<T>);
    parallel_for(args.batch, threads, [&](std::int64_t n) {
      std::vector<std::uint8_t> scratch(args.view == nullptr ? static_cast<std::size_t>(3 * pixels) : 0);
      std::uint8_t* crop = args.view == nullptr ? scratch.data() : args.view + 3 * n * pixels;
      crop_of(args.photographs[n], args, crop);
      T* out = static_cast<T*>(args.out) + 3 * n * pixels;
      for (std::int64_t i = 0; i < pixels; ++i) {
        for (int c = 0; c < 3; ++c) out[c * pixels + i] = values[c][crop[3 * i + c]];
      }
    });
  });
}

}  // namespace finercam
