#include "kernels/layout.h"

namespace finercam {
namespace {

std::int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

FeatureView token_view(const ArrayView& array, std::int64_t prefix_tokens, std::int64_t height, std::int64_t width) {
  FINERCAM_CHECK(array.rank == 3, "cam", "expected tokens of 3 axes (N, L, C), got ", array.rank);
  FINERCAM_CHECK(prefix_tokens >= 0 && prefix_tokens + height * width == array.sizes[1], "cam", "expected ",
                 prefix_tokens, " + ", height, " x ", width, " tokens, got ", array.sizes[1]);
  const auto* bytes = static_cast<const char*>(array.data);
  return {bytes + prefix_tokens * array.strides[1] * element_size(array.dtype),
          array.dtype,
          array.sizes[0],
          array.sizes[2],
          height,
          width,
          array.strides[0],
          array.strides[2],
          width * array.strides[1],
          array.strides[1]};
}

}  // namespace

FeatureView feature_view(const ArrayView& array, Layout layout, std::int64_t prefix_tokens, std::int64_t height,
                         std::int64_t width) {
  if (layout == Layout::kTokens) return token_view(array, prefix_tokens, height, width);
  FINERCAM_CHECK(array.rank == 4, "cam", "expected a feature map of 4 axes, got ", array.rank);
  FINERCAM_CHECK(prefix_tokens == 0, "cam", "expected no prefix tokens in a feature map, got ", prefix_tokens);
  const std::size_t channel = layout == Layout::kNchw ? 1 : 3;
  const std::size_t row = layout == Layout::kNchw ? 2 : 1;
  const std::size_t column = row + 1;
  FINERCAM_CHECK(array.sizes[row] == height && array.sizes[column] == width, "cam", "expected a map of ", height, " x ",
                 width, ", got ", array.sizes[row], " x ", array.sizes[column]);
  return {array.data, array.dtype,      array.sizes[0],         array.sizes[channel], height,
          width,      array.strides[0], array.strides[channel], array.strides[row],   array.strides[column]};
}

}  // namespace finercam
