// The micro-kernel of gemm_kernel.h and the loop over tiles around it.
#include "csrc/cpu/gemm_kernel.h"

#include <cassert>

namespace dlk::cpu::DLK_ISA {
namespace {

/// Adds a tile, of rows `stride` apart, to rows of n adjacent columns of C, of one to two vectors: the second ends
/// where they do, and what the two have in common is stored twice.
template <class T>
DLK_INLINE void store_adjacent(const CView<T>& c, int rows, int64_t n, const T* tile, int64_t stride) {
  const int64_t at[] = {0, n - kLanes<T>};
  for (int i = 0; i < rows; ++i) {
    T* const y = c.data + (c.rows ? c.rows[i] : i * c.row_stride);
    Vec<T> sum[2];
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      sum[v] = load(tile + i * stride + at[v]);
      if (c.accumulate)
        sum[v] += load(y + at[v]);
      else if (c.row_bias)
        sum[v] += c.row_bias[i];
      else if (c.column_bias)
        sum[v] += load(c.column_bias + at[v]);
    }
    store(y, sum[0]);
    store(y + at[1], sum[1]);
  }
}

/// Adds a tile, of rows `stride` apart, to rows x n of C wherever that lies. Runs of columns are still stored as
/// vectors.
template <class T>
__attribute__((noinline)) void store_tile(const CView<T>& c, int rows, int64_t n, const T* tile, int64_t stride) {
  if (c.column_stride != 1) {
    assert(c.row_stride == 1 && !c.accumulate && !c.row_bias && !c.column_bias);
    return store_transposed(tile, stride, rows, n, c.data, c.column_stride);
  }
  constexpr int L = kLanes<T>;
  if (!c.columns && L <= n && n <= 2 * L) return store_adjacent(c, rows, n, tile, stride);
  const auto column = [&](int64_t j) { return c.columns ? c.columns[j] : j; };
  for (int64_t j = 0; j < n; j += L) {
    const int64_t count = n - j < L ? n - j : L;
    const bool scattered = column(j + count - 1) - column(j) != count - 1;
    const Vec<T> column_bias = c.column_bias ? load_partial(c.column_bias + j, count) : Vec<T>{};
    for (int i = 0; i < rows; ++i) {
      T* const y = c.data + (c.rows ? c.rows[i] : i * c.row_stride) + column(j);
      const Vec<T> sum = load(tile + i * stride + j), bias = c.row_bias ? splat(c.row_bias[i]) : column_bias;
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

/// f(row i, it) for `rows` rows from `first` on, `stride` apart. The compiler may not derive their addresses from each
/// other, or keep them for later: there are no registers for that.
template <int rows, class T, class F>
DLK_INLINE void for_each_row(T* first, int64_t stride, F f) {
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i, first += stride) {
    asm volatile("" : "+r"(first));
    f(i, first);
  }
}

/// Adds a tile in registers to rows of `to`, `stride` apart, its vectors at `at`; where not `accumulate`, to the biases
/// (null: 0), which are one per row or one per column.
template <class T, int rows, int nv>
DLK_INLINE void add_tile(Vec<T> (&sum)[rows][nv], T* to, int64_t stride, const int64_t (&at)[nv], bool accumulate,
                         const T* row_bias, const T* column_bias) {
  constexpr int L = kLanes<T>;
  if (accumulate) {
    for_each_row<rows>(to, stride, [&](int i, const T* y) {
#pragma GCC unroll 8
      for (int v = 0; v < nv; ++v) sum[i][v] += load(y + at[v]);
    });
  } else if (row_bias) {
    for_each_row<rows>(row_bias, 1, [&](int i, const T* bias) {
#pragma GCC unroll 8
      for (int v = 0; v < nv; ++v) sum[i][v] += *bias;
    });
  } else if (column_bias) {
    Vec<T> bias[nv];
#pragma GCC unroll 8
    for (int v = 0; v < nv; ++v) bias[v] = load(column_bias + v * L);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < nv; ++v) sum[i][v] += bias[v];
    }
  }
  for_each_row<rows>(to, stride, [&](int i, T* y) {
#pragma GCC unroll 8
    for (int v = 0; v < nv; ++v) store(y + at[v], sum[i][v]);
  });
}

/// Where the next term lies: in A, one element further (rows contiguous) or `a_stride` (columns contiguous, and groups
/// of pack_groups, where it is their rows), either of them within stretches or not; in B, NR elements further (a packed
/// panel), `b_stride`, or at offsets[k].
enum class AWalk { rows, columns, rows_by_stretches, columns_by_stretches };
enum class BWalk { packed, strided, table };
constexpr bool by_rows(AWalk walk) { return walk == AWalk::rows || walk == AWalk::rows_by_stretches; }
constexpr bool by_stretches(AWalk walk) { return walk >= AWalk::rows_by_stretches; }

template <class T>
struct Terms {
  int64_t K, run;                    // sums restart every `run` terms
  int64_t a_stride, a_row_step = 0;  // from term to term, where not 1; from row to row (AView::row_step)
  int64_t b_stride = 0, panel_stride = 0;
  const Stretch* stretches = nullptr;  // of A
  const int64_t* offsets = nullptr;    // of rows of B
  const int64_t* positions = nullptr;  // of its vectors
  Ahead<T> ahead = {};                 // what to prefetch meanwhile, during the first group of rows
  int64_t ahead_next = 0;              // elements from there to what the next group prefetches
  bool a_ahead = false;                // that is the rows of A after these, else rows of B
  int64_t ahead_period = 0;            // steps from one prefetch to the next; 0: none
};

/// Terms by which a strided B is fetched into L1 before its use, far enough for L2 to answer (15 cycles): products take
/// up to 12 % longer without. Rows of a packed B the hardware fetches, and the instruction would cost 5 %.
constexpr int64_t kTermsAhead = 12;
/// Terms of a step of the micro-kernel, between which it may prefetch: a prefetch per term would cost as many
/// instructions as the loads.
constexpr int kStep = 4;

template <class T>
constexpr int64_t kLine = 64 / sizeof(T);  // elements of a cache line

/// Lines of C that a tile asks for at once: a core waits for 16 at most, and more would hold up the loads of the first
/// terms.
constexpr int kLinesAtOnce = 16;

/// What a tile prefetches between steps: the rows of C that it did not ask for at once, then every `ahead_period` steps
/// a row of B ahead, or a line of each of the next rows of A.
template <class T, int rows, int nv>
class Prefetches {
 public:
  /// From `ahead` on; for the first tile of its rows or another. Rows of C are `c_stride` apart, their vectors at `at`.
  DLK_INLINE Prefetches(const Terms<T>& terms, const T* ahead, bool first, const T* c, int64_t c_stride,
                        const int64_t (&at)[nv])
      : terms_(terms),
        ahead_(ahead),
        period_(first || !terms.a_ahead ? terms.ahead_period : 0),
        wait_(kLater > 0 ? 2 : period_),
        c_(c),
        c_stride_(c_stride) {
#pragma GCC unroll 8
    for (int v = 0; v < nv; ++v) at_[v] = at[v];
    fetch_c<kAtOnce>();
  }

  DLK_INLINE void step() {
    if (--wait_ == 0) [[unlikely]]
      fetch();
  }

 private:
  static constexpr int kRows = kLinesAtOnce * 64 / (nv * kVecBytes), kAtOnce = rows < kRows ? rows : kRows;
  static constexpr int kLater = rows - kAtOnce;

  /// The next `count` rows of C.
  template <int count>
  DLK_INLINE void fetch_c() {
#pragma GCC unroll 16
    for (int i = 0; i < count; ++i, c_ += c_stride_) {
#pragma GCC unroll 8
      for (int v = 0; v < nv; ++v) __builtin_prefetch(c_ + at_[v], /*write=*/1);
      asm volatile("" : "+r"(c_));  // as in for_each_row
    }
  }
  DLK_INLINE void fetch() {
    wait_ = period_;
    if (kLater > 0 && c_ != nullptr) {
      fetch_c<kLater>();
      c_ = nullptr;
    } else if (terms_.a_ahead) {
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) __builtin_prefetch(ahead_ + i * terms_.ahead.stride, /*write=*/0, /*L2*/ 2);
      ahead_ += kLine<T>;
    } else {
      // By the last element of a line: where rows begin within one, the panel before has fetched that.
      constexpr int64_t kRow = nv * kLanes<T>, kStride = kRow < kLine<T> ? kRow : kLine<T>;
#pragma GCC unroll 8
      for (int64_t end = kStride; end <= kRow; end += kStride)
        __builtin_prefetch(ahead_ + end - 1, /*write=*/0, /*L2*/ 2);
      ahead_ += terms_.ahead.stride;
    }
  }

  const Terms<T>& terms_;
  const T* ahead_;
  int64_t period_, wait_;  // steps; 0: for ever
  const T* c_;
  int64_t c_stride_, at_[nv];
};

/// The terms of one run after the other, as a tile multiplies them.
template <class T, int rows, int nv, AWalk a_walk, BWalk b_walk>
class Walk {
 public:
  DLK_INLINE Walk(const Terms<T>& terms, const T* a, const T* b, const Prefetches<T, rows, nv>& prefetches)
      : a_(a),
        b_(b),
        a_stride_(terms.a_stride),
        b_stride_(terms.b_stride),
        next_(terms.stretches),
        offsets_(terms.offsets),
        prefetches_(prefetches) {
    for (int v = 0; v < nv && b_walk == BWalk::table; ++v) scattered_[v] = b + terms.positions[v];
    if (!by_stretches(a_walk)) set_rows(a);
  }

  /// sum = the next K terms.
  DLK_INLINE void multiply(int64_t K, Vec<T> (&sum)[rows][nv]) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < nv; ++v) sum[i][v] = Vec<T>{};
    }
    if constexpr (!by_stretches(a_walk)) return add_terms(K, sum);
    while (K > 0) {
      if (left_ == 0) {
        set_rows(a_ + next_->offset);
        left_ = next_++->terms;
      }
      const int64_t count = K < left_ ? K : left_;
      add_terms(count, sum);
      K -= count, left_ -= count;
    }
  }

 private:
  static constexpr int L = kLanes<T>;
  /// A pointer for each kReach rows, which the compiler may not derive from each other: one offset per row would take
  /// more registers than there are.
  static constexpr int kReach = 5, kPointers = (rows + kReach - 1) / kReach;

  DLK_INLINE int64_t row() const { return by_rows(a_walk) ? a_stride_ : 1; }
  DLK_INLINE int64_t term() const { return by_rows(a_walk) ? 1 : a_stride_; }

  DLK_INLINE void set_rows(const T* a) {
#pragma GCC unroll 4
    for (int q = 0; q < kPointers; ++q) {
      pa_[q] = a + q * kReach * row();
      asm("" : "+r"(pa_[q]));
    }
  }

  DLK_INLINE void add_terms(int64_t count, Vec<T> (&sum)[rows][nv]) {
    for (; count >= kStep; count -= kStep) {
      static_assert(kStep == 4);
      prefetches_.step();
      add_term(sum), add_term(sum), add_term(sum), add_term(sum);
      asm volatile("" : "+r"(count));  // else the end of all pointers is computed from it
    }
    for (; count > 0; --count) add_term(sum);
  }

  DLK_INLINE void add_term(Vec<T> (&sum)[rows][nv]) {
    Vec<T> bk[nv];
#pragma GCC unroll 8
    for (int v = 0; v < nv; ++v) bk[v] = load(b_walk == BWalk::table ? scattered_[v] + *offsets_ : b_ + v * L);
    if constexpr (b_walk == BWalk::strided) {
#pragma GCC unroll 8
      for (int at = 0; at < nv * L; at += 64 / sizeof(T)) __builtin_prefetch(b_ + kTermsAhead * b_stride_ + at);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const T* const a = pa_[i / kReach] + i % kReach * row();
      if constexpr (nv == 1) {
        add_product<T>(sum[i][0], bk[0], a);
      } else {
        const Vec<T> ak = splat(*a);
#pragma GCC unroll 8
        for (int v = 0; v < nv; ++v) add_product<T>(sum[i][v], bk[v], ak);
      }
    }
#pragma GCC unroll 4
    for (int q = 0; q < kPointers; ++q) pa_[q] += term();
    if constexpr (b_walk == BWalk::table)
      ++offsets_;
    else
      b_ += b_walk == BWalk::packed ? Block<T>::NR : b_stride_;
  }

  const T *a_, *b_;
  int64_t a_stride_, b_stride_;
  const Stretch* next_;
  int64_t left_ = 0;  // terms of the stretch
  const int64_t* offsets_;
  Prefetches<T, rows, nv> prefetches_;
  const T* pa_[kPointers];
  const T* scattered_[nv];
};

/// The micro-kernel: a tile of `rows` x (nv vectors), from row m and column j of c on, of which n columns exist. The
/// sum of earlier runs is kept in a buffer, as is the tile itself where its elements have no common place in C, or not
/// all exist.
template <class T, int rows, int nv, AWalk a_walk, BWalk b_walk>
DLK_INLINE void tile(const Terms<T>& terms, const T* ahead, const T* a, const T* b, const CView<T>& c, int64_t m,
                     int64_t j, int64_t n) {
  constexpr int L = kLanes<T>;
  alignas(64) T buffer[rows][nv * L];
  const bool direct =
      b_walk == BWalk::table || (n >= nv * L && c.column_stride == 1 && !c.rows &&
                                 (!c.columns || c.columns[j + nv * L - 1] - c.columns[j] == nv * L - 1));
  T* const row = c.data + m * c.row_stride;
  T* const to = !direct ? buffer[0] : b_walk == BWalk::table ? row : row + (c.columns ? c.columns[j] : j);
  int64_t at[nv];
#pragma GCC unroll 8
  for (int v = 0; v < nv; ++v) at[v] = b_walk == BWalk::table ? c.columns[v] : v * L;
  const int64_t stride = direct ? c.row_stride : nv * L;
  const T* const row_bias = direct && c.row_bias ? c.row_bias + m : nullptr;
  const T* const column_bias = direct && c.column_bias ? c.column_bias + j : nullptr;
  // C is needed at the end, and by then must not be waited for.
  Walk<T, rows, nv, a_walk, b_walk> walk(terms, a, b, Prefetches<T, rows, nv>(terms, ahead, j == 0, to, stride, at));
  Vec<T> sum[rows][nv];
  for (int64_t left = terms.K;;) {
    walk.multiply(left < terms.run ? left : terms.run, sum);
    T* earlier = buffer[0];
    asm("" : "+r"(earlier));  // one register, from which all of the buffer is addressed
    if (left < terms.K) {
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < nv; ++v) sum[i][v] += load(earlier + (i * nv + v) * L);
      }
    }
    left -= terms.run;
    if (left <= 0) break;
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < nv; ++v) store(earlier + (i * nv + v) * L, sum[i][v]);
    }
  }
  add_tile<T>(sum, to, stride, at, direct && c.accumulate, row_bias, column_bias);
  if (!direct) store_tile(c.from(m, j), rows, n < nv * L ? n : nv * L, buffer[0], nv * L);
}

/// `groups` groups of rows by n columns. A group passes one panel after the other.
template <class T, int rows, int nv, AWalk a_walk, BWalk b_walk>
void grid_of_tiles(const Terms<T>& terms, int64_t groups, const T* a, const T* b, const CView<T>& c, int64_t n) {
  constexpr int64_t columns = nv * kLanes<T>;
  const T* ahead = terms.ahead.data;
  for (int64_t m = 0; m < groups * rows; m += rows) {
    const T* panel = b;
    for (int64_t j = 0; j < n; j += columns, panel += terms.panel_stride)
      tile<T, rows, nv, a_walk, b_walk>(terms, ahead, a, panel, c, m, j, n - j);
    a += rows * terms.a_row_step;
    ahead += terms.ahead_next;
  }
}

template <class T>
using TileFunction = void (*)(const Terms<T>&, int64_t, const T*, const T*, const CView<T>&, int64_t);

/// grid_of_tiles<> for 1 .. MR rows, or as many as there are registers for, so that a group of fewer costs no wasted
/// work. Where sums are one vector wide, twice MR if that is few: MR of them would wait for each other, and there are
/// registers for 12 of them.
template <class T, int nv>
constexpr int kMostRows = nv > Block<T>::NV                   ? Block<T>::MR * Block<T>::NV / nv
                          : nv == 1 && 2 * Block<T>::MR <= 12 ? 2 * Block<T>::MR
                                                              : Block<T>::MR;
template <class T, int nv, AWalk a_walk, BWalk b_walk, class = std::make_integer_sequence<int, kMostRows<T, nv>>>
struct Tiles;
template <class T, int nv, AWalk a_walk, BWalk b_walk, int... i>
struct Tiles<T, nv, a_walk, b_walk, std::integer_sequence<int, i...>> {
  static constexpr TileFunction<T> functions[] = {grid_of_tiles<T, i + 1, nv, a_walk, b_walk>...};
};

/// By the number of rows less one, for n columns.
template <class T, AWalk a_walk, BWalk b_walk>
const TileFunction<T>* tiles(int64_t n) {
  if (n <= kLanes<T>) return Tiles<T, 1, a_walk, b_walk>::functions;
  return Tiles<T, Block<T>::NV, a_walk, b_walk>::functions;
}

template <class T>
const TileFunction<T>* tiles(const AView<T>& a, int64_t b_stride, int64_t n) {
  if (a.stretches) {
    assert(b_stride == Block<T>::NR);
    return a.rows_contiguous ? tiles<T, AWalk::rows_by_stretches, BWalk::packed>(n)
                             : tiles<T, AWalk::columns_by_stretches, BWalk::packed>(n);
  }
  if (b_stride == Block<T>::NR)
    return a.rows_contiguous ? tiles<T, AWalk::rows, BWalk::packed>(n) : tiles<T, AWalk::columns, BWalk::packed>(n);
  return a.rows_contiguous ? tiles<T, AWalk::rows, BWalk::strided>(n) : tiles<T, AWalk::columns, BWalk::strided>(n);
}

}  // namespace

template <class T>
void multiply_block(int64_t M, int64_t N, int64_t K, const AView<T>& a, const T* b, int64_t panel_stride,
                    int64_t b_stride, const CView<T>& c, int64_t run, Ahead<T> ahead) {
  constexpr int64_t NR = Block<T>::NR;
  assert(M > 0 && K > 0 && run > 0);
  Terms<T> terms{.K = K,
                 .run = run,
                 .a_stride = a.stride,
                 .a_row_step = a.row_step(),
                 .b_stride = b_stride,
                 .panel_stride = panel_stride,
                 .stretches = a.stretches,
                 .a_ahead = a.from_far,
                 .ahead_period = a.from_far ? kLine<T> / kStep : 0};
  // Each group of rows prefetches its share of the rows of B ahead, about evenly over its own steps, one a step at
  // most.
  const int64_t share = ceil_div(K, ceil_div(M, Block<T>::MR));
  const int64_t period = K > kStep * share ? K / kStep / share : 1;
  const int64_t near = panels_at_once<T>(K) * NR;
  for (int64_t begin = 0; begin < N; begin += near) {
    const int64_t end = begin + near < N ? begin + near : N;
    // A last panel that fills no more than a vector takes tiles of its own, after the others.
    const int64_t last = (end - begin) % NR, narrow = last <= kLanes<T> ? last : 0, wide = end - begin - narrow;
    const T* const panels = b + begin / NR * panel_stride;
    // Of panels that L1 holds one of, the next is fetched meanwhile.
    const Ahead<T> next = near == NR && end < N ? Ahead<T>{panels + panel_stride, b_stride} : ahead;
    if (!a.from_far) terms.ahead = next, terms.ahead_period = next.data ? period : 0;
    const auto multiply = [&](int64_t first, int64_t n, int64_t most_rows) {
      const TileFunction<T>* const functions = tiles(a, b_stride, n);
      for_each_size(M, most_rows, [&](int64_t i, int64_t groups, int64_t rows) {
        if (a.depth > 0) terms.a_stride = rows;
        terms.ahead_next = a.from_far ? rows * a.stride : share * next.stride;
        if (a.from_far) terms.ahead = {a.from_row(i + rows).data, a.stride};
        functions[rows - 1](terms, groups, a.from_row(i).data, panels + first / NR * panel_stride,
                            c.from(i, begin + first), n);
        if (!a.from_far) terms.ahead.data += groups * terms.ahead_next;
      });
    };
    if (wide > 0) multiply(0, wide, Block<T>::MR);
    if (narrow > 0) multiply(wide, narrow, a.depth > 0 ? Block<T>::MR : kMostRows<T, 1>);
  }
}

template <class T>
void multiply_scattered(int64_t M, int64_t vectors, int64_t K, const AView<T>& a, const T* b, const int64_t* offsets,
                        const int64_t* positions, const CView<T>& c, int64_t run) {
  static constexpr const TileFunction<T>* functions[] = {Tiles<T, 2, AWalk::rows, BWalk::table>::functions,
                                                         Tiles<T, 4, AWalk::rows, BWalk::table>::functions,
                                                         Tiles<T, 8, AWalk::rows, BWalk::table>::functions};
  const int64_t most = scattered_vectors<T>(M);
  assert(M <= Block<T>::MR && vectors <= most);
  assert(c.columns && !c.rows && c.column_stride == 1 && !c.accumulate && !c.column_bias);
  int64_t all_positions[kMostScattered], all_columns[kMostScattered];  // those a tile has too many are its first again
  for (int64_t v = 0; v < most; ++v) {
    all_positions[v] = positions[v < vectors ? v : 0];
    all_columns[v] = c.columns[v < vectors ? v : 0];
  }
  const Terms<T> terms{.K = K, .run = run, .a_stride = a.stride, .offsets = offsets, .positions = all_positions};
  CView<T> all = c;
  all.columns = all_columns;
  functions[most / 4][M - 1](terms, /*groups=*/1, a.data, b, all, /*one tile=*/1);
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
