// The state of what runs: threads, blocks with their shared memory, clusters.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arithmetic.h"
#include "program.h"

namespace ptx {

constexpr int kWarp = 32;

struct Dimensions {
  unsigned of[3] = {1, 1, 1};  // x, y, z
};

enum class State { kRuns, kWaitsForWarp, kWaitsForBlock, kWaitsForCluster, kEnded };

struct Thread {
  State state = State::kRuns;
  std::size_t next = 0;  // the instruction
  int number = 0;        // in its block
  Dimensions index;
  unsigned cluster_phase = 0;  // at which it arrived
  std::vector<Bits> registers;
};

// Who touched a byte of shared memory last. Two threads race where nothing orders them: a barrier of the block, which
// begins an epoch, or of the warp, of which each has a count. A shuffle orders reads before later writes, no more.
struct LastAccess {
  int thread = -1;  // -1: none
  unsigned epoch = 0, warp_count = 0;
};

struct SharedByte {
  bool is_of_a_variable = false;
  LastAccess write, read;
  bool read_by_several = false;
};

struct Cluster;

struct Block {
  Block(const Kernel& kernel, const Dimensions& threads, Cluster& cluster, int rank);

  Cluster* cluster;
  int rank;  // in its cluster
  Dimensions index;
  bool ended = false;
  int alive;  // threads that have not ended
  std::vector<Thread> threads;
  std::vector<int> order;  // in which they take their turns
  std::vector<std::uint8_t> shared;
  std::vector<SharedByte> shared_bytes;
  unsigned epoch = 1;
  std::vector<unsigned> warp_barriers, warp_meetings;  // of each warp: barriers, and these and shuffles together
};

struct Cluster {
  // Which a thread that ends does, too.
  void open_if_all_arrived();

  std::vector<std::unique_ptr<Block>> blocks;
  unsigned phase = 0;
  int arrived = 0, alive = 0;
  std::size_t turn = 0;  // of its blocks
  int idle_turns = 0;    // in a row
};

// One access to the shared memory of `owner` by a thread of `block`.
struct SharedAccess {
  Block& owner;
  Block& block;
  const Thread& thread;
  std::uint64_t address;
  unsigned bytes;
  bool writes;
  std::uint64_t used;  // which of the bytes read are used
};

// Where it is. Throws a Fault that says what is wrong with it.
std::uint8_t* checked(const SharedAccess& access);

}  // namespace ptx
