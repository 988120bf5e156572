// Convolution gradient to few weights, or of few outputs, directly.
#pragma once

#include "csrc/cpu/correlation.h"

namespace dlk::cpu::DLK_ISA {

/// Whether small_weight is faster than GEMM: outputs that fill three quarters of a vector of a GEMM tile at most, or
/// few sums and no more terms (c, t) than outputs, but rows of pixels that fill the vectors of small_weight.
template <class T>
bool has_small_weight(const Correlation& q) {
  constexpr int64_t kMostSums = 1536, kFewSums = 300;  // vectors, which every band of rows loads and stores
  const int64_t terms = q.CI * q.taps, sums = q.CO * terms;
  const bool few_outputs = 4 * q.CO <= 3 * kLanes<T> && sums <= kMostSums;
  const bool few_sums = terms <= q.CO && sums <= kFewSums;
  return (few_outputs || few_sums) && 2 * q.cols > kLanes<T> && (!q.channels_last || q.step_w == 1);
}

/// dw[k, c, t] = sum over pixels p of dy[k, p] times what tap t read at p in channel c; q: the forward correlation.
template <class T>
void small_weight(const Correlation& q, const T* in, const T* dy, T* dw, Context& context);

}  // namespace dlk::cpu::DLK_ISA
