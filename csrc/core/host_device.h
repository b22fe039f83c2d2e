// FINERCAM_HOST_DEVICE: an inline function that the CPU and the CUDA kernels share. On the CPU it is inlined always:
// into a function of core/clones.h it must be compiled for the same instruction set.
#pragma once

#ifdef __CUDACC__
#define FINERCAM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FINERCAM_HOST_DEVICE inline __attribute__((always_inline))
#endif
