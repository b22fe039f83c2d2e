// The statistics of cam_methods.h over blocks of float rows, vectorised, for the CPU. Row r of input i starts at
// in[i].data + r * in[i].stride; a statistic of one input reads in[0].
#pragma once

#include <cstdint>

#include "kernels/cam_methods.h"

namespace finercam {

struct FloatRows {
  const float* data;
  std::int64_t stride;
};

// For each of the statistics:
//   add_along: sums[r * kSums + s] += the sum over columns i < length of row r; states[r], or null.
//   add_across: sums[s * sum_stride + i] += the sum over the rows in column i; states[i], or null.
#define FINERCAM_STATISTIC(Statistic)                                                                          \
  void add_along(Statistic, const FloatRows* in, std::int64_t rows, std::int64_t length, const float* states,  \
                 double* sums);                                                                                \
  void add_across(Statistic, const FloatRows* in, std::int64_t rows, std::int64_t length, const float* states, \
                  float* sums, std::int64_t sum_stride);

FINERCAM_STATISTIC(Total)
FINERCAM_STATISTIC(SquaredDeviation)
FINERCAM_STATISTIC(CountAbove)
FINERCAM_STATISTIC(PlusPlusTerm)
FINERCAM_STATISTIC(ProductAndTotal)
FINERCAM_STATISTIC(HiResTerm)
FINERCAM_STATISTIC(LayerTerm)
FINERCAM_STATISTIC(ElementwiseTerm)
#undef FINERCAM_STATISTIC

}  // namespace finercam
