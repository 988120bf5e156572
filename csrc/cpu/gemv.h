// C = A B + bias where A has so few rows that reading B from memory is all the work, or so few terms that writing C
// is: B is read where it lies, and from memory once. (gemm.cpp has a B of few columns change places with A.)
//
// B by columns (contiguous along K): dot products, a few columns at a time. B by rows: weighted sums of kRows rows of
// B, added to a row of C. Tasks are blocks of columns, or of rows where B is read by rows and they are many; how they
// are cut does not change the order in which an element is summed, so the result does not depend on the threads.
#pragma once

#include <algorithm>

#include "csrc/core/gemm.h"
#include "csrc/cpu/gemm_kernel.h"

namespace dlk::cpu {
namespace {

/// Rows that meet B at once: as many dot products as there are registers for.
constexpr int64_t kRowGroup = 4;
/// With more rows than this, packing B for the register-blocked kernel pays.
constexpr int64_t kFewRows = 2 * kRowGroup;
/// With no more terms and rows of C this long, writing C is all the work, row after row (the gradient to a layer's
/// weights for one sample, a layer of one input).
constexpr int64_t kFewTerms = 2, kLongRow = 48;

inline bool by_columns(const Gemm& p) { return p.b_row == 1 && p.b_col != 1; }

/// B by rows does not restart its sums, so not where `run` asks for it.
inline bool is_gemv(const Gemm& p) {
  if (by_columns(p)) return p.M <= kFewRows && p.a_col == 1;
  const bool restarts = p.run > 0 && p.K > 8 * p.run;
  return p.b_col == 1 && ((p.M == 1 && !restarts) || (p.K <= kFewTerms && p.N >= kLongRow));
}

/// to[i] = the sum of the lanes of sums[i], in the order of reduce_sum. Of whole vectors of them that takes half as
/// many instructions: they are transposed and added.
template <class T, int n>
DLK_INLINE void reduce_sums(Vec<T> (&sums)[n], T* to) {
  constexpr int L = kLanes<T>;
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) {
    if constexpr (n % L != 0) {
      to[i] = reduce_sum(sums[i]);
    } else if (i % L == 0) {
      Vec<T> rows[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) rows[l] = sums[i + l];
      transpose<T>(rows);
#pragma GCC unroll 8
      for (int half = L / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
        for (int l = 0; l < half; ++l) rows[l] += rows[l + half];
      }
      store(to + i, rows[0]);
    }
  }
}

/// rows x cols dot products of length K > 0, whose sums restart after `run` terms of a lane (0: never).
template <class T, int rows, int cols>
DLK_INLINE void dots(const Gemm& p, const T* a, const T* b, const T* bias, T* c, int64_t c_col) {
  const int64_t most = p.run > 0 ? p.run * kLanes<T> : p.K;
  for (int64_t begin = 0; begin < p.K; begin += most) {
    Vec<T> sum[rows * cols] = {};
    for_each_vec<T>(p.K - begin < most ? p.K - begin : most, [&](int64_t at, auto lanes) {
      const int64_t k = begin + at;
      Vec<T> x[rows];
#pragma GCC unroll 4
      for (int i = 0; i < rows; ++i) x[i] = load_n(a + i * p.a_row + k, lanes);
#pragma GCC unroll 8
      for (int j = 0; j < cols; ++j) {
        const Vec<T> y = load_n(b + j * p.b_col + k, lanes);
#pragma GCC unroll 4
        for (int i = 0; i < rows; ++i) sum[i * cols + j] += x[i] * y;
      }
    });
    T sums[rows * cols];
    reduce_sums<T>(sum, sums);
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < cols; ++j) {
        T& to = c[i * p.c_row + j * c_col];
        to = sums[i * cols + j] + (begin > 0 ? to : bias ? bias[p.bias_per_row ? i : j] : T(0));
      }
  }
}

/// Columns [0, n) of C from B by columns.
template <class T, int rows>
void multiply_columns(const Gemm& p, int64_t n, const T* a, const T* b, const T* bias, T* c, int64_t c_col) {
  // 8 sums and more hide the latency of an FMA (4 cycles, two per cycle), where there are registers for them.
  constexpr int kCols = rows == 1 ? 8 : rows == kRowGroup && kIsa != Isa::avx512 ? 2 : 4;
  const auto from = [&](int64_t j) { return !bias || p.bias_per_row ? bias : bias + j; };
  int64_t j = 0;
  for (; j + kCols <= n; j += kCols) dots<T, rows, kCols>(p, a, b + j * p.b_col, from(j), c + j * c_col, c_col);
  for (; j < n; ++j) dots<T, rows, 1>(p, a, b + j * p.b_col, from(j), c + j * c_col, c_col);
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

/// c[0, n) = start[0, n) (null: 0) + a row of A times B by rows.
template <class T>
void multiply_rows(const Gemm& p, int64_t n, const T* a, const T* b, const T* start, T* c) {
  constexpr int kRows = 8;  // streams of memory
  int64_t k = 0;
  for (; k + kRows <= p.K; k += kRows, start = c)
    add_rows<T, kRows>(n, a + k * p.a_col, p.a_col, b + k * p.b_row, p.b_row, start, c);
  for (; k + kFewTerms <= p.K; k += kFewTerms, start = c)
    add_rows<T, kFewTerms>(n, a + k * p.a_col, p.a_col, b + k * p.b_row, p.b_row, start, c);
  for (; k < p.K; ++k, start = c) add_rows<T, 1>(n, a + k * p.a_col, p.a_col, b + k * p.b_row, p.b_row, start, c);
}

/// Columns of C are `c_col` apart: of B by rows, 1.
template <class T>
void gemv(const Gemm& p, const T* a, const T* b, const T* bias, T* c, int64_t c_col = 1) {
  constexpr int64_t kMostColumns = 4096;  // C's part stays in L1
  const bool parallel = p.batch * p.M * p.N * p.K >= kGrainElements, by_rows = !by_columns(p);
  // Long runs of memory: one block for each thread, or, of many rows that share nothing, some of those. But few columns
  // of B, which are still in L2 when the second group of rows comes.
  const int64_t threads = parallel ? max_threads() : 1;
  const bool cuts_rows = by_rows && p.M > threads;
  const int64_t rows = cuts_rows ? ceil_div(p.M, threads) : p.M, row_blocks = ceil_div(p.M, rows);
  int64_t block = DLK_ISA::round_up(ceil_div(p.N, cuts_rows ? 1 : threads), 64);
  if (block > kMostColumns) block = kMostColumns;
  if (!by_rows && p.M > kRowGroup) block = 64;
  const int64_t blocks = ceil_div(p.N, block);
  const auto multiply_task = [&](int64_t task) {
    const int64_t i = task / blocks / row_blocks, j = task % blocks * block, n = p.N - j < block ? p.N - j : block;
    const DLK_ISA::Range of_rows = DLK_ISA::block_range(task / blocks % row_blocks, rows, p.M);
    const T *x = a + i * p.a_batch + of_rows.begin * p.a_row, *y = b + i * p.b_batch + j * p.b_col;
    const bool per_row = bias && p.bias_per_row;
    const T* const first = bias && !per_row ? bias + j : bias;
    T* to = c + i * p.c_batch + of_rows.begin * p.c_row + j * c_col;
    if (by_rows) {
      for (int64_t r = of_rows.begin; r < of_rows.end; ++r, x += p.a_row, to += p.c_row) {
        if (per_row) std::fill_n(to, n, bias[r]);
        multiply_rows(p, n, x, y, per_row ? to : first, to);
      }
      return;
    }
    for (int64_t r = 0; r < p.M; r += kRowGroup, x += kRowGroup * p.a_row, to += kRowGroup * p.c_row) {
      const T* const row = per_row ? first + r : first;
      switch (p.M - r) {
        case 1:
          multiply_columns<T, 1>(p, n, x, y, row, to, c_col);
          break;
        case 2:
          multiply_columns<T, 2>(p, n, x, y, row, to, c_col);
          break;
        case 3:
          multiply_columns<T, 3>(p, n, x, y, row, to, c_col);
          break;
        default:
          multiply_columns<T, kRowGroup>(p, n, x, y, row, to, c_col);
      }
    }
  };
  run_team(parallel && p.batch * row_blocks * blocks > 1,
           [&](const Team& team) { team.for_each(p.batch * row_blocks * blocks, multiply_task); });
}

}  // namespace
}  // namespace dlk::cpu
