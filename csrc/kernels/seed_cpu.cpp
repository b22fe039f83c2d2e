#include <algorithm>

#include "core/parallel.h"
#include "kernels/seed.h"
#include "kernels/seed_math.h"

namespace finercam {
namespace {

// The first class of an order behind `last`, of those that `key` does not give kNoClass.
template <typename Key>
ClassKey next(std::int64_t classes, bool any, ClassKey last, const Key& key) {
  ClassKey best = kNoClass;
  for (std::int64_t k = 0; k < classes; ++k) {
    const ClassKey own = key(k);
    if ((!any || own > last) && own < best) best = own;
  }
  return best;
}

void seed_of(const SeedArgs& args, const SeedRow& row) {
  std::int64_t target = args.target[row.number];
  if (target < 0) {
    ClassKey found = 0;
    for (std::int64_t rank = 0; rank <= target_rank(args, target); ++rank) {
      found = next(args.classes, rank > 0, found, [&](std::int64_t k) { return logit_key(row.logits[k], k); });
    }
    target = class_of(found);
  }
  args.target_class[row.number] = target;
  ClassKey nearest = 0;
  bool any = false;
  for (std::int64_t r = 0; r < args.references; ++r) {
    std::int64_t reference = pinned(row, target, r);
    if (row.reference[r] == kAutomatic && target < args.classes && nearest != kNoClass) {
      nearest = next(args.classes, any, nearest, [&](std::int64_t k) {
        return is_taken(args, row, target, k) ? kNoClass : distance_key(row.logits[k], row.logits[target], k);
      });
      any = true;
      if (nearest != kNoClass) reference = class_of(nearest);
    }
    row.reference_classes[r] = reference;
  }
  write_values<double>(args, row, target);
  if (args.dense == nullptr) return;
  std::fill_n(args.dense + row.number * args.classes, args.classes, 0.0f);
  scatter_values(args, row);
}

}  // namespace

void seed_cpu(const SeedArgs& args, int threads) {
  parallel_for(args.batch * args.contrasts, threads,
               [&](std::int64_t number) { seed_of(args, seed_row(args, number)); });
}

}  // namespace finercam
