#include "bindings/arrays.h"

#include <string>

#include <nanobind/stl/string.h>

namespace nb = nanobind;

namespace finercam {
namespace {

bool is_type(nb::dlpack::dtype dtype, nb::dlpack::dtype_code code, int bits) {
  return dtype.code == static_cast<std::uint8_t>(code) && dtype.bits == bits && dtype.lanes == 1;
}

std::string dtype_name(nb::dlpack::dtype dtype) {
  static constexpr const char* kNames[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  if (dtype.code >= std::size(kNames)) return "DLPack dtype " + std::to_string(dtype.code);
  if (is_type(dtype, nb::dlpack::dtype_code::Bool, 8)) return "bool";
  return kNames[dtype.code] + std::to_string(dtype.bits);
}

std::string device_name(const AnyArray& array) {
  if (array.device_type() == nb::device::cpu::value) return "cpu";
  if (array.device_type() == nb::device::cuda::value) return "cuda:" + std::to_string(array.device_id());
  return "DLPack device " + std::to_string(array.device_type()) + ":" + std::to_string(array.device_id());
}

bool is_aligned(const AnyArray& array, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(array.data()) % bytes == 0;
}

bool is_c_contiguous(const AnyArray& array) {
  std::int64_t expected = 1;
  for (std::size_t axis = array.ndim(); axis-- > 0;) {
    if (array.shape(axis) != 1 && array.stride(axis) != expected) return false;
    expected *= static_cast<std::int64_t>(array.shape(axis));
  }
  return true;
}

// (shape, dtype, device, aligned, plain), or None where the object is no array. aligned: to its elements. plain:
// C-contiguous and aligned to 4 bytes, as every output must be.
nb::object describe(nb::handle object) {
  AnyArray array;
  if (!nb::try_cast<AnyArray>(object, array, false) || !array.is_valid()) return nb::none();
  nb::list shape;
  for (std::size_t axis = 0; axis < array.ndim(); ++axis) shape.append(array.shape(axis));
  return nb::make_tuple(nb::tuple(shape), dtype_name(array.dtype()), device_name(array),
                        is_aligned(array, array.itemsize()), is_c_contiguous(array) && is_aligned(array, 4));
}

}  // namespace

ArrayView array_view(const AnyArray& array, const char* op) {
  FINERCAM_CHECK(array.ndim() <= 5, op, "expected at most 5 axes, got ", array.ndim());
  ArrayView view{};
  view.data = array.data();
  if (is_type(array.dtype(), nb::dlpack::dtype_code::Float, 32)) {
    view.dtype = DType::kFloat32;
  } else if (is_type(array.dtype(), nb::dlpack::dtype_code::Float, 16)) {
    view.dtype = DType::kFloat16;
  } else {
    FINERCAM_CHECK(is_type(array.dtype(), nb::dlpack::dtype_code::Bfloat, 16), op,
                   "expected float32, float16 or bfloat16, got ", dtype_name(array.dtype()));
    view.dtype = DType::kBFloat16;
  }
  view.rank = static_cast<int>(array.ndim());
  for (std::size_t axis = 0; axis < array.ndim(); ++axis) {
    view.sizes[axis] = static_cast<std::int64_t>(array.shape(axis));
    view.strides[axis] = array.stride(axis);
  }
  return view;
}

void bind_arrays(nb::module_& module) {
  module.def("describe", &describe, nb::arg("object").none(),
             nb::sig("def describe(object: object) -> tuple[tuple[int, ...], str, str, bool, bool] | None"),
             "Shape, dtype, device, whether aligned to the elements, whether C-contiguous and aligned to 4 bytes.");
}

}  // namespace finercam
