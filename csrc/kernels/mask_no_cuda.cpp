#include "kernels/mask.h"

namespace finercam {

void mask_cuda(const MaskArgs&, int, void*) {
  FINERCAM_CHECK(false, "mask", "expected CPU arrays, got CUDA arrays in a build without CUDA");
}

}  // namespace finercam
