#include "launch.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace ptx {
namespace {

constexpr std::uint64_t kMostSteps = 20'000'000'000;
constexpr int kMostIdleTurns = 1000;
constexpr std::size_t kMostShared = 48 * 1024;
constexpr std::size_t kResident = 3;  // clusters, where threads interleave

}  // namespace

Launch::Launch(const Kernel& kernel, const LaunchOptions& options, void** arguments, Memory& memory)
    : kernel_(kernel), options_(options), memory_(memory), parameters_(kernel.parameter_bytes), random_(options.seed) {
  check_sizes();
  for (std::size_t i = 0; i < kernel.parameters.size(); ++i) {
    std::memcpy(parameters_.data() + kernel.parameters[i].offset, arguments[i], kernel.parameters[i].bytes);
  }
}

void Launch::check_sizes() const {
  const auto& threads = options_.threads.of;
  const auto& grid = options_.grid.of;
  const unsigned count = threads[0] * threads[1] * threads[2];
  if (count < 1 || count > kernel_.most_threads || threads[2] > 64) {
    throw Fault("a block of " + std::to_string(count) + " threads");
  }
  for (const unsigned size : grid) {
    if (size < 1) throw Fault("a grid without blocks");
  }
  if (grid[0] > 0x7fffffff || grid[1] > 0xffff || grid[2] > 0xffff) throw Fault("a grid that is too large");
  if (options_.cluster < 1 || options_.cluster > 8) throw Fault("a cluster of more than 8 blocks");
  if (grid[1] % options_.cluster != 0) throw Fault("a grid that is no multiple of its clusters");
  if (kernel_.shared_declared > kMostShared) throw Fault("more shared memory than a block has");
}

std::unique_ptr<Cluster> Launch::start(std::size_t number) {
  const auto& grid = options_.grid.of;
  const unsigned rows = grid[1] / options_.cluster;
  const auto n = static_cast<unsigned>(number);
  auto cluster = std::make_unique<Cluster>();
  for (unsigned rank = 0; rank < options_.cluster; ++rank) {
    auto block = std::make_unique<Block>(kernel_, options_.threads, *cluster, static_cast<int>(rank));
    block->index = {{n % grid[0], n / grid[0] % rows * options_.cluster + rank, n / grid[0] / rows}};
    cluster->alive += block->alive;
    cluster->blocks.push_back(std::move(block));
  }
  return cluster;
}

std::vector<std::size_t> Launch::cluster_order() {
  const auto& grid = options_.grid.of;
  std::vector<std::size_t> order(std::size_t{grid[0]} * grid[1] * grid[2] / options_.cluster);
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (options_.turn > 0) std::shuffle(order.begin(), order.end(), random_);
  return order;
}

void Launch::run() {
  const std::vector<std::size_t> order = cluster_order();
  const bool drawn = options_.turn > 0;
  std::vector<std::unique_ptr<Cluster>> resident;
  std::size_t started = 0;
  try {
    while (started < order.size() || !resident.empty()) {
      while (resident.size() < (drawn ? kResident : 1) && started < order.size()) {
        resident.push_back(start(order[started++]));
      }
      const std::size_t chosen = drawn ? random_() % resident.size() : 0;
      Cluster& cluster = *resident[chosen];
      const std::size_t turn = drawn ? random_() : cluster.turn++;
      block_ = cluster.blocks[turn % cluster.blocks.size()].get();
      thread_ = nullptr;
      const Progress progress = block_->ended ? Progress::kEnded : take_turn(*block_);
      cluster.idle_turns = progress == Progress::kMoved ? 0 : cluster.idle_turns + 1;
      if (cluster.idle_turns > kMostIdleTurns) throw Fault("a cluster whose blocks wait for each other");
      if (progress == Progress::kEnded) {
        block_->ended = true;
        const auto ended = [](const std::unique_ptr<Block>& block) { return block->ended; };
        if (std::all_of(cluster.blocks.begin(), cluster.blocks.end(), ended)) {
          resident.erase(resident.begin() + static_cast<std::ptrdiff_t>(chosen));
        }
      }
    }
  } catch (const Fault& fault) {
    const auto& index = block_->index.of;
    std::string where = std::string(fault.what()) + ": block (" + std::to_string(index[0]) + ", " +
                        std::to_string(index[1]) + ", " + std::to_string(index[2]) + ")";
    if (thread_ != nullptr) {
      where += " thread " + std::to_string(thread_->number) + ", line " + std::to_string(at(*thread_).line) +
               " of the PTX, " + at(*thread_).text;
    }
    throw Fault(where + ", in " + kernel_.name);
  }
}

// Every thread that can run, does; then warps that have met, and a barrier that all have come to.
Launch::Progress Launch::take_turn(Block& block) {
  if (options_.turn > 0) std::shuffle(block.order.begin(), block.order.end(), random_);
  bool moved = wake_from_cluster();
  moved = run_threads() || moved;
  moved = run_warps() || moved;
  if (block.alive == 0) return Progress::kEnded;
  if (moved) return Progress::kMoved;
  for (const Thread& thread : block.threads) {
    if (thread.state == State::kWaitsForCluster) return Progress::kWaitsForCluster;
  }
  open_block_barrier();
  return Progress::kMoved;
}

bool Launch::wake_from_cluster() {
  bool woke = false;
  for (Thread& thread : block_->threads) {
    if (thread.state != State::kWaitsForCluster || block_->cluster->phase == thread.cluster_phase) continue;
    thread.state = State::kRuns;
    ++thread.next;
    woke = true;
  }
  return woke;
}

bool Launch::run_threads() {
  bool moved = false;
  for (const int number : block_->order) {
    Thread& thread = block_->threads[static_cast<std::size_t>(number)];
    if (thread.state != State::kRuns) continue;
    moved = true;
    thread_ = &thread;
    std::uint64_t left = options_.turn > 0 ? 1 + random_() % options_.turn : kMostSteps;
    while (left-- > 0 && step(thread)) {
      if (++steps_ > kMostSteps) throw Fault("a kernel that does not end");
    }
  }
  return moved;
}

bool Launch::run_warps() {
  bool moved = false;
  for (const Thread& thread : block_->threads) {
    if (thread.state != State::kWaitsForWarp) continue;
    thread_ = &thread;
    moved = run_warp(static_cast<std::size_t>(thread.number / kWarp), thread) || moved;
  }
  return moved;
}

void Launch::open_block_barrier() {
  const Thread& first = block_->threads[0];
  bool all = true, any = false;
  for (const Thread& thread : block_->threads) {
    thread_ = &thread;
    if (thread.state == State::kEnded) throw Fault("a thread that has ended, and a barrier that others wait at");
    if (thread.state != State::kWaitsForBlock) throw_deadlock();
    if (thread.next != first.next) throw Fault("a barrier, and others at another one");
    const bool predicate = get(thread, at(thread).in[0]) != 0;
    all = all && predicate;
    any = any || predicate;
  }
  for (Thread& thread : block_->threads) {
    const Instruction& i = at(thread);
    if (i.op == Op::kBarrierAnd) put(thread, i.to, all);
    if (i.op == Op::kBarrierOr) put(thread, i.to, any);
    thread.state = State::kRuns;
    ++thread.next;
  }
  ++block_->epoch;
}

void Launch::throw_deadlock() {
  std::string others;
  for (const Thread& thread : block_->threads) {
    if (thread.state == State::kWaitsForBlock) others = ", and others at a barrier of the block";
  }
  throw Fault("a warp that waits for lanes that do not come" + others);
}

}  // namespace ptx
