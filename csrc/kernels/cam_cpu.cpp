// Weighted methods: passes over A, G or both give the weights (N, C), then A is read once more for the map. Summed
// methods: one pass over A and G writes the map.
//
// Each pass has two forms, by which axis of the input is contiguous: planar (positions: nchw) or interleaved
// (channels: nhwc, tokens, and torch's channels_last). Anything else is packed to planar first, and so are two inputs
// of different forms that are read together. Partial sums are cut by the shapes alone, so that the result does not
// depend on the number of threads; they are float inside a chunk and double across chunks, which keeps the error near
// that of one rounding for maps of any size.
#include <algorithm>
#include <array>
#include <memory>
#include <type_traits>
#include <vector>

#include "core/parallel.h"
#include "core/rows.h"
#include "kernels/cam.h"
#include "kernels/cam_rows.h"

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

struct Shape {
  std::int64_t batch, channels, positions;
};

// What a pass reads together: the rows from `first` of one image of each input.
template <typename T, std::size_t kInputs>
struct Rows {
  std::array<const T*, kInputs> data;
  std::array<std::int64_t, kInputs> strides;
};

template <typename T, std::size_t kInputs>
using Inputs = std::array<const Matrices<T>*, kInputs>;

template <typename T, std::size_t kInputs>
Rows<T, kInputs> rows_of(const Inputs<T, kInputs>& inputs, std::int64_t image, std::int64_t first) {
  Rows<T, kInputs> rows;
  for (std::size_t i = 0; i < kInputs; ++i) {
    rows.data[i] = inputs[i]->row(image, first);
    rows.strides[i] = inputs[i]->row_stride;
  }
  return rows;
}

// Calls use(blocks, first_row, rows, first_column, columns) for float blocks that cover rows x columns of T in order,
// at most tile columns at a time; float input is passed on as it lies, anything else is converted into scratch.
template <typename T, std::size_t kInputs, typename Use>
void for_blocks(const Rows<T, kInputs>& in, std::int64_t rows, std::int64_t columns, std::int64_t tile,
                const Use& use) {
  [[maybe_unused]] float scratch[kInputs][std::is_same_v<T, float> ? 1 : kScratch];
  FloatRows blocks[kInputs];
  for (std::int64_t column = 0; column < columns; column += tile) {
    const std::int64_t width = std::min(tile, columns - column);
    if constexpr (std::is_same_v<T, float>) {
      for (std::size_t i = 0; i < kInputs; ++i) blocks[i] = {in.data[i] + column, in.strides[i]};
      use(blocks, std::int64_t{0}, rows, column, width);
    } else {
      const std::int64_t step = std::max<std::int64_t>(kScratch / width, 1);
      for (std::int64_t row = 0; row < rows; row += step) {
        const std::int64_t height = std::min(step, rows - row);
        for (std::size_t i = 0; i < kInputs; ++i) {
          const std::int64_t stride = in.strides[i];
          const T* block = in.data[i] + row * stride + column;
          if (stride == width) {
            widen(block, scratch[i], height * width);
          } else {
            for (std::int64_t r = 0; r < height; ++r) widen(block + r * stride, scratch[i] + r * width, width);
          }
          blocks[i] = {scratch[i], width};
        }
        use(blocks, row, height, column, width);
      }
    }
  }
}

template <typename Pass>
void finish(const double* sums, std::int64_t sum_stride, std::int64_t channel_stride, std::int64_t count,
            std::int64_t positions, float* states) {
  constexpr int kSums = Pass::Statistic::kSums;
  for (std::int64_t c = 0; c < count; ++c) {
    double of_channel[kSums];
    for (int s = 0; s < kSums; ++s) of_channel[s] = sums[s * sum_stride + c * channel_stride];
    states[c] =
        static_cast<float>(Pass::finish(of_channel, static_cast<double>(positions), static_cast<double>(states[c])));
  }
}

// The next states (N, C), from planar inputs: a channel is a row.
template <typename Pass, typename T, std::size_t kInputs>
void pool_planar(const Inputs<T, kInputs>& inputs, const Shape& shape, float* states, int threads) {
  using Statistic = typename Pass::Statistic;
  constexpr int kSums = Statistic::kSums;
  const std::int64_t chunks = chunks_of(shape.channels, kChannelChunk);
  parallel_for(shape.batch * chunks, threads, [&](std::int64_t unit) {
    const std::int64_t image = unit / chunks;
    const std::int64_t first = unit % chunks * kChannelChunk;
    const std::int64_t count = std::min(kChannelChunk, shape.channels - first);
    float* own = states + image * shape.channels + first;
    double sums[kChannelChunk * kSums] = {};
    for_blocks(rows_of(inputs, image, first), count, shape.positions, kScratch,
               [&](const FloatRows* blocks, std::int64_t row, std::int64_t rows, std::int64_t, std::int64_t width) {
                 add_along(Statistic{}, blocks, rows, width, own + row, sums + row * kSums);
               });
    finish<Pass>(sums, 1, kSums, count, shape.positions, own);
  });
}

// The next states (N, C), from interleaved inputs: a position is a row, so chunks of positions give partial sums.
template <typename Pass, typename T, std::size_t kInputs>
void pool_interleaved(const Inputs<T, kInputs>& inputs, const Shape& shape, float* states, int threads) {
  using Statistic = typename Pass::Statistic;
  constexpr int kSums = Statistic::kSums;
  const std::int64_t chunks = chunks_of(shape.positions, kPositionChunk);
  const std::int64_t part = kSums * shape.channels;
  std::vector<float> partial(static_cast<std::size_t>(shape.batch * chunks * part));
  parallel_for(shape.batch * chunks, threads, [&](std::int64_t unit) {
    const std::int64_t image = unit / chunks;
    const std::int64_t first = unit % chunks * kPositionChunk;
    const std::int64_t count = std::min(kPositionChunk, shape.positions - first);
    for_blocks(rows_of(inputs, image, first), count, shape.channels, kTile,
               [&](const FloatRows* blocks, std::int64_t, std::int64_t rows, std::int64_t column, std::int64_t width) {
                 add_across(Statistic{}, blocks, rows, width, states + image * shape.channels + column,
                            partial.data() + unit * part + column, shape.channels);
               });
  });
  std::vector<double> sums(static_cast<std::size_t>(part));
  for (std::int64_t image = 0; image < shape.batch; ++image) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      const float* row = partial.data() + (image * chunks + chunk) * part;
      for (std::int64_t c = 0; c < part; ++c) sums[static_cast<std::size_t>(c)] += static_cast<double>(row[c]);
    }
    finish<Pass>(sums.data(), shape.channels, 1, shape.channels, shape.positions, states + image * shape.channels);
  }
}

// A map of each image, `stride` floats apart.
struct Maps {
  float* data;
  std::int64_t stride;
};

// map (positions) from planar inputs: chunks of channels give partial maps. accumulate(blocks, image, channel, rows,
// width, sum) adds to sum what the rows from this channel on contribute.
template <typename T, std::size_t kInputs, typename Accumulate>
void map_planar(const Inputs<T, kInputs>& inputs, const Shape& shape, const Maps& maps, int threads,
                const Accumulate& accumulate) {
  const std::int64_t chunks = chunks_of(shape.channels, kChannelChunk);
  std::vector<float> partial(static_cast<std::size_t>(shape.batch * chunks * shape.positions));
  parallel_for(shape.batch * chunks, threads, [&](std::int64_t unit) {
    const std::int64_t image = unit / chunks;
    const std::int64_t first = unit % chunks * kChannelChunk;
    const std::int64_t count = std::min(kChannelChunk, shape.channels - first);
    float* sum = partial.data() + unit * shape.positions;
    for_blocks(rows_of(inputs, image, first), count, shape.positions, kTile,
               [&](const FloatRows* blocks, std::int64_t row, std::int64_t rows, std::int64_t column,
                   std::int64_t width) { accumulate(blocks, image, first + row, rows, width, sum + column); });
  });
  parallel_for(shape.batch, threads, [&](std::int64_t image) {
    const float* part = partial.data() + image * chunks * shape.positions;
    for (std::int64_t p = 0; p < shape.positions; ++p) {
      double sum = 0;
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk)
        sum += static_cast<double>(part[chunk * shape.positions + p]);
      maps.data[image * maps.stride + p] = rectify(static_cast<float>(sum));
    }
  });
}

// map (positions) from interleaved inputs: a position is a row. accumulate(blocks, image, rows, column, width, sums)
// adds to the rows' sums what their channels from this column on contribute.
template <typename T, std::size_t kInputs, typename Accumulate>
void map_interleaved(const Inputs<T, kInputs>& inputs, const Shape& shape, const Maps& maps, int threads,
                     const Accumulate& accumulate) {
  const std::int64_t chunks = chunks_of(shape.positions, kPositionChunk);
  parallel_for(shape.batch * chunks, threads, [&](std::int64_t unit) {
    const std::int64_t image = unit / chunks;
    const std::int64_t first = unit % chunks * kPositionChunk;
    const std::int64_t count = std::min(kPositionChunk, shape.positions - first);
    double sums[kPositionChunk] = {};
    for_blocks(rows_of(inputs, image, first), count, shape.channels, kTile,
               [&](const FloatRows* blocks, std::int64_t row, std::int64_t rows, std::int64_t column,
                   std::int64_t width) { accumulate(blocks, image, rows, column, width, sums + row); });
    float* out = maps.data + image * maps.stride + first;
    for (std::int64_t i = 0; i < count; ++i) out[i] = rectify(static_cast<float>(sums[i]));
  });
}

template <typename T>
void weighted_sum(const Matrices<T>& a, const Shape& shape, const float* weights, const Maps& maps, int threads) {
  const Inputs<T, 1> inputs{&a};
  if (a.planar) {
    map_planar(inputs, shape, maps, threads,
               [&](const FloatRows* blocks, std::int64_t image, std::int64_t channel, std::int64_t rows,
                   std::int64_t width, float* sum) {
                 add_weighted_rows(blocks->data, blocks->stride, weights + image * shape.channels + channel, rows,
                                   width, sum);
               });
  } else {
    map_interleaved(inputs, shape, maps, threads,
                    [&](const FloatRows* blocks, std::int64_t image, std::int64_t rows, std::int64_t column,
                        std::int64_t width, double* sums) {
                      add_row_products(blocks->data, blocks->stride, rows, width,
                                       weights + image * shape.channels + column, sums);
                    });
  }
}

// A, and G of one contrast.
template <typename T>
struct Features {
  const CamArgs& args;
  Shape shape;
  Matrices<T> activations, gradients;

  explicit Features(const CamArgs& from)
      : args(from),
        shape{from.activations.batch, from.activations.channels, from.activations.positions()},
        activations(matrices<T>(from.activations)) {}

  FeatureView gradient_view(std::int64_t contrast) const {
    FeatureView view = args.gradients;
    view.data = static_cast<const T*>(view.data) + contrast * args.contrast_stride;
    return view;
  }
  Maps maps(std::int64_t contrast) const {
    return {args.map + contrast * shape.positions, args.contrasts * shape.positions};
  }
  // Both in one form, to be read together.
  Inputs<T, 2> together(std::int64_t contrast) {
    if (activations.planar != gradients.planar) {
      if (!activations.planar) activations = pack<T>(args.activations);
      if (!gradients.planar) gradients = pack<T>(gradient_view(contrast));
    }
    return {&activations, &gradients};
  }
};

template <typename Pass, typename T>
void pool(Features<T>& features, std::int64_t contrast, float* states, int threads) {
  const auto run = [&](const auto& inputs) {
    if (inputs[0]->planar) {
      pool_planar<Pass, T>(inputs, features.shape, states, threads);
    } else {
      pool_interleaved<Pass, T>(inputs, features.shape, states, threads);
    }
  };
  if constexpr (Pass::kInput == Input::kBoth) {
    run(features.together(contrast));
  } else {
    run(Inputs<T, 1>{Pass::kInput == Input::kActivations ? &features.activations : &features.gradients});
  }
}

template <typename T, typename... Passes>
void draw(PassList<Passes...>, Features<T>& features, std::int64_t contrast, int threads) {
  const Shape& shape = features.shape;
  std::vector<float> weights(static_cast<std::size_t>(shape.batch * shape.channels));
  if constexpr (((Passes::kInput != Input::kActivations) || ...)) {
    features.gradients = matrices<T>(features.gradient_view(contrast));
  }
  (pool<Passes>(features, contrast, weights.data(), threads), ...);
  weighted_sum(features.activations, shape, weights.data(), features.maps(contrast), threads);
}

template <typename T>
void draw(GivenWeights, Features<T>& features, std::int64_t contrast, int threads) {
  const Shape& shape = features.shape;
  const FeatureView given = features.gradient_view(contrast);
  std::vector<float> weights;
  weights.reserve(static_cast<std::size_t>(shape.batch * shape.channels));
  for (std::int64_t n = 0; n < shape.batch; ++n) {
    for (std::int64_t c = 0; c < shape.channels; ++c) {
      const T weight = static_cast<const T*>(given.data)[n * given.batch_stride + c * given.channel_stride];
      if constexpr (std::is_same_v<T, float>) {
        weights.push_back(weight);
      } else {
        weights.push_back(to_float(weight));
      }
    }
  }
  weighted_sum(features.activations, shape, weights.data(), features.maps(contrast), threads);
}

template <typename T, typename Term>
void draw(SummedMethod<Term>, Features<T>& features, std::int64_t contrast, int threads) {
  features.gradients = matrices<T>(features.gradient_view(contrast));
  const Inputs<T, 2> inputs = features.together(contrast);
  if (inputs[0]->planar) {
    map_planar(inputs, features.shape, features.maps(contrast), threads,
               [](const FloatRows* blocks, std::int64_t, std::int64_t, std::int64_t rows, std::int64_t width,
                  float* sum) { add_across(Term{}, blocks, rows, width, nullptr, sum, 0); });
  } else {
    map_interleaved(inputs, features.shape, features.maps(contrast), threads,
                    [](const FloatRows* blocks, std::int64_t, std::int64_t rows, std::int64_t, std::int64_t width,
                       double* sums) { add_along(Term{}, blocks, rows, width, nullptr, sums); });
  }
}

}  // namespace

void cam_cpu(const CamArgs& args, int threads) {
  visit_dtype(args.activations.dtype, "cam", [&](auto zero) {
    using T = decltype(zero);
    visit_method(args.method, [&](auto method) {
      Features<T> features(args);
      for (std::int64_t contrast = 0; contrast < args.contrasts; ++contrast) draw(method, features, contrast, threads);
    });
  });
}

}  // namespace finercam
