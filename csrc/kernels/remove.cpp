#include "kernels/remove.h"

#include "core/operation.h"

namespace finercam {

void remove(const RemoveArgs& args, const Execution& execution) {
  FINERCAM_CHECK(args.batch >= 1 && args.steps >= 1 && args.channels >= 1 && args.height >= 1 && args.width >= 1,
                 "remove", "expected sizes of at least 1, got (", args.batch, ", ", args.steps, ", ", args.channels,
                 ", ", args.height, ", ", args.width, ")");
  FINERCAM_CHECK(execution.threads >= 1, "remove", "expected threads of at least 1, got ", execution.threads);
  if (execution.cuda) {
    on_cuda("remove", {args.batch, args.steps, args.channels, args.height, args.width}, execution.device,
            [&] { remove_cuda(args, execution.device, execution.stream); });
  } else {
    remove_cpu(args, execution.threads);
  }
}

}  // namespace finercam
