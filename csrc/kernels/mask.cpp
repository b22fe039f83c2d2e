#include "kernels/mask.h"

#include <algorithm>

#include "core/operation.h"

namespace finercam {

void mask(const MaskArgs& args, const Execution& execution) {
  FINERCAM_CHECK(args.batch >= 1 && args.maps_per_image >= 1 && args.channels >= 1 && args.height >= 1 &&
                     args.width >= 1 && args.map_height >= 1 && args.map_width >= 1,
                 "mask", "expected sizes of at least 1, got images of (", args.batch, ", ", args.channels, ", ",
                 args.height, ", ", args.width, ") and maps of (", args.maps_per_image, ", ", args.map_height, ", ",
                 args.map_width, ")");
  FINERCAM_CHECK(std::max({args.height, args.width, args.map_height, args.map_width}) <= kMaxMaskSide, "mask",
                 "expected sides of at most ", kMaxMaskSide, ", got ", args.height, " x ", args.width, " and ",
                 args.map_height, " x ", args.map_width);
  FINERCAM_CHECK(execution.threads >= 1, "mask", "expected threads of at least 1, got ", execution.threads);
  if (execution.cuda) {
    on_cuda("mask", {args.batch, args.maps_per_image, args.channels, args.height, args.width}, execution.device,
            [&] { mask_cuda(args, execution.device, execution.stream); });
  } else {
    mask_cpu(args, execution.threads);
  }
}

}  // namespace finercam
