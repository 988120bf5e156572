// Shape of a 2-D convolution (a 1-D one has H = R = OH = 1), shared by all its passes.
#pragma once

#include <cstdint>

#include "csrc/core/context.h"
#include "csrc/core/types.h"

namespace dlk {

/// y[n, k, oh, ow] = bias[k] + sum over c, r, s of
///                   x[n, c, oh * stride_h + r * dilation_h - pad_h, ow * stride_w + ...] * w[k, c, r, s],
/// where c runs over the C / groups input channels of k's group and x is 0 outside of its image.
/// pad_h, pad_w count the zeros above and left; those below and right follow from OH and OW.
struct Conv2d {
  int64_t N, C, H, W;
  int64_t K, R, S;
  int64_t OH, OW;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t groups;
  bool channels_last;          // x and y are (N, H, W, C) in memory; else (N, C, H, W)
  int64_t w_k, w_c, w_r, w_s;  // strides of w
  bool allow_tf32;             // float32 may lose accuracy for speed: a GPU may round operands to 10 bits of mantissa,
                               // a CPU take Winograd tiles of 4 x 4 everywhere
};

/// Tensors are dense in the layout that p.channels_last says; w has the strides of p.
template <class T>
struct Conv2dKernels {
  /// y from x, w and bias (K values or null).
  void (*forward)(const Conv2d& p, const T* x, const T* w, const T* bias, T* y, Context& context);
  /// dx[n, c, h, w] = bias[c] + the sum of all dy * w that x[n, c, h, w] contributed to (bias: C values or null).
  void (*backward_input)(const Conv2d& p, const T* dy, const T* w, const T* bias, T* dx, Context& context);
};

template <class T>
struct Conv2dWeightKernels {
  /// dw, with the strides of p.
  void (*backward_weight)(const Conv2d& p, const T* x, const T* dy, T* dw, Context& context);
};

}  // namespace dlk
