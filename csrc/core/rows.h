// The vectorised loops of the CPU kernels, over blocks of float rows: row r of a block starts at block + r * stride.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace finercam {

// out[i] = float(in[i]), i < count
void widen(const Half* in, float* out, std::int64_t count);
void widen(const BFloat16* in, float* out, std::int64_t count);

// sums[r] += sum_i weights[i] * block[r][i], i < length
void add_row_products(const float* block, std::int64_t stride, std::int64_t rows, std::int64_t length,
                      const float* weights, double* sums);

// sum[i] += sum_r weights[r] * block[r][i], i < length
void add_weighted_rows(const float* block, std::int64_t stride, const float* weights, std::int64_t rows,
                       std::int64_t length, float* sum);

}  // namespace finercam
