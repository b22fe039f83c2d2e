// The two loops of the cam kernel: sums along the rows of a matrix, and sums across them. Each reads V elements at a
// time: one, from any strides, or 16 bytes of contiguous and aligned memory; kBatch loads are on their way before the
// first is used.
#pragma once

#include <cstdint>
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <type_traits>

#include "core/dtype.h"

namespace finercam {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kBatch = 4;

template <typename T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// The channels of a block and all positions of an image, as a matrix: of planar input the rows are channels, of
// interleaved input positions.
template <typename T, bool kPlanar>
struct Matrix {
  const T* data;
  std::int64_t channel_stride, column_stride;
  std::int64_t row_gap;  // elements between the end of a row of the map and the next; zero spares a division
  int width;

  __device__ __forceinline__ std::int64_t position(int index) const {
    if (row_gap == 0) return index * column_stride;
    return index * column_stride + index / width * row_gap;
  }
  __device__ __forceinline__ const T* at(int row, int column) const {
    const int channel = kPlanar ? row : column;
    return data + channel * channel_stride + position(kPlanar ? column : row);
  }
  // Of matrices that are read by vectors.
  __device__ __forceinline__ std::int64_t row_stride() const { return kPlanar ? channel_stride : column_stride; }
};

template <typename T, int V>
using Raw = std::conditional_t<V == 1, T, uint4>;

__device__ __forceinline__ void unpack(float raw, float* values) { values[0] = raw; }
__device__ __forceinline__ void unpack(Half raw, float* values) {
  values[0] = __half2float(__ushort_as_half(raw.bits));
}
__device__ __forceinline__ void unpack(BFloat16 raw, float* values) {
  values[0] = __uint_as_float(static_cast<unsigned>(raw.bits) << 16);
}

template <typename T>
__device__ __forceinline__ void unpack_word(unsigned word, float* values) {
  if constexpr (std::is_same_v<T, float>) {
    values[0] = __uint_as_float(word);
  } else if constexpr (std::is_same_v<T, Half>) {
    values[0] = __half2float(__ushort_as_half(static_cast<unsigned short>(word)));
    values[1] = __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
  } else {
    values[0] = __uint_as_float(word << 16);
    values[1] = __uint_as_float(word & 0xffff0000u);
  }
}

template <typename T, int V>
__device__ __forceinline__ void unpack(const Raw<T, V>& raw, float* values) {
  if constexpr (V == 1) {
    unpack(raw, values);
  } else {
    constexpr int kStep = V / 4;
    unpack_word<T>(raw.x, values);
    unpack_word<T>(raw.y, values + kStep);
    unpack_word<T>(raw.z, values + 2 * kStep);
    unpack_word<T>(raw.w, values + 3 * kStep);
  }
}

// The columns [first, last) of a vector that belong to its row.
struct Valid {
  int first, last;
};

// Calls use(e) for each valid column of a vector.
template <int V, typename Use>
__device__ __forceinline__ void for_valid(const Valid& valid, const Use& use) {
  const unsigned mask = (1u << valid.last) - (1u << valid.first);
#pragma unroll
  for (int e = 0; e < V; ++e) {
    if (V == 1 || (mask >> e & 1u) != 0) use(e);
  }
}

// V columns from `column`, which lies on 16 bytes where V > 1. A vector that hangs over the ends of its row is read
// whole where other rows of the matrix lie there, element by element where nothing may.
template <int V, bool kPlanar, typename T>
__device__ __forceinline__ Raw<T, V> fetch(const Matrix<T, kPlanar>& in, int row, int column, const Valid& valid,
                                           bool hangs_into_rows) {
  if constexpr (V == 1) {
    return *in.at(row, column);
  } else {
    const T* start = in.data + row * in.row_stride() + column;
    if (hangs_into_rows || valid.last == V) return __ldg(reinterpret_cast<const uint4*>(start));
    uint4 raw = make_uint4(0, 0, 0, 0);
    // From the last to the first, each shifted in: an index that is not known when compiling would put them on a stack.
#pragma unroll 1
    for (int e = V - 1; e >= 0; --e) {
      const bool wanted = e >= valid.first && e < valid.last;
      if constexpr (std::is_same_v<T, float>) {
        raw = make_uint4(wanted ? __float_as_uint(start[e]) : 0u, raw.x, raw.y, raw.z);
      } else {
        const unsigned bits = wanted ? start[e].bits : 0u;
        raw = make_uint4(raw.x << 16 | bits, __funnelshift_l(raw.x, raw.y, 16), __funnelshift_l(raw.y, raw.z, 16),
                         __funnelshift_l(raw.z, raw.w, 16));
      }
    }
    return raw;
  }
}

// Calls write(row, sums) once for each row, from one thread. use(row, column, values, valid, sums) adds V columns.
// As many neighbouring threads share a row as it has vectors, up to a warp. Rows may start anywhere: each is read from
// the vector that its first element lies in, so all inputs must have row strides that are equal modulo V.
template <int V, int kSums, int kInputs, bool kPlanar, typename T, typename Use, typename Write>
__device__ __forceinline__ void along_rows(const Matrix<T, kPlanar> (&in)[kInputs], int rows, int columns,
                                           const Use& use, const Write& write) {
  constexpr int kCount = kBatch / kInputs;
  const int vectors = (columns + 2 * V - 2) / V;
  const int lanes = vectors >= kWarp ? kWarp : 1 << (32 - __clz(vectors - 1));
  const int lane = threadIdx.x % lanes;
  const int group = threadIdx.x / lanes;
  const int groups = kThreads / lanes;

  const auto column_of = [&](int row, int vector) {
    const unsigned start = static_cast<unsigned>(row) * static_cast<unsigned>(in[0].row_stride());
    return V == 1 ? vector : vector * V - static_cast<int>(start & (V - 1));
  };
  const auto valid_of = [&](int column) { return Valid{max(0, -column), min(V, columns - column)}; };
  const auto read = [&](int row, int vector, Raw<T, V>(&raw)[kInputs]) {
    const int column = column_of(row, vector);
    if (row >= rows || column >= columns) return;
#pragma unroll
    for (int i = 0; i < kInputs; ++i) raw[i] = fetch<V>(in[i], row, column, valid_of(column), row < rows - 1);
  };
  const auto add = [&](int row, int vector, const Raw<T, V>(&raw)[kInputs], float (&sums)[kSums]) {
    const int column = column_of(row, vector);
    if (row >= rows || column >= columns) return;
    float values[kInputs][V];
#pragma unroll
    for (int i = 0; i < kInputs; ++i) unpack<T, V>(raw[i], values[i]);
    use(row, column, values, valid_of(column), sums);
  };
  const auto finish = [&](int row, float (&sums)[kSums]) {
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
      for (int step = lanes / 2; step > 0; step /= 2) sums[s] += __shfl_xor_sync(0xffffffffu, sums[s], step);
    }
    if (lane == 0 && row < rows) write(row, sums);
  };

  // A batch is of rows where a row takes one step, else of vectors of one row.
  const bool of_rows = vectors <= lanes;
  const int row_step = of_rows ? groups : 0;
  const int vector_step = of_rows ? 0 : kWarp;
  for (int row = group; row - group < rows; row += of_rows ? kCount * groups : groups) {
    float sums[kCount][kSums] = {};
    for (int vector = lane; vector < vectors; vector += kCount * kWarp) {
      Raw<T, V> raw[kCount][kInputs];
#pragma unroll
      for (int b = 0; b < kCount; ++b) read(row + b * row_step, vector + b * vector_step, raw[b]);
#pragma unroll
      for (int b = 0; b < kCount; ++b) add(row + b * row_step, vector + b * vector_step, raw[b], sums[b]);
    }
    if (of_rows) {
#pragma unroll
      for (int b = 0; b < kCount; ++b) finish(row + b * groups, sums[b]);
    } else {
#pragma unroll
      for (int b = 1; b < kCount; ++b) {
#pragma unroll
        for (int s = 0; s < kSums; ++s) sums[0][s] += sums[b][s];
      }
      finish(row, sums[0]);
    }
  }
}

// Calls write(column, sums) once for each column, from one thread. use(row, column, values, valid, sums) adds V columns
// of a row; prepare(column) gives what it needs of them besides. Threads run along columns, groups of them share the
// rows. Rows start on 16 bytes where V > 1.
//
// folds: so many rows of the matrix, which follow one another without a gap, are read as one, so that each starts on 16
// bytes; a column is then the sum of its folds. With folds > 1 a folded row has at most kThreads vectors.
// scratch: (kSums * kThreads * V) floats of shared memory. All threads of the block must call this.
template <int V, int kSums, int kInputs, bool kPlanar, typename T, typename Prepare, typename Use, typename Write>
__device__ __forceinline__ void across_rows(const Matrix<T, kPlanar> (&in)[kInputs], int rows, int columns, int folds,
                                            float* scratch, const Prepare& prepare, const Use& use,
                                            const Write& write) {
  constexpr int kCount = kBatch / kInputs;
  const int folded = columns * folds;
  const int folded_rows = (rows + folds - 1) / folds;
  const int last_columns = folded - (folded_rows * folds - rows) * columns;
  const int vectors = (folded + V - 1) / V;
  const int span = min(vectors, kThreads);
  const int groups = kThreads / span;
  const int group = threadIdx.x / span;
  const int place = threadIdx.x % span;
  for (int start = 0; start < vectors; start += span) {
    const int column = (start + place) * V;
    float sums[V][kSums] = {};
    if (group < groups && column < folded) {
      const auto prepared = prepare(column);
      const auto valid_of = [&](int row) {
        return Valid{0, min(V, (row < folded_rows - 1 ? folded : last_columns) - column)};
      };
      for (int row = group; row < folded_rows; row += kCount * groups) {
        Raw<T, V> raw[kCount][kInputs];
#pragma unroll
        for (int b = 0; b < kCount; ++b) {
          const int own = row + b * groups;
          if (own >= folded_rows || valid_of(own).last <= 0) continue;
#pragma unroll
          for (int i = 0; i < kInputs; ++i) {
            raw[b][i] = fetch<V>(in[i], own * folds, column, valid_of(own), own < folded_rows - 1);
          }
        }
#pragma unroll
        for (int b = 0; b < kCount; ++b) {
          const int own = row + b * groups;
          if (own >= folded_rows || valid_of(own).last <= 0) continue;
          float values[kInputs][V];
#pragma unroll
          for (int i = 0; i < kInputs; ++i) unpack<T, V>(raw[b][i], values[i]);
          use(own, column, values, valid_of(own), prepared, sums);
        }
      }
    }
    const int width = span * V;
    if (group < groups) {
#pragma unroll
      for (int s = 0; s < kSums; ++s) {
#pragma unroll
        for (int e = 0; e < V; ++e) scratch[(s * groups + group) * width + place * V + e] = sums[e][s];
      }
    }
    __syncthreads();
    const int summed = min(width, folded - start * V) / folds;
    for (int i = threadIdx.x; i < summed; i += kThreads) {
      float totals[kSums] = {};
#pragma unroll
      for (int s = 0; s < kSums; ++s) {
        for (int g = 0; g < groups; ++g) {
          const float* part = scratch + (s * groups + g) * width + i;
          for (int fold = 0; fold < folds; ++fold) totals[s] += part[fold * summed];
        }
      }
      write(start * V + i, totals);
    }
    __syncthreads();
  }
}

}  // namespace finercam
