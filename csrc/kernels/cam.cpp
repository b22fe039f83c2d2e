#include "kernels/cam.h"

#include "core/operation.h"

namespace finercam {

void cam(const CamArgs& args, const Execution& execution) {
  const FeatureView& a = args.activations;
  const FeatureView& g = args.gradients;
  FINERCAM_CHECK(a.batch >= 1 && a.channels >= 1 && a.height >= 1 && a.width >= 1, "cam",
                 "expected sizes of at least 1, got (", a.batch, ", ", a.channels, ", ", a.height, ", ", a.width, ")");
  FINERCAM_CHECK(args.contrasts >= 1, "cam", "expected at least 1 contrast, got ", args.contrasts);
  if (args.method != Method::kFem) {
    const bool weights = args.method == Method::kChannelWeights;
    const std::int64_t height = weights ? 1 : a.height;
    const std::int64_t width = weights ? 1 : a.width;
    FINERCAM_CHECK(a.batch == g.batch && a.channels == g.channels && height == g.height && width == g.width, "cam",
                   "expected ", weights ? "weights" : "gradients", " of (", a.batch, ", ", a.channels, ", ", height,
                   ", ", width, "), got (", g.batch, ", ", g.channels, ", ", g.height, ", ", g.width, ")");
    FINERCAM_CHECK(a.dtype == g.dtype, "cam", "expected gradients of the activations' dtype ",
                   static_cast<int>(a.dtype), ", got ", static_cast<int>(g.dtype));
  }
  FINERCAM_CHECK(execution.threads >= 1, "cam", "expected threads of at least 1, got ", execution.threads);
  if (execution.cuda) {
    on_cuda("cam", {a.batch, args.contrasts, a.channels, a.height, a.width}, execution.device,
            [&] { cam_cuda(args, execution.device, execution.stream); });
  } else {
    cam_cpu(args, execution.threads);
  }
}

}  // namespace finercam
