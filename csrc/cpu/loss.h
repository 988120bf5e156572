// Losses that compare x with a target element by element; the formulas are in loss.cpp.
#pragma once

#include "csrc/core/loss.h"
#include "csrc/core/scratch.h"
#include "csrc/cpu/dispatch.h"

namespace dlk::cpu {

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
  void (*forward)(Loss loss, int64_t n, const LossInputs<T>& inputs, T* y);
  /// The sum of all losses.
  double (*sum)(Loss loss, int64_t n, const LossInputs<T>& inputs, Scratch& scratch);
  /// dx from dy[i * step] * scale as the gradient of loss i.
  void (*backward)(Loss loss, int64_t n, const LossInputs<T>& inputs, const T* dy, int64_t step, double scale, T* dx);
};

}  // namespace dlk::cpu
