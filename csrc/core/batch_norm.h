// Batch normalisation: x (N, C, inner), contiguous. channels_last tensors are (N * inner, C, 1).
#pragma once

#include <cstdint>
#include <limits>

#include "csrc/core/context.h"
#include "csrc/core/types.h"

namespace dlk {

struct BatchNormShape {
  int64_t N = 1;
  int64_t C = 1;
  int64_t inner = 1;
};

/// The bounds of y: ReLU is [0, Inf], ReLU6 [0, 6], and [-Inf, Inf] changes nothing. From a finite bound on, the slope
/// is 0; NaN stays, with slope 1.
struct Clamp {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();

  bool bounds_below() const { return low > -std::numeric_limits<double>::infinity(); }
  bool bounds_above() const { return high < std::numeric_limits<double>::infinity(); }
  bool clamps() const { return bounds_below() || bounds_above(); }
  /// The bounds for comparisons with y; where there is none, NaN, with which all comparisons fail.
  double lower_edge() const { return bounds_below() ? low : std::numeric_limits<double>::quiet_NaN(); }
  double upper_edge() const { return bounds_above() ? high : std::numeric_limits<double>::quiet_NaN(); }
};

/// x, y and their gradients are (N, C, inner); the rest (C). weight and bias may be null: 1 and 0.
template <class T>
struct BatchNormKernels {
  /// Normalises by the statistics of x, which it returns: mean and (biased) variance.
  void (*forward_training)(BatchNormShape shape, const T* x, const T* weight, const T* bias, double eps, Clamp clamp,
                           T* y, Accumulate<T>* mean, Accumulate<T>* var, Context& context);
  /// Normalises by the given statistics.
  void (*forward_eval)(BatchNormShape shape, const T* x, const Accumulate<T>* mean, const Accumulate<T>* var,
                       const T* weight, const T* bias, double eps, Clamp clamp, T* y, Context& context);
  /// Gradients; `training`: mean and var depend on x. dweight and dbias may be null, in eval mode. What is clamped is
  /// found anew, from x.
  void (*backward)(BatchNormShape shape, bool training, const T* dy, const T* x, const Accumulate<T>* mean,
                   const Accumulate<T>* var, const T* weight, const T* bias, double eps, Clamp clamp, T* dx, T* dweight,
                   T* dbias, Context& context);
};

}  // namespace dlk
