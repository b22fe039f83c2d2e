// The place of each pixel in its map, from the largest value to the smallest.
#pragma once

#include "core/host_device.h"
#include "core/view.h"

namespace finercam {

// maps (N, H, W) float32, any strides. ranks (N, H, W), contiguous: 0 for the largest value of a map, H * W - 1 for the
// smallest; of equal values the one with the lower index y * W + x comes first, and -0 equals 0.
struct RankArgs {
  const float* maps;
  std::int64_t batch, height, width;
  Strides strides;
  std::int32_t* ranks;

  FINERCAM_HOST_DEVICE std::int64_t pixels() const { return height * width; }
};

// Pixels of a map; indices and places are then 32-bit integers with room to step beyond the last.
constexpr std::int64_t kMaxRanked = std::int64_t{1} << 30;

// The first map that has a value that is not finite, or -1; then the ranks of such maps are not to be used. On CUDA it
// waits for the stream, to know.
std::int64_t rank(const RankArgs& args, const Execution& execution);

std::int64_t rank_cpu(const RankArgs& args, int threads);

// Throws where the build has no CUDA.
std::int64_t rank_cuda(const RankArgs& args, int device, void* stream);

}  // namespace finercam
