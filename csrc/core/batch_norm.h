// Batch normalisation: x (N, C, inner), contiguous. channels_last tensors are (N * inner, C, 1).
#pragma once

#include <cstdint>

#include "csrc/core/context.h"
#include "csrc/core/types.h"

namespace dlk {

struct BatchNormShape {
  int64_t N = 1;
  int64_t C = 1;
  int64_t inner = 1;
};

/// x, y and their gradients are (N, C, inner); the rest (C). weight and bias may be null: 1 and 0.
template <class T>
struct BatchNormKernels {
  /// Normalises by the statistics of x, which it returns: mean and (biased) variance.
  void (*forward_training)(BatchNormShape shape, const T* x, const T* weight, const T* bias, double eps, T* y,
                           Accumulate<T>* mean, Accumulate<T>* var, Context& context);
  /// Normalises by the given statistics.
  void (*forward_eval)(BatchNormShape shape, const T* x, const Accumulate<T>* mean, const Accumulate<T>* var,
                       const T* weight, const T* bias, double eps, T* y, Context& context);
  /// Gradients; `training`: mean and var depend on x. dweight and dbias may be null, in eval mode.
  void (*backward)(BatchNormShape shape, bool training, const T* dy, const T* x, const Accumulate<T>* mean,
                   const Accumulate<T>* var, const T* weight, double eps, T* dx, T* dweight, T* dbias,
                   Context& context);
};

}  // namespace dlk
