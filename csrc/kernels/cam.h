// Class activation maps from activations A and gradients G of a target layer, or from given channel weights.
#pragma once

#include "core/view.h"
#include "kernels/cam_methods.h"

namespace finercam {

// How CUDA shares a map out: among so many blocks, each with a chunk of the channels; 0: as many as its size repays.
// Their parts are added up through the L2, or through the shared memory of a cluster of these blocks.
struct Sharing {
  int blocks;
  bool cluster;
};

// map (N, P, h, w), contiguous: for each of P contrasts the raw map of the method. NaN stays NaN.
// gradients: those of the first contrast; contrast p lies p * contrast_stride elements further. Sizes and dtype are
// those of the activations, strides their own. Of kChannelWeights they are the weights, with one position; kFem does
// not look at them.
struct CamArgs {
  Method method;
  FeatureView activations, gradients;
  std::int64_t contrasts, contrast_stride;
  float* map;
  Sharing sharing;  // {} but for a benchmark that compares them
};

void cam(const CamArgs& args, const Execution& execution);

void cam_cpu(const CamArgs& args, int threads);

// Queues the kernel on stream (a cudaStream_t) of the device and returns; throws where the build has no CUDA.
void cam_cuda(const CamArgs& args, int device, void* stream);

}  // namespace finercam
