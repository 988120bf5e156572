// Elementwise activations on n contiguous elements; the formulas are in activation.cpp.
#pragma once

#include <cstdint>

#include "csrc/core/activation.h"
#include "csrc/cpu/dispatch.h"

namespace dlk::cpu {

template <class T>
struct ActivationKernels {
  /// y[i] = f(x[i]); y may be x.
  void (*forward)(Activation f, ActivationParams params, int64_t n, const T* x, T* y);
  /// dx[i] = dy[i] f'(...), from what the formula saves: its output or its input; dx may be dy.
  void (*backward)(Activation f, ActivationParams params, int64_t n, const T* dy, const T* saved, T* dx);
};

}  // namespace dlk::cpu
