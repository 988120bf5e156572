// Convolution: forward, gradient to the input (which is also the transposed convolution) and to the weight.
#pragma once

#include "csrc/core/conv2d.h"
#include "csrc/core/scratch.h"
#include "csrc/cpu/dispatch.h"

namespace dlk::cpu {

/// Tensors are dense in the layout that p.channels_last says; w has the strides of p.
template <class T>
struct Conv2dKernels {
  /// y from x, w and bias (K values or null).
  void (*forward)(const Conv2d& p, const T* x, const T* w, const T* bias, T* y, Scratch& scratch);
  /// dx[n, c, h, w] = bias[c] + the sum of all dy * w that x[n, c, h, w] contributed to (bias: C values or null).
  void (*backward_input)(const Conv2d& p, const T* dy, const T* w, const T* bias, T* dx, Scratch& scratch);
};

template <class T>
struct Conv2dWeightKernels {
  /// dw, with the strides of p.
  void (*backward_weight)(const Conv2d& p, const T* x, const T* dy, T* dw, Scratch& scratch);
};

}  // namespace dlk::cpu
