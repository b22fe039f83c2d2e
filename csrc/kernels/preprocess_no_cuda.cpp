#include "kernels/preprocess.h"

namespace finercam {

void preprocess_cuda(const PreprocessArgs&, int, void*) {
  FINERCAM_CHECK(false, "preprocess", "expected CPU arrays, got CUDA arrays in a build without CUDA");
}

}  // namespace finercam
