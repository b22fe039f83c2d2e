#include "memory.h"

#include <algorithm>
#include <iterator>

namespace ptx {

void Memory::add(const void* base, std::size_t bytes, const std::string& what, bool writable, bool has_values) {
  Allocation allocation{reinterpret_cast<std::uint64_t>(base), bytes, what, writable, {}};
  if (!has_values) allocation.written.assign(bytes, 0);
  allocations_[allocation.base] = std::move(allocation);
}

void Memory::remove(const void* base) { allocations_.erase(reinterpret_cast<std::uint64_t>(base)); }

Allocation* Memory::find(std::uint64_t address, std::size_t bytes) {
  const auto behind = allocations_.upper_bound(address);
  if (behind == allocations_.begin()) return nullptr;
  Allocation& before = std::prev(behind)->second;
  return before.has(address, bytes) ? &before : nullptr;
}

std::string Memory::describe(std::uint64_t address) const {
  const auto behind = allocations_.upper_bound(address);
  if (behind == allocations_.begin()) return "before all allocations";
  const Allocation& before = std::prev(behind)->second;
  return "byte " + std::to_string(address - before.base) + " of " + before.what + " of " +
         std::to_string(before.bytes) + " bytes";
}

bool Memory::mark_written(const void* address, std::size_t bytes) {
  const auto first = reinterpret_cast<std::uint64_t>(address);
  Allocation* allocation = find(first, bytes);
  if (allocation == nullptr) return false;
  if (!allocation->written.empty()) {
    const auto begin = allocation->written.begin() + static_cast<std::ptrdiff_t>(first - allocation->base);
    std::fill(begin, begin + static_cast<std::ptrdiff_t>(bytes), std::uint8_t{1});
  }
  return true;
}

}  // namespace ptx
