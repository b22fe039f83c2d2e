#include "kernels/render.h"

#include <optional>
#include <tuple>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include "bindings/arrays.h"
#include "kernels/finite.h"

namespace nb = nanobind;

namespace finercam {
namespace {

using Maps = nb::ndarray<const float, nb::ndim<3>>;
using Status = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig>;
using Values = nb::ndarray<float, nb::ndim<3>, nb::c_contig>;
using Rgba = nb::ndarray<std::uint8_t, nb::shape<-1, -1, -1, 4>, nb::c_contig>;
using Photos = nb::ndarray<const std::uint8_t, nb::shape<-1, -1, -1, 3>>;
using Colors = nb::ndarray<const std::uint8_t, nb::shape<256, 3>, nb::c_contig, nb::device::cpu>;

RenderArgs args_of(const Maps& maps, const Status& status) {
  check_same_device(maps, status, "render");
  FINERCAM_CHECK(status.shape(0) == maps.shape(0), "render", "expected a status of ", maps.shape(0), " maps, got ",
                 status.shape(0));
  RenderArgs args{};
  args.maps = maps.data();
  args.batch = static_cast<std::int64_t>(maps.shape(0));
  args.map_height = static_cast<std::int64_t>(maps.shape(1));
  args.map_width = static_cast<std::int64_t>(maps.shape(2));
  args.map_batch_stride = maps.stride(0);
  args.map_row_stride = maps.stride(1);
  args.map_column_stride = maps.stride(2);
  args.status = status.data();
  return args;
}

using Edges = std::tuple<double, double, double, double>;  // left, top, right, bottom; none: the whole image
using Range = std::tuple<float, float>;

template <typename Image>
void set_picture(RenderArgs& args, const Maps& maps, const Image& out, const std::optional<Edges>& box,
                 const std::optional<Range>& range) {
  check_same_device(maps, out, "render");
  FINERCAM_CHECK(out.shape(0) == maps.shape(0), "render", "expected ", maps.shape(0), " images, got ", out.shape(0));
  args.height = static_cast<std::int64_t>(out.shape(1));
  args.width = static_cast<std::int64_t>(out.shape(2));
  const auto [left, top, right, bottom] =
      box.value_or(Edges{0, 0, static_cast<double>(args.width), static_cast<double>(args.height)});
  args.box = {left, top, right, bottom};
  if (range) std::tie(args.low, args.high) = *range;
}

void run(const RenderArgs& args, const Maps& maps, int threads, std::uintptr_t stream) {
  const Execution execution = execution_of(maps, "render", threads, stream);
  const nb::gil_scoped_release release;
  render(args, execution);
}

void map_status(const Maps& maps, const Status& status, int threads, std::uintptr_t stream) {
  run(args_of(maps, status), maps, threads, stream);
}

void mark(const nb::ndarray<const float, nb::ndim<2>, nb::c_contig>& values,
          const nb::ndarray<std::uint8_t, nb::ndim<2>>& status, int threads, std::uintptr_t stream) {
  check_same_device(values, status, "finite");
  FINERCAM_CHECK(status.shape(0) == values.shape(0), "finite", "expected a status of ", values.shape(0), " rows, got ",
                 status.shape(0));
  FiniteArgs args{};
  args.values = values.data();
  args.rows = static_cast<std::int64_t>(values.shape(0));
  args.columns = static_cast<std::int64_t>(values.shape(1));
  args.status = status.data();
  args.repeats = static_cast<std::int64_t>(status.shape(1));
  args.row_stride = status.stride(0);
  args.repeat_stride = status.stride(1);
  const Execution execution = execution_of(values, "finite", threads, stream);
  const nb::gil_scoped_release release;
  mark_non_finite(args, execution);
}

void render_values(const Maps& maps, const Status& status, const Values& out, const std::optional<Edges>& box,
                   const std::optional<Range>& range, int threads, std::uintptr_t stream) {
  RenderArgs args = args_of(maps, status);
  set_picture(args, maps, out, box, range);
  args.values = out.data();
  run(args, maps, threads, stream);
}

void render_rgba(const Maps& maps, const Status& status, const Rgba& out, const Colors& colors,
                 const std::optional<Photos>& photos, float opacity, const std::optional<Edges>& box,
                 const std::optional<Range>& range, int threads, std::uintptr_t stream) {
  RenderArgs args = args_of(maps, status);
  set_picture(args, maps, out, box, range);
  args.rgba = out.data();
  args.colors = colors.data();
  args.opacity = opacity;
  if (photos) {
    check_same_device(maps, *photos, "render");
    FINERCAM_CHECK(
        photos->shape(0) == out.shape(0) && photos->shape(1) == out.shape(1) && photos->shape(2) == out.shape(2),
        "render", "expected photographs of (", out.shape(0), ", ", out.shape(1), ", ", out.shape(2), ", 3), got (",
        photos->shape(0), ", ", photos->shape(1), ", ", photos->shape(2), ", 3)");
    args.photos = photos->data();
    args.photo_batch_stride = photos->stride(0);
    args.photo_row_stride = photos->stride(1);
    args.photo_column_stride = photos->stride(2);
    args.photo_channel_stride = photos->stride(3);
  }
  run(args, maps, threads, stream);
}

}  // namespace

void bind_render(nb::module_& module) {
  module.def("map_status", &map_status, nb::arg("maps").noconvert(), nb::arg("status").noconvert(), nb::kw_only(),
             nb::arg("threads"), nb::arg("stream"), "Write the status of each raw map.");
  module.def("mark_non_finite", &mark, nb::arg("values").noconvert(), nb::arg("status").noconvert(), nb::kw_only(),
             nb::arg("threads"), nb::arg("stream"), "Set the status of rows with a value that is not finite.");
  module.def("render_values", &render_values, nb::arg("maps").noconvert(), nb::arg("status").noconvert(),
             nb::arg("out").noconvert(), nb::kw_only(), nb::arg("box").none(), nb::arg("value_range").none(),
             nb::arg("threads"), nb::arg("stream"), "Write the normalised maps, resized to the size of out.");
  module.def("render_rgba", &render_rgba, nb::arg("maps").noconvert(), nb::arg("status").noconvert(),
             nb::arg("out").noconvert(), nb::kw_only(), nb::arg("colors").noconvert(),
             nb::arg("photos").noconvert().none(), nb::arg("opacity"), nb::arg("box").none(),
             nb::arg("value_range").none(), nb::arg("threads"), nb::arg("stream"),
             "Write the coloured maps, resized to the size of out and blended with the photographs.");
}

}  // namespace finercam
