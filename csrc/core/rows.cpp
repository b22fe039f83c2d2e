#include "core/rows.h"

#include <algorithm>
#include <cstring>

#include "core/clones.h"
#include "core/lanes.h"

#ifdef FINERCAM_HAS_TARGET_CLONES
#include <immintrin.h>
#endif

namespace finercam {
namespace {

#ifdef FINERCAM_HAS_TARGET_CLONES
// The processor's own conversion: compilers do not find it in the portable loop.
__attribute__((target("avx,f16c"))) void widen_f16c(const Half* in, float* out, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  }
  for (; i < count; ++i) out[i] = to_float(in[i]);
}
#endif

}  // namespace

void widen(const Half* in, float* out, std::int64_t count) {
#ifdef FINERCAM_HAS_TARGET_CLONES
  if (__builtin_cpu_supports("x86-64-v3")) return widen_f16c(in, out, count);
#endif
  for (std::int64_t i = 0; i < count; ++i) out[i] = to_float(in[i]);
}

FINERCAM_CLONES void widen(const BFloat16* in, float* out, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = to_float(in[i]);
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
