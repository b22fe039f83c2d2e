#include "kernels/finite.h"

#include "core/operation.h"

namespace finercam {

void mark_non_finite(const FiniteArgs& args, const Execution& execution) {
  FINERCAM_CHECK(args.rows >= 1 && args.columns >= 1 && args.repeats >= 1, "finite",
                 "expected sizes of at least 1, got values of (", args.rows, ", ", args.columns, ") and a status of (",
                 args.rows, ", ", args.repeats, ")");
  FINERCAM_CHECK(execution.threads >= 1, "finite", "expected threads of at least 1, got ", execution.threads);
  if (execution.cuda) {
    on_cuda("finite", {args.rows, args.columns}, execution.device,
            [&] { mark_non_finite_cuda(args, execution.device, execution.stream); });
  } else {
    mark_non_finite_cpu(args, execution.threads);
  }
}

}  // namespace finercam
