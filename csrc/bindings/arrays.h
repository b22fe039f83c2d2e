// Arrays of any framework, as the kernels see them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "core/view.h"

namespace finercam {

using AnyArray = nanobind::ndarray<nanobind::ro>;

// Throws std::invalid_argument for a dtype other than float32, float16 and bfloat16, or more than five axes.
ArrayView array_view(const AnyArray& array, const char* op);

// Where an array's kernel runs: on the CPU, or on its CUDA device and the given stream. Throws for other devices.
template <typename Array>
Execution execution_of(const Array& array, const char* op, int threads, std::uintptr_t stream) {
  const int type = array.device_type();
  FINERCAM_CHECK(type == nanobind::device::cpu::value || type == nanobind::device::cuda::value, op,
                 "expected CPU or CUDA arrays, got DLPack device type ", type);
  const bool cuda = type == nanobind::device::cuda::value;
  return {cuda, array.device_id(), threads, cuda ? reinterpret_cast<void*>(stream) : nullptr};
}

template <typename First, typename Second>
void check_same_device(const First& first, const Second& second, const char* op) {
  FINERCAM_CHECK(first.device_type() == second.device_type() && first.device_id() == second.device_id(), op,
                 "expected arrays of one device, got DLPack devices ", first.device_type(), ':', first.device_id(),
                 " and ", second.device_type(), ':', second.device_id());
}

void bind_arrays(nanobind::module_& module);
void bind_cam(nanobind::module_& module);
void bind_cuda(nanobind::module_& module);
void bind_exchange(nanobind::module_& module);
void bind_graph(nanobind::module_& module);
void bind_perturb(nanobind::module_& module);
void bind_preprocess(nanobind::module_& module);
void bind_render(nanobind::module_& module);
void bind_seed(nanobind::module_& module);

}  // namespace finercam
