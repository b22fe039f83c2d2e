#include "kernels/seed.h"

#include "core/operation.h"

namespace finercam {

void seed(const SeedArgs& args, const Execution& execution) {
  FINERCAM_CHECK(args.batch >= 1 && args.contrasts >= 1 && args.classes >= 1, "seed",
                 "expected logits of (N, K) and P contrasts with sizes of at least 1, got N ", args.batch, ", K ",
                 args.classes, " and P ", args.contrasts);
  FINERCAM_CHECK(args.references >= 0 && args.references <= kMaxReferences, "seed", "expected at most ", kMaxReferences,
                 " references, got ", args.references);
  FINERCAM_CHECK(args.classes <= 2147483647, "seed", "expected less than 2^31 classes, got ", args.classes);
  FINERCAM_CHECK(execution.threads >= 1, "seed", "expected threads of at least 1, got ", execution.threads);
  if (execution.cuda) {
    on_cuda("seed", {args.batch, args.contrasts, args.references, args.classes}, execution.device,
            [&] { seed_cuda(args, execution.device, execution.stream); });
  } else {
    seed_cpu(args, execution.threads);
  }
}

}  // namespace finercam
