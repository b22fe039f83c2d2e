// What the lanes of a warp do together.
#include <algorithm>

#include "launch.h"

namespace ptx {
namespace {

bool names(Bits mask, int lane) { return (mask >> lane & 1) != 0; }

}  // namespace

// Runs the instruction that a lane waits at once all that its mask names have come there.
bool Launch::run_warp(std::size_t warp, const Thread& first) {
  const Instruction& i = at(first);
  Thread* lanes = &block_->threads[warp * kWarp];
  const int present = std::min(kWarp, static_cast<int>(block_->threads.size() - warp * kWarp));
  const Bits mask = get(first, i.in[3]) & 0xffffffff;
  if (!names(mask, first.number % kWarp)) throw Fault("a lane that its mask does not name");
  if (present < kWarp && mask >> present != 0) throw Fault("a mask of lanes that the block has not");
  for (int lane = 0; lane < present; ++lane) {
    const Thread& other = lanes[lane];
    if (!names(mask, lane)) continue;
    if (other.state == State::kEnded) throw Fault("a mask of a lane that has ended");
    if (other.state != State::kWaitsForWarp || other.next != first.next) return false;
    if ((get(other, i.in[3]) & 0xffffffff) != mask) return false;
  }
  if (i.op == Op::kShuffle) shuffle(i, lanes, mask);
  if (i.op == Op::kBallot || i.op == Op::kMatchAny) vote(i, lanes, mask);
  for (int lane = 0; lane < present; ++lane) {
    if (!names(mask, lane)) continue;
    lanes[lane].state = State::kRuns;
    ++lanes[lane].next;
  }
  if (i.op == Op::kWarpBarrier) ++block_->warp_barriers[warp];
  ++block_->warp_meetings[warp];
  return true;
}

// Of the butterfly: each lane reads that of its number XOR in[1], inside of segments that in[2] describes.
void Launch::shuffle(const Instruction& i, Thread* lanes, Bits mask) {
  Bits values[kWarp] = {};
  for (int lane = 0; lane < kWarp; ++lane) {
    if (names(mask, lane)) values[lane] = get(lanes[lane], i.in[0]);
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!names(mask, lane)) continue;
    Thread& thread = lanes[lane];
    const auto bounds = static_cast<int>(get(thread, i.in[2]));
    const int segment = bounds >> 8 & 31, last = (lane & segment) | (bounds & 31 & ~segment);
    int source = lane ^ static_cast<int>(get(thread, i.in[1]) & 31);
    const bool inside = source <= last;
    if (!inside) source = lane;
    if (!names(mask, source)) throw Fault("a shuffle from a lane that the mask does not name");
    put(thread, i.to, values[source]);
    put(thread, i.to_predicate, inside);
  }
}

// The lanes whose predicate holds, or whose value is the lane's own.
void Launch::vote(const Instruction& i, Thread* lanes, Bits mask) {
  Bits votes[kWarp] = {};
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int other = 0; names(mask, lane) && other < kWarp; ++other) {
      if (!names(mask, other)) continue;
      const Bits value = get(lanes[other], i.in[0]);
      const bool counted = i.op == Op::kBallot ? value != 0 : value == get(lanes[lane], i.in[0]);
      votes[lane] |= Bits{counted} << other;
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (names(mask, lane)) put(lanes[lane], i.to, votes[lane]);
  }
}

}  // namespace ptx
