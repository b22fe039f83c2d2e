#include "kernels/rank.h"

#include "core/operation.h"

namespace finercam {

std::int64_t rank(const RankArgs& args, const Execution& execution) {
  FINERCAM_CHECK(args.batch >= 1 && args.height >= 1 && args.width >= 1, "rank",
                 "expected maps with sizes of at least 1, got (", args.batch, ", ", args.height, ", ", args.width, ")");
  FINERCAM_CHECK(args.pixels() <= kMaxRanked, "rank", "expected maps of at most 2^30 pixels, got ", args.height, " x ",
                 args.width);
  FINERCAM_CHECK(execution.threads >= 1, "rank", "expected threads of at least 1, got ", execution.threads);
  if (!execution.cuda) return rank_cpu(args, execution.threads);
  return on_cuda("rank", {args.batch, args.height, args.width}, execution.device,
                 [&] { return rank_cuda(args, execution.device, execution.stream); });
}

}  // namespace finercam
