// Elementwise losses: one enumerator per formula in csrc/cpu/loss.cpp.
#pragma once

#include <cstdint>

#include "csrc/core/context.h"
#include "csrc/core/types.h"

namespace dlk {

enum class Loss : int64_t { binary_cross_entropy_with_logits, mse };

/// n contiguous elements each; weight and positive_weight may be null: 1.
template <class T>
struct LossInputs {
  const T* x;
  const T* target;
  const T* weight;
  const T* positive_weight;
};

template <class T>
struct LossKernels {
  /// y[i] = the loss of element i.
  void (*forward)(Loss loss, int64_t n, const LossInputs<T>& inputs, T* y, Context& context);
  /// *y = scale times the sum of all losses.
  void (*sum)(Loss loss, int64_t n, const LossInputs<T>& inputs, double scale, T* y, Context& context);
  /// dx from dy[i * step] * scale as the gradient of loss i.
  void (*backward)(Loss loss, int64_t n, const LossInputs<T>& inputs, const T* dy, int64_t step, double scale, T* dx,
                   Context& context);
};

}  // namespace dlk
