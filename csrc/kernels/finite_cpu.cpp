#include <cstring>

#include "core/parallel.h"
#include "kernels/finite.h"
#include "kernels/render.h"

namespace finercam {

void mark_non_finite_cpu(const FiniteArgs& args, int threads) {
  constexpr std::uint32_t kExponent = 0x7f800000u;
  parallel_for(args.rows, threads, [&](std::int64_t row) {
    const float* values = args.values + row * args.columns;
    bool found = false;  // of all: a loop without an early end is vectorised
    for (std::int64_t column = 0; column < args.columns; ++column) {
      std::uint32_t bits;
      std::memcpy(&bits, values + column, sizeof bits);
      found |= (bits & kExponent) == kExponent;
    }
    if (!found) return;
    for (std::int64_t repeat = 0; repeat < args.repeats; ++repeat) {
      args.status[row * args.row_stride + repeat * args.repeat_stride] =
          static_cast<std::uint8_t>(MapStatus::kNonFinite);
    }
  });
}

}  // namespace finercam
