// Shape and strides of a batched matrix product C = A B (+ bias). Strides count elements.
#pragma once

#include <cstdint>

namespace dlk {

struct Gemm {
  int64_t M, N, K;
  int64_t a_row, a_col;  // A is M x K; one of the two strides is 1 (any, if that dimension has size 1)
  int64_t b_row, b_col;  // B is K x N; likewise
  int64_t c_row;         // C is M x N with unit column stride
  int64_t batch = 1;
  int64_t a_batch = 0, b_batch = 0, c_batch = 0;  // 0 for A or B: one matrix shared by the whole batch
};

}  // namespace dlk
