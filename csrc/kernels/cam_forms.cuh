// How the cam kernels read their inputs: along which axis, and whether by 16 bytes. Decided from their strides, once on
// the host, or by a kernel that nothing but pointers and sizes can be given to.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/view.h"
#include "kernels/cam_cuda.cuh"

namespace finercam {

// How the kernel reads an input, or both of them at once.
struct Form {
  bool planar;   // neighbouring threads walk along positions rather than channels
  bool vectors;  // by 16 bytes
  int folds;     // planes that are added up as one row
};

template <typename T>
struct Feature {
  const T* data;
  std::int64_t batch_stride, contrast_stride, channel_stride, column_stride, row_gap;
  int width;

  template <bool kPlanar>
  __device__ __forceinline__ Matrix<T, kPlanar> matrix(int image, int contrast, int first) const {
    return {data + image * batch_stride + contrast * contrast_stride + first * channel_stride, channel_stride,
            column_stride, row_gap, width};
  }
};

template <typename T>
struct CamInputs {
  Feature<T> activations, gradients;
  Form pool_activations, pool_gradients, pool_both, map;
  int channels, positions, chunk, contrasts;
};

FINERCAM_HOST_DEVICE bool on_vectors(std::int64_t elements, std::int64_t vector) { return elements % vector == 0; }

template <typename T>
FINERCAM_HOST_DEVICE Feature<T> feature_of(const FeatureView& view, std::int64_t contrast_stride) {
  const bool one_position = view.positions() == 1;
  return {static_cast<const T*>(view.data),
          view.batch_stride,
          contrast_stride,
          view.channels == 1 ? view.positions() : view.channel_stride,
          one_position ? 0 : (view.width > 1 ? view.column_stride : view.row_stride),
          view.width > 1 && view.height > 1 ? view.row_stride - view.width * view.column_stride : 0,
          static_cast<int>(view.width)};
}

// Whether neighbouring threads should walk along positions rather than channels.
FINERCAM_HOST_DEVICE bool is_planar(const FeatureView& view) {
  if (view.positions() == 1) return false;
  const std::int64_t step = view.width > 1 ? view.column_stride : view.row_stride;
  const std::int64_t channel = view.channel_stride;
  return view.channels == 1 || (step < 0 ? -step : step) <= (channel < 0 ? -channel : channel);
}

// What the loops ask of an input that they read by vectors: the images start on 16 bytes, the axis that threads walk
// along is contiguous, and its rows do not overlap.
template <typename T>
FINERCAM_HOST_DEVICE bool has_vectors(const Feature<T>& feature, const CamInputs<T>& in, std::int64_t batch,
                                      bool planar) {
  constexpr std::int64_t kStep = kVector<T>;
  if (feature.row_gap != 0 || reinterpret_cast<std::uintptr_t>(feature.data) % 16 != 0) return false;
  if (batch > 1 && !on_vectors(feature.batch_stride, kStep)) return false;
  if (in.contrasts > 1 && !on_vectors(feature.contrast_stride, kStep)) return false;
  if (planar) {
    return feature.column_stride == 1 && feature.channel_stride >= in.positions && in.positions >= kStep;
  }
  return (feature.channel_stride == 1 || in.channels == 1) && on_vectors(feature.column_stride, kStep) &&
         (in.positions == 1 || feature.column_stride >= in.channels);
}

// How planes are added up by vectors: each starts on 16 bytes, or they follow one another, few vectors each. 0: not.
template <typename T>
FINERCAM_HOST_DEVICE int folds_of(const Feature<T>& feature, const CamInputs<T>& in) {
  constexpr std::int64_t kStep = kVector<T>;
  if (on_vectors(feature.channel_stride, kStep) && on_vectors(in.positions, kStep)) return 1;
  return feature.channel_stride == in.positions && in.positions <= kThreads ? static_cast<int>(kStep) : 0;
}

template <typename T>
FINERCAM_HOST_DEVICE void choose_forms(CamInputs<T>& in, const FeatureView& activations, const FeatureView& gradients,
                                       bool summed) {
  const std::int64_t batch = activations.batch;
  const Feature<T>& a = in.activations;
  const Feature<T>& g = in.gradients;
  const bool planar = is_planar(activations);
  const bool planar_gradients = is_planar(gradients);
  const bool vectors = has_vectors(a, in, batch, planar);
  const bool both = vectors && has_vectors(g, in, batch, planar);
  in.pool_activations = {planar, vectors, 1};
  in.pool_gradients = {planar_gradients, has_vectors(g, in, batch, planar_gradients), 1};
  in.pool_both = {planar, both && (!planar || on_vectors(a.channel_stride - g.channel_stride, kVector<T>)), 1};
  in.map = {planar, summed ? both : vectors, 1};
  if (planar && in.map.vectors) {
    const int folds = folds_of(a, in);
    in.map.vectors = folds != 0 && (!summed || folds_of(g, in) == folds);
    in.map.folds = in.map.vectors ? folds : 1;
  }
}

}  // namespace finercam
