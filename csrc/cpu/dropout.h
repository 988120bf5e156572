// Dropout: random keep bits, 64 to a word, and tensors scaled where their bit is set; see dropout.cpp.
#pragma once

#include "csrc/core/dropout.h"
#include "csrc/core/scratch.h"
#include "csrc/cpu/dispatch.h"

namespace dlk::cpu {

struct DropoutMaskKernels {
  /// Bit i of keep (ceil(n / 64) words) for i < n: whether element i, by its logical index, is kept.
  void (*draw)(DropoutDraw draw, int64_t n, uint64_t* keep);
  /// Keep bits of an image in the order of its logical indices -> in the order of channels_last storage.
  void (*to_channels_last)(DropoutShape shape, const uint64_t* logical, uint64_t* keep);
};

template <class T>
struct DropoutKernels {
  /// y[i] = x[i] * (bit i of keep ? scale : 0); y may be x.
  void (*apply)(int64_t n, const uint64_t* keep, double scale, const T* x, T* y);
  /// The same with one bit for each of the N x C planes; y may be x.
  void (*apply_to_planes)(DropoutShape shape, const uint64_t* keep, double scale, const T* x, T* y, Scratch& scratch);
};

}  // namespace dlk::cpu
