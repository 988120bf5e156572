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

/// Formulas whose slope is 1 or one other value: a bit per element is all that backward needs.
constexpr bool has_two_slopes(Activation f) {
  return f == Activation::relu || f == Activation::leaky_relu || f == Activation::hardtanh;
}
/// The other value.
constexpr double other_slope(Activation f, ActivationParams params) {
  return f == Activation::leaky_relu ? params.a : 0;
}

template <class T>
struct ActivationKernels {
  /// y[i] = f(x[i]); y may be x.
  void (*forward)(Activation f, ActivationParams params, int64_t n, const T* x, T* y, Context& context);
  /// dx[i] = dy[i] f'(...), from what the formula saves: its output or its input; dx may be dy.
  void (*backward)(Activation f, ActivationParams params, int64_t n, const T* dy, const T* saved, T* dx,
                   Context& context);

  /// CPU only, formulas with two slopes. y[i] = f(x[i]), and bit i of `unit`: whether the slope is 1; y may be x.
  void (*forward_slopes)(Activation f, ActivationParams params, int64_t n, const T* x, T* y, uint64_t* unit,
                         Context& context) = nullptr;
  /// dx[i] = dy[i] where the slope is 1, elsewhere dy[i] other_slope, or 0 if that is 0; dx may be dy.
  void (*backward_slopes)(double other_slope, int64_t n, const T* dy, const uint64_t* unit, T* dx,
                          Context& context) = nullptr;
};

}  // namespace dlk
