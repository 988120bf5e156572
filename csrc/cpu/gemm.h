// Batched matrix products with either operand transposed.
#pragma once

#include "csrc/core/gemm.h"
#include "csrc/core/scratch.h"
#include "csrc/cpu/dispatch.h"

namespace dlk::cpu {

template <class T>
struct GemmKernels {
  /// c[i, j] = bias[j] + sum_k a[i, k] b[k, j] per batch element; bias may be null.
  void (*multiply)(const Gemm& p, const T* a, const T* b, const T* bias, T* c, Scratch& scratch);
};

}  // namespace dlk::cpu
