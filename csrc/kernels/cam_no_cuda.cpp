#include "kernels/cam.h"

namespace finercam {

void cam_cuda(const CamArgs&, int, void*) {
  FINERCAM_CHECK(false, "cam", "expected CPU arrays, got CUDA arrays in a build without CUDA");
}

}  // namespace finercam
