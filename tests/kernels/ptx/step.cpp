// One instruction of one thread: memory, branches, and what makes it wait.
#include <cstring>

#include "launch.h"

namespace ptx {
namespace {

// Generic addresses of shared memory: this block's, then a window for each block of the cluster.
constexpr std::uint64_t kSharedWindow = std::uint64_t{1} << 62, kWindowBytes = std::uint64_t{1} << 24;
constexpr std::uint64_t kWindows = 9;

}  // namespace

bool Launch::step(Thread& thread) {
  const Instruction& i = at(thread);
  if (i.guard.kind != Operand::Kind::kNone && (get(thread, i.guard) != 0) == i.guard_negated) {
    ++thread.next;
    return true;
  }
  switch (i.op) {
    case Op::kWarpBarrier:
    case Op::kShuffle:
    case Op::kBallot:
    case Op::kMatchAny:
      thread.state = State::kWaitsForWarp;
      return false;
    case Op::kBarrier:
    case Op::kBarrierAnd:
    case Op::kBarrierOr:
      thread.state = State::kWaitsForBlock;
      return false;
    case Op::kReturn:
      thread.state = State::kEnded;
      --block_->alive;
      --block_->cluster->alive;
      block_->cluster->open_if_all_arrived();
      return false;
    case Op::kBranch:
      thread.next = i.target;
      return true;
    case Op::kClusterArrive:
      thread.cluster_phase = block_->cluster->phase;
      ++block_->cluster->arrived;
      block_->cluster->open_if_all_arrived();
      break;
    case Op::kClusterWait:
      if (block_->cluster->phase == thread.cluster_phase) {
        thread.state = State::kWaitsForCluster;
        return false;
      }
      break;
    case Op::kFence:
      break;
    case Op::kLoad:
      load(thread, i);
      break;
    case Op::kStore:
      store(thread, i);
      break;
    case Op::kAtomicAdd:
      add_atomically(thread, i);
      break;
    case Op::kMapRank:
      map_rank(thread, i);
      break;
    case Op::kMove:
      put(thread, i.to, get(thread, i.in[0]));
      break;
    case Op::kToGeneric:
      put(thread, i.to, get(thread, i.in[0]) + kSharedWindow);
      break;
    case Op::kPack:
    case Op::kUnpack: {
      const unsigned bits = 8 * bytes_of(i.type) / static_cast<unsigned>(i.vector);
      const Bits mask = (Bits{1} << bits) - 1;
      Bits whole = i.op == Op::kUnpack ? get(thread, i.in[0]) : 0;
      for (unsigned j = 0; j < static_cast<unsigned>(i.vector); ++j) {
        if (i.op == Op::kUnpack)
          put(thread, i.parts[j], whole >> (bits * j) & mask);
        else
          whole |= (get(thread, i.parts[j]) & mask) << (bits * j);
      }
      put(thread, i.to, whole);
      break;
    }
    default: {
      const Bits inputs[4] = {get(thread, i.in[0]), get(thread, i.in[1]), get(thread, i.in[2]), get(thread, i.in[3])};
      put(thread, i.to, computed(i, inputs));
    }
  }
  ++thread.next;
  return true;
}

void Launch::load(Thread& thread, const Instruction& i) {
  const unsigned bytes = bytes_of(i.type);
  Bits values[4] = {};
  for (unsigned j = 0; j < static_cast<unsigned>(i.vector); ++j) {
    std::memcpy(&values[j], access(thread, i, j, false), bytes);
    if (is_signed(i.type)) values[j] = static_cast<Bits>(sign_extended(values[j], i.type));
  }
  for (unsigned j = 0; j < static_cast<unsigned>(i.vector); ++j) put(thread, i.parts[j], values[j]);
  if (i.space == Space::kGlobal && bytes * static_cast<unsigned>(i.vector) == 16) ++vector_loads_;
}

void Launch::store(Thread& thread, const Instruction& i) {
  for (unsigned j = 0; j < static_cast<unsigned>(i.vector); ++j) {
    const Bits value = get(thread, i.parts[j]);
    std::memcpy(access(thread, i, j, true), &value, bytes_of(i.type));
  }
}

void Launch::add_atomically(Thread& thread, const Instruction& i) {
  std::uint8_t* memory = access(thread, i, 0, false);
  access(thread, i, 0, true);
  std::uint32_t sum;
  std::memcpy(&sum, memory, sizeof sum);
  put(thread, i.to, sum);
  sum += static_cast<std::uint32_t>(get(thread, i.in[1]));
  std::memcpy(memory, &sum, sizeof sum);
}

void Launch::map_rank(Thread& thread, const Instruction& i) {
  const Bits address = get(thread, i.in[0]), rank = get(thread, i.in[1]) & 0xffffffff;
  if (address < kSharedWindow || address >= kSharedWindow + kWindowBytes) throw Fault("mapa of no shared memory");
  if (rank >= block_->cluster->blocks.size()) throw Fault("a rank that the cluster has not");
  put(thread, i.to, address + (rank + 1) * kWindowBytes);
}

// Where the value of a vector is.
std::uint8_t* Launch::access(const Thread& thread, const Instruction& i, unsigned part, bool writes) {
  const unsigned bytes = bytes_of(i.type), all = bytes * static_cast<unsigned>(i.vector);
  std::uint64_t address = get(thread, i.in[0]) + static_cast<std::uint64_t>(i.offset);
  if (i.space == Space::kShared) address &= 0xffffffff;
  if (address % all != 0) throw Fault("an address of " + std::to_string(all) + " bytes that is not aligned");
  address += std::uint64_t{part} * bytes;
  const std::uint64_t used = i.used >> (part * bytes);
  if (i.space == Space::kParameter) {
    if (writes || address + bytes > parameters_.size()) throw Fault("an access out of the parameters");
    return parameters_.data() + address;
  }
  Block* owner = block_;
  if (i.space == Space::kGeneric && address >= kSharedWindow && address < kSharedWindow + kWindows * kWindowBytes) {
    const std::uint64_t window = (address - kSharedWindow) / kWindowBytes;
    if (window > 0) owner = block_->cluster->blocks.at(window - 1).get();
    address = (address - kSharedWindow) % kWindowBytes;
  } else if (i.space != Space::kShared) {
    return global(address, bytes, writes, used);
  }
  return checked({*owner, *block_, thread, address, bytes, writes, used});
}

std::uint8_t* Launch::global(std::uint64_t address, unsigned bytes, bool writes, std::uint64_t used) {
  if (last_ == nullptr || !last_->has(address, bytes)) last_ = memory_.find(address, bytes);
  if (last_ == nullptr) {
    throw Fault(std::to_string(bytes) + " bytes out of bounds, at " + memory_.describe(address));
  }
  if (writes && !last_->writable) throw Fault("a write to " + last_->what);
  for (unsigned j = 0; j < bytes && !last_->written.empty(); ++j) {
    std::uint8_t& written = last_->written[address - last_->base + j];
    if (writes) {
      written = 1;
    } else if (written == 0 && (used >> j & 1) != 0) {
      throw Fault("a read of " + last_->what + " that nothing has written");
    }
  }
  return reinterpret_cast<std::uint8_t*>(address);
}

}  // namespace ptx
