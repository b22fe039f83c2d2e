// The map of a method of cam_methods.h, in one launch.
//
// A, G: (N, C, h, w) through any strides, T; G for each of P contrasts. map: (N, P, h * w) float, contiguous.
// grid (P, chunks, N): a block takes one chunk of the channels of one contrast of one image. Contrasts are next to each
// other, so that the activations that they share come out of the L2 for all but the first.
//   1. pool (weighted methods): the weights of its channels, in shared memory, in the passes that the method has.
//   2. map: its part of the map, sum_k w_k A_k, or of a summed method the sum of its terms: that one streams A and G
//      past each other once, and has no weights.
//   3. The parts are added up, always in the order of the chunks, and rectified: the result does not depend on the
//      order in which blocks ran. There are three forms of it:
//        one block    with one chunk the block writes the map itself;
//        two levels   the parts lie in global memory, and the last block of a map to finish adds them up;
//        a cluster    of the chunks of a map, from sm_90 on: the parts stay in shared memory, where the blocks of the
//                     cluster read each other's. No counter, no memory and no memset, but eight blocks at most, and
//                     maps whose part fits into the half of the scratch memory that step 2 leaves.
// Inputs are read along the axis that is contiguous, by 16 bytes where they are aligned. That of a small NCHW map is
// often not: a plane of 7 x 7 floats starts on 16 bytes once in four channels. To pool, a plane is read from the vector
// that its first element lies in. To add up planes, as many are read as one row as it takes to start on 16 bytes again;
// a thread then meets the same positions in each row, and their sums stay in its registers.
//
// Which form: chosen_of, by N, P and C, and never a cluster. docs/cam-on-cuda.md says what is known of each, and which
// command measures them on a GPU. Not measured besides: kBatch of 2, 4 and 8 against the registers it takes.
#include <algorithm>
#include <cooperative_groups.h>

#include "core/cuda_check.h"
#include "core/workspace.h"
#include "kernels/cam.h"
#include "kernels/cam_block.cuh"

namespace finercam {
namespace {

constexpr int kMaxChunk = 512;  // channels of a block: its weights take 2 KiB of shared memory
constexpr int kMinChunk = 32;   // below this a block's reading does not repay its part of the reduction
constexpr int kMaxCluster = 8;  // blocks, on every GPU that has clusters

// Positions of a map of which a block of a cluster keeps its part. The sums of step 2 fill half of the scratch memory,
// since they have one statistic.
template <typename T>
constexpr int kClusterPositions = kScratch<T> / 2;

// Writes the sums of the parts to a map, of the positions from first on; part(i)[position].
template <typename Part>
__device__ __forceinline__ void add_parts(int first, int step, int positions, int chunks, float* map,
                                          const Part& part) {
  for (int position = first; position < positions; position += step) {
    float sum = 0.0f;
#pragma unroll 8
    for (int i = 0; i < chunks; ++i) sum += part(i, position);
    map[position] = rectify(sum);
  }
}

// The same of parts in the shared memory of the blocks of a cluster. All its threads must call it.
__device__ __forceinline__ void add_cluster(const float* own, int positions, int chunks, float* map) {
#if __CUDA_ARCH__ >= 900
  const cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  cluster.sync();  // all parts are there
  add_parts(cluster.thread_rank(), cluster.num_threads(), positions, chunks, map,
            [&](int i, int position) { return cluster.map_shared_rank(own, i)[position]; });
  cluster.sync();  // no block ends whose part another still reads
#endif
}

// parts: (N, P, chunks, positions) float; finished: (N, P) zeroed counters. Both are null with one chunk, and of blocks
// that are a cluster.
template <typename Method, typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<Method>)
    cam_kernel(const __grid_constant__ CamInputs<T> in, float* __restrict__ parts, unsigned* __restrict__ finished,
               float* __restrict__ map) {
  __shared__ __align__(16) float weights[kMaxChunk + kChunkStep];
  __shared__ float scratch[kScratch<T>];
  __shared__ bool is_last;
  const int chunks = gridDim.y;
  const int chunk = blockIdx.y;
  Place place{static_cast<int>(blockIdx.z), static_cast<int>(blockIdx.x), chunk * in.chunk, 0};
  place.count = min(in.chunk, in.channels - place.first);
  const std::int64_t number = static_cast<std::int64_t>(place.image) * in.contrasts + place.contrast;
  float* out = map + number * in.positions;
  float* all = parts + number * chunks * in.positions;
  float* of_levels = all + static_cast<std::int64_t>(chunk) * in.positions;
  float* own = chunks == 1 ? out : parts == nullptr ? scratch + kClusterPositions<T> : of_levels;

  find_weights(Method{}, in, place, weights, scratch);
  draw(Method{}, in, place, weights, scratch,
       [&](int position, const float (&sums)[1]) { own[position] = chunks == 1 ? rectify(sums[0]) : sums[0]; });
  if (chunks == 1) return;
  if (parts == nullptr) return add_cluster(own, in.positions, chunks, out);
  __threadfence();  // the part is visible to every block before the counter says so
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(finished + number, 1u) == static_cast<unsigned>(chunks - 1);
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  add_parts(threadIdx.x, kThreads, in.positions, chunks, out,
            [&](int i, int position) { return __ldcg(all + static_cast<std::int64_t>(i) * in.positions + position); });
}

int attribute_of(int device, cudaDeviceAttr attribute) {
  int value = 0;
  FINERCAM_CUDA_CHECK_AS(cudaDeviceGetAttribute(&value, attribute, device), "reading what the device has");
  return value;
}

// Channels of a block if there are so many for a map.
std::int64_t chunk_of(std::int64_t channels, std::int64_t blocks) {
  const std::int64_t chunk = (channels + blocks - 1) / blocks;
  return (chunk + kChunkStep - 1) / kChunkStep * kChunkStep;
}

// Enough blocks for two on every multiprocessor, of chunks that repay their part of the reduction.
std::int64_t chosen_of(const CamArgs& args, int device) {
  const std::int64_t maps = args.activations.batch * args.contrasts;
  const std::int64_t wanted = (2 * attribute_of(device, cudaDevAttrMultiProcessorCount) + maps - 1) / maps;
  return std::clamp<std::int64_t>(chunk_of(args.activations.channels, wanted), kMinChunk, kMaxChunk);
}

// Channels of a block, as args.sharing asks for; what it cannot have is an error.
template <typename T>
std::int64_t asked_of(const CamArgs& args, int device) {
  const auto [blocks, cluster] = args.sharing;
  const std::int64_t chunk = chunk_of(args.activations.channels, blocks);
  FINERCAM_CHECK(chunk <= kMaxChunk, "cam", "expected blocks of at most ", kMaxChunk, " channels, got ", blocks,
                 " for ", args.activations.channels);
  if (!cluster) return chunk;
  FINERCAM_CHECK(blocks <= kMaxCluster, "cam", "expected a cluster of at most ", kMaxCluster, " blocks, got ", blocks);
  FINERCAM_CHECK(args.activations.positions() <= kClusterPositions<T>, "cam", "expected maps of at most ",
                 kClusterPositions<T>, " positions for a cluster, got ", args.activations.positions());
  FINERCAM_CHECK(attribute_of(device, cudaDevAttrClusterLaunch) != 0, "cam",
                 "expected a GPU that has clusters, of compute capability 9.0 or later, for a cluster");
  return chunk;
}

template <typename Method, typename T>
void launch(const CamArgs& args, int device, cudaStream_t stream) {
  CamInputs<T> in{};
  in.activations = feature_of<T>(args.activations, 0);
  in.gradients = feature_of<T>(args.gradients, args.contrast_stride);
  in.channels = static_cast<int>(args.activations.channels);
  in.positions = static_cast<int>(args.activations.positions());
  in.chunk = static_cast<int>(args.sharing.blocks == 0 ? chosen_of(args, device) : asked_of<T>(args, device));
  in.contrasts = static_cast<int>(args.contrasts);
  choose_forms(in, args.activations, args.gradients, IsSummed<Method>::value);
  const int chunks = (in.channels + in.chunk - 1) / in.chunk;
  const bool cluster = args.sharing.cluster && chunks > 1;
  const bool two_levels = chunks > 1 && !cluster;
  const std::size_t maps = static_cast<std::size_t>(args.activations.batch * args.contrasts);
  const std::size_t counters = (maps * sizeof(unsigned) + 255) / 256 * 256;
  const std::size_t bytes = sizeof(float) * maps * static_cast<std::size_t>(chunks) * in.positions;
  const Workspace workspace(two_levels ? counters + bytes : 0, device, stream);
  auto* finished = static_cast<unsigned*>(workspace.address());
  float* parts = nullptr;
  if (two_levels) {
    FINERCAM_CUDA_CHECK_AS(cudaMemsetAsync(finished, 0, counters, stream), "clearing its counters");
    parts = static_cast<float*>(workspace.address()) + counters / sizeof(float);
  }
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeClusterDimension;
  together.val.clusterDim.x = together.val.clusterDim.z = 1;
  together.val.clusterDim.y = static_cast<unsigned>(chunks);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(in.contrasts), static_cast<unsigned>(chunks),
                        static_cast<unsigned>(args.activations.batch));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &together;
  config.numAttrs = cluster ? 1 : 0;
  FINERCAM_CUDA_CHECK_AS(cudaLaunchKernelEx(&config, &cam_kernel<Method, T>, in, parts, finished, args.map),
                         "its launch");
}

}  // namespace

void cam_cuda(const CamArgs& args, int device, void* stream) {
  constexpr std::int64_t kMaxInt = 2147483647;
  const FeatureView& a = args.activations;
  FINERCAM_CHECK(a.batch <= 65535, "cam", "expected a batch of at most 65535 on CUDA, got ", a.batch);
  // kMaxInt / kWarp: room for indices that step beyond the last, and for planes that are read as one row; and chunks
  // are an axis of the grid
  FINERCAM_CHECK(a.positions() <= kMaxInt / kWarp && a.channels <= 65535 * kMaxChunk && args.contrasts <= 65535, "cam",
                 "expected fewer than 2^26 positions, at most ", 65535 * kMaxChunk,
                 " channels and at most 65535 contrasts on CUDA, got (", a.batch, ", ", args.contrasts, ", ",
                 a.channels, ", ", a.height, ", ", a.width, ")");
  const DeviceScope scope(device);
  visit_dtype(a.dtype, "cam", [&](auto zero) {
    using T = decltype(zero);
    visit_method(args.method,
                 [&](auto method) { launch<decltype(method), T>(args, device, static_cast<cudaStream_t>(stream)); });
  });
}

}  // namespace finercam
