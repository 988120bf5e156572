// Shape and strides of a batched matrix product C = A B (+ bias). Strides count elements.
#pragma once

#include <cstdint>

#include "csrc/core/context.h"
#include "csrc/core/types.h"

namespace dlk {

struct Gemm {
  int64_t M, N, K;
  int64_t a_row, a_col;  // A is M x K; one of the two strides is 1 (any, if that dimension has size 1)
  int64_t b_row, b_col;  // B is K x N; likewise
  int64_t c_row;         // C is M x N with unit column stride
  int64_t batch = 1;
  bool allow_tf32 = false;  // a GPU may round float32 operands to 10 bits of mantissa
  int64_t run = 0;  // terms after which a CPU's sums restart, which bounds their rounding error; 0: what is fastest
  /// bias[i] in place of bias[j]; a CPU's products only.
  bool bias_per_row = false;
  int64_t a_batch = 0, b_batch = 0, c_batch = 0;  // 0 for A or B: one matrix shared by the whole batch
};

template <class T>
struct GemmKernels {
  /// c[i, j] = bias[j] + sum_k a[i, k] b[k, j] per batch element; bias may be null.
  void (*multiply)(const Gemm& p, const T* a, const T* b, const T* bias, T* c, Context& context);
};

}  // namespace dlk
