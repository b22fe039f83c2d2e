// Two passes: pool reads G once and writes the weights (N, C); weighted_sum reads A once and writes the map.
//
// Each pass has two forms, by which axis of the input is contiguous: planar (positions: nchw) or interleaved
// (channels: nhwc, tokens, and torch's channels_last). Anything else is packed to planar first. Partial sums are cut
// by the shapes alone, so that the result does not depend on the number of threads; they are float inside a chunk and
// double across chunks, which keeps the error near that of one rounding for maps of any size.
#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "core/parallel.h"
#include "core/rows.h"
#include "kernels/cam.h"
#include "kernels/cam_methods.h"

namespace finercam {
namespace {

constexpr std::int64_t kChannelChunk = 64;
constexpr std::int64_t kPositionChunk = 32;
constexpr std::int64_t kTile = 2048;     // floats of one row at a time: a sum of rows stays in L1
constexpr std::int64_t kScratch = 8192;  // floats of converted input: 32 KiB

std::int64_t chunks_of(std::int64_t size, std::int64_t chunk) { return (size + chunk - 1) / chunk; }

// A batch of matrices with contiguous rows: planar rows are channels, interleaved rows are positions.
template <typename T>
struct Matrices {
  const T* data;
  std::int64_t batch_stride, row_stride;
  bool planar;
  std::unique_ptr<T[]> packed;

  const T* row(std::int64_t image, std::int64_t index) const {
    return data + image * batch_stride + index * row_stride;
  }
};

template <typename T>
Matrices<T> pack(const FeatureView& view) {
  const auto* data = static_cast<const T*>(view.data);
  const std::int64_t positions = view.positions();
  std::unique_ptr<T[]> packed(new T[static_cast<std::size_t>(view.batch * view.channels * positions)]);
  T* out = packed.get();
  for (std::int64_t n = 0; n < view.batch; ++n) {
    for (std::int64_t c = 0; c < view.channels; ++c) {
      for (std::int64_t y = 0; y < view.height; ++y) {
        const T* row = data + n * view.batch_stride + c * view.channel_stride + y * view.row_stride;
        for (std::int64_t x = 0; x < view.width; ++x) *out++ = row[x * view.column_stride];
      }
    }
  }
  const T* start = packed.get();
  return {start, view.channels * positions, positions, true, std::move(packed)};
}

template <typename T>
Matrices<T> matrices(const FeatureView& view) {
  const auto* data = static_cast<const T*>(view.data);
  const std::int64_t positions = view.positions();
  const bool one_axis = view.height == 1 || view.width == 1 || view.row_stride == view.width * view.column_stride;
  const std::int64_t position_stride = view.width == 1 ? view.row_stride : view.column_stride;
  if (one_axis && positions > 1 && position_stride == 1) {
    return {data, view.batch_stride, view.channel_stride, true, nullptr};
  }
  if (one_axis && (view.channel_stride == 1 || view.channels == 1)) {
    return {data, view.batch_stride, position_stride, false, nullptr};
  }
  return pack<T>(view);
}

// Calls use(block, stride, first_row, rows, first_column, columns) for float blocks that cover rows x columns of T in
// order, at most tile columns at a time; float input is passed on as it lies, anything else is converted into scratch.
template <typename T, typename Use>
void for_blocks(const T* data, std::int64_t stride, std::int64_t rows, std::int64_t columns, std::int64_t tile,
                const Use& use) {
  [[maybe_unused]] float scratch[std::is_same_v<T, float> ? 1 : kScratch];
  for (std::int64_t column = 0; column < columns; column += tile) {
    const std::int64_t width = std::min(tile, columns - column);
    if constexpr (std::is_same_v<T, float>) {
      use(data + column, stride, 0, rows, column, width);
    } else {
      const std::int64_t step = std::max<std::int64_t>(kScratch / width, 1);
      for (std::int64_t row = 0; row < rows; row += step) {
        const std::int64_t height = std::min(step, rows - row);
        const T* block = data + row * stride + column;
        if (stride == width) {
          widen(block, scratch, height * width);
        } else {
          for (std::int64_t r = 0; r < height; ++r) widen(block + r * stride, scratch + r * width, width);
        }
        use(scratch, width, row, height, column, width);
      }
    }
  }
}

struct Shape {
  std::int64_t batch, channels, positions;
};

template <typename Policy>
void weights_from_sums(const double* sums, std::int64_t count, std::int64_t positions, float* weights) {
  for (std::int64_t i = 0; i < count; ++i) {
    weights[i] = static_cast<float>(Policy::weight(sums[i], static_cast<double>(positions)));
  }
}

// weights (N, C) from planar gradients: a channel is a row.
template <typename Policy, typename T>
void pool_planar(const Matrices<T>& gradients, const Shape& shape, float* weights, int threads) {
  const std::int64_t chunks = chunks_of(shape.channels, kChannelChunk);
  parallel_for(shape.batch * chunks, threads, [&](std::int64_t unit) {
    const std::int64_t image = unit / chunks;
    const std::int64_t first = unit % chunks * kChannelChunk;
    const std::int64_t count = std::min(kChannelChunk, shape.channels - first);
    double sums[kChannelChunk] = {};
    for_blocks(gradients.row(image, first), gradients.row_stride, count, shape.positions, kScratch,
               [&](const float* block, std::int64_t stride, std::int64_t row, std::int64_t rows, std::int64_t,
                   std::int64_t width) { add_row_sums(block, stride, rows, width, sums + row); });
    weights_from_sums<Policy>(sums, count, shape.positions, weights + image * shape.channels + first);
  });
}

// weights (N, C) from interleaved gradients: a position is a row, so chunks of positions give partial sums per channel.
template <typename Policy, typename T>
void pool_interleaved(const Matrices<T>& gradients, const Shape& shape, float* weights, int threads) {
  const std::int64_t chunks = chunks_of(shape.positions, kPositionChunk);
  std::vector<float> partial(static_cast<std::size_t>(shape.batch * chunks * shape.channels));
  float ones[kPositionChunk];
  std::fill_n(ones, kPositionChunk, 1.0f);
  parallel_for(shape.batch * chunks, threads, [&](std::int64_t unit) {
    const std::int64_t first = unit % chunks * kPositionChunk;
    const std::int64_t count = std::min(kPositionChunk, shape.positions - first);
    float* sums = partial.data() + unit * shape.channels;
    for_blocks(gradients.row(unit / chunks, first), gradients.row_stride, count, shape.channels, kTile,
               [&](const float* block, std::int64_t stride, std::int64_t, std::int64_t rows, std::int64_t column,
                   std::int64_t width) { add_weighted_rows(block, stride, ones, rows, width, sums + column); });
  });
  std::vector<double> sums(static_cast<std::size_t>(shape.channels));
  for (std::int64_t image = 0; image < shape.batch; ++image) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      const float* row = partial.data() + (image * chunks + chunk) * shape.channels;
      for (std::int64_t c = 0; c < shape.channels; ++c)
        sums[static_cast<std::size_t>(c)] += static_cast<double>(row[c]);
    }
    weights_from_sums<Policy>(sums.data(), shape.channels, shape.positions, weights + image * shape.channels);
  }
}

// map (N, positions) from planar activations: chunks of channels give partial maps.
template <typename T>
void weighted_sum_planar(const Matrices<T>& activations, const Shape& shape, const float* weights, float* map,
                         int threads) {
  const std::int64_t chunks = chunks_of(shape.channels, kChannelChunk);
  std::vector<float> partial(static_cast<std::size_t>(shape.batch * chunks * shape.positions));
  parallel_for(shape.batch * chunks, threads, [&](std::int64_t unit) {
    const std::int64_t image = unit / chunks;
    const std::int64_t first = unit % chunks * kChannelChunk;
    const std::int64_t count = std::min(kChannelChunk, shape.channels - first);
    const float* factors = weights + image * shape.channels + first;
    float* sum = partial.data() + unit * shape.positions;
    for_blocks(activations.row(image, first), activations.row_stride, count, shape.positions, kTile,
               [&](const float* block, std::int64_t stride, std::int64_t row, std::int64_t rows, std::int64_t column,
                   std::int64_t width) { add_weighted_rows(block, stride, factors + row, rows, width, sum + column); });
  });
  parallel_for(shape.batch, threads, [&](std::int64_t image) {
    const float* part = partial.data() + image * chunks * shape.positions;
    for (std::int64_t p = 0; p < shape.positions; ++p) {
      double sum = 0;
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk)
        sum += static_cast<double>(part[chunk * shape.positions + p]);
      map[image * shape.positions + p] = rectify(static_cast<float>(sum));
    }
  });
}

// map (N, positions) from interleaved activations: one product of a row and the weights per position.
template <typename T>
void weighted_sum_interleaved(const Matrices<T>& activations, const Shape& shape, const float* weights, float* map,
                              int threads) {
  const std::int64_t chunks = chunks_of(shape.positions, kPositionChunk);
  parallel_for(shape.batch * chunks, threads, [&](std::int64_t unit) {
    const std::int64_t image = unit / chunks;
    const std::int64_t first = unit % chunks * kPositionChunk;
    const std::int64_t count = std::min(kPositionChunk, shape.positions - first);
    const float* factors = weights + image * shape.channels;
    double sums[kPositionChunk] = {};
    for_blocks(activations.row(image, first), activations.row_stride, count, shape.channels, kTile,
               [&](const float* block, std::int64_t stride, std::int64_t row, std::int64_t rows, std::int64_t column,
                   std::int64_t width) { add_row_products(block, stride, rows, width, factors + column, sums + row); });
    float* out = map + image * shape.positions + first;
    for (std::int64_t i = 0; i < count; ++i) out[i] = rectify(static_cast<float>(sums[i]));
  });
}

template <typename Policy, typename T>
void pooled_cam(const FeatureView& activations, const FeatureView& gradients, float* map, int threads) {
  const Shape shape{activations.batch, activations.channels, activations.positions()};
  std::vector<float> weights(static_cast<std::size_t>(shape.batch * shape.channels));
  const Matrices<T> g = matrices<T>(gradients);
  if (g.planar) {
    pool_planar<Policy>(g, shape, weights.data(), threads);
  } else {
    pool_interleaved<Policy>(g, shape, weights.data(), threads);
  }
  const Matrices<T> a = matrices<T>(activations);
  if (a.planar) {
    weighted_sum_planar(a, shape, weights.data(), map, threads);
  } else {
    weighted_sum_interleaved(a, shape, weights.data(), map, threads);
  }
}

}  // namespace

void cam_cpu(Method method, const FeatureView& activations, const FeatureView& gradients, float* map, int threads) {
  visit_dtype(activations.dtype, "cam", [&](auto zero) {
    using T = decltype(zero);
    switch (method) {
      case Method::kGradCam:
        return pooled_cam<GradCam, T>(activations, gradients, map, threads);
    }
  });
}

}  // namespace finercam
