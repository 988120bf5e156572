// Elementwise activations: one enumerator per formula; see csrc/cpu/activation.cpp.
#pragma once

#include <cstdint>

#include "csrc/core/context.h"
#include "csrc/core/types.h"

namespace dlk {

enum class Activation : int64_t {
  relu,
  leaky_relu,
  elu,
  hardtanh,
  sigmoid,
  tanh,
  gelu,
  gelu_tanh,
  silu,
  softplus,
};

/// The constants of a formula; each formula says which it uses.
struct ActivationParams {
  double a = 0;
  double b = 0;
};

template <class T>
struct ActivationKernels {
  /// y[i] = f(x[i]); y may be x.
  void (*forward)(Activation f, ActivationParams params, int64_t n, const T* x, T* y, Context& context);
  /// dx[i] = dy[i] f'(...), from what the formula saves: its output or its input; dx may be dy.
  void (*backward)(Activation f, ActivationParams params, int64_t n, const T* dy, const T* saved, T* dx,
                   Context& context);
};

}  // namespace dlk
