// Convolutions with narrow groups, forward and gradient to the input, directly on vectors of channels.
//
// Lane a of a group holds input a, and D sums run side by side: sum r collects, in lane a, what input a adds to output
// (a + r) mod D. So a term of the sum is one vector of the strip as it lies and one of weights; lanes are permuted only
// once per output and sum, when the D sums become one. NHWC is written in place, NCHW through a strip that is
// transposed back.
#include "csrc/cpu/narrow_groups.h"

#include "csrc/cpu/narrow_groups_plan.h"

namespace dlk::cpu::DLK_ISA {
namespace {

/// Sums in flight where a group has several lanes: half of the registers.
constexpr int kSums = kIsa == Isa::avx512 ? 16 : 8;

/// The biases and weights of all vectors, [vector][1 + taps * D][lane].
template <class T>
struct PackedWeights {
  int64_t size;
  T* data;

  PackedWeights(const Correlation& q, const Plan<T>& plan, Context& context)
      : size((1 + q.taps * plan.D) * kLanes<T>), data(context.array<T>(plan.vectors * size)) {}

  void pack(const Correlation& q, const Plan<T>& plan, int64_t v, const T* w, const T* bias) const {
    const Range groups = plan.vector_groups(v);
    T* to = data + v * size;
    zero(size, to);
    if (bias) copy(bias + groups.begin * q.CO, groups.size() * q.CO, to);
    for_each_weight(q, groups, plan.D, [&](int64_t t, int64_t r, int64_t lane, int64_t at) {
      to[(1 + t * plan.D + r) * kLanes<T> + lane] = w[at];
    });
  }
};

/// Where the outputs of a tile go.
template <class T>
struct Target {
  T* data;
  int64_t row, pixel;  // strides
};

/// One row of a sum: what it reads and writes.
template <class T>
struct Row {
  int64_t taps;
  const int64_t* offsets;
  const T *weights, *bias, *from;
  const Vec<IntOf<T>>* gather;
  int64_t wanted, lanes;  // outputs; lanes of an output to write
  T* to;
  int64_t pixel;  // distance of outputs
};

/// The next `outputs` outputs of a row, which read every step-th pixel of the strip; stores those that are wanted.
template <class T, int D, int outputs, class Step>
DLK_INLINE void sum_taps(const Row<T>& row, Step step) {
  Vec<T> sum[D][outputs] = {};
  for (int64_t t = 0; t < row.taps; ++t) {
    const T *x = row.from + row.offsets[t], *w = row.weights + t * D * kLanes<T>;
    for (int r = 0; r < D; ++r) {
      const Vec<T> weight = load(w + r * kLanes<T>);
      for (int o = 0; o < outputs; ++o) sum[r][o] += load(x + o * step * kLanes<T>) * weight;
    }
  }
  for (int o = 0; o < outputs; ++o) {
    Vec<T> y = load(row.bias);
    for (int r = 0; r < D; ++r) y += D == 1 ? sum[r][o] : permute(sum[r][o], row.gather[r]);
    if (o >= row.wanted) continue;
    row.lanes == kLanes<T> ? store(row.to + o * row.pixel, y) : store_partial(row.to + o * row.pixel, y, row.lanes);
  }
}

/// One phase of a tile; its taps begin with first_tap.
template <class T, int D, class Step>
void correlate_tile(const Correlation& q, const Plan<T>& plan, int64_t tile, Range vectors, int64_t first_tap,
                    const PackedWeights<T>& weights, const T* strips, Step step, const Target<T>& out) {
  constexpr int L = kLanes<T>, kMost = D == 1 ? kOutputs : D < kSums ? kSums / D : 1;
  const Range rows = plan.tiles.row_range(tile), cols = plan.tiles.col_range(tile);
  const int64_t last = plan.vector_groups(vectors.end - 1).end * q.CO;
  Vec<IntOf<T>> gather[D];
  for (int r = 0; r < D; ++r) gather[r] = plan.outputs().gather(r);
  Row<T> row{.taps = q.taps, .offsets = plan.offsets + first_tap, .gather = gather, .pixel = q.col_step * out.pixel};
  const int64_t row_count = (rows.end < q.rows ? rows.end : q.rows) - rows.begin;
  const int64_t col_count = (cols.end < q.cols ? cols.end : q.cols) - cols.begin;
  for (int64_t i = 0; i < row_count; ++i)
    for (int64_t v = vectors.begin; v < vectors.end; ++v) {
      // What a vector writes past its channels, the next ones overwrite.
      const int64_t k = v * plan.outputs().of_vector(), at = v - vectors.begin;
      row.lanes = k + L <= last ? L : plan.vector_groups(v).size() * q.CO;
      row.bias = weights.data + v * weights.size;
      row.weights = row.bias + (1 + first_tap * D) * L;
      const T* from = strips + i * q.step_h * plan.input.row_size() + at * plan.input.vector_size();
      T* to = out.data + (i * q.row_step + q.row0) * out.row + q.col0 * out.pixel + at * plan.outputs().of_vector();
      for (int64_t j = 0; j < col_count; j += kMost) {
        row.from = from + j * step * L;
        row.to = to + j * row.pixel;
        row.wanted = col_count - j;
        if (kMost > 1 && row.wanted <= kMost / 2)
          sum_taps<T, D, (kMost + 1) / 2>(row, step);
        else
          sum_taps<T, D, kMost>(row, step);
      }
    }
}

/// f(step), a constant where that saves registers for addresses.
template <class F>
DLK_INLINE void with_step(int64_t step, F f) {
  if (step == 1) return f(std::integral_constant<int, 1>{});
  if (step == 2) return f(std::integral_constant<int, 2>{});
  f(step);
}

/// f(D) as a constant.
template <int most, int D = 1, class F>
DLK_INLINE void with_lanes_of_group(int64_t lanes, F f) {
  if constexpr (D < most)
    if (lanes > D) return with_lanes_of_group<most, 2 * D>(lanes, f);
  f(std::integral_constant<int, D>{});
}

}  // namespace

template <class T>
void correlate_narrow(const Correlation* phases, int64_t count, const T* in, const T* w, const T* bias, T* out,
                      Context& context) {
  constexpr int L = kLanes<T>;
  Correlation q = phases[0];
  for (int64_t i = 1; i < count; ++i) q.taps += phases[i].taps;
  const Plan<T> plan(q, in, context);
  const PackedWeights<T> weights(q, plan, context);
  const Tiles& tiles = plan.tiles;
  const Images<T> y(out, q.groups * q.CO, q.OH, q.OW, q.channels_last);
  const int64_t out_size = q.channels_last ? 0 : tiles.rows * q.row_step * tiles.out_cols() * L;
  T* out_strips = context.array<T>(max_threads() * out_size);
  run_team(worth_threads(q), [&](const Team& team) {
    team.for_each(plan.vectors, [&](int64_t v) { weights.pack(q, plan, v, w, bias); });
    team.for_each(tiles.count() * plan.shares, [&](int64_t task) {
      const int64_t tile = task / plan.shares;
      const Range vectors = plan.task_vectors(task % plan.shares);
      const int64_t k = vectors.begin * plan.outputs().of_vector();
      const Window window = tiles.output(tile);
      const T* strips = plan.input.stage(tiles.input(tile), vectors, team.rank);
      Target<T> target{out_strips + team.rank * out_size, tiles.out_cols() * L, L};
      if (q.channels_last) target = {y.at(window.n, k, window.rows.begin, window.cols.begin), y.W * y.C, y.C};
      with_step(q.step_w, [&](auto step) {
        with_lanes_of_group<L>(plan.D, [&](auto D) {
          for (int64_t i = 0, first_tap = 0; i < count; first_tap += phases[i++].taps)
            correlate_tile<T, D>(phases[i], plan, tile, vectors, first_tap, weights, strips, step, target);
        });
      });
      if (!q.channels_last)
        unstage<T>(y, window, k, plan.vector_groups(vectors.begin).size() * q.CO, nullptr, target.data);
    });
  });
}

template void correlate_narrow(const Correlation*, int64_t, const float*, const float*, const float*, float*, Context&);
template void correlate_narrow(const Correlation*, int64_t, const double*, const double*, const double*, double*,
                               Context&);

}  // namespace dlk::cpu::DLK_ISA
