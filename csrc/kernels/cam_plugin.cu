// The kernel of the TensorRT plug-in (finercam_rt/tensorrt/plugin.py), compiled to PTX once for each method:
// FINERCAM_METHOD is its policy in cam_methods.h. Parameters in the order that TensorRT asks for: inputs, integers,
// outputs; see cam_plugin.cuh for what they are.
#include "kernels/cam_plugin.cuh"

extern "C" __global__ void __launch_bounds__(finercam::kThreads, finercam::kBlocks<finercam::FINERCAM_METHOD>)
    finercam_cam(const float* activations, const float* second, int channels, int positions, int prefix,
                 int interleaved, int tile, float* map) {
  finercam::cam_plugin<finercam::FINERCAM_METHOD>(activations, second, channels, positions, prefix, interleaved != 0,
                                                  tile, map);
}
