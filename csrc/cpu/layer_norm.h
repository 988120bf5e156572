// Layer and group normalisation; the formulas are in layer_norm.cpp.
#pragma once

#include "csrc/core/layer_norm.h"
#include "csrc/core/scratch.h"
#include "csrc/cpu/dispatch.h"

namespace dlk::cpu {

/// x, y and their gradients are (rows, channels, inner), mean and rstd (rows), the rest (groups * channels). weight and
/// bias may be null: 1 and 0.
template <class T>
struct RowNormKernels {
  /// y, and the statistics that backward needs: mean and 1 / sqrt(var + eps).
  void (*forward)(RowNormShape shape, const T* x, const T* weight, const T* bias, double eps, T* y, T* mean, T* rstd);
  void (*backward)(RowNormShape shape, const T* dy, const T* x, const T* mean, const T* rstd, const T* weight, T* dx,
                   T* dweight, T* dbias, Scratch& scratch);
};

}  // namespace dlk::cpu
