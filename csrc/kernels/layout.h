// The three layouts of a target layer's output, seen as one (N, C, h, w) view.
#pragma once

#include "core/view.h"

namespace finercam {

enum class Layout { kNchw, kNhwc, kTokens };

// nchw: (N, C, h, w); nhwc: (N, h, w, C); tokens: (N, prefix_tokens + height * width, C), where the prefix tokens (CLS,
// registers) are left out of the view. height and width describe the grid of tokens and are checked otherwise.
FeatureView feature_view(const ArrayView& array, Layout layout, std::int64_t prefix_tokens, std::int64_t height,
                         std::int64_t width);

}  // namespace finercam
