// The device's memory: which ranges of the host's a kernel may touch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ptx {

struct Allocation {
  std::uint64_t base = 0;
  std::size_t bytes = 0;
  std::string what;
  bool writable = true;
  std::vector<std::uint8_t> written;  // of each byte; empty: all of it came with its values

  bool has(std::uint64_t address, std::size_t count) const {
    return address >= base && address + count <= base + bytes;
  }
};

class Memory {
 public:
  void add(const void* base, std::size_t bytes, const std::string& what, bool writable, bool has_values);
  void remove(const void* base);
  // That all of the range lies in, or null.
  Allocation* find(std::uint64_t address, std::size_t bytes);
  // Where an address lies among the allocations, for a message.
  std::string describe(std::uint64_t address) const;
  // The host wrote there; false where no allocation has it all.
  bool mark_written(const void* address, std::size_t bytes);
  bool starts(const void* base) const { return allocations_.count(reinterpret_cast<std::uint64_t>(base)) != 0; }

 private:
  std::map<std::uint64_t, Allocation> allocations_;
};

}  // namespace ptx
