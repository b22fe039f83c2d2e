#include "core/rows.h"

#include <algorithm>
#include <cstring>

#include "core/clones.h"

namespace finercam {
namespace {

// Sixteen partial sums: the same order of additions on every instruction set.
typedef float Lanes __attribute__((vector_size(64)));
constexpr std::int64_t kLanes = 16;

// Additions into one float lane before it moves to a double: bounds the rounding error whatever the length.
constexpr std::int64_t kSpan = 4 * kLanes * 32;

inline double total(const Lanes& lanes) {
  double sum = 0;
  for (std::int64_t lane = 0; lane < kLanes; ++lane) sum += static_cast<double>(lanes[lane]);
  return sum;
}

}  // namespace

FINERCAM_CLONES void widen(const Half* in, float* out, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = to_float(in[i]);
}

FINERCAM_CLONES void widen(const BFloat16* in, float* out, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = to_float(in[i]);
}

FINERCAM_CLONES void add_row_sums(const float* block, std::int64_t stride, std::int64_t rows, std::int64_t length,
                                  double* sums) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* row = block + r * stride;
    for (std::int64_t start = 0; start < length; start += kSpan) {
      const std::int64_t end = std::min(start + kSpan, length);
      Lanes sum[4] = {};
      std::int64_t i = start;
      for (; i + 4 * kLanes <= end; i += 4 * kLanes) {
        Lanes values[4];
        std::memcpy(values, row + i, sizeof values);
        for (int j = 0; j < 4; ++j) sum[j] += values[j];
      }
      for (; i + kLanes <= end; i += kLanes) {
        Lanes values;
        std::memcpy(&values, row + i, sizeof values);
        sum[0] += values;
      }
      double rest = 0;
      for (; i < end; ++i) rest += static_cast<double>(row[i]);
      sums[r] += total((sum[0] + sum[1]) + (sum[2] + sum[3])) + rest;
    }
  }
}

FINERCAM_CLONES void add_row_products(const float* block, std::int64_t stride, std::int64_t rows, std::int64_t length,
                                      const float* weights, double* sums) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* row = block + r * stride;
    for (std::int64_t start = 0; start < length; start += kSpan) {
      const std::int64_t end = std::min(start + kSpan, length);
      Lanes sum[4] = {};
      std::int64_t i = start;
      for (; i + 4 * kLanes <= end; i += 4 * kLanes) {
        Lanes values[4];
        Lanes factors[4];
        std::memcpy(values, row + i, sizeof values);
        std::memcpy(factors, weights + i, sizeof factors);
        for (int j = 0; j < 4; ++j) sum[j] += values[j] * factors[j];
      }
      double rest = 0;
      for (; i < end; ++i) rest += static_cast<double>(weights[i]) * static_cast<double>(row[i]);
      sums[r] += total((sum[0] + sum[1]) + (sum[2] + sum[3])) + rest;
    }
  }
}

FINERCAM_CLONES void add_weighted_rows(const float* block, std::int64_t stride, const float* weights, std::int64_t rows,
                                       std::int64_t length, float* __restrict sum) {
  std::int64_t r = 0;
  // Four rows at a time: one load and one store of sum for four multiply-adds.
  for (; r + 4 <= rows; r += 4) {
    const float* row = block + r * stride;
    const float w0 = weights[r];
    const float w1 = weights[r + 1];
    const float w2 = weights[r + 2];
    const float w3 = weights[r + 3];
    for (std::int64_t i = 0; i < length; ++i) {
      sum[i] += (w0 * row[i] + w1 * row[stride + i]) + (w2 * row[2 * stride + i] + w3 * row[3 * stride + i]);
    }
  }
  for (; r < rows; ++r) {
    const float* row = block + r * stride;
    for (std::int64_t i = 0; i < length; ++i) sum[i] += weights[r] * row[i];
  }
}

}  // namespace finercam
