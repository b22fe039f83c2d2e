#include "kernels/seed.h"

namespace finercam {

void seed_cuda(const SeedArgs&, int, void*) {
  FINERCAM_CHECK(false, "seed", "expected CPU arrays, got CUDA arrays in a build without CUDA");
}

}  // namespace finercam
