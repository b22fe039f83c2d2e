#include "kernels/render.h"

namespace finercam {

void render_cuda(const RenderArgs&, int, void*) {
  FINERCAM_CHECK(false, "render", "expected CPU arrays, got CUDA arrays in a build without CUDA");
}

}  // namespace finercam
