// The methods, as policies that the CPU and the CUDA kernels share.
//
// A pooled method gives one weight per channel from a statistic over the positions of its gradients; the map is
// ReLU(sum_k weight_k A_k). A policy has
//   Sum weight(Sum gradient_sum, Sum positions)    Sum is double on the CPU, float on CUDA.
// Formulas: facts of DESIGN section 2; checked against pytorch-grad-cam in the tests.
#pragma once

#include "core/host_device.h"

namespace finercam {

// weight_k = mean over positions of G_k. Selvaraju et al., ICCV 2017.
struct GradCam {
  template <typename Sum>
  static FINERCAM_HOST_DEVICE Sum weight(Sum gradient_sum, Sum positions) {
    return gradient_sum / positions;
  }
};

// ReLU that lets NaN through: a map that is not finite must be seen, not hidden.
FINERCAM_HOST_DEVICE float rectify(float value) { return value <= 0.0f ? 0.0f : value; }

}  // namespace finercam
