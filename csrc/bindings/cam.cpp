#include "kernels/cam.h"

#include "bindings/arrays.h"
#include "kernels/layout.h"

namespace nb = nanobind;

namespace finercam {
namespace {

using MapOut = nb::ndarray<float, nb::ndim<3>, nb::c_contig>;

void cam_into(const AnyArray& activations, const AnyArray& gradients, const MapOut& out, Method method, Layout layout,
              std::int64_t prefix_tokens, int threads, std::uintptr_t stream) {
  check_same_device(activations, gradients, "cam");
  check_same_device(activations, out, "cam");
  const auto height = static_cast<std::int64_t>(out.shape(1));
  const auto width = static_cast<std::int64_t>(out.shape(2));
  const FeatureView a = feature_view(array_view(activations, "cam"), layout, prefix_tokens, height, width);
  const FeatureView g = feature_view(array_view(gradients, "cam"), layout, prefix_tokens, height, width);
  FINERCAM_CHECK(static_cast<std::int64_t>(out.shape(0)) == a.batch, "cam", "expected an output batch of ", a.batch,
                 ", got ", out.shape(0));
  const Execution execution = execution_of(activations, "cam", threads, stream);
  float* map = out.data();
  const nb::gil_scoped_release release;
  cam(method, a, g, map, execution);
}

}  // namespace

void bind_cam(nb::module_& module) {
  nb::enum_<Layout>(module, "Layout", "Order of a feature map's axes.")
      .value("NCHW", Layout::kNchw)
      .value("NHWC", Layout::kNhwc)
      .value("TOKENS", Layout::kTokens);
  nb::enum_<Method>(module, "Method", "How activations and gradients become a map.").value("GRADCAM", Method::kGradCam);
  module.def("cam", &cam_into, nb::arg("activations").noconvert(), nb::arg("gradients").noconvert(),
             nb::arg("out").noconvert(), nb::kw_only(), nb::arg("method"), nb::arg("layout"), nb::arg("prefix_tokens"),
             nb::arg("threads"), nb::arg("stream"),
             nb::sig("def cam(activations: object, gradients: object, out: object, *, method: Method, layout: Layout, "
                     "prefix_tokens: int, threads: int, stream: int) -> None"),
             "Write the raw map of (N, h, w) into out; its h and w are the grid.");
}

}  // namespace finercam
