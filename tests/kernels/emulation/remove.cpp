// remove's kernel, called from Python; all arrays are contiguous.
#include "kernels/remove.h"

#include <cstring>
#include <stdexcept>

#include "emulation.h"

// sizes: N, S, C, H, W. fill: C values of the host. 0, or 1 where it was refused, with the reason, or a
// load was wrong.
extern "C" int emulated_remove(const float* images, const std::int32_t* ranks, const std::int32_t* counts,
                               const float* fill, const std::int64_t* sizes, int multiprocessors, int captured,
                               float* out, char* reason, std::size_t reason_bytes) {
  finercam::RemoveArgs args{};
  args.batch = sizes[0];
  args.steps = sizes[1];
  args.channels = sizes[2];
  args.height = sizes[3];
  args.width = sizes[4];
  args.images = images;
  args.image_strides = {sizes[2] * sizes[3] * sizes[4], sizes[3] * sizes[4], sizes[4], 1};
  args.ranks = ranks;
  args.rank_strides = {sizes[3] * sizes[4], 0, sizes[4], 1};
  args.counts = counts;
  args.fill = fill;
  args.fill_strides = {0, 1, 0, 0};
  args.fill_on_host = true;
  args.out = out;
  const std::int64_t pixels = sizes[3] * sizes[4];
  watch(images, images + sizes[0] * sizes[2] * pixels, ranks, ranks + sizes[0] * pixels);
  processors = multiprocessors;
  int stream = 0;
  try {
    finercam::remove_cuda(args, 0, captured != 0 ? &stream : nullptr);
  } catch (const std::invalid_argument& error) {
    std::strncpy(reason, error.what(), reason_bytes - 1);
    return 1;
  }
  return watched_loads() < 0;
}
