// The map of a method of cam_methods.h, in one launch.
//
// A, G: (N, C, h, w) through any strides, T; G for each of P contrasts. map: (N, P, h * w) float, contiguous.
// grid (P * chunks, N): a block takes one chunk of the channels of one contrast of one image. Contrasts are next to
// each other, so that the activations that they share come out of the L2 for all but the first.
//   1. pool (weighted methods): the weights of its channels, in shared memory, in the passes that the method has.
//   2. map: its part of the map, sum_k w_k A_k, or of a summed method the sum of its terms: that one streams A and G
//      past each other once, and has no weights.
//   3. The last block of a map to finish adds up the parts of all, always in the order of the chunks, and rectifies:
//      the result does not depend on the order in which blocks ran. With one chunk the block writes the map itself.
// Inputs are read along the axis that is contiguous, by 16 bytes where they are aligned. That of a small NCHW map is
// often not: a plane of 7 x 7 floats starts on 16 bytes once in four channels. To pool, a plane is read from the vector
// that its first element lies in. To add up planes, as many are read as one row as it takes to start on 16 bytes again;
// a thread then meets the same positions in each row, and their sums stay in its registers.
//
// Not measured, for want of a device, and to be measured before anything is built on it: (a) kMinChunk and the two
// blocks a multiprocessor of chunk_of, over N from 1 to 256 and maps of 7 x 7 to 56 x 56; (b) kBatch of 2, 4 and 8
// against the registers it takes; (c) a cluster of the blocks of an image on Hopper, which would add the parts through
// distributed shared memory: it saves the counter, a memset and a round trip of the parts through the L2, some 2 us
// where N is small, and nothing once N alone fills the device, where there is one chunk of up to 512 channels.
#include <algorithm>

#include "core/cuda_check.h"
#include "kernels/cam.h"
#include "kernels/cam_block.cuh"

namespace finercam {
namespace {

constexpr int kMaxChunk = 512;  // channels of a block: its weights take 2 KiB of shared memory
constexpr int kMinChunk = 32;   // below this a block's reading does not repay its part of the reduction

// parts: (N, P, chunks, positions) float; finished: (N, P) zeroed counters. Both are unused with one chunk.
template <typename Method, typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<Method>)
    cam_kernel(const __grid_constant__ CamInputs<T> in, float* __restrict__ parts, unsigned* __restrict__ finished,
               float* __restrict__ map) {
  __shared__ __align__(16) float weights[kMaxChunk + kChunkStep];
  __shared__ float scratch[kScratch<T>];
  __shared__ bool is_last;
  const int chunks = gridDim.x / in.contrasts;
  const int chunk = blockIdx.x / in.contrasts;
  Place place{static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x) % in.contrasts, chunk * in.chunk, 0};
  place.count = min(in.chunk, in.channels - place.first);
  const std::int64_t number = static_cast<std::int64_t>(place.image) * in.contrasts + place.contrast;
  float* out = map + number * in.positions;

  find_weights(Method{}, in, place, weights, scratch);
  if (chunks == 1) {
    draw(Method{}, in, place, weights, scratch,
         [&](int position, const float (&sums)[1]) { out[position] = rectify(sums[0]); });
    return;
  }
  float* part = parts + (number * chunks + chunk) * in.positions;
  draw(Method{}, in, place, weights, scratch, [&](int position, const float (&sums)[1]) { part[position] = sums[0]; });
  __threadfence();  // the part is visible to every block before the counter says so
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(finished + number, 1u) == static_cast<unsigned>(chunks - 1);
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  const float* all = parts + number * chunks * in.positions;
  for (int position = threadIdx.x; position < in.positions; position += kThreads) {
    float sum = 0.0f;
#pragma unroll 8
    for (int i = 0; i < chunks; ++i) sum += __ldcg(all + static_cast<std::int64_t>(i) * in.positions + position);
    out[position] = rectify(sum);
  }
}

// Enough blocks for two on every multiprocessor, of chunks that repay their part of the reduction.
int chunk_of(const CamArgs& args, int device) {
  int processors = 0;
  FINERCAM_CUDA_CHECK_AS(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
                         "reading the number of multiprocessors");
  const std::int64_t maps = args.activations.batch * args.contrasts;
  const std::int64_t wanted = (2 * processors + maps - 1) / maps;
  const std::int64_t chunk = (args.activations.channels + wanted - 1) / wanted;
  const std::int64_t whole = (chunk + kChunkStep - 1) / kChunkStep * kChunkStep;
  return static_cast<int>(std::clamp<std::int64_t>(whole, kMinChunk, kMaxChunk));
}

template <typename Method, typename T>
void launch(const CamArgs& args, int device, cudaStream_t stream) {
  CamInputs<T> in{};
  in.activations = feature_of<T>(args.activations, 0);
  in.gradients = feature_of<T>(args.gradients, args.contrast_stride);
  in.channels = static_cast<int>(args.activations.channels);
  in.positions = static_cast<int>(args.activations.positions());
  in.chunk = chunk_of(args, device);
  in.contrasts = static_cast<int>(args.contrasts);
  choose_forms(in, args.activations, args.gradients, IsSummed<Method>::value);
  const int chunks = (in.channels + in.chunk - 1) / in.chunk;
  const std::size_t maps = static_cast<std::size_t>(args.activations.batch * args.contrasts);
  const std::size_t counters = (maps * sizeof(unsigned) + 255) / 256 * 256;
  unsigned* finished = nullptr;
  float* parts = nullptr;
  if (chunks > 1) {
    const std::size_t bytes = sizeof(float) * maps * static_cast<std::size_t>(chunks) * in.positions;
    FINERCAM_CUDA_ALLOCATED(cudaMallocAsync(reinterpret_cast<void**>(&finished), counters + bytes, stream),
                            counters + bytes);
    FINERCAM_CUDA_CHECK_AS(cudaMemsetAsync(finished, 0, counters, stream), "clearing its counters");
    parts = reinterpret_cast<float*>(finished) + counters / sizeof(float);
  }
  const dim3 grid(static_cast<unsigned>(chunks * in.contrasts), static_cast<unsigned>(args.activations.batch));
  cam_kernel<Method, T><<<grid, kThreads, 0, stream>>>(in, parts, finished, args.map);
  const cudaError_t launched = cudaGetLastError();
  if (finished != nullptr) FINERCAM_CUDA_CHECK_AS(cudaFreeAsync(finished, stream), "freeing its memory");
  FINERCAM_CUDA_CHECK_AS(launched, "its launch");
}

}  // namespace

void cam_cuda(const CamArgs& args, int device, void* stream) {
  constexpr std::int64_t kMaxInt = 2147483647;
  const FeatureView& a = args.activations;
  FINERCAM_CHECK(a.batch <= 65535, "cam", "expected a batch of at most 65535 on CUDA, got ", a.batch);
  // kMaxInt / kWarp: room for indices that step beyond the last, and for planes that are read as one row
  FINERCAM_CHECK(a.positions() <= kMaxInt / kWarp && a.channels <= kMaxInt / kWarp && args.contrasts <= 65535, "cam",
                 "expected sizes below 2^26 and at most 65535 contrasts on CUDA, got (", a.batch, ", ", args.contrasts,
                 ", ", a.channels, ", ", a.height, ", ", a.width, ")");
  const DeviceScope scope(device);
  visit_dtype(a.dtype, "cam", [&](auto zero) {
    using T = decltype(zero);
    visit_method(args.method,
                 [&](auto method) { launch<decltype(method), T>(args, device, static_cast<cudaStream_t>(stream)); });
  });
}

}  // namespace finercam
