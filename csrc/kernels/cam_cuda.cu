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
#include "kernels/cam_cuda.cuh"
#include "kernels/cam_forms.cuh"

namespace finercam {
namespace {

constexpr int kMaxChunk = 512;  // channels of a block: its weights take 2 KiB of shared memory
constexpr int kMinChunk = 32;   // below this a block's reading does not repay its part of the reduction
constexpr int kChunkStep = 8;   // channels that begin on 16 bytes again, whatever lies in them

// Where a block works.
struct Place {
  int image, contrast, first, count;
};

template <Input kInput, bool kPlanar, typename T>
__device__ __forceinline__ auto first_matrix(const CamInputs<T>& in, const Place& place) {
  constexpr bool kGradients = kInput == Input::kGradients;
  return (kGradients ? in.gradients : in.activations)
      .template matrix<kPlanar>(place.image, place.contrast, place.first);
}

template <typename Statistic, int V>
__device__ __forceinline__ void add_element(const float (&values)[Statistic::kInputs][V], int e, float state,
                                            float* sums) {
  float value[Statistic::kInputs];
#pragma unroll
  for (int i = 0; i < Statistic::kInputs; ++i) value[i] = values[i][e];
  Statistic::add(value, state, sums);
}

// What a pass knows of V channels.
template <int V>
struct States {
  float of[V];
};

template <int V>
__device__ __forceinline__ States<V> states_of(const float* states) {
  States<V> own;
#pragma unroll
  for (int e = 0; e < V; ++e) own.of[e] = states[e];
  return own;
}

template <typename Pass, bool kPlanar, int V, typename T>
__device__ __forceinline__ void pool(const CamInputs<T>& in, const Place& place, float* states, float* scratch) {
  using Statistic = typename Pass::Statistic;
  constexpr int kSums = Statistic::kSums;
  constexpr int kInputs = Statistic::kInputs;
  Matrix<T, kPlanar> matrices[kInputs] = {first_matrix<Pass::kInput, kPlanar>(in, place)};
  if constexpr (kInputs == 2)
    matrices[1] = in.gradients.template matrix<kPlanar>(place.image, place.contrast, place.first);
  const float positions = static_cast<float>(in.positions);
  const auto write = [&](int channel, const float (&sums)[kSums]) {
    states[channel] = Pass::finish(sums, positions, states[channel]);
  };
  if constexpr (kPlanar) {
    along_rows<V, kSums>(
        matrices, place.count, in.positions,
        [&](int row, int, const float (&values)[kInputs][V], const Valid& valid, float (&sums)[kSums]) {
          const float state = states[row];
          for_valid<V>(valid, [&](int e) { add_element<Statistic>(values, e, state, sums); });
        },
        write);
  } else {
    across_rows<V, kSums>(
        matrices, in.positions, place.count, 1, scratch, [&](int column) { return states_of<V>(states + column); },
        [&](int, int, const float (&values)[kInputs][V], const Valid& valid, const States<V>& own,
            float (&sums)[V][kSums]) {
          for_valid<V>(valid, [&](int e) { add_element<Statistic>(values, e, own.of[e], sums[e]); });
        },
        write);
  }
  __syncthreads();
}

// One call of `run` for the way in which an input is read: run(planar, V) as types.
template <typename T, typename Run>
__device__ __forceinline__ void by_form(const Form& form, const Run& run) {
  using Vector = std::integral_constant<int, kVector<T>>;
  using One = std::integral_constant<int, 1>;
  if (form.planar) {
    form.vectors ? run(std::true_type{}, Vector{}) : run(std::true_type{}, One{});
  } else {
    form.vectors ? run(std::false_type{}, Vector{}) : run(std::false_type{}, One{});
  }
}

template <typename Pass, typename T>
__device__ __forceinline__ void pass(const CamInputs<T>& in, const Place& place, float* states, float* scratch) {
  const Form& form = Pass::kInput == Input::kBoth        ? in.pool_both
                     : Pass::kInput == Input::kGradients ? in.pool_gradients
                                                         : in.pool_activations;
  by_form<T>(form, [&](auto planar, auto vector) {
    pool<Pass, decltype(planar)::value, decltype(vector)::value>(in, place, states, scratch);
  });
}

// The weights of the block's channels, where the method has them. All threads of the block must call it.
template <typename T, typename... Passes>
__device__ __forceinline__ void find_weights(PassList<Passes...>, const CamInputs<T>& in, const Place& place,
                                             float* weights, float* scratch) {
  (pass<Passes>(in, place, weights, scratch), ...);
}

template <typename T>
__device__ __forceinline__ void find_weights(GivenWeights, const CamInputs<T>& in, const Place& place, float* weights,
                                             float*) {
  const Matrix<T, true> given = in.gradients.template matrix<true>(place.image, place.contrast, place.first);
  for (int k = threadIdx.x; k < place.count; k += kThreads) unpack(*given.at(k, 0), weights + k);
  __syncthreads();
}

template <typename T, typename Term>
__device__ __forceinline__ void find_weights(SummedMethod<Term>, const CamInputs<T>&, const Place&, float*, float*) {}

// The weights of the channels that V neighbouring columns of folded planes belong to: they are of two at most.
struct FoldedWeights {
  int fold, boundary;  // of the first column; the columns from the boundary on are of the next fold
};

// Calls write(position, sums) once for each position, from one thread. All threads of the block must call it.
template <typename Statistic, bool kPlanar, int V, typename T, typename Write>
__device__ __forceinline__ void sum_terms(const CamInputs<T>& in, const Place& place, float* scratch,
                                          const Write& write) {
  const Matrix<T, kPlanar> matrices[2] = {
      in.activations.template matrix<kPlanar>(place.image, 0, place.first),
      in.gradients.template matrix<kPlanar>(place.image, place.contrast, place.first)};
  if constexpr (kPlanar) {
    across_rows<V, 1>(
        matrices, place.count, in.positions, in.map.folds, scratch, [](int) { return 0; },
        [&](int, int, const float (&values)[2][V], const Valid& valid, int, float (&sums)[V][1]) {
          for_valid<V>(valid, [&](int e) { add_element<Statistic>(values, e, 0.0f, sums[e]); });
        },
        write);
  } else {
    along_rows<V, 1>(
        matrices, in.positions, place.count,
        [&](int, int, const float (&values)[2][V], const Valid& valid, float (&sums)[1]) {
          for_valid<V>(valid, [&](int e) { add_element<Statistic>(values, e, 0.0f, sums); });
        },
        write);
  }
}

template <bool kPlanar, int V, typename T, typename Write>
__device__ __forceinline__ void sum_weighted(const CamInputs<T>& in, const Place& place, const float* weights,
                                             float* scratch, const Write& write) {
  const Matrix<T, kPlanar> matrices[1] = {in.activations.template matrix<kPlanar>(place.image, 0, place.first)};
  if constexpr (kPlanar) {
    const int folds = in.map.folds;
    across_rows<V, 1>(
        matrices, place.count, in.positions, folds, scratch,
        [&](int column) {
          const int fold = folds == 1 ? 0 : column / in.positions;
          return FoldedWeights{fold, folds == 1 ? V : (fold + 1) * in.positions - column};
        },
        [&](int row, int, const float (&values)[1][V], const Valid& valid, const FoldedWeights& at,
            float (&sums)[V][1]) {
          const float* own = weights + row * folds + at.fold;
          const float low = own[0];
          const float high = at.boundary < V ? own[1] : low;
          for_valid<V>(valid,
                       [&](int e) { sums[e][0] = fmaf(e < at.boundary ? low : high, values[0][e], sums[e][0]); });
        },
        write);
  } else {
    along_rows<V, 1>(
        matrices, in.positions, place.count,
        [&](int, int column, const float (&values)[1][V], const Valid& valid, float (&sums)[1]) {
          alignas(16) float own[V];
          if constexpr (V == 1) {
            own[0] = weights[column];
          } else {
#pragma unroll
            for (int e = 0; e < V; e += 4) {
              *reinterpret_cast<float4*>(own + e) = *reinterpret_cast<const float4*>(weights + column + e);
            }
          }
          for_valid<V>(valid, [&](int e) { sums[0] = fmaf(own[e], values[0][e], sums[0]); });
        },
        write);
  }
}

template <typename... Passes, typename T, typename Write>
__device__ __forceinline__ void draw(PassList<Passes...>, const CamInputs<T>& in, const Place& place,
                                     const float* weights, float* scratch, const Write& write) {
  by_form<T>(in.map, [&](auto planar, auto vector) {
    sum_weighted<decltype(planar)::value, decltype(vector)::value>(in, place, weights, scratch, write);
  });
}

template <typename T, typename Write>
__device__ __forceinline__ void draw(GivenWeights, const CamInputs<T>& in, const Place& place, const float* weights,
                                     float* scratch, const Write& write) {
  draw(PassList<>{}, in, place, weights, scratch, write);
}

template <typename Term, typename T, typename Write>
__device__ __forceinline__ void draw(SummedMethod<Term>, const CamInputs<T>& in, const Place& place, const float*,
                                     float* scratch, const Write& write) {
  by_form<T>(in.map, [&](auto planar, auto vector) {
    sum_terms<Term, decltype(planar)::value, decltype(vector)::value>(in, place, scratch, write);
  });
}

// Blocks of a multiprocessor that the registers leave room for: with three the weighted methods would need a stack.
template <typename Method>
constexpr int kBlocks = 2;
template <typename Term>
constexpr int kBlocks<SummedMethod<Term>> = 3;

// Floats of shared memory for the sums of across_rows.
template <typename T>
constexpr int kScratch = 2 * kThreads * kVector<T>;

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

template <typename T>
struct IsSummed : std::false_type {};
template <typename Term>
struct IsSummed<SummedMethod<Term>> : std::true_type {};

template <typename Method, typename T>
void launch(const CamArgs& args, int device, cudaStream_t stream) {
  CamInputs<T> in{};
  in.activations = feature_of<T>(args.activations, 0);
  in.gradients = feature_of<T>(args.gradients, args.contrast_stride);
  in.channels = static_cast<int>(args.activations.channels);
  in.positions = static_cast<int>(args.activations.positions());
  in.chunk = chunk_of(args, device);
  in.contrasts = static_cast<int>(args.contrasts);
  choose_forms(in, args, IsSummed<Method>::value);
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
