// Number types that C++ lacks, as plain bits, and the type in which sums over each type are kept. No torch, no CUDA.
#pragma once

#include <cstdint>

namespace dlk {

struct f16 {  // IEEE 754 binary16
  uint16_t bits;
};
struct bf16 {  // the upper half of a float
  uint16_t bits;
};

template <class T>
struct AccumulateOf;
template <>
struct AccumulateOf<f16> {
  using type = float;
};
template <>
struct AccumulateOf<bf16> {
  using type = float;
};
template <>
struct AccumulateOf<float> {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <class T>
using Accumulate = typename AccumulateOf<T>::type;

}  // namespace dlk
