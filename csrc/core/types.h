// The element types of tensors, and what sums over them are kept in.
#pragma once

#include <cstdint>

namespace dlk {

/// IEEE half precision and bfloat16, as bits: kernels compute in float and convert at the edges of memory.
struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

template <class T>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
/// What arithmetic on T is done in; also the type of statistics such as a mean.
template <class T>
using Accumulate = typename AccumulateOf<T>::type;

}  // namespace dlk
