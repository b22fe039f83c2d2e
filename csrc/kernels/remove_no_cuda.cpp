#include "kernels/remove.h"

namespace finercam {

void remove_cuda(const RemoveArgs&, int, void*) {
  FINERCAM_CHECK(false, "remove", "expected CPU arrays, got CUDA arrays in a build without CUDA");
}

}  // namespace finercam
