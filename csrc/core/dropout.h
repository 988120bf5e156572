// Dropout's parameters.
#pragma once

#include <cstdint>

#include "csrc/core/context.h"
#include "csrc/core/types.h"

namespace dlk {

/// A tensor as images: N x C planes of P elements, dense, plane after plane or (channels_last) pixel after pixel.
struct DropoutShape {
  int64_t N, C, P;
  bool channels_last = false;
};

/// How an element is kept: its random 32-bit word is below `threshold`, which is (1 - p) 2^32 rounded. A probability of
/// keeping that rounds to 1 becomes 1 - 2^-32.
struct DropoutDraw {
  const int64_t* seed;  // in the memory that the kernel runs on, so that a CUDA graph draws anew at each replay
  uint32_t threshold;
};

struct DropoutMaskKernels {
  /// Bit i of keep (ceil(n / 64) words) for i < n: whether element i, by its logical index, is kept.
  void (*draw)(DropoutDraw rule, int64_t n, uint64_t* keep, Context& context);
  /// Keep bits of an image in the order of its logical indices -> in the order of channels_last storage.
  void (*to_channels_last)(DropoutShape shape, const uint64_t* logical, uint64_t* keep, Context& context);
};

template <class T>
struct DropoutKernels {
  /// Draws keep and applies it, as below.
  void (*drop)(DropoutDraw rule, int64_t n, double scale, const T* x, uint64_t* keep, T* y, Context& context);
  /// y[i] = x[i] * (bit i of keep ? scale : 0); y may be x.
  void (*apply)(int64_t n, const uint64_t* keep, double scale, const T* x, T* y, Context& context);
  /// The same with one bit for each of the N x C planes; y may be x.
  void (*apply_to_planes)(DropoutShape shape, const uint64_t* keep, double scale, const T* x, T* y, Context& context);
};

}  // namespace dlk
