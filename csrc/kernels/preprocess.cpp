#include "kernels/preprocess.h"

#include "core/operation.h"

namespace finercam {

void preprocess(const PreprocessArgs& args, const Execution& execution) {
  FINERCAM_CHECK(args.batch >= 1 && args.channels >= 1 && args.height >= 1 && args.width >= 1, "preprocess",
                 "expected sizes of at least 1, got (", args.batch, ", ", args.channels, ", ", args.height, ", ",
                 args.width, ")");
  FINERCAM_CHECK(execution.threads >= 1, "preprocess", "expected threads of at least 1, got ", execution.threads);
  for (std::int64_t n = 0; n < args.batch; ++n) {
    const Photograph& photograph = args.photographs[n];
    FINERCAM_CHECK(photograph.height >= 1 && photograph.width >= 1 && photograph.resized_height >= 1 &&
                       photograph.resized_width >= 1,
                   "preprocess", "expected photographs of at least one pixel, got (", photograph.height, ", ",
                   photograph.width, ") resized to (", photograph.resized_height, ", ", photograph.resized_width, ")");
  }
  if (execution.cuda) {
    on_cuda("preprocess", {args.batch, args.channels, args.height, args.width}, execution.device,
            [&] { preprocess_cuda(args, execution.device, execution.stream); });
  } else {
    preprocess_cpu(args, execution.threads);
  }
}

}  // namespace finercam
