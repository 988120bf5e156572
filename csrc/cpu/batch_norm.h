// Batch normalisation; the formulas are in batch_norm.cpp.
#pragma once

#include "csrc/core/batch_norm.h"
#include "csrc/core/scratch.h"
#include "csrc/cpu/dispatch.h"

namespace dlk::cpu {

/// x, y and their gradients are (N, C, inner); the rest (C). weight and bias may be null: 1 and 0.
template <class T>
struct BatchNormKernels {
  /// Normalises by the statistics of x, which it returns: mean and (biased) variance.
  void (*forward_training)(BatchNormShape shape, const T* x, const T* weight, const T* bias, double eps, T* y, T* mean,
                           T* var, Scratch& scratch);
  /// Normalises by the given statistics.
  void (*forward_eval)(BatchNormShape shape, const T* x, const T* mean, const T* var, const T* weight, const T* bias,
                       double eps, T* y, Scratch& scratch);
  /// Gradients; `training`: mean and var depend on x. dweight and dbias may be null, in eval mode.
  void (*backward)(BatchNormShape shape, bool training, const T* dy, const T* x, const T* mean, const T* var,
                   const T* weight, double eps, T* dx, T* dweight, T* dbias, Scratch& scratch);
};

}  // namespace dlk::cpu
