// The bindings of CUDA's streams, memory and graphs over the CUDA runtime of this folder.
#include <string>
#include <vector>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/arrays.h"
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
  nanobind::set_leak_warnings(false);
}
