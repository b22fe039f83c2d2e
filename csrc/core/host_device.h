// FINERCAM_HOST_DEVICE: an inline function that the CPU and the CUDA kernels share.
#pragma once

#ifdef __CUDACC__
#define FINERCAM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FINERCAM_HOST_DEVICE inline
#endif
