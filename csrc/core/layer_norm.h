// Layer and group normalisation: a contiguous x of `rows` rows, each normalised by itself.
#pragma once

#include <cstdint>

#include "csrc/core/context.h"
#include "csrc/core/types.h"

namespace dlk {

/// A row is `channels` planes of `inner` elements, each plane with one weight. Layer normalisation: inner is 1, and all
/// rows have the same weights; group normalisation: a row is a group, and each sample has `groups` of them.
struct RowNormShape {
  int64_t rows = 1;
  int64_t channels = 1;
  int64_t inner = 1;
  int64_t groups = 1;
  bool channels_last = false;  // x, y and their gradients are (samples, inner, groups * channels); on the CPU only
};

/// x, y and their gradients are (rows, channels, inner), unless channels_last, mean and rstd (rows), the rest (groups *
/// channels). weight and bias may be null: 1 and 0.
template <class T>
struct RowNormKernels {
  /// y, and the statistics that backward needs: mean and 1 / sqrt(var + eps).
  void (*forward)(RowNormShape shape, const T* x, const T* weight, const T* bias, double eps, T* y, Accumulate<T>* mean,
                  Accumulate<T>* rstd, Context& context);
  void (*backward)(RowNormShape shape, const T* dy, const T* x, const Accumulate<T>* mean, const Accumulate<T>* rstd,
                   const T* weight, T* dx, T* dweight, T* dbias, Context& context);
};

}  // namespace dlk
