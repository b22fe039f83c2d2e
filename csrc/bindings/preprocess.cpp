#include "kernels/preprocess.h"

#include <array>
#include <optional>
#include <vector>

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include "bindings/arrays.h"

namespace nb = nanobind;

namespace finercam {
namespace {

using Pixels = nb::ndarray<const std::uint8_t, nb::shape<-1, -1, -1>>;
using Frame = std::array<std::int32_t, 4>;  // resized height, resized width, top, left
using Out = nb::ndarray<nb::shape<-1, -1, -1, -1>, nb::c_contig>;
using View = nb::ndarray<std::uint8_t, nb::shape<-1, -1, -1, -1>, nb::c_contig>;

void preprocess_into(const std::vector<Pixels>& images, const std::vector<Frame>& frames, const Out& out,
                     const std::optional<View>& view, ResizeFilter filter, const std::vector<float>& mean,
                     const std::vector<float>& std, const std::vector<std::uint8_t>& fill, int threads,
                     std::uintptr_t stream) {
  FINERCAM_CHECK(images.size() == frames.size() && images.size() == out.shape(0), "preprocess",
                 "expected as many images, frames and rows of out, got ", images.size(), ", ", frames.size(), " and ",
                 out.shape(0));
  const std::size_t channels = out.shape(1);
  FINERCAM_CHECK(mean.size() == channels && std.size() == channels && fill.size() == channels, "preprocess",
                 "expected a mean, a std and a fill for each of ", channels, " channels, got ", mean.size(), ", ",
                 std.size(), " and ", fill.size());
  std::vector<Photograph> photographs;
  for (std::size_t n = 0; n < images.size(); ++n) {
    const Pixels& image = images[n];
    check_same_device(image, out, "preprocess");
    FINERCAM_CHECK(image.shape(2) == channels, "preprocess", "expected images of ", channels, " channels, got ",
                   image.shape(2));
    const auto [resized_height, resized_width, top, left] = frames[n];
    photographs.push_back({image.data(), image.stride(0), image.stride(1), image.stride(2),
                           static_cast<std::int32_t>(image.shape(0)), static_cast<std::int32_t>(image.shape(1)),
                           resized_height, resized_width, top, left});
  }
  PreprocessArgs args{};
  args.batch = static_cast<std::int64_t>(out.shape(0));
  args.channels = static_cast<std::int32_t>(channels);
  args.height = static_cast<std::int32_t>(out.shape(2));
  args.width = static_cast<std::int32_t>(out.shape(3));
  args.photographs = photographs.data();
  args.filter = filter;
  args.mean = mean.data();
  args.std = std.data();
  args.fill = fill.data();
  args.dtype = array_view(AnyArray(out), "preprocess").dtype;
  args.out = out.data();
  if (view) {
    check_same_device(*view, out, "preprocess");
    FINERCAM_CHECK(view->shape(0) == out.shape(0) && view->shape(1) == out.shape(2) && view->shape(2) == out.shape(3) &&
                       view->shape(3) == channels,
                   "preprocess", "expected views of (", out.shape(0), ", ", out.shape(2), ", ", out.shape(3), ", ",
                   channels, "), got (", view->shape(0), ", ", view->shape(1), ", ", view->shape(2), ", ",
                   view->shape(3), ")");
    args.view = view->data();
  }
  const Execution execution = execution_of(out, "preprocess", threads, stream);
  const nb::gil_scoped_release release;
  preprocess(args, execution);
}

}  // namespace

void bind_preprocess(nb::module_& module) {
  nb::enum_<ResizeFilter>(module, "ResizeFilter", "How photographs are resized.")
      .value("BILINEAR", ResizeFilter::kBilinear)
      .value("BICUBIC", ResizeFilter::kBicubic);
  module.def("preprocess", &preprocess_into, nb::arg("images"), nb::arg("frames"), nb::arg("out").noconvert(),
             nb::arg("view").noconvert().none(), nb::kw_only(), nb::arg("filter"), nb::arg("mean"), nb::arg("std"),
             nb::arg("fill"), nb::arg("threads"), nb::arg("stream"),
             nb::sig("def preprocess(images: list[object], frames: list[tuple[int, int, int, int]], out: object, "
                     "view: object | None, *, filter: ResizeFilter, mean: list[float], std: list[float], "
                     "fill: list[int], threads: int, stream: int) -> None"),
             "Write photographs resized, cropped, normalised; a frame is (resized height, resized width, top, left).");
}

}  // namespace finercam
