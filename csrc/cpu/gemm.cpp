// C = A B + bias: batched, either operand transposed, any ragged size.
//
// C is cut into one rectangle per thread, and each thread packs what it multiplies, what others pack as well too: a
// line that another core has just written takes longer to fetch than to pack again. Outermost first (names as in BLIS):
// pc over blocks of K, jc over blocks of columns, then as tasks the rectangles and in them ic over MC rows, then panels
// of NR columns and groups of MR rows. A block of A is packed when its turn comes, a panel of B just before its first
// use by a thread, so that both are in the cache when they are multiplied. Each element of C is summed in the order of
// k, in blocks that K alone decides: the result does not depend on the number of threads.
#include "csrc/core/gemm.h"

#include <algorithm>
#include <cassert>

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/gemm_kernel.h"
#include "csrc/cpu/gemv.h"

namespace dlk::cpu {
namespace {

using namespace DLK_ISA;

/// How a rectangle is cut and what is packed: one plan for all rectangles of a product, made for the largest.
template <class T>
struct Plan {
  using B = Block<T>;
  bool a_rows_contiguous, b_transposed, pack_a, pack_b;
  bool a_far;    // A is more than stays in L2, and read where it lies, row by row
  bool keeps_b;  // a thread keeps all its packed panels of B, for more than one block of A
  int64_t kc, mc, nc;

  Plan(const Gemm& p, int64_t threads) {
    a_rows_contiguous = p.a_col == 1 || p.K == 1;
    b_transposed = !(p.b_col == 1 || p.N == 1);
    assert(a_rows_contiguous || p.a_row == 1 || p.M == 1);
    assert(!b_transposed || p.b_row == 1 || p.K == 1);
    kc = p.K < B::kDepth ? p.K : B::kDepth;
    // Packing pays where a block is read several times and lies badly.
    const bool fills_l1 = kc > B::KC && p.N > kFewColumns;  // with a line of A per term, beside a panel of B
    pack_a =
        p.N > B::NR && (a_rows_contiguous ? p.a_row * sizeof(T) % 4096 == 0 : 4 * p.a_col > kFarStride<T> || fills_l1);
    a_far = a_rows_contiguous && !pack_a && p.M * p.K > kMostNear && p.N <= kFewColumns;
    const bool badly = p.b_row > kFarStride<T> || crowds_sets<T>(kc, p.b_row);
    // Sooner where all rows fall into one cache set.
    const bool worst = p.b_row * sizeof(T) % 4096 == 0;
    pack_b = b_transposed || (p.M > 6 * B::MR && badly) || (p.M > 2 * B::MR && worst);
    nc = round_up(even_part(p.N, kColumns), B::NR);
    const int64_t most = threads > 1 ? B::MC / 2 : B::MC;  // smaller, where threads help each other
    mc = p.M <= most ? p.M : round_up(even_part(p.M, most), B::MR);
    keeps_b = p.M > mc;
  }

  /// Elements of A that a core's L2 keeps from one product to the next, and columns up to which waiting for more counts
  /// beside the products.
  static constexpr int64_t kMostNear = (512 << 10) / sizeof(T), kFewColumns = 16 * B::NR;
  /// Columns of B that are packed before A's first block comes again.
  static constexpr int64_t kColumns = 2048;
  int64_t a_elements() const {
    return !pack_a ? 0 : a_rows_contiguous ? mc * packed_row_stride<T>(kc) : packed_elements<T>(mc, kc);
  }
  int64_t b_elements() const {
    if (pack_b && keeps_b) return kc * nc;
    return std::min(kc * nc, std::max(kc * B::NR, kNearElements<T>));
  }
  int64_t elements() const { return round_up(a_elements(), 16) + round_up(b_elements(), 16); }
};

/// Packs M rows of K terms of A.
template <class T>
AView<T> pack_a_block(int64_t M, int64_t K, const AView<T>& a, T* packed) {
  if (!a.rows_contiguous) return pack_groups(M, K, a.data, a.stride, packed);
  const int64_t stride = packed_row_stride<T>(K);
  for (int64_t i = 0; i < M; ++i) copy(a.data + i * a.stride, K, packed + i * stride);
  return {packed, stride, /*rows_contiguous=*/true};
}

/// Packs N columns at `b` in panels, reading memory along its contiguous axis.
template <class T>
void pack_b_panels(const Plan<T>& plan, const Gemm& p, int64_t K, int64_t N, const T* b, T* panel) {
  constexpr int64_t NR = Block<T>::NR;
  for (int64_t j = 0; j < N; j += NR, b += NR * p.b_col, panel += NR * K) {
    const int64_t n = N - j < NR ? N - j : NR;
    if (plan.b_transposed)
      pack_panel_transposed<T>(K, n, [&](int64_t column) { return b + column * p.b_col; }, panel);
    else
      pack_panel(K, n, b, p.b_row, panel);
  }
}

/// Where a task is in C and in K.
struct Part {
  Range rows, columns, terms;
};

/// One block of rows of C by one of terms. `b_is_packed`: the thread's buffer holds B's panels from an earlier block.
template <class T>
void multiply_rows(const Plan<T>& plan, const Gemm& p, const Part& part, const T* a, const T* b, const T* bias, T* c,
                   T* buffer, bool b_is_packed) {
  using B = Block<T>;
  constexpr int64_t NR = B::NR;
  const int64_t M = part.rows.size(), N = part.columns.size(), K = part.terms.size();
  const int64_t i = part.rows.begin, j0 = part.columns.begin, k = part.terms.begin;
  const int64_t near = panels_at_once<T>(K) * NR;
  T* const packed_b = buffer + round_up(plan.a_elements(), 16);
  const T *const a_block = a + i * p.a_row + k * p.a_col, *const b_block = b + k * p.b_row + j0 * p.b_col;
  AView<T> a_view{a_block, plan.a_rows_contiguous ? p.a_row : p.a_col, plan.a_rows_contiguous};
  if (plan.pack_a) a_view = pack_a_block(M, K, a_view, buffer);
  CView<T> c_view{.data = c + i * p.c_row + j0, .row_stride = p.c_row, .accumulate = k > 0};
  if (bias) p.bias_per_row ? c_view.row_bias = bias + i : c_view.column_bias = bias + j0;
  for (int64_t j = 0, n; j < N; j += n) {
    n = N - j < near ? N - j : near;
    const T* panel = b_block + j * p.b_col;
    int64_t stride = p.b_row, panel_stride = NR;
    Ahead<T> ahead;
    if (near == NR && j + NR < N && !plan.b_transposed) ahead = {panel + NR, stride};
    // A panel that ends in part of a vector is packed because tiles read whole ones.
    if (plan.pack_b || n % kLanes<T> != 0) {
      T* const packed = packed_b + (plan.pack_b && plan.keeps_b ? j * K : 0);
      if (!b_is_packed || !plan.pack_b)
        pack_b_panels(plan, p, K, n, panel, packed);
      else if (near == NR && j + NR < N)
        ahead = {packed + NR * K, NR};
      panel = packed, stride = NR, panel_stride = K * NR;
    }
    a_view.from_far = plan.a_far && j == 0;
    multiply_block(M, n, K, a_view, panel, panel_stride, stride, c_view.from(0, j), p.run, ahead);
  }
}

/// A grid of rectangles of C, one per thread.
struct Grid {
  int64_t m, n;     // rows and columns of a rectangle
  int64_t columns;  // of the grid
};

/// The grid of `parts` rectangles that takes the least time, of products and of packing. Rows are shared evenly, not by
/// MR: any number of them makes groups of about one size, but of 16 one thread would get 14 (AVX-512).
template <class T>
Grid grid(const Gemm& p, int64_t parts) {
  constexpr int64_t NR = Block<T>::NR;
  constexpr int64_t kPack = 64;  // multiply-adds in the time that packing an element takes
  Grid best{};
  int64_t least = 0;
  for (int64_t columns = 1; columns <= parts; ++columns) {
    if (parts % columns) continue;
    const int64_t m = ceil_div(p.M, parts / columns), n = round_up(ceil_div(p.N, columns), NR);
    const int64_t time = m * n + kPack * (m + n);
    if (least == 0 || time < least) least = time, best = {m, n, ceil_div(p.N, n)};
  }
  return best;
}

template <class T>
void fill_rows(const Gemm& p, const T* bias, T* c) {
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t i = 0; i < p.M; ++i)
      for (int64_t j = 0; j < p.N; ++j) c[b * p.c_batch + i * p.c_row + j] = bias ? bias[p.bias_per_row ? i : j] : T(0);
}

/// The product whose result is the transpose of p's: its columns of C are p.c_row apart.
inline Gemm transposed(const Gemm& p) {
  Gemm t = p;
  t.M = p.N, t.a_row = p.b_col, t.a_col = p.b_row, t.a_batch = p.b_batch;
  t.N = p.M, t.b_row = p.a_col, t.b_col = p.a_row, t.b_batch = p.a_batch;
  t.c_row = 1, t.bias_per_row = !p.bias_per_row;
  return t;
}

template <class T>
void multiply(const Gemm& given, const T* a, const T* b, const T* bias, T* c, Context& context) {
  Gemm p = given;
  // The columns of one panel in shorter runs, as MKL, whose errors were half of ours there.
  if (p.run == 0) p.run = p.N > Block<T>::NR ? Block<T>::kSum : Block<T>::kSum / 2;
  if (p.M == 0 || p.N == 0 || p.batch == 0) return;
  if (p.K == 0) return fill_rows(p, bias, c);  // an empty sum
  // These restart their sums only where it is asked for.
  if (is_gemv(given)) return gemv(given, a, b, bias, c);
  if (const Gemm t = transposed(given); p.N <= kRowGroup && is_gemv(t) && (by_columns(t) || p.c_row == 1))
    return gemv(t, b, a, bias, c, p.c_row);
  const bool parallel = p.batch * p.M * p.N * p.K >= kGrainMultiplies;
  const int64_t threads = parallel ? max_threads() : 1;
  const Grid cut = grid<T>(p, p.batch >= 4 * threads ? 1 : threads);
  Gemm largest = p;
  largest.M = cut.m < p.M ? cut.m : p.M, largest.N = cut.n < p.N ? cut.n : p.N;
  const Plan<T> plan(largest, threads);
  const int64_t elements = plan.elements(), rectangles = ceil_div(p.M, cut.m) * cut.columns;
  const int64_t row_blocks = ceil_div(largest.M, plan.mc);
  T* const buffers = context.array<T>(threads * elements);
  run_threads(threads, [&](const Team& team) {
    for (int64_t pc = 0; pc < ceil_div(p.K, plan.kc); ++pc)
      for (int64_t jc = 0; jc < ceil_div(largest.N, plan.nc); ++jc) {
        int64_t packed = -1;  // the columns of the grid, and the product, whose panels the buffer holds
        team.for_each(p.batch * rectangles * row_blocks, [&](int64_t task) {
          const int64_t ic = task % row_blocks, rectangle = task / row_blocks % rectangles,
                        batch = task / row_blocks / rectangles, column = rectangle % cut.columns;
          const Part part{block_range(ic, plan.mc, block_range(rectangle / cut.columns, cut.m, p.M)),
                          block_range(jc, plan.nc, block_range(column, cut.n, p.N)), block_range(pc, plan.kc, p.K)};
          if (part.rows.size() <= 0 || part.columns.size() <= 0) return;  // of a smaller last rectangle
          const int64_t columns = batch * cut.columns + column;
          multiply_rows(plan, p, part, a + batch * p.a_batch, b + batch * p.b_batch, bias, c + batch * p.c_batch,
                        buffers + team.rank * elements, plan.keeps_b && packed == columns);
          packed = columns;
        });
      }
  });
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(GemmKernels<float>, {multiply<float>})
DLK_KERNEL_TABLE(GemmKernels<double>, {multiply<double>})
