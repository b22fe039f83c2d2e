// The map of a method in one launch that is someone else's, such as TensorRT's: its kernel is given pointers and 32-bit
// integers, and has neither memory of its own nor a memset before it. So no block waits for another, and what the other
// kernel of cam_cuda.cu divides by channels is divided by positions here, where the method needs no sum over them.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/cam_block.cuh"

namespace finercam {

constexpr int kPluginChunk = 2048;  // channels at a time: their weights take 8 KiB of shared memory

// A feature map whose channels come first, or last behind `prefix` tokens; contiguous but for those.
__device__ __forceinline__ FeatureView plugin_view(const float* data, int batch, int channels, int positions,
                                                   int prefix, bool interleaved) {
  const std::int64_t plane = interleaved ? 1 : positions;
  const std::int64_t step = interleaved ? channels : 1;
  const std::int64_t image = static_cast<std::int64_t>(prefix + positions) * channels;
  return {data + prefix * step, DType::kFloat32, batch, channels, 1, positions, image, plane, positions * step, step};
}

// activations: (N, C, positions), or (N, prefix + positions, C) where interleaved, float, contiguous. second:
// gradients, those of each of P contrasts behind one another, (N, P, ...); of GivenWeights the weights (N, P, C). map:
// (N, P, positions) float. grid (P, N, tiles): a block draws `tile` positions of a map. Those of a planar input are all
// of them, or a multiple of kThreads: a tile then begins on 16 bytes where a plane does, and no planes are added up as
// one row.
template <typename Method>
__device__ __forceinline__ void cam_plugin(const float* activations, const float* second, int channels, int positions,
                                           int prefix, bool interleaved, int tile, float* map) {
  constexpr bool kGiven = std::is_same_v<Method, GivenWeights>;
  __shared__ __align__(16) float weights[kPluginChunk + kChunkStep];
  __shared__ float scratch[kScratch<float>];
  const int contrasts = static_cast<int>(gridDim.x);
  const int images = static_cast<int>(gridDim.y);
  const int begin = static_cast<int>(blockIdx.z) * tile;
  CamInputs<float> in{};
  in.channels = channels;
  in.positions = positions;
  in.contrasts = contrasts;
  const FeatureView a = plugin_view(activations, images, channels, positions, prefix, interleaved);
  FeatureView g = kGiven ? plugin_view(second, images, channels, 1, 0, true)
                         : plugin_view(second, images, channels, positions, prefix, interleaved);
  const std::int64_t contrast_stride = g.batch_stride;
  g.batch_stride *= contrasts;
  in.activations = feature_of<float>(a, 0);
  in.gradients = feature_of<float>(g, contrast_stride);
  choose_forms(in, a, g, IsSummed<Method>::value);

  CamInputs<float> tiled = in;
  tiled.positions = min(tile, positions - begin);
  tiled.activations.data += begin * in.activations.column_stride;
  tiled.gradients.data += begin * in.gradients.column_stride;
  Place place{static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x), 0, 0};
  float* out = map + (static_cast<std::int64_t>(place.image) * contrasts + place.contrast) * positions + begin;
  for (; place.first < channels; place.first += kPluginChunk) {
    place.count = min(kPluginChunk, channels - place.first);
    const bool is_first = place.first == 0;
    const bool is_last = place.first + place.count == channels;
    find_weights(Method{}, in, place, weights, scratch);
    draw(Method{}, tiled, place, weights, scratch, [&](int position, const float (&sums)[1]) {
      const float sum = is_first ? sums[0] : out[position] + sums[0];
      out[position] = is_last ? rectify(sum) : sum;
    });
    __syncthreads();  // another thread may add to a position, and the weights are written anew
  }
}

}  // namespace finercam
