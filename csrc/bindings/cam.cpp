#include "kernels/cam.h"

#include <optional>

#include <nanobind/stl/optional.h>

#include "bindings/arrays.h"
#include "kernels/layout.h"

namespace nb = nanobind;

namespace finercam {
namespace {

using MapOut = nb::ndarray<float, nb::c_contig>;

// Axis 1 of an array, which is that of the contrasts, taken out.
struct Contrasts {
  std::int64_t count = 1, stride = 0;
};

Contrasts take_contrasts(ArrayView& array) {
  const Contrasts contrasts{array.sizes[1], array.strides[1]};
  for (std::size_t axis = 2; axis < array.sizes.size(); ++axis) {
    array.sizes[axis - 1] = array.sizes[axis];
    array.strides[axis - 1] = array.strides[axis];
  }
  --array.rank;
  return contrasts;
}

FeatureView weight_view(const ArrayView& array) {
  FINERCAM_CHECK(array.rank == 2, "cam", "expected channel weights of 2 axes, got ", array.rank);
  return {array.data, array.dtype, array.sizes[0], array.sizes[1], 1, 1, array.strides[0], array.strides[1], 0, 0};
}

void cam_into(const AnyArray& activations, const std::optional<AnyArray>& gradients, const MapOut& out, Method method,
              Layout layout, std::int64_t prefix_tokens, int threads, std::uintptr_t stream, int blocks, bool cluster) {
  check_same_device(activations, out, "cam");
  FINERCAM_CHECK(out.ndim() == 3 || out.ndim() == 4, "cam", "expected a map of 3 or 4 axes, got ", out.ndim());
  const bool several = out.ndim() == 4;
  const auto height = static_cast<std::int64_t>(out.shape(out.ndim() - 2));
  const auto width = static_cast<std::int64_t>(out.shape(out.ndim() - 1));
  CamArgs args{};
  args.method = method;
  args.activations = feature_view(array_view(activations, "cam"), layout, prefix_tokens, height, width);
  args.contrasts = several ? static_cast<std::int64_t>(out.shape(1)) : 1;
  FINERCAM_CHECK(static_cast<std::int64_t>(out.shape(0)) == args.activations.batch, "cam",
                 "expected an output batch of ", args.activations.batch, ", got ", out.shape(0));
  FINERCAM_CHECK(gradients || method == Method::kFem, "cam", "expected gradients or channel weights, got none");
  if (gradients && method != Method::kFem) {
    check_same_device(activations, *gradients, "cam");
    ArrayView given = array_view(*gradients, "cam");
    const Contrasts contrasts = several && given.rank >= 2 ? take_contrasts(given) : Contrasts{};
    FINERCAM_CHECK(contrasts.count == args.contrasts, "cam", "expected ", args.contrasts, " contrasts, got ",
                   contrasts.count);
    args.contrast_stride = contrasts.stride;
    args.gradients = method == Method::kChannelWeights ? weight_view(given)
                                                       : feature_view(given, layout, prefix_tokens, height, width);
  }
  args.map = out.data();
  FINERCAM_CHECK(blocks >= 0 && (blocks > 0 || !cluster), "cam", "expected blocks of at least ", cluster ? 1 : 0,
                 ", got ", blocks);
  args.sharing = {blocks, cluster};
  const Execution execution = execution_of(activations, "cam", threads, stream);
  const nb::gil_scoped_release release;
  cam(args, execution);
}

}  // namespace

void bind_cam(nb::module_& module) {
  nb::enum_<Layout>(module, "Layout", "Order of a feature map's axes.")
      .value("NCHW", Layout::kNchw)
      .value("NHWC", Layout::kNhwc)
      .value("TOKENS", Layout::kTokens);
  nb::enum_<Method>(module, "Method", "How activations and gradients, or channel weights, become a map.")
      .value("CHANNEL_WEIGHTS", Method::kChannelWeights)
      .value("GRADCAM", Method::kGradCam)
      .value("GRADCAM_PLUS_PLUS", Method::kGradCamPlusPlus)
      .value("XGRADCAM", Method::kXGradCam)
      .value("FEM", Method::kFem)
      .value("LAYERCAM", Method::kLayerCam)
      .value("HIRESCAM", Method::kHiResCam)
      .value("GRADCAM_ELEMENTWISE", Method::kGradCamElementwise);
  module.def("cam", &cam_into, nb::arg("activations").noconvert(), nb::arg("gradients").noconvert().none(),
             nb::arg("out").noconvert(), nb::kw_only(), nb::arg("method"), nb::arg("layout"), nb::arg("prefix_tokens"),
             nb::arg("threads"), nb::arg("stream"), nb::arg("blocks") = 0, nb::arg("cluster") = false,
             nb::sig("def cam(activations: object, gradients: object | None, out: object, *, method: Method, "
                     "layout: Layout, prefix_tokens: int, threads: int, stream: int, blocks: int = 0, "
                     "cluster: bool = False) -> None"),
             "Write the raw maps into out, (N, h, w) or (N, P, h, w). On CUDA so many blocks share a map; 0: by size.");
}

}  // namespace finercam
