#include "blocks.h"

#include <string>

namespace ptx {
namespace {

constexpr Bits kNothing = 0x0BADBADBADBADBAD;  // in registers that nothing has written
constexpr int kOfOtherBlocks = 4096;           // above the number of any thread

bool races(const LastAccess& last, int thread, unsigned epoch, unsigned warp_count) {
  if (last.thread < 0 || last.thread == thread || last.epoch != epoch) return false;
  return last.thread / kWarp != thread / kWarp || last.warp_count == warp_count;
}

[[noreturn]] void throw_race(const char* kinds, const LastAccess& last, const SharedAccess& access) {
  throw Fault(std::string("a race in shared memory, ") + kinds + ", of threads " +
              std::to_string(last.thread % kOfOtherBlocks) + " and " + std::to_string(access.thread.number) +
              " at byte " + std::to_string(access.address));
}

}  // namespace

Block::Block(const Kernel& kernel, const Dimensions& size, Cluster& of, int rank_in_cluster)
    : cluster(&of), rank(rank_in_cluster), alive(static_cast<int>(size.of[0] * size.of[1] * size.of[2])) {
  threads.resize(static_cast<std::size_t>(alive));
  std::vector<Bits> registers;
  for (const Bits mask : kernel.register_masks) registers.push_back(kNothing & mask);
  for (int n = 0; n < alive; ++n) {
    Thread& thread = threads[static_cast<std::size_t>(n)];
    const auto number = static_cast<unsigned>(n);
    thread.number = n;
    thread.index = {{number % size.of[0], number / size.of[0] % size.of[1], number / size.of[0] / size.of[1]}};
    thread.registers = registers;
    order.push_back(n);
  }
  shared.assign(kernel.shared_bytes, 0xFF);  // NaN: kernels may read what nothing has written, and must not use it
  shared_bytes.resize(kernel.shared_bytes);
  for (const Variable& variable : kernel.shared) {
    for (std::size_t j = 0; j < variable.bytes; ++j) shared_bytes[variable.offset + j].is_of_a_variable = true;
  }
  warp_barriers.assign((threads.size() + kWarp - 1) / kWarp, 1);
  warp_meetings = warp_barriers;
}

void Cluster::open_if_all_arrived() {
  if (alive == 0 || arrived != alive) return;
  ++phase;
  arrived = 0;
  for (const auto& block : blocks) ++block->epoch;
}

std::uint8_t* checked(const SharedAccess& access) {
  Block& owner = access.owner;
  if (owner.ended) throw Fault("an access to the shared memory of a block that has ended");
  if (access.address + access.bytes > owner.shared.size()) throw Fault("an access out of the shared memory");
  const int other = &owner == &access.block ? 0 : kOfOtherBlocks * (access.block.rank + 1);
  const int thread = other + access.thread.number;
  const auto warp = static_cast<std::size_t>(access.thread.number / kWarp);
  const unsigned barriers = access.block.warp_barriers[warp], meetings = access.block.warp_meetings[warp];
  for (unsigned j = 0; j < access.bytes; ++j) {
    SharedByte& byte = owner.shared_bytes[access.address + j];
    if (!byte.is_of_a_variable) throw Fault("an access out of a variable in shared memory");
    if (!access.writes && (access.used >> j & 1) == 0) continue;
    if (races(byte.write, thread, owner.epoch, barriers)) {
      throw_race(access.writes ? "two writes" : "a read after a write", byte.write, access);
    }
    const LastAccess now{thread, owner.epoch, access.writes ? barriers : meetings};
    if (access.writes) {
      const bool of_this_warp = byte.read.thread / kWarp == thread / kWarp;
      const bool unordered = byte.read.epoch == owner.epoch && (!of_this_warp || byte.read.warp_count == meetings);
      if (races(byte.read, thread, owner.epoch, meetings) || (byte.read_by_several && unordered)) {
        throw_race("a write after a read", byte.read, access);
      }
      byte.write = now;
    } else {
      const LastAccess& last = byte.read;
      const bool same_time = last.epoch == owner.epoch && last.warp_count == meetings;
      byte.read_by_several = same_time && (byte.read_by_several || (last.thread >= 0 && last.thread != thread));
      byte.read = now;
    }
  }
  return owner.shared.data() + access.address;
}

}  // namespace ptx
