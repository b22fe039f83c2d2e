// Which images have values that are not finite, written into the status of their maps.
#pragma once

#include "core/view.h"

namespace finercam {

// values (N, M) float32, contiguous. status (N, P), any strides: all P entries of a row become MapStatus::kNonFinite
// where the row of values holds NaN or infinity; the other rows stay as they are.
struct FiniteArgs {
  const float* values;
  std::int64_t rows, columns;

  std::uint8_t* status;
  std::int64_t repeats;
  std::int64_t row_stride, repeat_stride;
};

void mark_non_finite(const FiniteArgs& args, const Execution& execution);

void mark_non_finite_cpu(const FiniteArgs& args, int threads);

// Queues the kernel on stream (a cudaStream_t) of the device and returns; throws where the build has no CUDA.
void mark_non_finite_cuda(const FiniteArgs& args, int device, void* stream);

}  // namespace finercam
