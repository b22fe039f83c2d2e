#include <numeric>
#include <vector>

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/arrays.h"
#include "core/device.h"

namespace nb = nanobind;

namespace finercam {
namespace {

struct Allocation {
  void* memory;
  int device;
};

template <typename T>
nb::ndarray<T, nb::device::cuda> empty(const std::vector<std::size_t>& shape, int device) {
  const std::size_t count = std::accumulate(shape.begin(), shape.end(), std::size_t{1}, std::multiplies<>());
  Allocation* allocation = new Allocation{nullptr, device};
  nb::capsule owner(allocation, [](void* pointer) noexcept {
    auto* owned = static_cast<Allocation*>(pointer);
    if (owned->memory != nullptr) device_free(owned->memory, owned->device);
    delete owned;
  });
  allocation->memory = device_allocate(count * sizeof(T), device);
  return {static_cast<T*>(allocation->memory),
          shape.size(),
          shape.data(),
          owner,
          nullptr,
          nb::dtype<T>(),
          nb::device::cuda::value,
          device};
}

std::pair<int, std::string> status() {
  CudaStatus found = cuda_status();
  return {found.devices, std::move(found.reason)};
}

}  // namespace

void bind_cuda(nb::module_& module) {
  module.def("cuda_status", &status, nb::call_guard<nb::gil_scoped_release>(),
             "Number of usable CUDA devices, and why there is none.");
  module.def("cuda_compute_capability", &compute_capability, nb::arg("device"),
             nb::call_guard<nb::gil_scoped_release>(), "10 * major + minor of a CUDA device, such as 89.");
  module.def("cuda_empty_float32", &empty<float>, nb::arg("shape"), nb::arg("device"),
             "An uninitialised float32 array that owns memory of a CUDA device.");
  module.def("cuda_empty_int32", &empty<std::int32_t>, nb::arg("shape"), nb::arg("device"),
             "An uninitialised int32 array that owns memory of a CUDA device.");
  module.def("cuda_empty_int64", &empty<std::int64_t>, nb::arg("shape"), nb::arg("device"),
             "An uninitialised int64 array that owns memory of a CUDA device.");
  module.def("cuda_empty_uint8", &empty<std::uint8_t>, nb::arg("shape"), nb::arg("device"),
             "An uninitialised uint8 array that owns memory of a CUDA device.");
}

}  // namespace finercam
