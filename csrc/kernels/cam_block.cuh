// What a block of the cam kernels does with one chunk of the channels of one map: the weights of its channels, and
// their part of the map. The kernels of cam_cuda.cu and cam_plugin.cuh differ in how they share the work out between
// blocks.
#pragma once

#include <type_traits>

#include "kernels/cam_cuda.cuh"
#include "kernels/cam_forms.cuh"
#include "kernels/cam_methods.h"

namespace finercam {

constexpr int kChunkStep = 8;  // channels that begin on 16 bytes again, whatever lies in them

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

template <typename T>
struct IsSummed : std::false_type {};
template <typename Term>
struct IsSummed<SummedMethod<Term>> : std::true_type {};

}  // namespace finercam
