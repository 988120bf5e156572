// The micro-kernel of gemm_kernel.h and the loop over tiles around it.
#include "csrc/cpu/gemm_kernel.h"

#include <cassert>

namespace dlk::cpu::DLK_ISA {
namespace {

/// Adds an accumulator tile (row stride NR) to rows x n of C where rows or columns lie by a table: runs of columns are
/// still stored as vectors.
template <class T>
__attribute__((noinline)) void store_tile(const CView<T>& c, int rows, int64_t n, const T* tile) {
  constexpr int L = kLanes<T>, NR = Block<T>::NR;
  const auto column = [&](int64_t j) { return c.columns ? c.columns[j] : j; };
  for (int64_t j = 0; j < n; j += L) {
    const int64_t count = n - j < L ? n - j : L;
    const bool scattered = column(j + count - 1) - column(j) != count - 1;
    const Vec<T> column_bias = c.column_bias ? load_partial(c.column_bias + j, count) : Vec<T>{};
    for (int i = 0; i < rows; ++i) {
      T* const y = c.data + (c.rows ? c.rows[i] : i * c.row_stride) + column(j);
      const Vec<T> sum = load(tile + i * NR + j), bias = c.row_bias ? splat(c.row_bias[i]) : column_bias;
      if (!scattered) {
        store_partial(y, (c.accumulate ? load_partial(y, count) : bias) + sum, count);
        continue;
      }
      for (int64_t l = 0; l < count; ++l) {
        T& element = y[column(j + l) - column(j)];
        element = (c.accumulate ? element : bias[l]) + sum[l];
      }
    }
  }
}

/// Adds a tile in registers to n contiguous columns of C from `first` on, rows row_stride apart.
template <class T, int rows, int nv, bool whole>
DLK_INLINE void add_tile(const CView<T>& c, T* first, int64_t n, Vec<T> (&sum)[rows][nv]) {
  constexpr int L = kLanes<T>;
  int64_t count[nv];
  for (int v = 0; v < nv; ++v) count[v] = n - v * L < 0 ? 0 : n - v * L < L ? n - v * L : L;
  const int64_t row_stride = c.row_stride;  // read once: the compiler must assume that stores change it
  if (c.accumulate) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const T* const y = first + i * row_stride;
#pragma GCC unroll 8
      for (int v = 0; v < nv; ++v) sum[i][v] += whole ? load(y + v * L) : load_partial(y + v * L, count[v]);
    }
  } else if (c.row_bias) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < nv; ++v) sum[i][v] += c.row_bias[i];
    }
  } else if (c.column_bias) {
    Vec<T> bias[nv];
    for (int v = 0; v < nv; ++v)
      bias[v] = whole ? load(c.column_bias + v * L) : load_partial(c.column_bias + v * L, count[v]);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < nv; ++v) sum[i][v] += bias[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
    T* const y = first + i * row_stride;
#pragma GCC unroll 8
    for (int v = 0; v < nv; ++v) whole ? store(y + v * L, sum[i][v]) : store_partial(y + v * L, sum[i][v], count[v]);
  }
}

/// Where the next term lies: in A, one element further (rows contiguous) or `a_stride`; in B, NR elements further (a
/// packed panel), `b_stride`, or at offsets[k].
enum class AWalk { rows, columns };
enum class BWalk { packed, strided, table };

template <class T>
struct Terms {
  int64_t a_stride, b_stride;
  const Stretch* stretches;            // of A
  const int64_t* offsets = nullptr;    // of rows of B
  const int64_t* positions = nullptr;  // of its vectors
  Ahead<T> ahead = {};                 // what to prefetch meanwhile
  int64_t ahead_period = 0;            // steps from one row of it to the next
};

/// Terms by which a strided B is fetched into L1 before its use, far enough for L2 to answer (15 cycles): products take
/// up to 12 % longer without. Rows of a packed B the hardware fetches, and the instruction would cost 5 %.
constexpr int64_t kTermsAhead = 12;
/// Terms of a step of the micro-kernel, between which it may prefetch: a prefetch per term would cost as many
/// instructions as the loads. Also the rows of C that a step prefetches.
constexpr int kStep = 4;

/// What a tile prefetches, a little per step, since a core waits for 16 lines at most, and more would stall the loads
/// of the terms: its rows of C, which are needed only at the end and by then must not be waited for, then rows ahead.
/// A step that has none to fetch costs one instruction.
template <class T, int vectors>
struct Prefetches {
  const T* c;
  int64_t c_stride, c_left;
  const T* ahead;
  int64_t ahead_stride, period;
  int64_t wait = 1;  // steps

  DLK_INLINE void step() {
    if (--wait == 0) [[unlikely]]
      fetch();
  }

 private:
  template <int write, int level>
  static DLK_INLINE void fetch_row(const T* row) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) __builtin_prefetch(row + v * kLanes<T>, write, level);
  }
  DLK_INLINE void fetch() {
    wait = 1;
    if (c_left > 0) {
#pragma GCC unroll 4
      for (int i = 0; i < kStep; ++i, c += c_stride) fetch_row</*write=*/1, /*L1*/ 3>(c);
      c_left -= kStep;
    } else if (ahead != nullptr) {
      fetch_row</*write=*/0, /*L2*/ 2>(ahead);
      ahead += ahead_stride;
      wait = period;
    } else {
      wait = INT64_MAX;
    }
  }
};

/// The micro-kernel: a tile of `rows` x (nv vectors), of which n columns exist; sums restart every `run` terms.
template <class T, int rows, int nv, AWalk a_walk, BWalk b_walk>
void tile(int64_t K, int64_t run, const T* a, const T* b, const Terms<T>& terms, int64_t n, const CView<T>& c) {
  constexpr int L = kLanes<T>;
  const int64_t row = a_walk == AWalk::rows ? terms.a_stride : 1, term = a_walk == AWalk::rows ? 1 : terms.a_stride;
  const int64_t b_stride = b_walk == BWalk::packed ? Block<T>::NR : terms.b_stride;
  T* const first = c.data + (c.columns ? c.columns[0] : 0);
  const bool in_rows = c.column_stride == 1 && !c.rows && (!c.columns || c.columns[n - 1] - c.columns[0] == n - 1);
  Prefetches<T, nv> prefetches{
      first, c.row_stride, in_rows ? rows : 0, terms.ahead.data, terms.ahead.stride, terms.ahead_period};
  Vec<T> sum[rows][nv] = {};
  alignas(64) T earlier[rows][nv * L];  // the sum of earlier runs
  // A pointer for each kReach rows, which the compiler may not derive from each other: one offset per row would take
  // more registers than there are.
  constexpr int kReach = 5, kPointers = (rows + kReach - 1) / kReach;
  const T* pa[kPointers];
  const int64_t* offsets = terms.offsets;
  const T* scattered[nv];
  for (int v = 0; v < nv && b_walk == BWalk::table; ++v) scattered[v] = b + terms.positions[v];
  const auto add_term = [&]() __attribute__((always_inline)) {
    Vec<T> bk[nv];
#pragma GCC unroll 8
    for (int v = 0; v < nv; ++v) bk[v] = load(b_walk == BWalk::table ? scattered[v] + *offsets : b + v * L);
    if constexpr (b_walk == BWalk::strided) {
#pragma GCC unroll 8
      for (int at = 0; at < nv * L; at += 64 / sizeof(T)) __builtin_prefetch(b + kTermsAhead * b_stride + at);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const Vec<T> ak = splat(pa[i / kReach][i % kReach * row]);
#pragma GCC unroll 8
      for (int v = 0; v < nv; ++v) add_product<T>(sum[i][v], bk[v], ak);
    }
#pragma GCC unroll 4
    for (int q = 0; q < kPointers; ++q) pa[q] += term;
    b_walk == BWalk::table ? (void)++offsets : (void)(b += b_stride);
  };
  const Stretch* stretch = terms.stretches;
  int64_t left = 0;  // terms of the stretch
  for (int64_t k = 0, end = 0;;) {
    end = end + run < K ? end + run : K;
    while (k < end) {
      if (left == 0) {
        left = stretch->terms;
#pragma GCC unroll 4
        for (int q = 0; q < kPointers; ++q) {
          pa[q] = a + stretch->offset + q * kReach * row;
          asm("" : "+r"(pa[q]));
        }
        ++stretch;
      }
      int64_t count = end - k < left ? end - k : left;
      k += count, left -= count;
      for (; count >= kStep; count -= kStep) {
        static_assert(kStep == 4);
        prefetches.step();
        add_term(), add_term(), add_term(), add_term();
      }
      for (; count > 0; --count) add_term();
    }
    if (end > run) {
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < nv; ++v) sum[i][v] += load(&earlier[i][v * L]);
      }
    }
    if (end == K) break;
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < nv; ++v) store(&earlier[i][v * L], sum[i][v]), sum[i][v] = Vec<T>{};
    }
  }
  if (b_walk != BWalk::table && !in_rows) {
    T out[rows][Block<T>::NR];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < nv; ++v) store(&out[i][v * L], sum[i][v]);
    }
    if (c.column_stride == 1) return store_tile(c, rows, n, &out[0][0]);
    assert(c.row_stride == 1 && !c.accumulate && !c.row_bias && !c.column_bias);
    return store_transposed(&out[0][0], Block<T>::NR, rows, n, c.data, c.column_stride);
  }
  n == nv* L ? add_tile<T, rows, nv, true>(c, first, n, sum) : add_tile<T, rows, nv, false>(c, first, n, sum);
}

template <class T>
using TileFunction = void (*)(int64_t, int64_t, const T*, const T*, const Terms<T>&, int64_t, const CView<T>&);

/// tile<> for 1 .. MR rows, or as many as there are registers for, so that a ragged last group of rows costs no wasted
/// work.
template <class T, int nv>
constexpr int kMostRows = nv <= Block<T>::NV ? Block<T>::MR : Block<T>::MR * Block<T>::NV / nv;
template <class T, int nv, AWalk a_walk, BWalk b_walk, class = std::make_integer_sequence<int, kMostRows<T, nv>>>
struct Tiles;
template <class T, int nv, AWalk a_walk, BWalk b_walk, int... i>
struct Tiles<T, nv, a_walk, b_walk, std::integer_sequence<int, i...>> {
  static constexpr TileFunction<T> by_rows[] = {tile<T, i + 1, nv, a_walk, b_walk>...};
};

/// By the number of rows less one, for n columns.
template <class T, AWalk a_walk, BWalk b_walk>
const TileFunction<T>* tiles(int64_t n) {
  if (n <= kLanes<T>) return Tiles<T, 1, a_walk, b_walk>::by_rows;
  return Tiles<T, Block<T>::NV, a_walk, b_walk>::by_rows;
}

template <class T>
const TileFunction<T>* tiles(const AView<T>& a, int64_t b_stride, int64_t n) {
  if (b_stride == Block<T>::NR)
    return a.rows_contiguous ? tiles<T, AWalk::rows, BWalk::packed>(n) : tiles<T, AWalk::columns, BWalk::packed>(n);
  return a.rows_contiguous ? tiles<T, AWalk::rows, BWalk::strided>(n) : tiles<T, AWalk::columns, BWalk::strided>(n);
}

/// f(first, rows) for the groups of rows of A, as even as can be, since a last one of few rows would keep few sums in
/// flight.
template <class T, class F>
void for_each_group(int64_t M, F&& f) {
  const int64_t most = even_part(M, Block<T>::MR);
  for (int64_t i = 0; i < M; i += most) f(i, M - i < most ? M - i : most);
}

}  // namespace

template <class T>
void multiply_block(int64_t M, int64_t N, int64_t K, const AView<T>& a, const T* b, int64_t panel_stride,
                    int64_t b_stride, const CView<T>& c, int64_t run, Ahead<T> ahead) {
  constexpr int64_t NR = Block<T>::NR;
  const Stretch all{0, K};
  Terms<T> terms{a.stride, b_stride, a.stretches ? a.stretches : &all, nullptr, nullptr, ahead};
  // Each group of rows prefetches its share of the rows ahead, about evenly over its own steps, one a step at most.
  const int64_t share = ceil_div(K, ceil_div(M, Block<T>::MR));
  if (ahead.data) terms.ahead_period = K > kStep * share ? K / kStep / share : 1;
  const int64_t near = panels_at_once<T>(K) * NR;
  for (int64_t begin = 0; begin < N; begin += near) {
    const int64_t end = begin + near < N ? begin + near : N;
    for_each_group<T>(M, [&](int64_t i, int64_t rows) {
      const T* const a_rows = a.from_row(i).data;
      for (int64_t j = begin; j < end; j += NR) {
        const int64_t n = end - j < NR ? end - j : NR;
        tiles(a, b_stride, n)[rows - 1](K, run, a_rows, b + j / NR * panel_stride, terms, n, c.from(i, j));
      }
      if (ahead.data) terms.ahead.data += share * ahead.stride;
    });
  }
}

template <class T>
void multiply_scattered(int64_t M, int64_t vectors, int64_t K, const AView<T>& a, const T* b, const int64_t* offsets,
                        const int64_t* positions, const CView<T>& c, int64_t run) {
  static constexpr const TileFunction<T>* by_rows[] = {Tiles<T, 2, AWalk::rows, BWalk::table>::by_rows,
                                                       Tiles<T, 4, AWalk::rows, BWalk::table>::by_rows,
                                                       Tiles<T, 8, AWalk::rows, BWalk::table>::by_rows};
  const int64_t most = scattered_vectors<T>(M);
  assert(M <= Block<T>::MR && vectors <= most);
  int64_t all_positions[kMostScattered];  // a tile reads all of its vectors
  for (int64_t v = 0; v < most; ++v) all_positions[v] = positions[v < vectors ? v : 0];
  const Stretch all{0, K};
  by_rows[most / 4][M - 1](K, run, a.data, b, {a.stride, 0, &all, offsets, all_positions}, vectors * kLanes<T>, c);
}

template void multiply_scattered(int64_t, int64_t, int64_t, const AView<float>&, const float*, const int64_t*,
                                 const int64_t*, const CView<float>&, int64_t);
template void multiply_scattered(int64_t, int64_t, int64_t, const AView<double>&, const double*, const int64_t*,
                                 const int64_t*, const CView<double>&, int64_t);
template void multiply_block(int64_t, int64_t, int64_t, const AView<float>&, const float*, int64_t, int64_t,
                             const CView<float>&, int64_t, Ahead<float>);
template void multiply_block(int64_t, int64_t, int64_t, const AView<double>&, const double*, int64_t, int64_t,
                             const CView<double>&, int64_t, Ahead<double>);

}  // namespace dlk::cpu::DLK_ISA
