// mask's kernel, called from Python; all arrays are contiguous.
#include "kernels/mask.h"

#include "emulation.h"

// sizes: N, K, C, H, W, h, w.
extern "C" void emulated_mask(const float* images, const float* maps, const std::int64_t* sizes, int align_corners,
                              int multiprocessors, float* out) {
  finercam::MaskArgs args{};
  args.batch = sizes[0];
  args.maps_per_image = sizes[1];
  args.channels = sizes[2];
  args.height = sizes[3];
  args.width = sizes[4];
  args.images = images;
  args.image_strides = {sizes[2] * sizes[3] * sizes[4], sizes[3] * sizes[4], sizes[4], 1};
  args.maps = maps;
  args.map_height = sizes[5];
  args.map_width = sizes[6];
  args.map_strides = {sizes[1] * sizes[5] * sizes[6], sizes[5] * sizes[6], sizes[6], 1};
  args.align_corners = align_corners != 0;
  args.out = out;
  processors = multiprocessors;
  finercam::mask_cuda(args, 0, nullptr);
}
