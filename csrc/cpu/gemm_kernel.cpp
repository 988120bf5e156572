// The micro-kernel of gemm_kernel.h and the loop over tiles around it.
#include "csrc/cpu/gemm_kernel.h"

namespace dlk::cpu::DLK_ISA {
namespace {

/// Adds an accumulator tile (row stride NR) to rows x n of C: the general case, with biases, ragged edges and columns
/// that are scattered.
template <class T>
__attribute__((noinline)) void store_tile(const CView<T>& c, int rows, int64_t n, const T* tile) {
  constexpr int L = kLanes<T>, NR = Block<T>::NR;
  for (int64_t j = 0; j < n; j += L) {
    const int64_t count = n - j < L ? n - j : L;
    const bool scattered = c.columns && c.columns[j + count - 1] - c.columns[j] != count - 1;
    const Vec<T> column_bias = c.column_bias ? load_partial(c.column_bias + j, count) : Vec<T>{};
    T* first = c.data + (c.columns ? c.columns[j] : j);
    for (int i = 0; i < rows; ++i) {
      T* y = first + c.row(i);
      const Vec<T> sum = load(tile + i * NR + j);
      const Vec<T> bias = column_bias + (c.row_bias ? c.row_bias[i] : T(0));
      if (!scattered) {
        store_partial(y, (c.accumulate ? load_partial(y, count) : bias) + sum, count);
        continue;
      }
      for (int64_t l = 0; l < count; ++l) {
        T& element = y[c.columns[j + l] - c.columns[j]];
        element = (c.accumulate ? element : bias[l]) + sum[l];
      }
    }
  }
}

/// The micro-kernel: a tile of `rows` x (nv vectors), of which n columns exist; sums restart every `run` terms.
template <class T, int rows, int nv, bool rows_contiguous>
void tile(int64_t K, int64_t run, const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t n,
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
  Vec<T> sum[rows][nv] = {};
  alignas(64) T earlier[rows][NR];  // the sum of earlier runs
  for (int64_t begin = 0;; begin += run) {
    const int64_t end = begin + run < K ? begin + run : K;
#pragma GCC unroll 4
    for (int64_t k = begin; k < end; ++k) {
      Vec<T> bk[nv];
#pragma GCC unroll 2
      for (int v = 0; v < nv; ++v) bk[v] = load(b + v * L);
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
        for (int v = 0; v < nv; ++v) sum[i][v] += bk[v] * a[i * row];
      }
      a += step;
      b += b_stride;
    }
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
  const bool whole = n == nv * L && !c.column_bias && (!c.columns || c.columns[n - 1] - c.columns[0] == n - 1);
  if (!whole) {
    T out[rows][NR];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < nv; ++v) store(&out[i][v * L], sum[i][v]);
    }
    return store_tile(c, rows, n, &out[0][0]);
  }
  // Flags are read once: the compiler must assume that stores change them.
  if (c.accumulate) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < nv; ++v) sum[i][v] += load(first + c.row(i) + v * L);
    }
  } else if (c.row_bias) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < nv; ++v) sum[i][v] += c.row_bias[i];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
    T* const y = first + c.row(i);
#pragma GCC unroll 2
    for (int v = 0; v < nv; ++v) store(y + v * L, sum[i][v]);
  }
}

template <class T>
using TileFunction = void (*)(int64_t, int64_t, const T*, int64_t, const T*, int64_t, int64_t, const CView<T>&);

/// tile<> for 1 .. MR rows, so that a ragged last group of rows costs no wasted work.
template <class T, int nv, bool rows_contiguous, class Rows = std::make_integer_sequence<int, Block<T>::MR>>
struct Tiles;
template <class T, int nv, bool rows_contiguous, int... i>
struct Tiles<T, nv, rows_contiguous, std::integer_sequence<int, i...>> {
  static constexpr TileFunction<T> by_rows[] = {tile<T, i + 1, nv, rows_contiguous>...};
};

template <class T>
const TileFunction<T>* tiles(bool one_vector, bool rows_contiguous) {
  constexpr int NV = Block<T>::NV;
  if (one_vector) return rows_contiguous ? Tiles<T, 1, true>::by_rows : Tiles<T, 1, false>::by_rows;
  return rows_contiguous ? Tiles<T, NV, true>::by_rows : Tiles<T, NV, false>::by_rows;
}

}  // namespace

template <class T>
void multiply_block(int64_t M, int64_t N, int64_t K, const AView<T>& a, const T* b, int64_t panel_stride,
                    int64_t b_stride, const CView<T>& c, int64_t run) {
  constexpr int NR = Block<T>::NR;
  // Groups of rows as even as can be: a last one of few rows would keep few sums in flight.
  const int64_t most = ceil_div(M, ceil_div(M, Block<T>::MR));
  for (int64_t j = 0; j < N; j += NR, b += panel_stride) {
    const int64_t n = N - j < NR ? N - j : NR;
    const TileFunction<T>* by_rows = tiles<T>(n <= kLanes<T>, a.rows_contiguous);
    for (int64_t i = 0; i < M; i += most) {
      const int64_t rows = M - i < most ? M - i : most;
      by_rows[rows - 1](K, run, a.from_row(i).data, a.stride, b, b_stride, n, c.from(i, j));
    }
  }
}

template void multiply_block(int64_t, int64_t, int64_t, const AView<float>&, const float*, int64_t, int64_t,
                             const CView<float>&, int64_t);
template void multiply_block(int64_t, int64_t, int64_t, const AView<double>&, const double*, int64_t, int64_t,
                             const CView<double>&, int64_t);

}  // namespace dlk::cpu::DLK_ISA
