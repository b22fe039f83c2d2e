// Enough of CUDA's language for the kernels' code to run on a CPU, one block at a time: the threads of a block are
// fibers of one thread, which a barrier switches between. The blocks of a cluster run at once, each in a thread of its
// own, whose memory the shared memory of a block is. Loads by 16 bytes are checked.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#include "core/dtype.h"

#define __CUDA_ARCH__ 900
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

using std::isfinite;
using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned columns = 1, unsigned rows = 1, unsigned layers = 1) : x(columns), y(rows), z(layers) {}
};
extern thread_local dim3 threadIdx, blockIdx;
extern dim3 gridDim;

struct uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(4) uchar4 {
  unsigned char x, y, z, w;
};
struct __half {
  std::uint16_t bits;
};

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uchar4 make_uchar4(int x, int y, int z, int w) {
  return {static_cast<unsigned char>(x), static_cast<unsigned char>(y), static_cast<unsigned char>(z),
          static_cast<unsigned char>(w)};
}
inline float __uint_as_float(unsigned bits) { return finercam::float_from_bits(bits); }
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline float __half2float(__half half) { return finercam::to_float(finercam::Half{half.bits}); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<std::uint64_t>(high) << 32 | low) << shift >> 32);
}

// Counts the load, and whether it is not aligned or leaves the inputs.
uint4 __ldg(const uint4* address);
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
void __stwb(T* address, const T& value) {
  *address = value;
}
inline void __threadfence() {}
inline unsigned atomicAdd(unsigned* sum, unsigned value) {
  const unsigned former = *sum;
  *sum += value;
  return former;
}
void __syncthreads();
int __syncthreads_and(int predicate);
void warp_barrier();
extern thread_local std::uint64_t exchanged[1024];
template <typename T>
T __shfl_xor_sync(unsigned, T value, int step) {
  std::memcpy(&exchanged[threadIdx.x], &value, sizeof value);
  warp_barrier();
  std::memcpy(&value, &exchanged[threadIdx.x ^ static_cast<unsigned>(step)], sizeof value);
  warp_barrier();
  return value;
}

// Loads by 16 bytes are expected inside of two inputs from here on, and counted: -1 where one is not aligned or
// outside.
void watch(const void* first, const void* first_last, const void* second, const void* second_last);
std::int64_t watched_loads();

// Of all threads of the blocks of a cluster, which are a column of the grid. block_rank: of this one.
void cluster_barrier();
extern unsigned cluster_blocks, block_threads;
extern thread_local unsigned block_rank;
// Where a block of the cluster has, in its shared memory, what this one has there. Asking before the first barrier of
// the cluster, or with none to follow, counts as a wrong load: the block may not have begun, or have ended.
void* of_block(void* address, unsigned rank);

// kernel<<<grid, threads>>>(), in clusters of (1, cluster, 1) blocks.
void launch_emulated(dim3 grid, int threads, const std::function<void()>& kernel, unsigned cluster = 1);

using cudaError_t = int;
using cudaStream_t = void*;
enum { cudaSuccess };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrClusterLaunch };
extern int processors;
extern bool has_clusters;
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrClusterLaunch ? has_clusters : processors;
  return cudaSuccess;
}

enum { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  int id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
  const cudaLaunchAttribute* attrs;
  int numAttrs;
};
// The only attribute is that of (1, y, 1) blocks.
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  launch_emulated(
      config->gridDim, static_cast<int>(config->blockDim.x), [&] { kernel(arguments...); },
      config->numAttrs == 0 ? 1 : config->attrs[0].val.clusterDim.y);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
enum cudaMemcpyKind { cudaMemcpyHostToDevice };
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
// A stream is captured where it is not the default one.
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream == nullptr ? cudaStreamCaptureStatusNone : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
#define FINERCAM_CUDA_CHECK_AS(call, ...) static_cast<void>(call)

namespace finercam {
struct DeviceScope {
  explicit DeviceScope(int) {}
};
class Workspace {
 public:
  Workspace(std::size_t bytes, int, cudaStream_t) : memory_(bytes, '\xff') {}
  void* address() const { return memory_.empty() ? nullptr : const_cast<char*>(memory_.data()); }

 private:
  std::string memory_;
};
}  // namespace finercam
