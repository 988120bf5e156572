// convert<To>(from) between float, double, f16 and bf16 on the host, as the GPU's instructions do: round to nearest
// even.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "csrc/core/types.h"

namespace dlk::simt {

namespace executor {

inline float widen(f16 x) {
  // The bits in their place in a float have an exponent that is too small by 112; multiplying corrects that, for
  // subnormal numbers as well.
  const uint32_t bits = uint32_t(x.bits & 0x7fff) << 13, sign = uint32_t(x.bits & 0x8000) << 16;
  const bool finite = bits < 0x7c00 << 13;
  const float magnitude = std::bit_cast<float>(finite ? bits : bits | 0x7f800000) * (finite ? 0x1p112f : 1);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}
inline float widen(bf16 x) { return std::bit_cast<float>(uint32_t(x.bits) << 16); }
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

/// The bits of x in the 16-bit format with this many bits of exponent and mantissa.
template <int exponent_bits, int mantissa_bits>
uint16_t narrow(double x) {
  constexpr int bias = (1 << (exponent_bits - 1)) - 1, shift = 52 - mantissa_bits;
  constexpr uint64_t infinity = ((1ull << exponent_bits) - 1) << mantissa_bits;
  const uint64_t sign = std::bit_cast<uint64_t>(x) >> 63 << 15;
  const double magnitude = std::fabs(x);
  uint64_t result;
  if (std::isnan(x)) {
    result = infinity | 1 << (mantissa_bits - 1);
  } else if (magnitude < std::ldexp(1, 1 - bias)) {  // subnormal: multiples of the smallest number
    result = static_cast<uint64_t>(std::nearbyint(magnitude * std::ldexp(1, bias - 1 + mantissa_bits)));
  } else {  // half a unit in the last place, less if that makes a tie even; a carry into the exponent is right
    const uint64_t bits = std::bit_cast<uint64_t>(magnitude);
    const uint64_t rounded = (bits + (1ull << (shift - 1)) - 1 + (bits >> shift & 1)) >> shift;
    result = std::min(rounded - (uint64_t(1023 - bias) << mantissa_bits), infinity);
  }
  return static_cast<uint16_t>(result | sign);
}

}  // namespace executor

template <class To, class From>
To convert(From x) {
  if constexpr (std::is_same_v<To, From>)
    return x;
  else if constexpr (std::is_same_v<To, f16>)
    return {executor::narrow<5, 10>(executor::widen(x))};  // through double, which holds the values of all types
  else if constexpr (std::is_same_v<To, bf16>)
    return {executor::narrow<8, 7>(executor::widen(x))};
  else
    return static_cast<To>(executor::widen(x));
}

}  // namespace dlk::simt
