#include "bindings/arrays.h"

NB_MODULE(_core, module) {
  module.doc() = "The kernels of finercam_rt. Use finercam_rt.ops, which checks its arguments.";
  finercam::bind_arrays(module);
  finercam::bind_cam(module);
  finercam::bind_render(module);
  finercam::bind_perturb(module);
  finercam::bind_preprocess(module);
  finercam::bind_seed(module);
  finercam::bind_cuda(module);
  finercam::bind_graph(module);
  finercam::bind_exchange(module);
  // A program may end with an engine open: it then holds streams and memory, which the driver takes back.
  nanobind::set_leak_warnings(false);
}
