#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/arrays.h"
#include "core/device.h"

namespace nb = nanobind;

namespace finercam {
namespace {

// array_api: without it, Python would be given a bare capsule, which can be read once.
template <typename T>
nb::ndarray<nb::array_api, T, nb::device::cuda> empty(const std::vector<std::size_t>& shape, int device) {
  const std::size_t count = std::accumulate(shape.begin(), shape.end(), std::size_t{1}, std::multiplies<>());
  auto memory = std::make_unique<DeviceMemory>(count * sizeof(T), device);
  T* values = static_cast<T*>(memory->address());
  const nb::capsule owner(memory.release(), [](void* owned) noexcept { delete static_cast<DeviceMemory*>(owned); });
  return {values, shape.size(), shape.data(), owner, nullptr, nb::dtype<T>(), nb::device::cuda::value, device};
}

std::pair<int, std::string> status() {
  CudaStatus found = cuda_status();
  return {found.devices, std::move(found.reason)};
}

std::pair<std::size_t, std::size_t> memory(int device) {
  const MemoryInfo found = memory_info(device);
  return {found.free, found.total};
}

std::pair<int, int> use(int device) {
  const Former former = make_current(device);
  return {former.device, former.mode};
}

void put_back(int device, int mode) { restore_current({device, mode}); }

}  // namespace

void bind_cuda(nb::module_& module) {
  module.def("cuda_status", &status, nb::call_guard<nb::gil_scoped_release>(),
             "Number of usable CUDA devices, and why there is none.");
  module.def("cuda_compute_capability", &compute_capability, nb::arg("device"),
             nb::call_guard<nb::gil_scoped_release>(), "10 * major + minor of a CUDA device, such as 89.");
  module.def("cuda_device_name", &device_name, nb::arg("device"), nb::call_guard<nb::gil_scoped_release>(),
             "As the driver calls a CUDA device, such as \"NVIDIA H200\".");
  module.def("cuda_memory_info", &memory, nb::arg("device"), nb::call_guard<nb::gil_scoped_release>(),
             "Free bytes and all bytes of a CUDA device.");
  module.def("cuda_make_current", &use, nb::arg("device"), nb::call_guard<nb::gil_scoped_release>(),
             "Make a CUDA device the current one of this thread, and give what cuda_restore_current takes.");
  module.def("cuda_restore_current", &put_back, nb::arg("device"), nb::arg("mode"),
             nb::call_guard<nb::gil_scoped_release>(),
             "Put back what cuda_make_current gave, unless that device has no context yet.");
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
