#include <string>
#include <utility>

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include "bindings/arrays.h"
#include "core/device.h"

namespace nb = nanobind;

namespace finercam {
namespace {

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
}

}  // namespace finercam
