// Class activation maps from activations A and gradients G of a target layer.
#pragma once

#include "core/view.h"

namespace finercam {

enum class Method { kGradCam };

// map (N, h, w), contiguous: the raw map, ReLU(sum_k w_k A_k), where the method makes w_k from G. NaN stays NaN.
// A and G have the same sizes and dtype; each may have strides of its own.
void cam(Method method, const FeatureView& activations, const FeatureView& gradients, float* map,
         const Execution& execution);

void cam_cpu(Method method, const FeatureView& activations, const FeatureView& gradients, float* map, int threads);

// Queues the kernel on stream (a cudaStream_t) of the device and returns; throws where the build has no CUDA.
void cam_cuda(Method method, const FeatureView& activations, const FeatureView& gradients, float* map, int device,
              void* stream);

}  // namespace finercam
