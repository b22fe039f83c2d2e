// render's kernel, called from Python; all arrays are contiguous.
#include "kernels/render.h"

#include "emulation.h"

// sizes: N, h, w, H, W. box: left, top, right, bottom. photos, values or rgba may be null, as in RenderArgs.
extern "C" void emulated_render(const float* maps, const std::int64_t* sizes, const double* box,
                                const std::uint8_t* colors, const std::uint8_t* photos, float opacity,
                                int multiprocessors, float* values, std::uint8_t* rgba, std::uint8_t* status) {
  finercam::RenderArgs args{};
  args.maps = maps;
  args.batch = sizes[0];
  args.map_height = sizes[1];
  args.map_width = sizes[2];
  args.map_batch_stride = sizes[1] * sizes[2];
  args.map_row_stride = sizes[2];
  args.map_column_stride = 1;
  args.height = sizes[3];
  args.width = sizes[4];
  args.box = {box[0], box[1], box[2], box[3]};
  args.colors = colors;
  args.photos = photos;
  args.photo_batch_stride = 3 * sizes[3] * sizes[4];
  args.photo_row_stride = 3 * sizes[4];
  args.photo_column_stride = 3;
  args.photo_channel_stride = 1;
  args.opacity = opacity;
  args.values = values;
  args.rgba = rgba;
  args.status = status;
  processors = multiprocessors;
  finercam::render_cuda(args, 0, nullptr);
}
