// Convolutions with narrow groups: gradient to the weight, directly on vectors of channels.
//
// A vector of sums per tap is kept in registers over a run of pixels, for one r of D at a time: lane a adds the
// products of input a and output (a + r) mod D. Runs add to a fixed number of partial sums, which are added in order:
// the same for any number of threads.
#include "csrc/cpu/narrow_groups.h"
#include "csrc/cpu/narrow_groups_plan.h"

namespace dlk::cpu::DLK_ISA {
namespace {

/// Pixels whose products are added in registers: restarting bounds the rounding error.
constexpr int64_t kRunPixels = 64;

/// One tile of x and dy, of one vector, for sum r of the D.
template <class T>
struct Products {
  const T *x, *dy;
  int64_t x_row, x_pixel, dy_row;  // strides
  int64_t rows, cols;
  Vec<IntOf<T>> source;  // of dy's lanes
};

/// sums[k] += the sum over the tile for n taps, whose sums are `stride` apart.
template <class T, int n, bool permuted>
void add_products(const Products<T>& p, const int64_t* offsets, T* sums, int64_t stride) {
  int64_t at[n];
  for (int k = 0; k < n; ++k) at[k] = offsets[k];
  const int64_t run = ceil_div(kRunPixels, p.cols);
  for (int64_t begin = 0; begin < p.rows; begin += run) {
    Vec<T> sum[n] = {};
    for (int64_t i = begin; i < p.rows && i < begin + run; ++i) {
      const T *x = p.x + i * p.x_row, *dy = p.dy + i * p.dy_row;
      for (int64_t j = 0; j < p.cols; ++j, x += p.x_pixel, dy += kLanes<T>) {
        const Vec<T> d = permuted ? permute(load(dy), p.source) : load(dy);
        for (int k = 0; k < n; ++k) sum[k] += load(x + at[k]) * d;
      }
    }
    for (int k = 0; k < n; ++k) store(sums + k * stride, load(sums + k * stride) + sum[k]);
  }
}

/// All taps: nine sums at once hide the latency of an FMA, and are all of a 3 x 3 filter.
template <class T, bool permuted>
void add_all_products(const Products<T>& p, int64_t taps, const int64_t* offsets, T* sums, int64_t stride) {
  int64_t t = 0;
  for (; t + 9 <= taps; t += 9) add_products<T, 9, permuted>(p, offsets + t, sums + t * stride, stride);
  for (; t + 3 <= taps; t += 3) add_products<T, 3, permuted>(p, offsets + t, sums + t * stride, stride);
  for (; t < taps; ++t) add_products<T, 1, permuted>(p, offsets + t, sums + t * stride, stride);
}

}  // namespace

template <class T>
void narrow_weight(const Correlation& q, const T* in, const T* dy, T* dw, Context& context) {
  constexpr int L = kLanes<T>;
  constexpr int64_t kTasks = 16;  // enough to balance a few threads
  const Plan<T> plan(q, in, context);
  const Tiles& tiles = plan.tiles;
  const Lanes<T> outputs = plan.outputs();
  const Stage<T> gradient({dy, q.groups * q.CO, q.OH, q.OW, q.channels_last}, outputs, /*spread=*/false, plan.share,
                          tiles.rows, tiles.out_cols(), context);
  const int64_t wanted = ceil_div(kTasks, plan.shares), splits = wanted < tiles.count() ? wanted : tiles.count();
  const int64_t size = q.taps * plan.D * L;
  T* partial = context.array<T>(plan.vectors * splits * size);  // [vector][split][tap][sum r][lane]
  run_team(worth_threads(q), [&](const Team& team) {
    team.for_each(splits * plan.shares, [&](int64_t task) {
      const int64_t split = task / plan.shares;
      const Range vectors = plan.task_vectors(task % plan.shares);
      const auto sums = [&](int64_t v) { return partial + (v * splits + split) * size; };
      for (int64_t v = vectors.begin; v < vectors.end; ++v) zero(size, sums(v));
      for (int64_t tile = tiles.count() * split / splits; tile < tiles.count() * (split + 1) / splits; ++tile) {
        const T* x = plan.input.stage(tiles.input(tile), vectors, team.rank);
        const T* d = gradient.stage(tiles.output(tile), vectors, team.rank);
        for (int64_t v = 0; v < vectors.size(); ++v)
          for (int64_t r = 0; r < plan.D; ++r) {
            const Products<T> products{.x = x + v * plan.input.vector_size(),
                                       .dy = d + v * gradient.vector_size(),
                                       .x_row = q.step_h * plan.input.row_size(),
                                       .x_pixel = q.step_w * L,
                                       .dy_row = gradient.row_size(),
                                       .rows = tiles.row_range(tile).size(),
                                       .cols = tiles.col_range(tile).size(),
                                       .source = outputs.spread(r)};
            const auto add = plan.D == 1 ? add_all_products<T, false> : add_all_products<T, true>;
            add(products, q.taps, plan.offsets, sums(vectors.begin + v) + r * L, plan.D * L);
          }
      }
    });
    team.for_each(plan.vectors, [&](int64_t v) {
      T* sums = partial + v * splits * size;
      for (int64_t split = 1; split < splits; ++split)
        for (int64_t i = 0; i < size; i += L) store(sums + i, load(sums + i) + load(sums + split * size + i));
      for_each_weight(q, plan.vector_groups(v), plan.D, [&](int64_t t, int64_t r, int64_t lane, int64_t at) {
        dw[at] = sums[(t * plan.D + r) * L + lane];
      });
    });
  });
}

template void narrow_weight(const Correlation&, const float*, const float*, float*, Context&);
template void narrow_weight(const Correlation&, const double*, const double*, double*, Context&);

}  // namespace dlk::cpu::DLK_ISA
