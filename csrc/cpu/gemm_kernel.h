// The register-blocked heart of matrix products and convolutions: C[M x N] (+)= A[M x K] B[K x N] for one block of K.
//
// Scheme (Goto & van de Geijn 2008; BLIS): B comes in panels of NR = NV vectors, A in groups of MR rows; a micro-kernel
// keeps an MR x NR tile of C in registers while it runs down K: per k it loads NV vectors of B, broadcasts MR elements
// of A and issues MR * NV FMAs. A is read where it lies if its rows or its columns are contiguous, so packing A only
// ever copies contiguous runs. B is packed where its columns are strided; transposing happens in registers.
//
// This file and gemm_kernel.cpp know the number of registers; simd.h knows their width; nothing else does.
#pragma once

#include <functional>

#include "csrc/cpu/parallel.h"
#include "csrc/cpu/simd.h"
#include "csrc/cpu/streaming.h"

// Not in an anonymous namespace, since several kernel files share multiply_block, but in one named after the
// instruction set, which keeps the levels apart just as well.
namespace dlk::cpu::DLK_ISA {

/// Block sizes. Registers: MR * NV accumulators + NV of B + 1 broadcast must fit in 16 (AVX2, SSE) or 32 (AVX-512,
/// NEON). KC: the B panel (KC x NR) and MR rows of A (MR x KC) together stay in a 32 KiB L1 (48 KiB with AVX-512). MC:
/// an MC x kDepth block of A takes about two fifths of a 512 KiB L2 (a third of the 2 MiB that go with AVX-512), which
/// it shares with panels of B.
template <class T>
struct Block {
  static constexpr int MR = kIsa == Isa::avx512 ? 14 : kIsa == Isa::baseline ? 4 : 6;
  static constexpr int NV = 2;
  static constexpr int NR = NV * kLanes<T>;
  static constexpr int64_t KC = 1024 / sizeof(T);
  static constexpr int64_t MC = (kIsa == Isa::avx512 ? 12 : 16) * MR;
  /// Terms that are multiplied between two passes over C. Each tile of C is loaded and stored once per block, from far
  /// away if C is large, but A's block and a panel of B must stay in L2: four times KC made products of 1024 and 2048
  /// 5 % faster than KC with 2 MiB of L2, and twice KC 8 % faster than either with 512 KiB.
  static constexpr int64_t kDepth = (kIsa == Isa::avx512 ? 4 : 2) * KC;
  /// Terms after which sums restart, which bounds their rounding error: with KC, the largest errors of products of 256
  /// terms exceeded twice those of PyTorch. Costs 1.5 % of the instructions.
  static constexpr int64_t kSum = KC / 2;
};

/// The i-th block of `size` of a range, or of n things; the last may be shorter.
constexpr Range block_range(int64_t i, int64_t size, Range of) {
  const int64_t begin = of.begin + i * size;
  return {begin, begin + size < of.end ? begin + size : of.end};
}
constexpr Range block_range(int64_t i, int64_t size, int64_t n) { return block_range(i, size, Range{0, n}); }

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/// Terms that lie side by side in A, from `offset` on.
struct Stretch {
  int64_t offset, terms;
};

/// A, by its layout: rows contiguous (element (i, k) at data[i * stride + k]), columns contiguous (i + k * stride), or
/// packed by pack_groups. If the terms come in stretches, k counts from the beginning of its own, and its offset is
/// added.
template <class T>
struct AView {
  const T* data;
  int64_t stride;
  bool rows_contiguous;
  const Stretch* stretches = nullptr;  // together K terms
  bool from_far = false;               // rows, contiguous, from beyond L2: each group prefetches the one after it
  int64_t depth = 0;                   // of pack_groups; `stride` then means nothing

  /// Elements from a row to the next (packed: from the first of a group to that of the next, by the rows of the group).
  DLK_INLINE int64_t row_step() const { return rows_contiguous ? stride : depth > 0 ? depth : 1; }
  DLK_INLINE AView from_row(int64_t i) const {
    AView view = *this;
    view.data += i * row_step();
    return view;
  }
};

/// Where a tile of C goes: element (i, j) at data[(rows ? rows[i] : i * row_stride) + (columns ? columns[j] : j *
/// column_stride)].
template <class T>
struct CView {
  T* data;
  int64_t row_stride;
  int64_t column_stride = 1;         // else C is transposed on its way: rows adjacent, and nothing of what follows
  const int64_t* rows = nullptr;     // offsets of the rows, where they have no common stride
  const int64_t* columns = nullptr;  // of the columns, where they are not all contiguous; of vectors, if scattered
  bool accumulate = false;           // add to what is there; else start from the biases (null: 0)
  const T* row_bias = nullptr;       // one of the two
  const T* column_bias = nullptr;    // not with `columns`

  DLK_INLINE CView from(int64_t i, int64_t j) const {
    CView view = *this;
    view.data += (rows ? 0 : i * row_stride) + (columns ? 0 : j * column_stride);
    if (rows) view.rows += i;
    if (columns) view.columns += j;
    if (row_bias) view.row_bias += i;
    if (column_bias) view.column_bias += j;
    return view;
  }
};

/// K rows of NR elements, `stride` apart, that the next call will ask for, to be prefetched by this one; null: none.
template <class T>
struct Ahead {
  const T* data = nullptr;
  int64_t stride = 0;
};

/// Elements of panels that stay in L1 together: half of it. (40 KiB with AVX2 on Zen 3 gained nothing with 16 to 64
/// terms, and with 147 took 1.3 times as long.)
template <class T>
constexpr int64_t kNearElements = (kIsa == Isa::avx512 ? 24 << 10 : 16 << 10) / sizeof(T);

/// Panels of K terms that are near enough, or one. A group of rows passes them all before the next one comes, which
/// writes C in longer runs: with few terms that takes longest, and the hardware only looks ahead in runs.
template <class T>
constexpr int64_t panels_at_once(int64_t K) {
  const int64_t panels = kNearElements<T> / (K * Block<T>::NR);
  return panels > 1 ? panels : 1;
}

/// One K block over all of C's tiles. `b` holds K x N in panels of NR columns: panel p at b + p * panel_stride, its row
/// k at k * b_stride (packed: panel_stride = K * NR, b_stride = NR; in place: NR and the row stride of B). Whole
/// vectors of a panel are readable. Sums restart every `run` terms, which bounds their rounding error, and are added in
/// order. Defined in gemm_kernel.cpp for float and double.
template <class T>
void multiply_block(int64_t M, int64_t N, int64_t K, const AView<T>& a, const T* b, int64_t panel_stride,
                    int64_t b_stride, const CView<T>& c, int64_t run = Block<T>::kSum, Ahead<T> ahead = {});

/// Vectors of C that a tile of `rows` rows takes where B is scattered: the fewer rows, the more vectors it takes to
/// keep the units busy, and the more products there are to a broadcast.
template <class T>
constexpr int64_t scattered_vectors(int64_t rows) {
  return rows == 1 ? 8 : 4 * rows <= Block<T>::MR * Block<T>::NV ? 4 : 2;
}
constexpr int64_t kMostScattered = 8;

/// One tile of M <= MR rows and `vectors` <= scattered_vectors(M) vectors of columns: row k of vector v lies at b +
/// positions[v] + offsets[k], and the vector goes to columns c.columns[v] and on. Rows of A are contiguous. Nothing is
/// accumulated. Vectors may overlap in C, which gets the same sums from either.
template <class T>
void multiply_scattered(int64_t M, int64_t vectors, int64_t K, const AView<T>& a, const T* b, const int64_t* offsets,
                        const int64_t* positions, const CView<T>& c, int64_t run);

/// Row stride of a packed block of A with contiguous rows: an odd number of cache lines, so that the MR rows that a
/// tile reads at once fall into different cache sets.
template <class T>
constexpr int64_t packed_row_stride(int64_t K) {
  constexpr int64_t line = 64 / sizeof(T);
  return (ceil_div(K, line) | 1) * line;
}

/// Rows further apart than this share L1 sets and TLB entries too often to be read in place.
template <class T>
constexpr int64_t kFarStride = 2048 / sizeof(T);

/// Whether lines of n rows, `stride` apart, cannot stay in L1 together, since the stride puts them into few of its
/// sets: those are 64 on every processor of today, a page of lines, with 8 ways and more, of which half are theirs.
template <class T>
constexpr bool crowds_sets(int64_t n, int64_t stride) {
  constexpr int64_t kPage = 4096, kWays = 4;
  const int64_t bytes = stride * int64_t{sizeof(T)}, step = bytes & -bytes;  // the greatest power of two that divides
  const int64_t sets = step >= kPage ? 1 : step > 64 ? kPage / step : 64;
  return n > kWays * sets;
}

/// f(first, groups, rows) for M rows in groups of at most `most`, as even as can be, since one of few rows would keep
/// few sums in flight: first the groups that have one more than the others, then those.
template <class F>
DLK_INLINE void for_each_size(int64_t M, int64_t most, F&& f) {
  const int64_t groups = ceil_div(M, most), rows = M / groups, larger = M % groups;
  if (larger > 0) f(0, larger, rows + 1);
  f(larger * (rows + 1), groups - larger, rows);
}

/// Multiply-adds below which one thread is faster than waking a second (about 10 microseconds of work).
constexpr int64_t kGrainMultiplies = 400'000;

template <class T>
DLK_INLINE void copy(const T* from, int64_t n, T* to) {
  constexpr int L = kLanes<T>;
  if (n < L) return store_partial(to, load_partial(from, n), n);
  for (int64_t i = 0; i + L < n; i += L) store(to + i, load(from + i));
  store(to + n - L, load(from + n - L));  // overlaps the one before
}

template <class T>
DLK_INLINE void zero(int64_t n, T* to) {
  constexpr int L = kLanes<T>;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(to + i, Vec<T>{});
  if (i < n) store_partial(to + i, Vec<T>{}, n - i);
}

/// Elements per row of A that pack_groups takes for K terms. Half a line more than whole lines: groups of 6 or 14 rows
/// are then an odd number of lines apart, so that those that are written at once fall into different cache sets, and a
/// group's last vector, which may reach L - 1 elements too far, does not meet the next group, of at least MR / 2 rows.
/// (A single row is all of A: packed_elements has room for that.)
template <class T>
constexpr int64_t packed_depth(int64_t K) {
  constexpr int64_t line = 64 / sizeof(T);
  return round_up(K, line) + line / 2;
}
template <class T>
constexpr int64_t packed_elements(int64_t M, int64_t K) {
  return M * packed_depth<T>(K) + kLanes<T>;
}

/// Packs M rows of K terms of A, whose columns are contiguous and `stride` apart, in the groups of rows in which they
/// are multiplied: term after term the rows of one, so that a tile reads one run of memory, and few lines.
template <class T>
AView<T> pack_groups(int64_t M, int64_t K, const T* a, int64_t stride, T* packed) {
  constexpr int64_t L = kLanes<T>, kPackAhead = 8;
  const int64_t depth = packed_depth<T>(K);
  for_each_size(M, Block<T>::MR, [&](int64_t first, int64_t groups, int64_t rows) {
    for (int64_t k = 0; k < K; ++k)
      for (int64_t i = first; i < first + groups * rows; i += rows) {
        const T* const from = a + k * stride + i;
        T* const to = packed + i * depth + k * rows;
        __builtin_prefetch(from + kPackAhead * stride);
        // Whole vectors: the next term overwrites what is too much.
        for (int64_t v = 0; v < rows; v += L)
          store(to + v, M - i - v < L ? load_partial(from + v, M - i - v) : load(from + v));
      }
  });
  return {.data = packed, .stride = 0, .rows_contiguous = false, .depth = depth};
}

/// Packs K x n (n <= NR) with unit column stride into one panel; missing columns become 0. Term k becomes row row(k).
template <class T, class Row = std::identity>
void pack_panel(int64_t K, int64_t n, const T* b, int64_t b_row, T* panel, Row row = {}) {
  constexpr int NR = Block<T>::NR;
  if (n == NR) {
    for (int64_t k = 0; k < K; ++k)
      for (int v = 0; v < NR; v += kLanes<T>) store(panel + row(k) * NR + v, load(b + k * b_row + v));
    return;
  }
  for (int64_t k = 0; k < K; ++k)
    for (int v = 0; v < NR; v += kLanes<T>) {
      const int64_t left = n - v < 0 ? 0 : n - v < kLanes<T> ? n - v : kLanes<T>;
      store(panel + row(k) * NR + v, load_partial(b + k * b_row + v, left));
    }
}

/// Packs the transpose: column j of the panel is the K contiguous elements at column(j), j < n <= NR; term k becomes
/// row row(k). Square blocks are transposed in registers.
template <class T, class Column, class Row = std::identity>
void pack_panel_transposed(int64_t K, int64_t n, Column column, T* panel, Row row = {}) {
  constexpr int NR = Block<T>::NR, L = kLanes<T>;
  for (int64_t v = 0; v < NR; v += L) {
    const int64_t count = n - v < 0 ? 0 : n - v < L ? n - v : L;
    for (int64_t k = 0; k < K; k += L) {
      const int64_t depth = K - k < L ? K - k : L;
      Vec<T> block[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) {
        if (l >= count)
          block[l] = Vec<T>{};
        else
          block[l] = depth == L ? load(column(v + l) + k) : load_partial(column(v + l) + k, depth);
      }
      transpose<T>(block);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l)
        if (l < depth) store(panel + row(k + l) * NR + v, block[l]);
    }
  }
}

/// to[l * stride + i] = block[i][l] for i < rows and l < columns, both at most kLanes. Leaves the block transposed.
template <class T, bool streams = false>
DLK_INLINE void store_transposed(Vec<T> (&block)[kLanes<T>], int64_t rows, int64_t columns, T* to, int64_t stride) {
  constexpr int L = kLanes<T>;
  transpose<T>(block);
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l) {
    if (l >= columns) continue;
    constexpr std::integral_constant<int, L> whole;
    rows == L ? write_n<streams>(to + l * stride, block[l], whole) : store_partial(to + l * stride, block[l], rows);
  }
}

/// to[j * stride + i] = from[i * from_stride + j] for i < rows and j < columns; reads and writes nothing else.
/// `streams`: as write_n, for `to` and a stride of whole vectors.
template <bool streams = false, class T>
void store_transposed(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t stride) {
  constexpr int64_t L = kLanes<T>;
  for_each_vec<T>(columns, [&](int64_t j, auto width) {
    for (int64_t i = 0; i < rows; i += L) {
      const int64_t height = rows - i < L ? rows - i : L;
      const T* const at = from + i * from_stride + j;
      Vec<T> block[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) block[l] = l < height ? load_n(at + l * from_stride, width) : Vec<T>{};
      store_transposed<T, streams>(block, height, width, to + j * stride + i, stride);
    }
  });
}

}  // namespace dlk::cpu::DLK_ISA
