// A launch of a kernel: its blocks run one after the other, or several at once with their threads interleaved.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "blocks.h"
#include "memory.h"

namespace ptx {

struct LaunchOptions {
  Dimensions grid, threads;
  unsigned cluster = 1;  // blocks along y
  // Above 0: threads take turns of up to so many instructions, in an order drawn from the seed, and three clusters run
  // at once. 0: a thread runs until it waits, and blocks follow one another.
  unsigned turn = 0;
  unsigned seed = 0;
};

class Launch {
 public:
  // arguments: the address of each. Throws a Fault where CUDA would refuse the launch.
  Launch(const Kernel& kernel, const LaunchOptions& options, void** arguments, Memory& memory);

  // Throws a Fault that names the kernel, the block, the thread and the line at the first thing that is wrong.
  void run();
  // How many times a thread loaded 16 bytes of global memory at once.
  long vector_loads() const { return vector_loads_; }

 private:
  enum class Progress { kMoved, kWaitsForCluster, kEnded };

  void check_sizes() const;
  std::unique_ptr<Cluster> start(std::size_t number);
  std::vector<std::size_t> cluster_order();

  Progress take_turn(Block& block);
  bool wake_from_cluster();
  bool run_threads();
  bool run_warps();
  void open_block_barrier();
  [[noreturn]] void throw_deadlock();

  // One instruction; false: the thread waits, or has ended.
  bool step(Thread& thread);
  void load(Thread& thread, const Instruction& i);
  void store(Thread& thread, const Instruction& i);
  void add_atomically(Thread& thread, const Instruction& i);
  void map_rank(Thread& thread, const Instruction& i);
  std::uint8_t* access(const Thread& thread, const Instruction& i, unsigned part, bool writes);
  std::uint8_t* global(std::uint64_t address, unsigned bytes, bool writes, std::uint64_t used);

  bool run_warp(std::size_t warp, const Thread& first);
  void shuffle(const Instruction& i, Thread* lanes, Bits mask);
  void vote(const Instruction& i, Thread* lanes, Bits mask);

  Bits get(const Thread& thread, const Operand& operand) const;
  void put(Thread& thread, const Operand& operand, Bits value) const;
  const Instruction& at(const Thread& thread) const { return kernel_.code[thread.next]; }

  const Kernel& kernel_;
  LaunchOptions options_;
  Memory& memory_;
  std::vector<std::uint8_t> parameters_;
  std::mt19937 random_;
  Block* block_ = nullptr;          // that runs now
  const Thread* thread_ = nullptr;  // of it
  Allocation* last_ = nullptr;      // that was accessed
  long vector_loads_ = 0;
  std::uint64_t steps_ = 0;
};

inline Bits Launch::get(const Thread& thread, const Operand& operand) const {
  if (operand.kind == Operand::Kind::kRegister) return thread.registers[static_cast<std::size_t>(operand.index)];
  if (operand.kind == Operand::Kind::kImmediate) return operand.value;
  if (operand.kind == Operand::Kind::kNone) return 0;
  switch (operand.special) {
    case Special::kThread:
      return thread.index.of[operand.index];
    case Special::kThreads:
      return options_.threads.of[operand.index];
    case Special::kBlock:
      return block_->index.of[operand.index];
    case Special::kBlocks:
      return options_.grid.of[operand.index];
    case Special::kClusterRank:
      return static_cast<Bits>(block_->rank);
    default:
      return block_->cluster->blocks.size();
  }
}

inline void Launch::put(Thread& thread, const Operand& operand, Bits value) const {
  if (operand.kind != Operand::Kind::kRegister) return;  // "_"
  const auto index = static_cast<std::size_t>(operand.index);
  thread.registers[index] = value & kernel_.register_masks[index];
}

}  // namespace ptx
