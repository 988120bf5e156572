// Softmax and log-softmax; the formulas are in softmax.cpp.
#pragma once

#include "csrc/core/softmax.h"
#include "csrc/cpu/dispatch.h"

namespace dlk::cpu {

/// All tensors are (outer, C, inner), contiguous.
template <class T>
struct SoftmaxKernels {
  /// y = softmax(x) over C, or its logarithm; y may be x.
  void (*forward)(SoftmaxShape shape, bool log, const T* x, T* y);
  /// The gradient of x from that of y and from y itself; dx may be dy.
  void (*backward)(SoftmaxShape shape, bool log, const T* dy, const T* y, T* dx);
};

}  // namespace dlk::cpu
