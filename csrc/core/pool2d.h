// The geometry of 2-D pooling.
#pragma once

#include <cstdint>

#include "csrc/core/context.h"
#include "csrc/core/types.h"

namespace dlk {

/// Windows of R x S taps over (N, C, H, W), giving (N, C, OH, OW); both tensors dense, NCHW or channels_last (NHWC).
/// Tap (r, s) of output (oh, ow) is input (oh stride_h - pad_h + r dilation_h, ow stride_w - pad_w + s dilation_w).
/// Padding is at most half of R and S, so a window without dilation always holds an input element.
struct Pool2d {
  int64_t N, C, H, W;
  int64_t OH, OW;
  int64_t R = 1, S = 1;
  int64_t stride_h = 1, stride_w = 1;
  int64_t pad_h = 0, pad_w = 0;
  int64_t dilation_h = 1, dilation_w = 1;
  bool channels_last = false;
};

/// Where in its window each output of max pooling was found: r S + s, or -1 cast to the integer type for a window that
/// lies wholly in the padding. Laid out as the output. One pointer is set: `narrow` if R S <= 255, else `wide`; neither
/// if positions are not wanted.
struct Positions {
  uint8_t* narrow = nullptr;
  int32_t* wide = nullptr;
};

/// Average pooling (no dilation).
struct AvgPool2d : Pool2d {
  /// Ignores R, S, strides and padding: window oh begins at floor(oh H / OH) and ends before ceil((oh + 1) H / OH).
  bool adaptive = false;
  bool count_include_pad = true;
  int64_t divisor_override = 0;  // 0: divide by the number of elements
};

template <class T>
struct MaxPool2dKernels {
  /// x (N, C, H, W) -> y (N, C, OH, OW), and the positions if wanted.
  void (*forward)(const Pool2d& p, const T* x, T* y, Positions positions, Context& context);
  /// dy, positions (N, C, OH, OW) -> dx (N, C, H, W).
  void (*backward)(const Pool2d& p, const T* dy, Positions positions, T* dx, Context& context);
};

struct MaxPool2dIndexKernels {
  /// positions (N, C, OH, OW) -> index ih W + iw of each output's input, -1 for windows wholly in the padding.
  void (*indices)(const Pool2d& p, Positions positions, int64_t* indices, Context& context);
};

template <class T>
struct AvgPool2dKernels {
  /// x (N, C, H, W) -> y (N, C, OH, OW).
  void (*forward)(const AvgPool2d& p, const T* x, T* y, Context& context);
  /// dy (N, C, OH, OW) -> dx (N, C, H, W).
  void (*backward)(const AvgPool2d& p, const T* dy, T* dx, Context& context);
};

}  // namespace dlk
