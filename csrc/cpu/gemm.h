// Batched matrix products with either operand transposed, and their bias gradient.
#pragma once

#include "csrc/core/gemm.h"
#include "csrc/core/scratch.h"
#include "csrc/cpu/dispatch.h"

namespace dlk::cpu {

template <class T>
struct GemmKernels {
  /// c[i, j] = bias[j] + sum_k a[i, k] b[k, j] per batch element; bias may be null.
  void (*multiply)(const Gemm& p, const T* a, const T* b, const T* bias, T* c, Scratch& scratch);
  /// sum[j] = sum_i x[i, j] over a contiguous M x N matrix.
  void (*sum_rows)(int64_t M, int64_t N, const T* x, T* sum, Scratch& scratch);
};

}  // namespace dlk::cpu
