// Bands of pixels are independent. A band of the ranks, the image and the fill stays in L1 while all copies of it are
// written, each a run of memory; what does not lie in one run itself is gathered first.
#include <algorithm>
#include <vector>

#include "core/clones.h"
#include "core/parallel.h"
#include "kernels/remove.h"

namespace finercam {
namespace {

constexpr std::int64_t kBand = 1024;

FINERCAM_CLONES void select(const std::int32_t* ranks, std::int32_t count, const float* fill, const float* image,
                            float* __restrict out, std::int64_t pixels) {
  for (std::int64_t i = 0; i < pixels; ++i) out[i] = ranks[i] < count ? fill[i] : image[i];
}

// The pixels [first, first + count) of a plane, where they lie or gathered into scratch.
template <typename T>
const T* band_of(const T* plane, const Strides& strides, std::int64_t height, std::int64_t width, std::int64_t first,
                 std::int64_t count, T* scratch) {
  if (strides.is_flat(height, width)) return plane + first;
  for (std::int64_t i = 0; i < count;) {
    const std::int64_t y = (first + i) / width;
    const std::int64_t x = (first + i) % width;
    const std::int64_t run = std::min(width - x, count - i);
    const T* row = plane + y * strides.row + x * strides.column;
    for (std::int64_t j = 0; j < run; ++j) scratch[i + j] = row[j * strides.column];
    i += run;
  }
  return scratch;
}

}  // namespace

void remove_cpu(const RemoveArgs& args, int threads) {
  const std::int64_t pixels = args.pixels();
  const std::int64_t bands = (pixels + kBand - 1) / kBand;
  parallel_for(args.batch * bands, threads, [&](std::int64_t unit) {
    const std::int64_t image = unit / bands;
    const std::int64_t first = unit % bands * kBand;
    const std::int64_t count = std::min(kBand, pixels - first);
    std::int32_t rank_scratch[kBand];
    float image_scratch[kBand], fill_scratch[kBand];
    const std::int32_t* ranks = band_of(args.ranks + image * args.rank_strides.batch, args.rank_strides, args.height,
                                        args.width, first, count, rank_scratch);
    for (std::int64_t c = 0; c < args.channels; ++c) {
      const float* plane = args.images + image * args.image_strides.batch + c * args.image_strides.channel;
      const float* kept = band_of(plane, args.image_strides, args.height, args.width, first, count, image_scratch);
      const float* fill_plane = args.fill + image * args.fill_strides.batch + c * args.fill_strides.channel;
      const float* fill = band_of(fill_plane, args.fill_strides, args.height, args.width, first, count, fill_scratch);
      for (std::int64_t s = 0; s < args.steps; ++s) {
        float* out = args.out + ((image * args.steps + s) * args.channels + c) * pixels + first;
        select(ranks, args.counts[image * args.steps + s], fill, kept, out, count);
      }
    }
  });
}

}  // namespace finercam
