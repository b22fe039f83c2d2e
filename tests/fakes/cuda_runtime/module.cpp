// The bindings of CUDA's streams, memory and graphs over the CUDA runtime of this folder.
#include <string>
#include <vector>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/arrays.h"
#include "core/cuda_check.h"
#include "core/operation.h"
#include "core/workspace.h"
#include "cuda_runtime.h"

NB_MODULE(_null_core, module) {
  finercam::bind_graph(module);
  finercam::bind_exchange(module);
  module.def("keep_journal", [](bool writes) { null_cuda::state().writes = writes; });
  module.def("take_journal", [] {
    std::vector<std::string> journal;
    journal.swap(null_cuda::state().journal);
    return journal;
  });
  module.def("fail_at", [](const std::string& call) { null_cuda::state().failing = call; });
  // A process that has not used a GPU, while another of its threads captures or none does.
  module.def("begin_thread", [](bool captured_elsewhere) {
    null_cuda::State& now = null_cuda::state();
    now.contexts = {};
    now.current = 0;
    now.captured_elsewhere = captured_elsewhere;
  });
  module.def("current", [] { return null_cuda::state().current; });
  module.def("contexts", [] {
    std::vector<int> devices;
    for (int device = 0; device < 4; ++device) {
      if (null_cuda::state().contexts.at(device)) devices.push_back(device);
    }
    return devices;
  });
  module.def("exchange_mode", [](int mode) {
    auto former = static_cast<cudaStreamCaptureMode>(mode);
    cudaThreadExchangeStreamCaptureMode(&former);
    return static_cast<int>(former);
  });
  module.def("fail_in_operation", [](int error, std::size_t bytes) {
    const auto failed = static_cast<cudaError_t>(error);
    return finercam::on_cuda("rank", {2, 31, 7}, 1, [&] {
      if (bytes > 0) FINERCAM_CUDA_ALLOCATED(failed, bytes);
      FINERCAM_CUDA_CHECK_AS(failed, "its launch");
      return 5;
    });
  });
  // What operations on one stream take, one after the other; the host waits behind each.
  module.def("take_workspace", [](const std::vector<std::size_t>& sizes, int device) {
    for (const std::size_t bytes : sizes) {
      {
        const finercam::Workspace workspace(bytes, device, nullptr);
        if (bytes > 0) std::memset(workspace.address(), 1, bytes);
      }
      cudaStreamSynchronize(nullptr);
    }
  });
  nanobind::set_leak_warnings(false);
}
