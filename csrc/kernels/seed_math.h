// The seed of one contrast, one definition for the CPU and CUDA: `next` finds classes, all else is arithmetic.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/host_device.h"
#include "kernels/seed.h"

namespace finercam {

constexpr std::int64_t kAutomatic = -1;
constexpr std::int64_t kUnused = -2;

// A place in an order of classes: what comes first is smallest, of equal values the lower class.
using ClassKey = std::uint64_t;
constexpr ClassKey kNoClass = ~ClassKey{0};

FINERCAM_HOST_DEVICE std::int64_t class_of(ClassKey key) { return static_cast<std::int64_t>(key & 0xffffffffu); }

FINERCAM_HOST_DEVICE ClassKey key_of(float ascending, std::int64_t index) {
  const float unsigned_zero = ascending + 0.0f;  // -0 becomes 0
  std::uint32_t bits;
  memcpy(&bits, &unsigned_zero, sizeof bits);
  const std::uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<ClassKey>(ordered) << 32 | static_cast<ClassKey>(index);
}

// By the logit, from the largest; NaN before all.
FINERCAM_HOST_DEVICE ClassKey logit_key(float logit, std::int64_t index) {
  return logit != logit ? static_cast<ClassKey>(index) : key_of(-logit, index);
}

// By the distance from the target's logit; NaN behind all.
FINERCAM_HOST_DEVICE ClassKey distance_key(float logit, float target, std::int64_t index) {
  const float distance = std::fabs(logit - target);
  return distance != distance ? ClassKey{0xfffffffe} << 32 | static_cast<ClassKey>(index) : key_of(distance, index);
}

// One contrast: where its arrays begin.
struct SeedRow {
  const float* logits;            // (K)
  const std::int64_t* reference;  // (R)
  std::int64_t* reference_classes;
  std::int64_t* seed_classes;
  float* values;
  std::int64_t number;  // of the contrast, n * P + p
};

FINERCAM_HOST_DEVICE SeedRow seed_row(const SeedArgs& args, std::int64_t number) {
  const std::int64_t first = number * args.references;
  return {args.logits + number / args.contrasts * args.classes,
          args.reference + first,
          args.reference_classes + first,
          args.seed_classes + first + number,
          args.values + first + number,
          number};
}

// How many classes with larger logits come before a negative target.
FINERCAM_HOST_DEVICE std::int64_t target_rank(const SeedArgs& args, std::int64_t target) {
  const std::int64_t last = (args.contrasts < args.classes ? args.contrasts : args.classes) - 1;
  const std::int64_t rank = -1 - target;
  return rank < last ? rank : last;
}

FINERCAM_HOST_DEVICE bool is_taken(const SeedArgs& args, const SeedRow& row, std::int64_t target, std::int64_t index) {
  bool taken = index == target;
  for (std::int64_t r = 0; r < args.references; ++r) taken = taken || row.reference[r] == index;
  return taken;
}

// A pinned reference as used: not where it is the target, or repeats an earlier one.
FINERCAM_HOST_DEVICE std::int64_t pinned(const SeedRow& row, std::int64_t target, std::int64_t r) {
  const std::int64_t reference = row.reference[r];
  bool repeats = reference < 0 || reference == target;
  for (std::int64_t before = 0; before < r; ++before) repeats = repeats || row.reference[before] == reference;
  return repeats ? kUnused : reference;
}

// Writes the sparse seed of a contrast whose target and references are resolved. Sum is double on the CPU, float on
// CUDA; logits are taken relative to the largest reference's, so that neither loses what the difference is made of.
template <typename Sum>
FINERCAM_HOST_DEVICE void write_values(const SeedArgs& args, const SeedRow& row, std::int64_t target) {
  bool exists = target < args.classes;
  std::int64_t used = 0;
  float largest = 0;
  for (std::int64_t r = 0; r < args.references; ++r) {
    const std::int64_t reference = row.reference_classes[r];
    row.seed_classes[1 + r] = reference == kUnused ? 0 : reference;
    if (reference == kUnused) continue;
    exists = exists && reference < args.classes;
    if (!exists) continue;
    const float logit = row.logits[reference];
    if (used == 0 || logit > largest) largest = logit;
    ++used;
  }
  row.seed_classes[0] = target;
  const Sum alpha = static_cast<Sum>(args.alpha[row.number]);
  const bool weighted = args.objective == Objective::kWeighted;
  Sum total = 0, mean = 0;
  for (std::int64_t r = 0; exists && weighted && r < args.references; ++r) {
    if (row.reference_classes[r] == kUnused) continue;
    const Sum logit = static_cast<Sum>(row.logits[row.reference_classes[r]]) - static_cast<Sum>(largest);
    const Sum weight = std::exp(logit);
    total += weight;
    mean += weight * logit;
  }
  row.values[0] = exists ? 1.0f : NAN;
  for (std::int64_t r = 0; r < args.references; ++r) {
    float value = 0.0f;
    if (!exists) {
      value = NAN;
    } else if (row.reference_classes[r] != kUnused) {
      if (weighted) {
        const Sum logit = static_cast<Sum>(row.logits[row.reference_classes[r]]) - static_cast<Sum>(largest);
        value = static_cast<float>(-alpha * (std::exp(logit) / total) * (1 + logit - mean / total));
      } else {
        value = static_cast<float>(-alpha / static_cast<Sum>(used));
      }
    }
    row.values[1 + r] = value;
  }
}

// The dense seed at the classes of the sparse one; zeros are written before.
FINERCAM_HOST_DEVICE void scatter_values(const SeedArgs& args, const SeedRow& row) {
  float* dense = args.dense + row.number * args.classes;
  const bool exists = row.values[0] == row.values[0];
  if (!exists) {
    dense[0] = NAN;
    return;
  }
  dense[row.seed_classes[0]] = row.values[0];
  for (std::int64_t r = 0; r < args.references; ++r) {
    if (row.reference_classes[r] != kUnused) dense[row.seed_classes[1 + r]] = row.values[1 + r];
  }
}

}  // namespace finercam
