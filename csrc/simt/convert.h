// convert<To>(from) between float, double, f16 and bf16 on the host, as the GPU's instructions do: round to nearest
// even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "csrc/core/types.h"

namespace dlk::simt {

namespace executor {

inline double widen(f16 x) { return std::bit_cast<_Float16>(x.bits); }
inline double widen(bf16 x) { return std::bit_cast<float>(uint32_t(x.bits) << 16); }
inline double widen(double x) { return x; }  // float as well

template <class To>
To narrow(double x) {
  if constexpr (std::is_same_v<To, f16>) {
    return {std::bit_cast<uint16_t>(static_cast<_Float16>(x))};
  } else if constexpr (std::is_same_v<To, bf16>) {
    float nearest = static_cast<float>(x);
    uint32_t bits = std::bit_cast<uint32_t>(nearest);
    if (std::isnan(nearest)) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
    // Rounding twice errs where the first rounding makes a tie. Rounded to odd (cut, last bit set if that changed
    // anything), the float tells on which side of the tie x was.
    if (nearest != x) bits = (std::fabs(nearest) > std::fabs(x) ? bits - 1 : bits) | 1;
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  } else {
    return static_cast<To>(x);
  }
}

}  // namespace executor

template <class To, class From>
To convert(From x) {
  if constexpr (std::is_same_v<To, From>)
    return x;
  else
    return executor::narrow<To>(executor::widen(x));  // double holds the values of all types exactly
}

}  // namespace dlk::simt
