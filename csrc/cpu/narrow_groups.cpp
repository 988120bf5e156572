// Convolutions with narrow groups, forward and both gradients, directly on vectors of channels.
//
// A task is one tile of an image and some vectors of channels, each of which holds whole groups of D lanes: D is the
// power of two that has room for a group's inputs and for its outputs. The tile of the input is staged as strips, rows
// of vectors with the zeros of the padding: NHWC pixel by pixel, so that memory is read in order, and written in place;
// NCHW transposed in registers, one vector of channels at a time.
//
// Lane a of a group holds input a, and D sums run side by side: sum r collects, in lane a, what input a adds to output
// (a + r) mod D. So a term of the sum is one vector of the strip as it lies and one of weights; lanes are permuted only
// once per output and sum, when the D sums become one.
//
// The weight gradient keeps a vector of sums per term in registers over a tile, then adds tiles to a fixed number of
// partial sums, which are added in order: the same for any number of threads.
#include "csrc/cpu/narrow_groups.h"

#include "csrc/cpu/strips.h"

namespace dlk::cpu::DLK_ISA {
namespace {

/// Outputs of a row that share the load of a weight. An FMA takes 4 cycles, two start per cycle: with 8 sums none
/// waits.
constexpr int kOutputs = 8;

/// Sums in flight where a group has several lanes: half of the registers.
constexpr int kSums = kIsa == Isa::avx512 ? 16 : 8;

/// Pixels whose products are added in registers: restarting bounds the rounding error.
constexpr int64_t kRunPixels = 64;

/// Pixels of a tile's grid, and of one row of it.
constexpr int64_t kTilePixels = 512, kTileColumns = 64;
/// What strips of a task may take: an eighth of an L2 of 2 MiB.
constexpr int64_t kStripBytes = 32 << 10;

/// A grid cut into tiles, and what the strips of a tile cover: all of the same width, which lets every row end with
/// kOutputs outputs, wanted or not.
struct Tiles {
  const Correlation& q;
  Span span;
  int64_t rows, cols, row_count, col_count;

  /// A tile is at least as large as what its taps reach over, lest most of its input be staged for its neighbours too.
  explicit Tiles(const Correlation& q) : q(q), span(q) {
    const auto at_least = [](int64_t n, int64_t reach, int64_t step) {
      return n > ceil_div(reach, step) ? n : ceil_div(reach, step);
    };
    col_count = ceil_div(q.cols, at_least(q.channels_last ? 16 : kTileColumns, span.width, q.step_w));
    cols = ceil_div(q.cols, col_count);
    row_count = ceil_div(q.rows, at_least(kTilePixels / cols, span.height, q.step_h));
    rows = ceil_div(q.rows, row_count);
  }

  int64_t count() const { return q.N * row_count * col_count; }
  int64_t image(int64_t i) const { return i / col_count / row_count; }
  Range row_range(int64_t i) const { return block_range(i / col_count % row_count, rows, q.rows); }
  Range col_range(int64_t i) const { return block_range(i % col_count, cols, q.cols); }

  int64_t in_cols() const { return (round_up(cols, kOutputs) - 1) * q.step_w + span.width; }
  int64_t in_rows() const { return (rows - 1) * q.step_h + span.height; }
  Window input(int64_t i) const {
    const Range r = row_range(i);
    const int64_t left = col_range(i).begin * q.step_w + span.left;
    return {image(i),
            {r.begin * q.step_h + span.top, (r.end - 1) * q.step_h + span.top + span.height},
            {left, left + in_cols()}};
  }
  int64_t out_cols() const { return cols * q.col_step; }
  Window output(int64_t i) const {
    const Range r = row_range(i);
    const int64_t left = col_range(i).begin * q.col_step;
    return {image(i), {r.begin * q.row_step, r.end * q.row_step}, {left, left + out_cols()}};
  }
};

/// How a group's channels lie on its D lanes of a vector: `groups` groups of `channels` channels each, the other lanes
/// without a channel.
template <class T>
struct Lanes {
  int64_t D, groups, channels;

  int64_t of_vector() const { return groups * channels; }
  bool dense() const { return channels == D; }

  /// Lane a of a group takes channel (a + r) mod D, from a vector that has the channels without gaps.
  Vec<IntOf<T>> spread(int64_t r) const {
    return each_lane([&](int64_t l) { return l / D * channels + (l + r) % D; });
  }
  /// Channel m of a group, in a vector that has the channels without gaps, takes lane (m - r) mod D.
  Vec<IntOf<T>> gather(int64_t r) const {
    return each_lane([&](int64_t l) { return l / channels * D + (l % channels - r + D) % D; });
  }
  /// All ones where there is a channel.
  Vec<IntOf<T>> used() const {
    return each_lane([&](int64_t l) { return l % D < channels ? -1 : 0; });
  }

 private:
  template <class F>
  static Vec<IntOf<T>> each_lane(F f) {
    Vec<IntOf<T>> lanes;
    for (int l = 0; l < kLanes<T>; ++l) {
      const int64_t value = f(l);
      lanes[l] = static_cast<IntOf<T>>(value < kLanes<T> ? value : 0);  // a lane of no use: any
    }
    return lanes;
  }
};

/// Copies windows of an image, some vectors of channels at a time, to [row][vector][column][lane].
template <class T>
class Stage {
 public:
  /// With `spread`, groups are moved to their lanes, and lanes without a channel are zeros; else the channels are left
  /// without gaps, and further lanes hold anything.
  Stage(const Images<const T>& images, const Lanes<T>& lanes, bool spread, int64_t vectors, int64_t rows, int64_t cols,
        Context& context)
      : images_(images),
        channels_(lanes.of_vector()),
        cols_(cols),
        row_size_(vectors * cols * L),
        size_(rows * row_size_),
        spread_(spread && !lanes.dense()),
        source_(lanes.spread(0)),
        used_(lanes.used()) {
    data_ = context.array<T>(max_threads() * size_);
  }

  int64_t row_size() const { return row_size_; }
  int64_t vector_size() const { return cols_ * L; }

  const T* stage(const Window& window, Range vectors, int64_t rank) const {
    T* to = data_ + rank * size_;
    if (images_.channels_last) {
      stage_pixels(window, vectors, to);
    } else {
      const int64_t c = vectors.begin * channels_, left = images_.C - c;
      dlk::cpu::DLK_ISA::stage(images_, window, c, left < channels_ ? left : channels_, to);
    }
    if (spread_)
      for (int64_t i = 0; i < window.rows.size() * row_size_; i += L)
        store(to + i, (Vec<T>)((Vec<IntOf<T>>)permute(load(to + i), source_) & used_));
    return to;
  }

 private:
  static constexpr int L = kLanes<T>;

  /// NHWC.
  void stage_pixels(const Window& window, Range vectors, T* to) const {
    const auto clip = [](int64_t n, int64_t most) { return n < 0 ? 0 : n < most ? n : most; };
    const int64_t C = images_.C, W = images_.W, channels = channels_, cols = cols_, stride = cols * L;
    const int64_t c = vectors.begin * channels, ragged = c + (vectors.size() - 1) * channels + L > C;
    const int64_t whole = vectors.size() - ragged;  // vectors that can be loaded without passing the pixel's end
    for (int64_t h = window.rows.begin; h < window.rows.end; ++h, to += row_size_) {
      const bool outside = h < 0 || h >= images_.H;
      const int64_t begin = outside ? cols : clip(-window.cols.begin, cols);
      const int64_t end = outside ? cols : clip(W - window.cols.begin, cols);
      for (int64_t v = 0; v < vectors.size(); ++v) {
        zero(begin * L, to + v * stride);
        zero((cols - end) * L, to + v * stride + end * L);
      }
      const T* pixel = images_.at(window.n, c, h, window.cols.begin + begin);
      for (int64_t j = begin; j < end; ++j, pixel += C) {
        T* row = to + j * L;
        for (int64_t v = 0; v < whole; ++v) store(row + v * stride, load(pixel + v * channels));
        if (ragged) store(row + whole * stride, load_partial(pixel + whole * channels, C - c - whole * channels));
      }
    }
  }

  Images<const T> images_;
  int64_t channels_, cols_, row_size_, size_;
  bool spread_;
  Vec<IntOf<T>> source_, used_;
  T* data_;
};

/// How one operation is cut into tasks, and its input staged.
template <class T>
struct Plan {
  static constexpr int L = kLanes<T>;
  Tiles tiles;
  int64_t D, groups;               // lanes of a group, groups of a vector
  int64_t vectors, share, shares;  // vectors of all groups; of a task; tasks per tile
  Stage<T> input;
  int64_t* offsets;  // of what each tap reads for a tile's first output

  Plan(const Correlation& q, const T* in, Context& context)
      : tiles(q),
        D(lanes_of_group(q)),
        groups(L / D),
        vectors(ceil_div(q.groups, groups)),
        share(vectors_of_task(q)),
        shares(ceil_div(vectors, share)),
        input({in, q.groups * q.CI, q.IH, q.IW, q.channels_last}, inputs(), /*spread=*/true, share, tiles.in_rows(),
              tiles.in_cols(), context) {
    offsets = context.array<int64_t>(q.taps);
    for (int64_t t = 0; t < q.taps; ++t)
      offsets[t] = (q.dh[t] - tiles.span.top) * input.row_size() + (q.dw[t] - tiles.span.left) * L;
  }

  Lanes<T> inputs() const { return {D, groups, tiles.q.CI}; }
  Lanes<T> outputs() const { return {D, groups, tiles.q.CO}; }
  Range task_vectors(int64_t i) const { return block_range(i, share, vectors); }
  Range vector_groups(int64_t v) const { return block_range(v, groups, tiles.q.groups); }

 private:
  static int64_t lanes_of_group(const Correlation& q) {
    int64_t D = 1;
    while (D < q.CI || D < q.CO) D *= 2;
    return D;
  }
  int64_t vectors_of_task(const Correlation& q) const {
    if (!q.channels_last) return 1;
    const int64_t fit = kStripBytes / (tiles.span.height * tiles.in_cols() * kVecBytes);
    return ceil_div(vectors, ceil_div(vectors, fit > 1 ? fit : 1));
  }
};

/// f(t, r, lane, offset in w) for the weights of a vector: tap t of what the lane's input adds to sum r.
template <class F>
void for_each_weight(const Correlation& q, Range groups, int64_t D, F f) {
  for (int64_t g = groups.begin, lane = 0; g < groups.end; ++g, lane += D)
    for (int64_t m = 0; m < q.CO; ++m)
      for (int64_t c = 0; c < q.CI; ++c)
        for (int64_t t = 0; t < q.taps; ++t)
          f(t, (m - c + D) % D, lane + c, g * q.w_group + m * q.w_out + c * q.w_in + q.weight[t]);
}

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

// ---- Gradient to the weight

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
void correlate_narrow(const Correlation* phases, int64_t count, const T* in, const T* w, const T* bias, T* out,
                      Context& context) {
  constexpr int L = kLanes<T>;
  Correlation q = phases[0];
  for (int64_t i = 1; i < count; ++i) q.taps += phases[i].taps;
  const Plan<T> plan(q, in, context);
  const PackedWeights<T> weights(q, plan, context);
  const Tiles& tiles = plan.tiles;
  const Images<T> y{out, q.groups * q.CO, q.OH, q.OW, q.channels_last};
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

template void correlate_narrow(const Correlation*, int64_t, const float*, const float*, const float*, float*, Context&);
template void correlate_narrow(const Correlation*, int64_t, const double*, const double*, const double*, double*,
                               Context&);
template void narrow_weight(const Correlation&, const float*, const float*, float*, Context&);
template void narrow_weight(const Correlation&, const double*, const double*, double*, Context&);

}  // namespace dlk::cpu::DLK_ISA
