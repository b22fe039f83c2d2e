#include "emulation.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <ucontext.h>
#include <vector>

thread_local dim3 threadIdx, blockIdx;
dim3 gridDim;
thread_local std::uint64_t exchanged[1024];
int processors = 1;
bool has_clusters = true;
unsigned cluster_blocks = 1, block_threads = 1;
thread_local unsigned block_rank = 0;

namespace {

constexpr std::size_t kStack = 65536;

struct Barrier {
  int expected = 0, arrived = 0, generation = 0;

  void open_if_all() {
    if (expected > 0 && arrived == expected) {
      arrived = 0;
      ++generation;
    }
  }
};

struct Range {
  const char *first, *last;
};

// Of the threads that the blocks of a cluster run in.
struct Meeting {
  std::mutex mutex;
  std::condition_variable all_came;
  unsigned came = 0, times = 0;

  void wait() {
    std::unique_lock lock(mutex);
    const unsigned now = times;
    if (++came == cluster_blocks) {
      came = 0;
      ++times;
      all_came.notify_all();
    }
    all_came.wait(lock, [&] { return times != now; });
  }
};

thread_local std::vector<ucontext_t> fibers;
thread_local std::unique_ptr<char[]> stacks;
thread_local std::vector<bool> finished;
thread_local ucontext_t outside;
thread_local std::size_t current = 0;
thread_local Barrier block;
thread_local std::vector<Barrier> warps;
const std::function<void()>* running = nullptr;
Range inputs[2];
std::atomic<std::int64_t> vector_loads{0}, wrong_loads{0};
Meeting meeting;
std::vector<char*> own_memory;  // of each block of the cluster: `here` of its thread
thread_local char here = 0;
thread_local unsigned barriers = 0;    // that the cluster of this block has passed
std::atomic<unsigned> asked_after{0};  // as many, when memory of another block was last asked for

void switch_to_next() {
  const std::size_t from = current;
  std::size_t next = from;
  do next = (next + 1) % fibers.size();
  while (finished[next] && next != from);
  if (finished[next]) setcontext(&outside);
  if (next == from) return;
  current = next;
  threadIdx.x = static_cast<unsigned>(next);
  swapcontext(&fibers[from], &fibers[next]);
}

void fiber() {
  (*running)();
  finished[current] = true;
  for (Barrier* barrier : {&block, &warps[current / 32]}) {
    --barrier->expected;
    barrier->open_if_all();
  }
  switch_to_next();
}

void wait(Barrier& barrier) {
  const int generation = barrier.generation;
  ++barrier.arrived;
  barrier.open_if_all();
  while (barrier.generation == generation) switch_to_next();
}

void run_block(int threads) {
  const auto count = static_cast<std::size_t>(threads);
  fibers.assign(count, {});
  finished.assign(count, false);
  if (stacks == nullptr) stacks.reset(new char[count * kStack]);
  block = {threads};
  warps.assign(count / 32, {32});
  for (std::size_t i = 0; i < count; ++i) {
    getcontext(&fibers[i]);
    fibers[i].uc_stack.ss_sp = stacks.get() + i * kStack;
    fibers[i].uc_stack.ss_size = kStack;
    makecontext(&fibers[i], fiber, 0);
  }
  current = 0;
  threadIdx.x = 0;
  barriers = 0;
  swapcontext(&outside, &fibers[0]);
  if (barriers > 0 && barriers <= asked_after) ++wrong_loads;
}

// The blocks of a rank, of all clusters.
void run_rank(unsigned rank) {
  block_rank = rank;
  own_memory[rank] = &here;
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z) {
    for (blockIdx.y = rank; blockIdx.y < gridDim.y; blockIdx.y += cluster_blocks) {
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) run_block(static_cast<int>(block_threads));
    }
  }
}

}  // namespace

void __syncthreads() { wait(block); }
int __syncthreads_and(int predicate) {
  static bool all = true;
  all = all && predicate != 0;
  wait(block);
  const bool found = all;
  wait(block);
  all = true;
  wait(block);
  return found;
}
void warp_barrier() { wait(warps[current / 32]); }

uint4 __ldg(const uint4* address) {
  const auto* first = reinterpret_cast<const char*>(address);
  ++vector_loads;
  bool inside = false;
  for (const Range& input : inputs) inside = inside || (first >= input.first && first + 16 <= input.last);
  if (!inside || reinterpret_cast<std::uintptr_t>(address) % 16 != 0) {
    ++wrong_loads;
    return {};
  }
  return *address;
}

void cluster_barrier() {
  wait(block);
  if (threadIdx.x == 0) {
    meeting.wait();
    ++barriers;
  }
  wait(block);
}

void* of_block(void* address, unsigned rank) {
  if (barriers == 0) {
    ++wrong_loads;
    return address;
  }
  if (asked_after < barriers) asked_after = barriers;
  return own_memory[rank] + (static_cast<char*>(address) - &here);
}

void launch_emulated(dim3 grid, int threads, const std::function<void()>& kernel, unsigned cluster) {
  if (grid.y % cluster != 0) ++wrong_loads;  // a launch that CUDA refuses
  running = &kernel;
  gridDim = grid;
  block_threads = static_cast<unsigned>(threads);
  cluster_blocks = cluster;
  own_memory.assign(cluster, nullptr);
  asked_after = 0;
  std::vector<std::thread> others;
  for (unsigned rank = 1; rank < cluster; ++rank) others.emplace_back(run_rank, rank);
  run_rank(0);
  for (std::thread& other : others) other.join();
}

void watch(const void* first, const void* first_last, const void* second, const void* second_last) {
  inputs[0] = {static_cast<const char*>(first), static_cast<const char*>(first_last)};
  inputs[1] = {static_cast<const char*>(second), static_cast<const char*>(second_last)};
  vector_loads = wrong_loads = 0;
}

std::int64_t watched_loads() { return wrong_loads == 0 ? vector_loads.load() : -1; }
