#include "graph/exchange.h"

#include <cstdint>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings/arrays.h"
#include "core/check.h"

namespace nb = nanobind;

namespace finercam {
namespace {

using HostIn = nb::ndarray<const float, nb::ro, nb::c_contig, nb::device::cpu>;
using HostOut = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Questions = std::optional<nb::bytes>;
using Caller = std::optional<std::uintptr_t>;

// Bound as a class, so that it is made once and not of Python's tuples at every run.
struct Copies {
  std::vector<ResultCopy> all;
  std::size_t end = 0;  // of the results
};

void* pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

RunInputs inputs_of(std::uintptr_t images, std::uintptr_t images_at, std::size_t bytes, const Questions& questions) {
  RunInputs inputs{pointer(images), pointer(images_at), bytes, {}};
  if (questions) inputs.questions.emplace(questions->c_str(), questions->size());
  return inputs;
}

std::optional<void*> caller_of(const Caller& caller) {
  if (!caller) return {};
  return pointer(*caller);
}

std::uintptr_t begin(Exchange& exchange, std::uintptr_t images, std::uintptr_t images_at, std::size_t bytes,
                     const Questions& questions, const Caller& caller) {
  const RunInputs inputs = inputs_of(images, images_at, bytes, questions);
  const nb::gil_scoped_release release;
  return reinterpret_cast<std::uintptr_t>(exchange.begin(inputs, caller_of(caller)));
}

void replay(Exchange& exchange, const Graph& graph, std::uintptr_t images, std::uintptr_t images_at, std::size_t bytes,
            const Questions& questions, const Caller& caller, const Copies& copies, std::uintptr_t results) {
  const RunInputs inputs = inputs_of(images, images_at, bytes, questions);
  const nb::gil_scoped_release release;
  exchange.replay(graph, inputs, caller_of(caller), copies.all, pointer(results));
}

void replay_host(Exchange& exchange, const Graph& graph, const HostIn& images, const PinnedMemory& staging,
                 std::uintptr_t images_at, const Questions& questions, const Copies& copies, const PinnedMemory& mirror,
                 const HostOut& out) {
  FINERCAM_CHECK(images.nbytes() <= staging.bytes(), "exchange", "expected images of at most ", staging.bytes(),
                 " bytes, got ", images.nbytes());
  FINERCAM_CHECK(copies.end <= mirror.bytes() && out.nbytes() <= mirror.bytes(), "exchange",
                 "expected results of at most ", mirror.bytes(), " bytes, got ", out.nbytes());
  const auto at = reinterpret_cast<std::uintptr_t>(staging.address());
  const RunInputs inputs = inputs_of(at, images_at, images.nbytes(), questions);
  const nb::gil_scoped_release release;
  std::memcpy(staging.address(), images.data(), images.nbytes());
  exchange.replay(graph, inputs, {}, copies.all, mirror.address());
  exchange.synchronize();
  std::memcpy(out.data(), mirror.address(), out.nbytes());
}

}  // namespace

void bind_exchange(nb::module_& module) {
  nb::class_<Copies>(module, "ResultCopies", "What is copied out of a run's buffers, and where to in its results.")
      .def(
          "__init__",
          [](Copies* self, const std::vector<std::tuple<std::uintptr_t, std::size_t, std::size_t>>& copies) {
            new (self) Copies();
            for (const auto& [from, to, bytes] : copies) {
              self->all.push_back({pointer(from), to, bytes});
              self->end = std::max(self->end, to + bytes);
            }
          },
          nb::arg("copies"), "Of each the address, the offset in the results and the size in bytes.");
  nb::class_<Exchange>(module, "Exchange",
                       "A run's inputs brought, its results taken away, and its place among the streams.")
      .def(
          "__init__",
          [](Exchange* self, int device, std::uintptr_t questions, std::size_t bytes) {
            new (self) Exchange(device, pointer(questions), bytes);
          },
          nb::arg("device"), nb::arg("questions"), nb::arg("bytes"), nb::call_guard<nb::gil_scoped_release>(),
          "questions: where runs read the inputs that are neither images nor class embeddings.")
      .def("begin", &begin, nb::arg("images"), nb::arg("images_at"), nb::arg("image_bytes"),
           nb::arg("questions").none(), nb::arg("caller").none(),
           "Queue the copies of the inputs: the stream for the run. images_at 0: in place; None: as before, the host.")
      .def(
          "end",
          [](Exchange& exchange, const Copies& copies, std::uintptr_t results) {
            exchange.end(copies.all, pointer(results));
          },
          nb::arg("copies"), nb::arg("results"), nb::call_guard<nb::gil_scoped_release>(),
          "Queue the copies of the results to an address, for what the caller queues from then on.")
      .def("abandon", &Exchange::abandon, nb::call_guard<nb::gil_scoped_release>(),
           "In the place of end, of a run that could not be queued.")
      .def("replay", &replay, nb::arg("graph"), nb::arg("images"), nb::arg("images_at"), nb::arg("image_bytes"),
           nb::arg("questions").none(), nb::arg("caller").none(), nb::arg("copies"), nb::arg("results"),
           "All of a captured run.")
      .def("replay_host", &replay_host, nb::arg("graph"), nb::arg("images").noconvert(), nb::arg("staging"),
           nb::arg("images_at"), nb::arg("questions").none(), nb::arg("copies"), nb::arg("mirror"),
           nb::arg("out").noconvert(),
           nb::sig("def replay_host(self, graph: Graph, images: object, staging: PinnedMemory, images_at: int, "
                   "questions: bytes | None, copies: ResultCopies, mirror: PinnedMemory, out: object) -> None"),
           "All of a captured run of arrays of the host, by pinned memory; its results are in `out` on return.")
      .def("synchronize", &Exchange::synchronize, nb::call_guard<nb::gil_scoped_release>(),
           "Wait until the last run has ended.")
      .def_prop_ro(
          "stream",
          [](const Exchange& exchange) { return reinterpret_cast<std::uintptr_t>(exchange.stream().handle()); },
          "The handle of its own stream.");
}

}  // namespace finercam
