#include "kernels/cam.h"

namespace finercam {

void cam(Method method, const FeatureView& activations, const FeatureView& gradients, float* map,
         const Execution& execution) {
  const FeatureView& a = activations;
  const FeatureView& g = gradients;
  FINERCAM_CHECK(a.batch >= 1 && a.channels >= 1 && a.height >= 1 && a.width >= 1, "cam",
                 "expected sizes of at least 1, got (", a.batch, ", ", a.channels, ", ", a.height, ", ", a.width, ")");
  FINERCAM_CHECK(a.batch == g.batch && a.channels == g.channels && a.height == g.height && a.width == g.width, "cam",
                 "expected gradients of (", a.batch, ", ", a.channels, ", ", a.height, ", ", a.width, "), got (",
                 g.batch, ", ", g.channels, ", ", g.height, ", ", g.width, ")");
  FINERCAM_CHECK(a.dtype == g.dtype, "cam", "expected gradients of the activations' dtype ", static_cast<int>(a.dtype),
                 ", got ", static_cast<int>(g.dtype));
  FINERCAM_CHECK(execution.threads >= 1, "cam", "expected threads of at least 1, got ", execution.threads);
  if (execution.cuda) {
    cam_cuda(method, a, g, map, execution.device, execution.stream);
  } else {
    cam_cpu(method, a, g, map, execution.threads);
  }
}

}  // namespace finercam
