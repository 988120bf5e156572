// The micro-kernel of gemm_kernel.h and the loop over tiles around it.
#include "csrc/cpu/gemm_kernel.h"

namespace dlk::cpu::DLK_ISA {
namespace {

/// Adds an accumulator tile (row stride NR) to rows x n of C where columns are scattered: runs of them are still stored
/// as vectors.
template <class T>
__attribute__((noinline)) void store_tile(const CView<T>& c, int rows, int64_t n, const T* tile) {
  constexpr int L = kLanes<T>, NR = Block<T>::NR;
  for (int64_t j = 0; j < n; j += L) {
    const int64_t count = n - j < L ? n - j : L;
    const bool scattered = c.columns[j + count - 1] - c.columns[j] != count - 1;
    for (int i = 0; i < rows; ++i) {
      T* y = c.data + c.row(i) + c.columns[j];
      const Vec<T> sum = load(tile + i * NR + j);
      const T bias = c.row_bias ? c.row_bias[i] : T(0);
      if (!scattered) {
        store_partial(y, (c.accumulate ? load_partial(y, count) : splat(bias)) + sum, count);
        continue;
      }
      for (int64_t l = 0; l < count; ++l) {
        T& element = y[c.columns[j + l] - c.columns[j]];
        element = (c.accumulate ? element : bias) + sum[l];
      }
    }
  }
}

/// Adds a tile in registers to n contiguous columns of C from `first` on.
template <class T, int rows, int nv, bool whole>
DLK_INLINE void add_tile(const CView<T>& c, T* first, int64_t n, Vec<T> (&sum)[rows][nv]) {
  constexpr int L = kLanes<T>;
  int64_t count[nv];
  for (int v = 0; v < nv; ++v) count[v] = n - v * L < 0 ? 0 : n - v * L < L ? n - v * L : L;
  // Flags are read once: the compiler must assume that stores change them.
  if (c.accumulate) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const T* y = first + c.row(i);
#pragma GCC unroll 2
      for (int v = 0; v < nv; ++v) sum[i][v] += whole ? load(y + v * L) : load_partial(y + v * L, count[v]);
    }
  } else if (c.row_bias) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < nv; ++v) sum[i][v] += c.row_bias[i];
    }
  } else if (c.column_bias) {
    Vec<T> bias[nv];
    for (int v = 0; v < nv; ++v)
      bias[v] = whole ? load(c.column_bias + v * L) : load_partial(c.column_bias + v * L, count[v]);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < nv; ++v) sum[i][v] += bias[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
    T* const y = first + c.row(i);
#pragma GCC unroll 2
    for (int v = 0; v < nv; ++v) whole ? store(y + v * L, sum[i][v]) : store_partial(y + v * L, sum[i][v], count[v]);
  }
}

/// Where the rows of B lie: b_stride apart, or, if there is a table, at offsets[k]. And what to prefetch meanwhile.
template <class T>
struct Rows {
  int64_t stride;
  const int64_t* offsets = nullptr;
  Ahead<T> ahead = {};
  int64_t ahead_rate = 0;  // rows per 256 prefetches
};

/// Terms between two prefetches: one per term would cost as many instructions as the loads.
constexpr int kTermsPerPrefetch = 4;

/// The micro-kernel: a tile of `rows` x (nv vectors), of which n columns exist; sums restart every `run` terms.
template <class T, int rows, int nv, bool rows_contiguous, bool table>
void tile(int64_t K, int64_t run, const T* a, int64_t a_stride, const T* b, const Rows<T>& b_rows, int64_t n,
          const CView<T>& c) {
  constexpr int L = kLanes<T>, NR = Block<T>::NR;
  const int64_t row = rows_contiguous ? a_stride : 1, step = rows_contiguous ? 1 : a_stride;
  // C is needed only at the end, and by then must not be waited for.
  T* const first = c.data + (c.columns ? c.columns[0] : 0);
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < nv; ++v) __builtin_prefetch(first + c.row(i) + v * L, /*write=*/1);
  }
  const T* const ahead = b_rows.ahead.data ? b_rows.ahead.data : b;
  int64_t ahead_cursor = 0;
  Vec<T> sum[rows][nv] = {};
  alignas(64) T earlier[rows][NR];  // the sum of earlier runs
  // A pointer for each kReach rows, which the compiler may not derive from each other: one offset per row would take
  // more registers than there are.
  constexpr int kReach = 5, kPointers = (rows + kReach - 1) / kReach;
  const T* pa[kPointers];
#pragma GCC unroll 4
  for (int q = 0; q < kPointers; ++q) {
    pa[q] = a + q * kReach * row;
    asm("" : "+r"(pa[q]));
  }
  int64_t k = 0;
  const auto add_term = [&] {
    Vec<T> bk[nv];
#pragma GCC unroll 2
    for (int v = 0; v < nv; ++v) bk[v] = load(b + (table ? b_rows.offsets[k] : 0) + v * L);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < nv; ++v) sum[i][v] += bk[v] * pa[i / kReach][i % kReach * row];
    }
#pragma GCC unroll 4
    for (int q = 0; q < kPointers; ++q) pa[q] += step;
    ++k;
    if constexpr (!table) b += b_rows.stride;
  };
  for (int64_t begin = 0;; begin += run) {
    const int64_t end = begin + run < K ? begin + run : K;
    while (k + kTermsPerPrefetch <= end) {
      if constexpr (!table) {
        const T* const later = ahead + (ahead_cursor >> 8) * b_rows.ahead.stride;
#pragma GCC unroll 2
        for (int v = 0; v < nv; ++v) __builtin_prefetch(later + v * L, 0, /*L2*/ 2);
        ahead_cursor += b_rows.ahead_rate;
      }
      add_term(), add_term(), add_term(), add_term();
    }
    while (k < end) add_term();
    if (begin > 0) {
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
        for (int v = 0; v < nv; ++v) sum[i][v] += load(&earlier[i][v * L]);
      }
    }
    if (end == K) break;
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < nv; ++v) store(&earlier[i][v * L], sum[i][v]), sum[i][v] = Vec<T>{};
    }
  }
  if (c.columns && c.columns[n - 1] - c.columns[0] != n - 1) {
    T out[rows][NR];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < nv; ++v) store(&out[i][v * L], sum[i][v]);
    }
    return store_tile(c, rows, n, &out[0][0]);
  }
  n == nv* L ? add_tile<T, rows, nv, true>(c, first, n, sum) : add_tile<T, rows, nv, false>(c, first, n, sum);
}

template <class T>
using TileFunction = void (*)(int64_t, int64_t, const T*, int64_t, const T*, const Rows<T>&, int64_t, const CView<T>&);

/// tile<> for 1 .. MR rows, so that a ragged last group of rows costs no wasted work.
template <class T, int nv, bool rows_contiguous, bool table, class = std::make_integer_sequence<int, Block<T>::MR>>
struct Tiles;
template <class T, int nv, bool rows_contiguous, bool table, int... i>
struct Tiles<T, nv, rows_contiguous, table, std::integer_sequence<int, i...>> {
  static constexpr TileFunction<T> by_rows[] = {tile<T, i + 1, nv, rows_contiguous, table>...};
};

template <class T, bool rows_contiguous, bool table>
const TileFunction<T>* tiles(int64_t n) {
  if (n <= kLanes<T>) return Tiles<T, 1, rows_contiguous, table>::by_rows;
  return Tiles<T, Block<T>::NV, rows_contiguous, table>::by_rows;
}

/// One panel: all groups of rows of A, as even as can be, since a last one of few rows would keep few sums in flight.
template <class T>
void multiply_panel(const TileFunction<T>* by_rows, int64_t M, int64_t n, int64_t K, int64_t run, const AView<T>& a,
                    const T* b, Rows<T> b_rows, const CView<T>& c) {
  const int64_t groups = ceil_div(M, Block<T>::MR), most = ceil_div(M, groups);
  // Each group of rows prefetches its share of the rows ahead, evenly over its own K: a core waits for about 16 lines
  // at once, and more would stall its loads.
  const int64_t share = ceil_div(K, groups), steps = K / kTermsPerPrefetch;
  if (b_rows.ahead.data && steps > 0) b_rows.ahead_rate = ceil_div(256 * share, steps);
  for (int64_t i = 0; i < M; i += most) {
    const int64_t rows = M - i < most ? M - i : most;
    by_rows[rows - 1](K, run, a.from_row(i).data, a.stride, b, b_rows, n, c.from(i, 0));
    if (b_rows.ahead.data) b_rows.ahead.data += share * b_rows.ahead.stride;
  }
}

}  // namespace

template <class T>
void multiply_block(int64_t M, int64_t N, int64_t K, const AView<T>& a, const T* b, int64_t panel_stride,
                    int64_t b_stride, const CView<T>& c, int64_t run, Ahead<T> ahead) {
  constexpr int NR = Block<T>::NR;
  for (int64_t j = 0; j < N; j += NR, b += panel_stride) {
    const int64_t n = N - j < NR ? N - j : NR;
    const auto by_rows = a.rows_contiguous ? tiles<T, true, false>(n) : tiles<T, false, false>(n);
    multiply_panel(by_rows, M, n, K, run, a, b, {b_stride, nullptr, ahead}, c.from(0, j));
  }
}

template <class T>
void multiply_scattered(int64_t M, int64_t n, int64_t K, const AView<T>& a, const T* b, const int64_t* offsets,
                        const CView<T>& c) {
  multiply_panel(tiles<T, true, true>(n), M, n, K, Block<T>::KC, a, b, {0, offsets}, c);
}

template void multiply_scattered(int64_t, int64_t, int64_t, const AView<float>&, const float*, const int64_t*,
                                 const CView<float>&);
template void multiply_scattered(int64_t, int64_t, int64_t, const AView<double>&, const double*, const int64_t*,
                                 const CView<double>&);
template void multiply_block(int64_t, int64_t, int64_t, const AView<float>&, const float*, int64_t, int64_t,
                             const CView<float>&, int64_t, Ahead<float>);
template void multiply_block(int64_t, int64_t, int64_t, const AView<double>&, const double*, int64_t, int64_t,
                             const CView<double>&, int64_t, Ahead<double>);

}  // namespace dlk::cpu::DLK_ISA
