// C = A B + bias: batched, either operand transposed, any ragged size.
//
// Loops, outermost first (names as in BLIS): pc over a block of K, jc over NC columns, then two phases that the team of
// threads shares, each followed by a barrier: (1) pack what needs packing of A(:, pc), once, and B(pc, jc); (2) tiles,
// cut in two dimensions. Each element of C is summed by one thread in the order of k, in blocks of KC: the result does
// not depend on the number of threads. A batch of small products runs one product per thread instead.
#include "csrc/core/gemm.h"

#include <cassert>

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/gemm_kernel.h"
#include "csrc/cpu/gemv.h"

namespace dlk::cpu {
namespace {

using namespace DLK_ISA;

/// How one product is cut and what is packed; a function of its shape alone.
template <class T>
struct Plan {
  using B = Block<T>;
  bool a_rows_contiguous, b_transposed, pack_a, pack_b;
  int64_t kc, nc, a_stride;

  explicit Plan(const Gemm& p) {
    a_rows_contiguous = p.a_col == 1 || p.K == 1;
    b_transposed = !(p.b_col == 1 || p.N == 1);
    assert(a_rows_contiguous || p.a_row == 1 || p.M == 1);
    assert(!b_transposed || p.b_row == 1 || p.K == 1);
    // Packing pays where a block is read several times and lies badly.
    pack_a = p.N > B::NR && (a_rows_contiguous ? p.a_row : p.a_col) > kFarStride<T>;
    pack_b = b_transposed || (p.M > 2 * B::MR && p.b_row > kFarStride<T>);
    kc = p.K < kDepth ? p.K : kDepth;
    nc = round_up(ceil_div(p.N, ceil_div(p.N, B::NC)), B::NR);
    a_stride = a_rows_contiguous ? packed_row_stride<T>(kc) : round_up(B::MR, kLanes<T>);
  }

  int64_t a_elements(const Gemm& p) const {
    if (!pack_a) return 0;
    return a_rows_contiguous ? p.M * a_stride : ceil_div(p.M, B::MR) * kc * a_stride;
  }
  /// Terms that are packed at once. Each tile of C is loaded and stored once per block, from far away if C is large:
  /// four times KC made products of 1024 and 2048 5 % faster than KC.
  static constexpr int64_t kDepth = 4 * B::KC;
  /// Rows that are packed together: as many streams as the hardware prefetcher follows.
  static constexpr int64_t kPackRows = 16;
  int64_t b_jobs(int64_t panels, int64_t K) const {
    return panels == 0 ? 0 : b_transposed ? panels : ceil_div(K, kPackRows);
  }
  /// All of the block, or its last ragged panel alone, which must be readable NR wide.
  int64_t b_elements() const { return kc * (pack_b ? nc : B::NR); }
  int64_t elements(const Gemm& p) const { return round_up(a_elements(p), 16) + round_up(b_elements(), 16); }
};

/// Packs rows [i, i + MR) of the K block of A at `a`: contiguous runs either way.
template <class T>
void pack_a_rows(const Plan<T>& plan, const Gemm& p, int64_t i, int64_t K, const T* a, T* packed) {
  using B = Block<T>;
  const int64_t rows = p.M - i < B::MR ? p.M - i : B::MR;
  if (plan.a_rows_contiguous) {
    for (int64_t r = i; r < i + rows; ++r) copy(a + r * p.a_row, K, packed + r * plan.a_stride);
    return;
  }
  T* panel = packed + i / B::MR * K * plan.a_stride;
  for (int64_t k = 0; k < K; ++k) copy(a + i + k * p.a_col, rows, panel + k * plan.a_stride);
}

/// Packs job i of `plan.b_jobs`, of the K x n block of B at `b`: one panel where columns are contiguous, kPackRows rows
/// of all panels where rows are. Either way memory is read along its contiguous axis.
template <class T>
void pack_b_job(const Plan<T>& plan, const Gemm& p, int64_t job, int64_t K, int64_t n, const T* b, T* packed) {
  constexpr int64_t NR = Block<T>::NR;
  if (plan.b_transposed) {
    const int64_t j = job * NR, columns = n - j < NR ? n - j : NR;
    const T* from = b + j * p.b_col;
    return pack_panel_transposed<T>(
        K, columns, [=](int64_t column) { return from + column * p.b_col; }, packed + j * K);
  }
  const int64_t k = job * plan.kPackRows, rows = K - k < plan.kPackRows ? K - k : plan.kPackRows;
  for (int64_t j = 0; j < n; j += NR)
    pack_panel(rows, n - j < NR ? n - j : NR, b + k * p.b_row + j, p.b_row, packed + j * K + k * NR);
}

/// One product of the batch, by all of `team`.
template <class T>
void multiply_one(const Team& team, const Plan<T>& plan, const Gemm& p, const T* a, const T* b, const T* bias, T* c,
                  T* context) {
  using B = Block<T>;
  T* const packed_a = context;
  T* const packed_b = context + round_up(plan.a_elements(p), 16);
  const int64_t row_groups = ceil_div(p.M, B::MR);
  for (int64_t pc = 0; pc < p.K; pc += plan.kc) {
    const int64_t kc = p.K - pc < plan.kc ? p.K - pc : plan.kc;
    for (int64_t jc = 0; jc < p.N; jc += plan.nc) {
      const int64_t nc = p.N - jc < plan.nc ? p.N - jc : plan.nc;
      const int64_t panels = ceil_div(nc, B::NR), full_panels = nc / B::NR;
      const T* a_block = a + pc * p.a_col;
      const T* b_block = b + pc * p.b_row + jc * p.b_col;

      const int64_t first_packed = plan.pack_b ? 0 : full_panels;
      const int64_t b_jobs = plan.b_jobs(panels - first_packed, kc), a_jobs = plan.pack_a && jc == 0 ? row_groups : 0;
      team.for_each(b_jobs + a_jobs, [&](int64_t job) {
        if (job >= b_jobs) return pack_a_rows(plan, p, (job - b_jobs) * B::MR, kc, a_block, packed_a);
        const int64_t j = first_packed * B::NR;
        pack_b_job(plan, p, job, kc, nc - j, b_block + j * p.b_col, packed_b);
      });

      CView<T> c_block{.data = c + jc, .row_stride = p.c_row, .accumulate = pc > 0};
      if (bias) c_block.column_bias = bias + jc;
      const int64_t row_blocks = ceil_div(p.M, B::MC);
      // Few rows: cut the columns too, so that every thread has work.
      const int64_t group = row_blocks >= 8 ? panels : ceil_div(panels, 8);
      const int64_t column_blocks = ceil_div(panels, group);
      team.for_each(row_blocks * column_blocks, [&](int64_t task) {
        const int64_t i = task / column_blocks * B::MC, M = p.M - i < B::MC ? p.M - i : B::MC;
        const int64_t first = task % column_blocks * group, last = first + group < panels ? first + group : panels;
        AView<T> a_view{a_block, plan.a_rows_contiguous ? p.a_row : p.a_col, plan.a_rows_contiguous};
        a_view = a_view.from_row(i);
        const auto run = [&](int64_t begin, int64_t end, const T* b_panels, int64_t panel_stride, int64_t b_stride) {
          if (begin >= end) return;
          const int64_t j = begin * B::NR, N = (end * B::NR < nc ? end * B::NR : nc) - j;
          if (!plan.pack_a)
            return multiply_block(M, N, kc, a_view, b_panels, panel_stride, b_stride, c_block.from(i, j));
          if (plan.a_rows_contiguous) {
            const AView<T> packed{packed_a + i * plan.a_stride, plan.a_stride, true};
            return multiply_block(M, N, kc, packed, b_panels, panel_stride, b_stride, c_block.from(i, j));
          }
          for (int64_t r = 0; r < M; r += B::MR) {
            const AView<T> packed{packed_a + (i + r) / B::MR * kc * plan.a_stride, plan.a_stride, false};
            const int64_t rows = M - r < B::MR ? M - r : B::MR;
            multiply_block(rows, N, kc, packed, b_panels, panel_stride, b_stride, c_block.from(i + r, j));
          }
        };
        if (plan.pack_b) return run(first, last, packed_b + first * kc * B::NR, kc * B::NR, B::NR);
        const int64_t in_place = last < full_panels ? last : full_panels;
        run(first, in_place, b_block + first * B::NR, B::NR, p.b_row);
        run(in_place > first ? in_place : first, last, packed_b, kc * B::NR, B::NR);
      });
    }
  }
}

template <class T>
void fill_rows(const Gemm& p, const T* bias, T* c) {
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t i = 0; i < p.M; ++i)
      for (int64_t j = 0; j < p.N; ++j) c[b * p.c_batch + i * p.c_row + j] = bias ? bias[j] : T(0);
}

template <class T>
void multiply(const Gemm& p, const T* a, const T* b, const T* bias, T* c, Context& context) {
  if (p.M == 0 || p.N == 0) return;
  if (p.K == 0) return fill_rows(p, bias, c);  // an empty sum
  if (is_gemv(p)) return gemv(p, a, b, bias, c);
  const Plan<T> plan(p);
  const int64_t work = p.M * p.N * p.K;
  const int64_t elements = plan.elements(p);
  const auto product = [&](const Team& team, int64_t i, T* buffer) {
    multiply_one(team, plan, p, a + i * p.a_batch, b + i * p.b_batch, bias, c + i * p.c_batch, buffer);
  };
  if (p.batch >= 2 * max_threads() || work < kGrainMultiplies) {
    T* buffers = context.array<T>(max_threads() * elements);
    run_team(p.batch > 1 && work * p.batch >= kGrainMultiplies, [&](const Team& team) {
      team.for_each(p.batch, [&](int64_t i) { product(Team{0, 1}, i, buffers + team.rank * elements); });
    });
    return;
  }
  T* buffer = context.array<T>(elements);
  run_team(true, [&](const Team& team) {
    for (int64_t i = 0; i < p.batch; ++i) product(team, i, buffer);
  });
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(GemmKernels<float>, {multiply<float>})
DLK_KERNEL_TABLE(GemmKernels<double>, {multiply<double>})
