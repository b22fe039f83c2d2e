// The seed of the objective: the cotangent of the logits, for runtimes that keep the head outside the graph.
#pragma once

#include "core/host_device.h"
#include "core/view.h"

namespace finercam {

enum class Objective { kWeighted, kMean };

// Of each of N images P contrasts; all arrays are contiguous. As export/contrast.py has it in the graph, with what that
// leaves to the runtime settled: of equal logits the lower class comes first, and NaN counts as the largest logit.
struct SeedArgs {
  std::int64_t batch, contrasts, references, classes;  // N, P, R, K
  const float* logits;                                 // (N, K)
  const std::int64_t* target;                          // (N, P): a class, or -k for the k-th largest logit, k <= P
  const std::int64_t* reference;                       // (N, P, R): a class, -1 automatic, -2 unused
  const float* alpha;                                  // (N, P)
  Objective objective;
  std::int64_t* target_class;       // (N, P)
  std::int64_t* reference_classes;  // (N, P, R), -2 where one takes no part
  std::int64_t* seed_classes;       // (N, P, 1 + R), 0 where a reference takes no part
  float* values;                    // (N, P, 1 + R): the seed at these classes; NaN where a class is not below K
  float* dense;                     // (N, P, K), or null
};

constexpr std::int64_t kMaxReferences = 64;

void seed(const SeedArgs& args, const Execution& execution);

void seed_cpu(const SeedArgs& args, int threads);

// Queues the kernel on stream (a cudaStream_t) of the device and returns; throws where the build has no CUDA.
void seed_cuda(const SeedArgs& args, int device, void* stream);

}  // namespace finercam
