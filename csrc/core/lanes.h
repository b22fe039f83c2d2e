// Sixteen floats that are worked on at once: the same order of additions on every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

namespace finercam {

typedef float Lanes __attribute__((vector_size(64)));
constexpr std::int64_t kLanes = 16;

// Additions into one float lane before it moves to a double: bounds the rounding error whatever the length.
constexpr std::int64_t kSpan = 4 * kLanes * 32;

// The sum of the lanes, by halves.
inline __attribute__((always_inline)) double total(const Lanes& lanes) {
  typedef float Lanes8 __attribute__((vector_size(32)));
  typedef float Lanes4 __attribute__((vector_size(16)));
  Lanes8 eight[2];
  std::memcpy(eight, &lanes, sizeof eight);
  eight[0] += eight[1];
  Lanes4 four[2];
  std::memcpy(four, eight, sizeof four);
  four[0] += four[1];
  return (static_cast<double>(four[0][0]) + static_cast<double>(four[0][1])) +
         (static_cast<double>(four[0][2]) + static_cast<double>(four[0][3]));
}

}  // namespace finercam
