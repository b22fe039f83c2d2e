// status[n, :] = kNonFinite where any of values[n, :] is NaN or infinite.
//
// values: (N, M) float, contiguous. grid (chunks, N): a block reads one chunk of a row, neighbouring threads
// neighbouring values, four at a time where the rows are aligned to 16 bytes. Blocks that find something write the same
// byte.
#include <algorithm>

#include "core/cuda_check.h"
#include "kernels/finite.h"
#include "kernels/render.h"

namespace finercam {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMinChunk = 4 * 4 * kThreads;  // values of a block: four loads of each thread

__device__ __forceinline__ bool is_damaged(float value) {
  return (__float_as_uint(value) & 0x7f800000u) == 0x7f800000u;
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads) finite_kernel(const FiniteArgs args, const std::int64_t chunk) {
  const std::int64_t first = blockIdx.x * chunk;
  const std::int64_t last = min(first + chunk, args.columns);
  const float* row = args.values + blockIdx.y * args.columns;
  bool found = false;
  if constexpr (kAligned) {
    for (std::int64_t column = first + 4 * threadIdx.x; column < last; column += 4 * kThreads) {
      const float4 four = *reinterpret_cast<const float4*>(row + column);
      found |= is_damaged(four.x) || is_damaged(four.y) || is_damaged(four.z) || is_damaged(four.w);
    }
  } else {
    for (std::int64_t column = first + threadIdx.x; column < last; column += kThreads) found |= is_damaged(row[column]);
  }
  if (!__syncthreads_or(found)) return;
  for (std::int64_t repeat = threadIdx.x; repeat < args.repeats; repeat += kThreads) {
    args.status[blockIdx.y * args.row_stride + repeat * args.repeat_stride] =
        static_cast<std::uint8_t>(MapStatus::kNonFinite);
  }
}

}  // namespace

void mark_non_finite_cuda(const FiniteArgs& args, int device, void* stream) {
  FINERCAM_CHECK(args.rows <= 65535, "finite", "expected at most 65535 rows on CUDA, got ", args.rows);
  const DeviceScope scope(device);
  int processors = 0;
  FINERCAM_CUDA_CHECK_AS(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
                         "reading the number of multiprocessors");
  const std::int64_t wanted = (8 * processors + args.rows - 1) / args.rows;  // chunks of a row that fill the device
  const std::int64_t even = (args.columns + wanted - 1) / wanted;
  const std::int64_t chunk = std::max((even + 3) / 4 * 4, kMinChunk);
  const dim3 grid(static_cast<unsigned>((args.columns + chunk - 1) / chunk), static_cast<unsigned>(args.rows));
  const bool aligned = reinterpret_cast<std::uintptr_t>(args.values) % 16 == 0 && args.columns % 4 == 0;
  const auto kernel = aligned ? finite_kernel<true> : finite_kernel<false>;
  kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args, chunk);
  FINERCAM_CUDA_CHECK_AS(cudaGetLastError(), "its launch");
}

}  // namespace finercam
