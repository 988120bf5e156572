// C = A B + bias where A has so few rows that reading B from memory is all the work, or so few terms that writing C
// is: B is read where it lies, and from memory once.
//
// B by columns (contiguous along K): dot products, a few columns at a time. B by rows: weighted sums of kRows rows of
// B, added to a row of C. Tasks are blocks of columns; how they are cut does not change the order in which an element
// is summed, so the result does not depend on the threads.
#pragma once

#include "csrc/core/gemm.h"
#include "csrc/cpu/gemm_kernel.h"

namespace dlk::cpu {
namespace {

/// Rows that meet B at once: as many dot products as there are registers for.
constexpr int64_t kRowGroup = 4;
/// With more rows than this, packing B for the register-blocked kernel pays.
constexpr int64_t kFewRows = 2 * kRowGroup;
/// With no more terms and rows of C this long, writing C is all the work, row after row (the gradient to a layer's
/// weights for one sample).
constexpr int64_t kFewTerms = 2, kLongRow = 256;

/// B by rows does not restart its sums, so not where `run` asks for it.
inline bool is_gemv(const Gemm& p) {
  if (p.b_row == 1 && p.b_col != 1) return p.M <= kFewRows && p.a_col == 1;
  const bool restarts = p.run > 0 && p.K > 8 * p.run;
  return p.b_col == 1 && ((p.M == 1 && !restarts) || (p.K <= kFewTerms && p.N >= kLongRow));
}

/// rows x cols dot products of length K > 0, whose sums restart after `run` terms of a lane (0: never).
template <class T, int rows, int cols>
DLK_INLINE void dots(int64_t K, int64_t run, const T* a, int64_t a_row, const T* b, int64_t b_col, const T* bias, T* c,
                     int64_t c_row) {
  const int64_t most = run > 0 ? run * kLanes<T> : K;
  for (int64_t begin = 0; begin < K; begin += most) {
    Vec<T> sum[rows][cols] = {};
    for_each_vec<T>(K - begin < most ? K - begin : most, [&](int64_t at, auto lanes) {
      const int64_t k = begin + at;
      Vec<T> x[rows];
#pragma GCC unroll 4
      for (int i = 0; i < rows; ++i) x[i] = load_n(a + i * a_row + k, lanes);
#pragma GCC unroll 8
      for (int j = 0; j < cols; ++j) {
        const Vec<T> y = load_n(b + j * b_col + k, lanes);
#pragma GCC unroll 4
        for (int i = 0; i < rows; ++i) sum[i][j] += x[i] * y;
      }
    });
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < cols; ++j) {
        T& to = c[i * c_row + j];
        to = reduce_sum(sum[i][j]) + (begin > 0 ? to : bias ? bias[j] : T(0));
      }
  }
}

/// Columns [0, n) of C from B by columns.
template <class T, int rows>
void multiply_columns(const Gemm& p, int64_t n, const T* a, const T* b, const T* bias, T* c) {
  constexpr int kCols = rows == 1 ? 8 : 4;  // 8 sums and more hide the latency of an FMA (4 cycles, two per cycle)
  int64_t j = 0;
  for (; j + kCols <= n; j += kCols)
    dots<T, rows, kCols>(p.K, p.run, a, p.a_row, b + j * p.b_col, p.b_col, bias ? bias + j : nullptr, c + j, p.c_row);
  for (; j < n; ++j)
    dots<T, rows, 1>(p.K, p.run, a, p.a_row, b + j * p.b_col, p.b_col, bias ? bias + j : nullptr, c + j, p.c_row);
}

/// c[0, n) = start[0, n) (null: 0) + a[0, rows) times `rows` rows of B. The partial sum of these rows is rounded apart,
/// which bounds the error.
template <class T, int rows>
DLK_INLINE void add_rows(int64_t n, const T* a, int64_t a_col, const T* b, int64_t b_row, const T* start, T* c) {
  Vec<T> x[rows];
  for (int r = 0; r < rows; ++r) x[r] = splat(a[r * a_col]);
  for_each_vec<T>(n, [&](int64_t j, auto lanes) {
    Vec<T> sum{};
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) sum += x[r] * load_n(b + r * b_row + j, lanes);
    store_n(c + j, start ? load_n(start + j, lanes) + sum : sum, lanes);
  });
}

/// Columns [0, n) of C from B by rows, one row of A.
template <class T>
void multiply_rows(const Gemm& p, int64_t n, const T* a, const T* b, const T* bias, T* c) {
  constexpr int kRows = 8;  // streams of memory
  const T* start = bias;
  int64_t k = 0;
  for (; k + kRows <= p.K; k += kRows, start = c)
    add_rows<T, kRows>(n, a + k * p.a_col, p.a_col, b + k * p.b_row, p.b_row, start, c);
  for (; k < p.K; ++k, start = c) add_rows<T, 1>(n, a + k * p.a_col, p.a_col, b + k * p.b_row, p.b_row, start, c);
}

template <class T>
void gemv(const Gemm& p, const T* a, const T* b, const T* bias, T* c) {
  constexpr int64_t kMostColumns = 4096;  // C's part stays in L1
  const bool parallel = p.batch * p.M * p.N * p.K >= kGrainElements, by_rows = p.b_col == 1;
  // Long runs of memory: one block for each thread. But few columns of B, which are still in L2 when the second group
  // of rows comes.
  int64_t block = DLK_ISA::round_up(ceil_div(p.N, parallel ? max_threads() : 1), 64);
  if (block > kMostColumns) block = kMostColumns;
  if (!by_rows && p.M > kRowGroup) block = 64;
  const int64_t blocks = ceil_div(p.N, block);
  const auto multiply_task = [&](int64_t task) {
    const int64_t i = task / blocks, j = task % blocks * block, n = p.N - j < block ? p.N - j : block;
    const T *x = a + i * p.a_batch, *y = b + i * p.b_batch + j * p.b_col, *row = bias ? bias + j : nullptr;
    T* to = c + i * p.c_batch + j;
    if (by_rows) {
      for (int64_t r = 0; r < p.M; ++r) multiply_rows(p, n, x + r * p.a_row, y, row, to + r * p.c_row);
      return;
    }
    for (int64_t r = 0; r < p.M; r += kRowGroup, x += kRowGroup * p.a_row, to += kRowGroup * p.c_row) switch (p.M - r) {
        case 1:
          multiply_columns<T, 1>(p, n, x, y, row, to);
          break;
        case 2:
          multiply_columns<T, 2>(p, n, x, y, row, to);
          break;
        case 3:
          multiply_columns<T, 3>(p, n, x, y, row, to);
          break;
        default:
          multiply_columns<T, kRowGroup>(p, n, x, y, row, to);
      }
  };
  run_team(parallel && p.batch * blocks > 1, [&](const Team& team) { team.for_each(p.batch * blocks, multiply_task); });
}

}  // namespace
}  // namespace dlk::cpu
