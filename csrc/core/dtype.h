// Storage types of feature maps, and their exact conversion to float.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/check.h"

namespace finercam {

enum class DType { kFloat32, kFloat16, kBFloat16 };

struct Half {
  std::uint16_t bits;
};

struct BFloat16 {
  std::uint16_t bits;
};

inline float float_from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Branch-free, so that a loop over it vectorises on any CPU; no float subnormal is touched, so flush-to-zero modes
// (torch.set_flush_denormal) do not change it. After F. Giesen, "half_to_float_fast5" (public domain).
inline float to_float(Half half) {
  const std::uint32_t magnitude = (half.bits & 0x7fffu) << 13;
  const std::uint32_t exponent = magnitude & 0x0f800000u;
  const std::uint32_t rebased = magnitude + 0x38000000u;
  const std::uint32_t normal = exponent == 0x0f800000u ? rebased + 0x38000000u : rebased;
  const float subnormal_value = float_from_bits(rebased + 0x00800000u) - 6.103515625e-05f;
  std::uint32_t subnormal;
  std::memcpy(&subnormal, &subnormal_value, sizeof subnormal);
  const std::uint32_t sign = (half.bits & 0x8000u) << 16;
  return float_from_bits((exponent == 0 ? subnormal : normal) | sign);
}

inline float to_float(BFloat16 value) { return float_from_bits(static_cast<std::uint32_t>(value.bits) << 16); }

// The nearest value of a storage type, ties to even; NaN stays NaN.
template <typename T>
inline T from_float(float value) {
  return value;
}

template <>
inline BFloat16 from_float<BFloat16>(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <>
inline Half from_float<Half>(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // 65520 and more: infinity
  if (magnitude < 0x38800000u) {  // below 2^-14: in units of 2^-24, which the addition rounds to
    const float shifted = float_from_bits(magnitude) + 0.5f;
    std::uint32_t units;
    std::memcpy(&units, &shifted, sizeof units);
    return {static_cast<std::uint16_t>(sign | (units - 0x3f000000u))};
  }
  const std::uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return {static_cast<std::uint16_t>(sign | (rounded - 0x38000000u) >> 13)};
}

// Calls visitor with a value of the storage type: visit_dtype(dtype, "cam", [&](auto zero) { using T = decltype(zero);
// }).
template <typename Visitor>
void visit_dtype(DType dtype, const char* op, Visitor&& visitor) {
  switch (dtype) {
    case DType::kFloat32:
      return visitor(float{});
    case DType::kFloat16:
      return visitor(Half{});
    case DType::kBFloat16:
      return visitor(BFloat16{});
  }
  fail(__FILE__, __LINE__, op, "expected float32, float16 or bfloat16, got dtype ", static_cast<int>(dtype));
}

}  // namespace finercam
