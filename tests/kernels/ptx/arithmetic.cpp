#include "arithmetic.h"

#include <algorithm>
#include <cfenv>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

namespace ptx {
namespace {

template <typename Float>
Float float_of(Bits bits) {
  Float value;
  std::memcpy(&value, &bits, sizeof value);  // the low bytes: x86 is little-endian
  return value;
}

Bits bits_of(double value) {
  Bits bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// The NaN that a GPU makes, whatever it was made from.
Bits bits_of(float value) {
  if (std::isnan(value)) return 0x7fffffff;
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

[[noreturn]] void unknown() { throw Fault("the interpreter does not know this form"); }

template <typename Value>
bool holds(Comparison comparison, Value a, Value b) {
  switch (comparison) {
    case Comparison::kEqual:
      return a == b;
    case Comparison::kNotEqual:
      return a != b;
    case Comparison::kLess:
      return a < b;
    case Comparison::kLessEqual:
      return a <= b;
    case Comparison::kGreater:
      return a > b;
    case Comparison::kGreaterEqual:
      return a >= b;
    default:
      unknown();
  }
}

template <typename Float>
bool float_compared(const Instruction& i, Float a, Float b) {
  if (std::isnan(a) || std::isnan(b)) return i.true_for_nan;
  return i.comparison != Comparison::kIsNan && holds(i.comparison, a, b);
}

bool compared(const Instruction& i, Bits a, Bits b) {
  if (i.type == Type::kF32) return float_compared(i, float_of<float>(a), float_of<float>(b));
  if (i.type == Type::kF64) return float_compared(i, float_of<double>(a), float_of<double>(b));
  if (is_signed(i.type)) return holds(i.comparison, sign_extended(a, i.type), sign_extended(b, i.type));
  return holds(i.comparison, zero_extended(a, i.type), zero_extended(b, i.type));
}

// Of two numbers the smaller or the larger one, -0 below +0; of a number and a NaN the number.
template <typename Float>
Float extremum(bool smaller, Float a, Float b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  if (a == b) return std::signbit(a) == smaller ? a : b;
  return (a < b) == smaller ? a : b;
}

// Within [0, 1], and 0 for NaN.
template <typename Float>
Float saturated(Float value) {
  return value > 0 ? std::min(value, Float{1}) : 0;
}

// volatile: the compiler must not move the operation out of the mode.
float multiply_added_downward(float a, float b, float c) {
  volatile float x = a, y = b, z = c;
  std::fesetround(FE_DOWNWARD);
  volatile float sum = std::fma(x, y, z);
  std::fesetround(FE_TONEAREST);
  return sum;
}

template <typename Float>
Float float_result(const Instruction& i, Float a, Float b, Float c) {
  if (i.op == Op::kMultiplyAdd && i.rounding == 'm') {
    return multiply_added_downward(static_cast<float>(a), static_cast<float>(b), static_cast<float>(c));
  }
  if (i.rounding != 'n') unknown();
  switch (i.op) {
    case Op::kAbsolute:
      return std::fabs(a);
    case Op::kAdd:
      return a + b;
    case Op::kDivide:
      return a / b;
    case Op::kMaximum:
      return extremum(false, a, b);
    case Op::kMinimum:
      return extremum(true, a, b);
    case Op::kMultiply:
      return a * b;
    case Op::kMultiplyAdd:
      return std::fma(a, b, c);
    case Op::kNegate:
      return -a;
    case Op::kReciprocal:
      return 1 / a;
    case Op::kSquareRoot:
      return std::sqrt(a);
    case Op::kSubtract:
      return a - b;
    case Op::kExp2: {
      const Float power = std::exp2(i.flush && std::fabs(a) < FLT_MIN ? 0 : a);
      return i.flush && power < FLT_MIN ? 0 : power;
    }
    default:
      unknown();
  }
}

template <typename Float>
Bits computed_float(const Instruction& i, const Bits x[4]) {
  const Float value = float_result(i, float_of<Float>(x[0]), float_of<Float>(x[1]), float_of<Float>(x[2]));
  return bits_of(i.saturate ? saturated(value) : value);
}

float from_half(Bits bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31);
  const auto mantissa = static_cast<float>(bits & 1023);
  float magnitude;
  if (exponent == 31) {
    magnitude = mantissa == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  } else {
    magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  }
  return bits & 0x8000 ? -magnitude : magnitude;
}

// To the nearest, ties to even.
Bits to_half(float value) {
  if (std::isnan(value)) return 0x7fff;
  const Bits sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520) return sign | 0x7c00;
  int exponent;
  std::frexp(magnitude, &exponent);
  const int unit = std::max(exponent - 11, -24);  // the last bit is worth 2^unit
  const auto count = static_cast<Bits>(std::nearbyint(std::ldexp(magnitude, -unit)));
  return sign | (count + (static_cast<Bits>(unit + 24) << 10));  // 2^10 of a unit is the next exponent
}

double rounded(double value, char rounding) {
  switch (rounding) {
    case 'n':
      return std::nearbyint(value);
    case 'z':
      return std::trunc(value);
    case 'm':
      return std::floor(value);
    default:
      unknown();
  }
}

// The nearest of the type's range; NaN is 0 of 32 bits and fewer.
Bits float_to_integer(double value, Type to) {
  const unsigned bits = 8 * bytes_of(to);
  if (bits > 32) unknown();
  if (std::isnan(value)) return 0;
  const double limit = std::ldexp(1, static_cast<int>(is_signed(to) ? bits - 1 : bits));
  return static_cast<Bits>(static_cast<std::int64_t>(std::clamp(value, is_signed(to) ? -limit : 0, limit - 1)));
}

Bits float_converted(const Instruction& i, Bits x) {
  double value;
  switch (i.from) {
    case Type::kF16:
      value = from_half(x);
      break;
    case Type::kF32:
      value = float_of<float>(x);
      break;
    case Type::kF64:
      value = float_of<double>(x);
      break;
    default:
      value = is_signed(i.from) ? static_cast<double>(sign_extended(x, i.from)) : 0;
  }
  if (i.to_integer) value = rounded(value, i.rounding);
  if (!is_float(i.type)) {
    if (!i.to_integer) unknown();
    return float_to_integer(value, i.type);
  }
  if (!i.to_integer && i.rounding != 'n') unknown();
  if (i.saturate) value = saturated(value);
  if (i.type == Type::kF64) return bits_of(value);
  const auto single = static_cast<float>(value);
  if (i.type == Type::kF32) return bits_of(single);
  if (i.from != Type::kF32) unknown();  // it would be rounded twice
  return to_half(single);
}

Bits converted(const Instruction& i, Bits x) {
  if (is_float(i.from)) return float_converted(i, x);
  const std::int64_t negative = sign_extended(x, i.from);
  const Bits positive = zero_extended(x, i.from);
  if (i.type == Type::kF32) {
    return bits_of(is_signed(i.from) ? static_cast<float>(negative) : static_cast<float>(positive));
  }
  if (i.type == Type::kF64) {
    return bits_of(is_signed(i.from) ? static_cast<double>(negative) : static_cast<double>(positive));
  }
  if (i.saturate || is_float(i.type)) unknown();
  const Bits wide = is_signed(i.from) ? static_cast<Bits>(negative) : positive;
  return is_signed(i.type) ? static_cast<Bits>(sign_extended(wide, i.type)) : zero_extended(wide, i.type);
}

Bits product(const Instruction& i, Bits a, Bits b) {
  const unsigned shift = i.high ? 8 * bytes_of(i.type) : 0;
  if (is_signed(i.type)) {
    return static_cast<Bits>((static_cast<__int128>(sign_extended(a, i.type)) * sign_extended(b, i.type)) >> shift);
  }
  return static_cast<Bits>((static_cast<unsigned __int128>(zero_extended(a, i.type)) * zero_extended(b, i.type)) >>
                           shift);
}

Bits divided(const Instruction& i, Bits a, Bits b) {
  const bool quotient = i.op == Op::kDivide;
  if (zero_extended(b, i.type) == 0) throw Fault("a division by zero");
  if (is_signed(i.type)) {
    const std::int64_t x = sign_extended(a, i.type), y = sign_extended(b, i.type);
    if (y == -1) return quotient ? Bits{0} - a : 0;  // x86 has no such quotient of the lowest number
    return static_cast<Bits>(quotient ? x / y : x % y);
  }
  const Bits x = zero_extended(a, i.type), y = zero_extended(b, i.type);
  return quotient ? x / y : x % y;
}

Bits lesser(const Instruction& i, Bits a, Bits b) {
  if (is_signed(i.type)) return sign_extended(a, i.type) < sign_extended(b, i.type) ? a : b;
  return zero_extended(a, i.type) < zero_extended(b, i.type) ? a : b;
}

Bits shifted_right(const Instruction& i, Bits value, Bits count) {
  const Bits width = 8 * bytes_of(i.type);
  if (is_signed(i.type)) return static_cast<Bits>(sign_extended(value, i.type) >> std::min(count, width - 1));
  return count >= width ? 0 : zero_extended(value, i.type) >> count;
}

// `length` low bits of a, in b from `first` up.
Bits with_bit_field(Bits a, Bits b, Bits first, Bits length) {
  if (first > 63) return b;
  const Bits field = length > 63 ? ~Bits{0} : (Bits{1} << length) - 1;
  return (b & ~(field << first)) | ((a & field) << first);
}

Bits reversed(Bits value, unsigned width) {
  Bits result = 0;
  for (unsigned j = 0; j < width; ++j) result |= (value >> j & 1) << (width - 1 - j);
  return result;
}

Bits leading_zeros(Bits value, unsigned width) {
  return value == 0 ? width : static_cast<unsigned>(__builtin_clzll(value)) - (64 - width);
}

Bits computed_integer(const Instruction& i, const Bits x[4]) {
  const unsigned width = 8 * bytes_of(i.type);
  const Bits value = zero_extended(x[0], i.type);
  const Bits count = x[1] & 0xffffffff;
  switch (i.op) {
    case Op::kAbsolute:
      return sign_extended(x[0], i.type) < 0 ? Bits{0} - x[0] : x[0];
    case Op::kAdd:
      return x[0] + x[1];
    case Op::kAnd:
      return x[0] & x[1];
    case Op::kBitFieldInsert:
      return with_bit_field(x[0], x[1], x[2] & 255, x[3] & 255);
    case Op::kCountBits:
      return static_cast<Bits>(__builtin_popcountll(value));
    case Op::kDivide:
    case Op::kRemainder:
      return divided(i, x[0], x[1]);
    // As a shift to the left that brings it to the top; of zero, all ones.
    case Op::kFindLeading:
      return value == 0 ? ~Bits{0} : leading_zeros(value, width);
    case Op::kFunnelLeft:
      return (x[1] << 32 | zero_extended(x[0], Type::kB32)) << (x[2] & 31) >> 32;
    case Op::kLeadingZeros:
      return leading_zeros(value, width);
    case Op::kMaximum:
      return lesser(i, x[0], x[1]) == x[0] ? x[1] : x[0];
    case Op::kMinimum:
      return lesser(i, x[0], x[1]);
    case Op::kMultiply:
      return product(i, x[0], x[1]);
    case Op::kMultiplyAdd:
      return product(i, x[0], x[1]) + x[2];
    case Op::kNegate:
      return Bits{0} - x[0];
    case Op::kNot:
      return ~x[0];
    case Op::kOr:
      return x[0] | x[1];
    case Op::kReverseBits:
      return reversed(value, width);
    case Op::kShiftLeft:
      return count >= width ? 0 : x[0] << count;
    case Op::kShiftRight:
      return shifted_right(i, x[0], count);
    case Op::kSubtract:
      return x[0] - x[1];
    case Op::kXor:
      return x[0] ^ x[1];
    default:
      unknown();
  }
}

}  // namespace

std::int64_t sign_extended(Bits bits, Type type) {
  switch (bytes_of(type)) {
    case 1:
      return static_cast<std::int8_t>(bits);
    case 2:
      return static_cast<std::int16_t>(bits);
    case 4:
      return static_cast<std::int32_t>(bits);
    default:
      return static_cast<std::int64_t>(bits);
  }
}

Bits zero_extended(Bits bits, Type type) {
  const unsigned bytes = bytes_of(type);
  return bytes == 8 ? bits : bits & ((Bits{1} << 8 * bytes) - 1);
}

Bits computed(const Instruction& i, const Bits x[4]) {
  if (i.op == Op::kSelect) return x[2] ? x[0] : x[1];
  if (i.op == Op::kConvert) return converted(i, x[0]);
  if (i.op == Op::kCompare) return compared(i, x[0], x[1]);
  if (i.type == Type::kF32) return computed_float<float>(i, x);
  if (i.type == Type::kF64) return computed_float<double>(i, x);
  return computed_integer(i, x);
}

}  // namespace ptx
