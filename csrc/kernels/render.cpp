#include "kernels/render.h"

#include <limits>

#include "core/operation.h"

namespace finercam {

void render(const RenderArgs& args, const Execution& execution) {
  FINERCAM_CHECK(args.batch >= 1 && args.map_height >= 1 && args.map_width >= 1, "render",
                 "expected maps with sizes of at least 1, got (", args.batch, ", ", args.map_height, ", ",
                 args.map_width, ")");
  FINERCAM_CHECK(args.map_height <= kMaxSide && args.map_width <= kMaxSide, "render", "expected maps of at most ",
                 kMaxSide, " a side, got ", args.map_height, " x ", args.map_width);
  FINERCAM_CHECK(args.maps != nullptr && args.status != nullptr, "render", "expected maps and status, got null");
  FINERCAM_CHECK(args.values == nullptr || args.rgba == nullptr, "render", "expected one output, got two");
  FINERCAM_CHECK((args.rgba != nullptr) == (args.colors != nullptr), "render",
                 "expected colours with an RGBA output and only then, got the one without the other");
  FINERCAM_CHECK(args.photos == nullptr || args.rgba != nullptr, "render",
                 "expected photographs with an RGBA output only, got them without");
  if (args.values != nullptr || args.rgba != nullptr) {
    FINERCAM_CHECK(args.height >= 1 && args.width >= 1 && args.height <= kMaxSide && args.width <= kMaxSide, "render",
                   "expected an image of 1 to ", kMaxSide, " a side, got ", args.height, " x ", args.width);
    const Box& box = args.box;
    FINERCAM_CHECK(-kMaxBox <= box.left && box.left < box.right && box.right <= kMaxBox && -kMaxBox <= box.top &&
                       box.top < box.bottom && box.bottom <= kMaxBox,
                   "render", "expected a box with left < right and top < bottom within +-2^30, got (", box.left, ", ",
                   box.top, ", ", box.right, ", ", box.bottom, ")");
    FINERCAM_CHECK((args.low == 0.0f && args.high == 0.0f) ||
                       (args.low >= 0.0f && args.low < args.high && args.high <= std::numeric_limits<float>::max()),
                   "render", "expected a range of values with 0 <= low < high, got ", args.low, " to ", args.high);
  }
  FINERCAM_CHECK(reinterpret_cast<std::uintptr_t>(args.rgba) % 4 == 0, "render",
                 "expected an RGBA image aligned to 4 bytes, got ", static_cast<const void*>(args.rgba));
  FINERCAM_CHECK(args.opacity >= 0.0f && args.opacity <= 1.0f, "render", "expected an opacity in [0, 1], got ",
                 args.opacity);
  FINERCAM_CHECK(execution.threads >= 1, "render", "expected threads of at least 1, got ", execution.threads);
  if (execution.cuda) {
    on_cuda("render", {args.batch, args.map_height, args.map_width}, execution.device,
            [&] { render_cuda(args, execution.device, execution.stream); });
  } else {
    render_cpu(args, execution.threads);
  }
}

}  // namespace finercam
