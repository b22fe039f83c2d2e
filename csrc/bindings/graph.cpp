#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "bindings/arrays.h"
#include "core/check.h"
#include "core/cuda_error.h"
#include "core/device.h"
#include "graph/stream.h"

namespace nb = nanobind;

namespace finercam {
namespace {

using Released = nb::call_guard<nb::gil_scoped_release>;

// The class of what is thrown, with what a caller may want to know as an attribute of the exception.
void set_error(PyObject* type, const CudaError& error, const char* attribute, const nb::object& value) {
  const nb::object instance = nb::borrow(type)(error.what());
  instance.attr(attribute) = value;
  PyErr_SetObject(type, instance.ptr());
}

PyObject* new_exception(nb::module_& module, const char* name, PyObject* base, const char* doc) {
  const std::string full = nb::cast<std::string>(module.attr("__name__")) + "." + name;
  PyObject* type = PyErr_NewExceptionWithDoc(full.c_str(), doc, base, nullptr);
  module.attr(name) = nb::borrow(type);
  return type;  // held for the life of the process, as the translators refer to it
}

void translate_memory_error(const std::exception_ptr& thrown, void* type) {
  try {
    std::rethrow_exception(thrown);
  } catch (const CudaMemoryError& error) {
    set_error(static_cast<PyObject*>(type), error, "bytes", nb::cast(error.bytes));
  }
}

void translate_error(const std::exception_ptr& thrown, void* type) {
  try {
    std::rethrow_exception(thrown);
  } catch (const CudaError& error) {
    set_error(static_cast<PyObject*>(type), error, "fatal", nb::cast(error.fatal));
  }
}

nb::dlpack::dtype dtype_of(const std::string& name) {
  if (name == "float32") return nb::dtype<float>();
  if (name == "int64") return nb::dtype<std::int64_t>();
  if (name == "int32") return nb::dtype<std::int32_t>();
  if (name == "uint8") return nb::dtype<std::uint8_t>();
  fail(__FILE__, __LINE__, "view", "expected float32, int64, int32 or uint8, got ", name);
}

nb::ndarray<nb::array_api, nb::device::cuda> view(const DeviceMemory& memory, const std::string& dtype,
                                                  const std::vector<std::size_t>& shape, std::size_t offset,
                                                  const std::optional<std::vector<std::int64_t>>& strides) {
  const nb::dlpack::dtype type = dtype_of(dtype);
  FINERCAM_CHECK(!strides || strides->size() == shape.size(), "view", "expected ", shape.size(), " strides, got ",
                 strides->size());
  std::size_t last = 0, dense = 1;  // of the elements
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    FINERCAM_CHECK(shape[axis] >= 1 && (!strides || (*strides)[axis] >= 0), "view",
                   "expected sizes of at least 1 and strides of at least 0");
    last += (shape[axis] - 1) * (strides ? static_cast<std::size_t>((*strides)[axis]) : dense);
    dense *= shape[axis];
  }
  const std::size_t end = offset + (last + 1) * (type.bits / 8);
  FINERCAM_CHECK(end <= memory.bytes() && memory.address() != nullptr, "view", "expected at most ", memory.bytes(),
                 " bytes, got ", end);
  return {static_cast<char*>(memory.address()) + offset,
          shape.size(),
          shape.data(),
          nb::find(memory),
          strides ? strides->data() : nullptr,
          type,
          nb::device::cuda::value,
          memory.device()};
}

// Of memory that someone else holds, and keeps for as long as the view is used.
nb::ndarray<nb::array_api, nb::device::cuda> borrowed(std::uintptr_t address, const std::string& dtype,
                                                      const std::vector<std::size_t>& shape, int device) {
  return {reinterpret_cast<void*>(address), shape.size(), shape.data(), nb::none(), nullptr, dtype_of(dtype),
          nb::device::cuda::value,          device};
}

nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>> bytes_of(const PinnedMemory& memory) {
  return {static_cast<std::uint8_t*>(memory.address()), {memory.bytes()}, nb::find(memory)};
}

template <typename T>
std::uintptr_t address_of(const T& memory) {
  return reinterpret_cast<std::uintptr_t>(memory.address());
}

void* pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

void bind_memory(nb::module_& module) {
  module.def("cuda_view", &borrowed, nb::arg("address"), nb::arg("dtype"), nb::arg("shape"), nb::arg("device"),
             nb::sig("def cuda_view(address: int, dtype: str, shape: Sequence[int], device: int) -> object"),
             "An array over memory of a CUDA device that the caller keeps alive.");
  nb::class_<DeviceMemory>(module, "DeviceMemory", "Memory of a CUDA device, freed with this object.")
      .def(nb::init<std::size_t, int>(), nb::arg("bytes"), nb::arg("device"), Released(),
           "Raises CudaMemoryError where there is too little.")
      .def_prop_ro("address", &address_of<DeviceMemory>, "Where it begins; 0 once it is released.")
      .def_prop_ro("bytes", &DeviceMemory::bytes, "Its size.")
      .def_prop_ro("device", &DeviceMemory::device, "The number of the device.")
      .def("release", &DeviceMemory::release, Released(), "Free it now, once the work that may use it has ended.")
      .def("view", &view, nb::arg("dtype"), nb::arg("shape"), nb::arg("offset") = 0,
           nb::arg("strides").none() = nb::none(),
           nb::sig("def view(self, dtype: str, shape: Sequence[int], offset: int = 0, strides: Sequence[int] | None = "
                   "None) -> object"),
           "An array with DLPack that shares it: offset in bytes, strides in elements.");
  nb::class_<PinnedMemory>(module, "PinnedMemory",
                           "Memory of the host for asynchronous copies, freed with this object.")
      .def(nb::init<std::size_t, int>(), nb::arg("bytes"), nb::arg("device"), Released(),
           "Raises CudaMemoryError where there is too little.")
      .def_prop_ro("address", &address_of<PinnedMemory>, "Where it begins.")
      .def_prop_ro("bytes", &PinnedMemory::bytes, "Its size.")
      .def("array", &bytes_of, nb::sig("def array(self) -> numpy.typing.NDArray[numpy.uint8]"),
           "A NumPy array of its bytes, which keeps it alive.");
}

void bind_stream(nb::module_& module) {
  nb::class_<Event>(module, "Event", "A point in a stream's work.")
      .def(nb::init<int, bool>(), nb::arg("device"), nb::arg("timing") = false, Released(),
           "timing: whether milliseconds_since may be asked.")
      .def("synchronize", &Event::synchronize, Released(), "Wait until the work before it has ended.")
      .def("done", &Event::done, Released(), "Whether the work before it has ended.")
      .def("milliseconds_since", &Event::milliseconds_since, nb::arg("earlier"), Released(),
           "Between two events that are done.");
  nb::class_<Graph>(module, "Graph", "What a stream has captured, to be launched again and again.")
      .def_prop_ro("nodes", &Graph::nodes, "How many kernels, copies and the like it holds.");
  nb::class_<Stream>(module, "Stream", "A queue of work of a CUDA device.")
      .def(
          "__init__",
          [](Stream* self, int device, std::optional<std::uintptr_t> handle) {
            handle ? new (self) Stream(device, pointer(*handle)) : new (self) Stream(device);
          },
          nb::arg("device"), nb::arg("handle").none() = nb::none(), Released(),
          "A new one, which does not wait for the default stream, or the caller's, by its handle.")
      .def_prop_ro(
          "handle", [](const Stream& stream) { return reinterpret_cast<std::uintptr_t>(stream.handle()); },
          "A cudaStream_t.")
      .def_prop_ro("device", &Stream::device, "The number of the device.")
      .def(
          "copy",
          [](const Stream& stream, std::uintptr_t to, std::uintptr_t source, std::size_t bytes) {
            stream.copy(pointer(to), pointer(source), bytes);
          },
          nb::arg("to"), nb::arg("source"), nb::arg("bytes"), Released(),
          "Queue a copy between addresses of the device or of the host, whose memory should be pinned.")
      .def(
          "fill",
          [](const Stream& stream, std::uintptr_t to, unsigned char value, std::size_t bytes) {
            stream.fill(pointer(to), value, bytes);
          },
          nb::arg("to"), nb::arg("value"), nb::arg("bytes"), Released(), "Queue writing one value to every byte.")
      .def("record", &Stream::record, nb::arg("event"), Released(), "Put an event behind the work queued so far.")
      .def("wait", &Stream::wait, nb::arg("event"), Released(), "Hold later work back until an event has come.")
      .def("launch", &Stream::launch, nb::arg("graph"), Released(), "Queue all that a graph holds.")
      .def("synchronize", &Stream::synchronize, Released(), "Wait until all its work has ended.")
      .def("begin_capture", &Stream::begin_capture, Released(),
           "From here on what this thread queues becomes a graph and does not run.")
      .def("end_capture", &Stream::end_capture, Released(),
           "The graph, ready to be launched; the capture has ended even where this raises.")
      .def("abandon_capture", &Stream::abandon_capture, Released(), "End a capture, if there is one, for nothing.")
      .def("capturing", &Stream::capturing, Released(), "Whether what is queued becomes a graph, of whatever thread.");
}

}  // namespace

void bind_graph(nb::module_& module) {
  // the last one registered is asked first, and CudaMemoryError is a CudaError
  nb::register_exception_translator(
      &translate_error, new_exception(module, "CudaError", PyExc_RuntimeError,
                                      "A CUDA call failed; `fatal`: so will all later ones of this process."));
  nb::register_exception_translator(&translate_memory_error,
                                    new_exception(module, "CudaMemoryError", PyExc_MemoryError,
                                                  "There is too little memory for the `bytes` asked for."));
  bind_memory(module);
  bind_stream(module);
}

}  // namespace finercam
