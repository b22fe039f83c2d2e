#include "kernels/finite.h"

namespace finercam {

void mark_non_finite_cuda(const FiniteArgs&, int, void*) {
  FINERCAM_CHECK(false, "finite", "expected CPU arrays, got CUDA arrays in a build without CUDA");
}

}  // namespace finercam
