// A float as an integer whose order is that of the ranks: the larger the value, the smaller the key.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace finercam {

struct RankKey {
  std::uint32_t key;
  bool finite;
};

FINERCAM_HOST_DEVICE RankKey rank_key(float value) {
  const float unsigned_zero = value + 0.0f;  // -0 becomes 0
  std::uint32_t bits;
  memcpy(&bits, &unsigned_zero, sizeof bits);
  const bool negative = (bits & 0x80000000u) != 0;
  return {negative ? bits : bits ^ 0x7fffffffu, (bits & 0x7f800000u) != 0x7f800000u};
}

}  // namespace finercam
