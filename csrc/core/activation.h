// The activations: one enumerator per formula in csrc/cpu/activation.cpp.
#pragma once

#include <cstdint>

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

}  // namespace dlk
