// Softmax: a tensor seen as (outer, C, inner), contiguous, with the sum over C.
#pragma once

#include <cstdint>

#include "csrc/core/context.h"
#include "csrc/core/types.h"

namespace dlk {

struct SoftmaxShape {
  int64_t outer = 1;
  int64_t C = 1;
  int64_t inner = 1;
};

/// All tensors are (outer, C, inner), contiguous.
template <class T>
struct SoftmaxKernels {
  /// y = softmax(x) over C, or its logarithm; y may be x.
  void (*forward)(SoftmaxShape shape, bool log, const T* x, T* y, Context& context);
  /// The gradient of x from that of y and from y itself; dx may be dy.
  void (*backward)(SoftmaxShape shape, bool log, const T* dy, const T* y, T* dx, Context& context);
};

}  // namespace dlk
