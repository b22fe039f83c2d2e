// rank, remove and mask.
#include "bindings/arrays.h"
#include "kernels/mask.h"
#include "kernels/rank.h"
#include "kernels/remove.h"

namespace nb = nanobind;

namespace finercam {
namespace {

using Maps = nb::ndarray<const float, nb::ndim<3>>;
using Images = nb::ndarray<const float, nb::ndim<4>>;
using Ranks = nb::ndarray<const std::int32_t, nb::ndim<3>>;
using RanksOut = nb::ndarray<std::int32_t, nb::ndim<3>, nb::c_contig>;
using Counts = nb::ndarray<const std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Copies = nb::ndarray<float, nb::ndim<5>, nb::c_contig>;

template <typename Array>
std::int64_t size_of(const Array& array, std::size_t axis) {
  return static_cast<std::int64_t>(array.shape(axis));
}

template <typename Array>
Strides strides_of(const Array& array) {
  if (array.ndim() == 3) return {array.stride(0), 0, array.stride(1), array.stride(2)};
  return {array.stride(0), array.stride(1), array.stride(2), array.stride(3)};
}

std::int64_t rank_into(const Maps& maps, const RanksOut& out, int threads, std::uintptr_t stream) {
  check_same_device(maps, out, "rank");
  FINERCAM_CHECK(out.shape(0) == maps.shape(0) && out.shape(1) == maps.shape(1) && out.shape(2) == maps.shape(2),
                 "rank", "expected ranks of the maps' shape, got another");
  const RankArgs args{maps.data(), size_of(maps, 0), size_of(maps, 1), size_of(maps, 2), strides_of(maps), out.data()};
  const Execution execution = execution_of(maps, "rank", threads, stream);
  const nb::gil_scoped_release release;
  return rank(args, execution);
}

RemoveArgs remove_args(const Images& images, const Ranks& ranks, const Counts& counts, const Copies& out) {
  check_same_device(images, ranks, "remove");
  check_same_device(images, out, "remove");
  RemoveArgs args{};
  args.batch = size_of(images, 0);
  args.steps = size_of(counts, 1);
  args.channels = size_of(images, 1);
  args.height = size_of(images, 2);
  args.width = size_of(images, 3);
  FINERCAM_CHECK(size_of(ranks, 0) == args.batch && size_of(ranks, 1) == args.height && size_of(ranks, 2) == args.width,
                 "remove", "expected ranks of (", args.batch, ", ", args.height, ", ", args.width, "), got another");
  FINERCAM_CHECK(size_of(counts, 0) == args.batch, "remove", "expected counts of ", args.batch, " images, got ",
                 counts.shape(0));
  FINERCAM_CHECK(size_of(out, 0) == args.batch && size_of(out, 1) == args.steps && size_of(out, 2) == args.channels &&
                     size_of(out, 3) == args.height && size_of(out, 4) == args.width,
                 "remove", "expected copies of (", args.batch, ", ", args.steps, ", ", args.channels, ", ", args.height,
                 ", ", args.width, "), got another shape");
  args.images = images.data();
  args.image_strides = strides_of(images);
  args.ranks = ranks.data();
  args.rank_strides = strides_of(ranks);
  args.counts = counts.data();
  args.out = out.data();
  return args;
}

void run_remove(const RemoveArgs& args, const Images& images, int threads, std::uintptr_t stream) {
  const Execution execution = execution_of(images, "remove", threads, stream);
  const nb::gil_scoped_release release;
  remove(args, execution);
}

void remove_values(const Images& images, const Ranks& ranks, const Counts& counts, const Values& fill,
                   const Copies& out, int threads, std::uintptr_t stream) {
  RemoveArgs args = remove_args(images, ranks, counts, out);
  FINERCAM_CHECK(size_of(fill, 0) == args.channels, "remove", "expected a fill of ", args.channels, " channels, got ",
                 fill.shape(0));
  args.fill = fill.data();
  args.fill_strides = {0, 1, 0, 0};
  args.fill_on_host = true;
  run_remove(args, images, threads, stream);
}

void remove_pixels(const Images& images, const Ranks& ranks, const Counts& counts, const Images& fill,
                   const Copies& out, int threads, std::uintptr_t stream) {
  RemoveArgs args = remove_args(images, ranks, counts, out);
  check_same_device(images, fill, "remove");
  FINERCAM_CHECK(size_of(fill, 0) == args.batch && size_of(fill, 1) == args.channels &&
                     size_of(fill, 2) == args.height && size_of(fill, 3) == args.width,
                 "remove", "expected a fill of the images' shape, got another");
  args.fill = fill.data();
  args.fill_strides = strides_of(fill);
  run_remove(args, images, threads, stream);
}

void mask_into(const Images& images, const Images& maps, const Copies& out, bool align_corners, int threads,
               std::uintptr_t stream) {
  check_same_device(images, maps, "mask");
  check_same_device(images, out, "mask");
  const MaskArgs args{size_of(images, 0), size_of(maps, 1), size_of(images, 1), size_of(images, 2),
                      size_of(images, 3), images.data(),    strides_of(images), maps.data(),
                      strides_of(maps),   size_of(maps, 2), size_of(maps, 3),   align_corners,
                      out.data()};
  FINERCAM_CHECK(size_of(maps, 0) == args.batch, "mask", "expected maps of ", args.batch, " images, got ",
                 maps.shape(0));
  FINERCAM_CHECK(size_of(out, 0) == args.batch && size_of(out, 1) == args.maps_per_image &&
                     size_of(out, 2) == args.channels && size_of(out, 3) == args.height &&
                     size_of(out, 4) == args.width,
                 "mask", "expected copies of (", args.batch, ", ", args.maps_per_image, ", ", args.channels, ", ",
                 args.height, ", ", args.width, "), got another shape");
  const Execution execution = execution_of(images, "mask", threads, stream);
  const nb::gil_scoped_release release;
  mask(args, execution);
}

}  // namespace

void bind_perturb(nb::module_& module) {
  module.def("rank", &rank_into, nb::arg("maps").noconvert(), nb::arg("out").noconvert(), nb::kw_only(),
             nb::arg("threads"), nb::arg("stream"),
             "Write the place of each pixel; the first map that is not finite, or -1.");
  module.def("remove_values", &remove_values, nb::arg("images").noconvert(), nb::arg("ranks").noconvert(),
             nb::arg("counts").noconvert(), nb::arg("fill").noconvert(), nb::arg("out").noconvert(), nb::kw_only(),
             nb::arg("threads"), nb::arg("stream"), "Write copies with ranked pixels replaced by one value a channel.");
  module.def("remove_pixels", &remove_pixels, nb::arg("images").noconvert(), nb::arg("ranks").noconvert(),
             nb::arg("counts").noconvert(), nb::arg("fill").noconvert(), nb::arg("out").noconvert(), nb::kw_only(),
             nb::arg("threads"), nb::arg("stream"), "Write copies with ranked pixels replaced by those of the fill.");
  module.def("mask", &mask_into, nb::arg("images").noconvert(), nb::arg("maps").noconvert(), nb::arg("out").noconvert(),
             nb::kw_only(), nb::arg("align_corners"), nb::arg("threads"), nb::arg("stream"),
             "Write copies of the images, each multiplied by a resized map.");
}

}  // namespace finercam
