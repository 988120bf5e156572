// The warp's matrix instructions on the host; csrc/cuda/ptx.cuh says what they compute.
#pragma once

#include <cstdint>

#include "csrc/core/types.h"
#include "csrc/simt/builtins.h"

namespace dlk::simt {

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  executor::Place place = executor::Place::current());
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                      executor::Place place = executor::Place::current());
void mma_m8n8k4_f64(double (&d)[2], double a, double b, executor::Place place = executor::Place::current());
uint32_t to_tf32(float x);

namespace executor {

/// The addresses that all lanes passed, for ldmatrix; checks those of the first `count` lanes.
struct Rows {
  const void* of[32];
};
Rows matrix_rows(const void* row, int count, Place place);

// Each lane reads its own elements, so that the race detector sees who reads what; inlined, so that it can say where.
template <bool trans, int count>
__forceinline__ void ldmatrix(uint32_t (&r)[count], const void* row, Place place) {
  const int lane = this_thread() % 32, first = lane / 4, second = lane % 4;
  const Rows rows = matrix_rows(row, 8 * count, place);
  const auto element = [&](int matrix, int i, int j) {
    return uint32_t(static_cast<const uint16_t*>(rows.of[8 * matrix + i])[j]);
  };
  for (int m = 0; m < count; ++m) {
    r[m] = trans ? element(m, 2 * second, first) | element(m, 2 * second + 1, first) << 16
                 : element(m, first, 2 * second) | element(m, first, 2 * second + 1) << 16;
  }
}
}  // namespace executor

template <bool trans>
__forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row,
                                 executor::Place place = executor::Place::current()) {
  executor::ldmatrix<trans>(r, row, place);
}
template <bool trans>
__forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row,
                                 executor::Place place = executor::Place::current()) {
  executor::ldmatrix<trans>(r, row, place);
}

}  // namespace dlk::simt
