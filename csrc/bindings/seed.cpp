#include "kernels/seed.h"

#include <optional>

#include <nanobind/stl/optional.h>

#include "bindings/arrays.h"

namespace nb = nanobind;

namespace finercam {
namespace {

using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig>;
using Alpha = nb::ndarray<const float, nb::c_contig>;
using Classes = nb::ndarray<const std::int64_t, nb::c_contig>;
using ClassesOut = nb::ndarray<std::int64_t, nb::c_contig>;
using ValuesOut = nb::ndarray<float, nb::c_contig>;

template <typename Array>
void check_size(const Array& array, const char* name, std::int64_t expected) {
  FINERCAM_CHECK(static_cast<std::int64_t>(array.size()) == expected, "seed", "expected ", name, " of ", expected,
                 " values, got ", array.size());
}

// All but the logits are (N, P, ...) or, of one contrast, (N, ...): only their sizes are looked at.
void seed_into(const Logits& logits, const Classes& target, const Classes& references, const Alpha& alpha,
               const ClassesOut& target_class, const ClassesOut& reference_classes, const ClassesOut& seed_classes,
               const ValuesOut& values, const std::optional<ValuesOut>& dense, Objective objective, int threads,
               std::uintptr_t stream) {
  SeedArgs args{};
  args.batch = static_cast<std::int64_t>(logits.shape(0));
  args.classes = static_cast<std::int64_t>(logits.shape(1));
  FINERCAM_CHECK(args.batch >= 1 && target.size() >= 1, "seed", "expected at least 1 image and 1 contrast, got ",
                 args.batch, " and ", target.size());
  args.contrasts = static_cast<std::int64_t>(target.size()) / args.batch;
  args.references = static_cast<std::int64_t>(references.size() / target.size());
  const std::int64_t contrasts = args.batch * args.contrasts;
  check_size(target, "targets", contrasts);
  check_size(references, "references", contrasts * args.references);
  check_size(alpha, "alpha", contrasts);
  check_size(target_class, "target_class", contrasts);
  check_size(reference_classes, "reference_classes", contrasts * args.references);
  check_size(seed_classes, "seed_classes", contrasts * (1 + args.references));
  check_size(values, "values", contrasts * (1 + args.references));
  check_same_device(logits, target, "seed");
  check_same_device(logits, references, "seed");
  check_same_device(logits, alpha, "seed");
  check_same_device(logits, target_class, "seed");
  check_same_device(logits, reference_classes, "seed");
  check_same_device(logits, seed_classes, "seed");
  check_same_device(logits, values, "seed");
  if (dense) {
    check_size(*dense, "dense", contrasts * args.classes);
    check_same_device(logits, *dense, "seed");
    args.dense = dense->data();
  }
  args.logits = logits.data();
  args.target = target.data();
  args.reference = references.data();
  args.alpha = alpha.data();
  args.objective = objective;
  args.target_class = target_class.data();
  args.reference_classes = reference_classes.data();
  args.seed_classes = seed_classes.data();
  args.values = values.data();
  const Execution execution = execution_of(logits, "seed", threads, stream);
  const nb::gil_scoped_release release;
  seed(args, execution);
}

}  // namespace

void bind_seed(nb::module_& module) {
  nb::enum_<Objective>(module, "Objective", "What the seed is the derivative of.")
      .value("WEIGHTED", Objective::kWeighted)
      .value("MEAN", Objective::kMean);
  module.def(
      "seed", &seed_into, nb::arg("logits").noconvert(), nb::arg("target").noconvert(),
      nb::arg("references").noconvert(), nb::arg("alpha").noconvert(), nb::arg("target_class").noconvert(),
      nb::arg("reference_classes").noconvert(), nb::arg("seed_classes").noconvert(), nb::arg("values").noconvert(),
      nb::arg("dense").noconvert().none(), nb::kw_only(), nb::arg("objective"), nb::arg("threads"), nb::arg("stream"),
      nb::sig("def seed(logits: object, target: object, references: object, alpha: object, "
              "target_class: object, reference_classes: object, seed_classes: object, values: object, "
              "dense: object | None, *, objective: Objective, threads: int, stream: int) -> None"),
      "Write the seed of the logits (N, K) for targets and alphas (N,) or (N, P), references (N, R) or (N, P, R).");
}

}  // namespace finercam
