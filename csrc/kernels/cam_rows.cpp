#include "kernels/cam_rows.h"

#include <algorithm>
#include <cstring>

#include "core/clones.h"
#include "core/lanes.h"

namespace finercam {
namespace {

#define FINERCAM_INLINE inline __attribute__((always_inline))

template <typename Statistic, typename Value>
FINERCAM_INLINE void load(const FloatRows* in, std::int64_t offset, std::int64_t row, Value* values) {
  for (int i = 0; i < Statistic::kInputs; ++i) {
    std::memcpy(values + i, in[i].data + row * in[i].stride + offset, sizeof(Value));
  }
}

template <typename Statistic>
FINERCAM_INLINE void along(const FloatRows* in, std::int64_t rows, std::int64_t length, const float* states,
                           double* sums) {
  constexpr int kSums = Statistic::kSums;
  for (std::int64_t r = 0; r < rows; ++r) {
    const float state = states == nullptr ? 0.0f : states[r];
    const Lanes state_lanes = Lanes{} + state;
    for (std::int64_t start = 0; start < length; start += kSpan) {
      const std::int64_t end = std::min(start + kSpan, length);
      Lanes partial[4][kSums] = {};
      Lanes values[Statistic::kInputs];
      std::int64_t i = start;
      for (; i + 4 * kLanes <= end; i += 4 * kLanes) {
        for (int j = 0; j < 4; ++j) {
          load<Statistic>(in, i + j * kLanes, r, values);
          Statistic::add(values, state_lanes, partial[j]);
        }
      }
      for (; i + kLanes <= end; i += kLanes) {
        load<Statistic>(in, i, r, values);
        Statistic::add(values, state_lanes, partial[0]);
      }
      for (int s = 0; s < kSums; ++s) {
        sums[r * kSums + s] += total((partial[0][s] + partial[1][s]) + (partial[2][s] + partial[3][s]));
      }
      for (; i < end; ++i) {
        float value[Statistic::kInputs];
        float one[kSums] = {};
        load<Statistic>(in, i, r, value);
        Statistic::add(value, state, one);
        for (int s = 0; s < kSums; ++s) sums[r * kSums + s] += static_cast<double>(one[s]);
      }
    }
  }
}

// The columns from i, kWidth values of Value at a time: their sums stay in registers over all rows.
template <typename Statistic, typename Value, int kWidth>
FINERCAM_INLINE std::int64_t columns(std::int64_t i, const FloatRows* in, std::int64_t rows, std::int64_t length,
                                     const float* states, float* sums, std::int64_t sum_stride) {
  constexpr int kSums = Statistic::kSums;
  constexpr auto kStep = static_cast<std::int64_t>(sizeof(Value) / sizeof(float));
  for (; i + kWidth * kStep <= length; i += kWidth * kStep) {
    Value partial[kWidth][kSums] = {};
    Value state[kWidth] = {};
    if (states != nullptr) std::memcpy(state, states + i, sizeof state);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (int j = 0; j < kWidth; ++j) {
        Value values[Statistic::kInputs];
        load<Statistic>(in, i + j * kStep, r, values);
        Statistic::add(values, state[j], partial[j]);
      }
    }
    for (int s = 0; s < kSums; ++s) {
      for (int j = 0; j < kWidth; ++j) {
        float* sum = sums + s * sum_stride + i + j * kStep;
        Value former;
        std::memcpy(&former, sum, sizeof former);
        former += partial[j][s];
        std::memcpy(sum, &former, sizeof former);
      }
    }
  }
  return i;
}

template <typename Statistic>
FINERCAM_INLINE void across(const FloatRows* in, std::int64_t rows, std::int64_t length, const float* states,
                            float* sums, std::int64_t sum_stride) {
  std::int64_t i = columns<Statistic, Lanes, 4>(0, in, rows, length, states, sums, sum_stride);
  i = columns<Statistic, Lanes, 1>(i, in, rows, length, states, sums, sum_stride);
  columns<Statistic, float, 1>(i, in, rows, length, states, sums, sum_stride);
}

}  // namespace

#define FINERCAM_STATISTIC(Statistic)                                                                     \
  FINERCAM_CLONES void add_along(Statistic, const FloatRows* in, std::int64_t rows, std::int64_t length,  \
                                 const float* states, double* sums) {                                     \
    along<Statistic>(in, rows, length, states, sums);                                                     \
  }                                                                                                       \
  FINERCAM_CLONES void add_across(Statistic, const FloatRows* in, std::int64_t rows, std::int64_t length, \
                                  const float* states, float* sums, std::int64_t sum_stride) {            \
    across<Statistic>(in, rows, length, states, sums, sum_stride);                                        \
  }

FINERCAM_STATISTIC(Total)
FINERCAM_STATISTIC(SquaredDeviation)
FINERCAM_STATISTIC(CountAbove)
FINERCAM_STATISTIC(PlusPlusTerm)
FINERCAM_STATISTIC(ProductAndTotal)
FINERCAM_STATISTIC(HiResTerm)
FINERCAM_STATISTIC(LayerTerm)
FINERCAM_STATISTIC(ElementwiseTerm)

}  // namespace finercam
