// Convolutions with narrow groups, forward and both gradients, directly on vectors of channels.
//
// A task is one tile of an image and some vectors of output channels, each of which holds whole groups. Its input is
// staged as strips, rows of vectors with the zeros of the padding; where a group has several channels, a strip has as
// many copies of a row: copy c has, in each lane, input channel c of the lane's group. So every term (tap, c) of the
// sum is one vector at a fixed distance, and every lane of every FMA is of use. NHWC is staged pixel by pixel, so that
// memory is read in order, and written in place; NCHW is transposed in registers, one vector of channels at a time.
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

/// Pixels of a tile's grid, and of one row of it. With more copies of the input, tiles are smaller.
constexpr int64_t kTilePixels = 512, kTileColumns = 64;
/// What strips of a task may take: an eighth of an L2 of 2 MiB.
constexpr int64_t kStripBytes = 256 << 10;

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
    col_count = ceil_div(q.cols, at_least(kTileColumns, span.width, q.step_w));
    cols = ceil_div(q.cols, col_count);
    row_count = ceil_div(q.rows, at_least(kTilePixels / (cols * q.CI), span.height, q.step_h));
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

/// Copies windows of an image, some vectors of channels at a time, to [row][vector][copy][column][lane].
template <class T>
class Stage {
 public:
  /// A vector has `channels` channels of the image. With outputs > 0, `copies` copies that spread them: lane l of copy
  /// c is channel l / outputs * copies + c.
  Stage(const Images<const T>& images, int64_t channels, int64_t copies, int64_t outputs, int64_t vectors, int64_t rows,
        int64_t cols, Context& context)
      : images_(images), channels_(channels), copies_(copies), cols_(cols), row_size_(vectors * copies * cols * L) {
    spread_ = copies > 1 || outputs > 1;
    size_ = rows * row_size_;
    data_ = context.array<T>(max_threads() * size_);
    if (!spread_) return;
    plain_size_ = images.channels_last ? 0 : rows * cols * L;
    plain_ = context.array<T>(max_threads() * plain_size_);
    for (int64_t c = 0; c < copies; ++c)
      for (int l = 0; l < L; ++l) source_[c][l] = (l / outputs * copies + c) % L;  // lanes without an output: any
  }

  int64_t row_size() const { return row_size_; }
  int64_t vector_size() const { return copies_ * cols_ * L; }

  const T* stage(const Window& window, Range vectors, int64_t rank) const {
    T* to = data_ + rank * size_;
    if (images_.channels_last)
      spread_ ? stage_pixels<true>(window, vectors, to) : stage_pixels<false>(window, vectors, to);
    else
      stage_planes(window, vectors.begin * channels_, to, spread_ ? plain_ + rank * plain_size_ : to);
    return to;
  }

 private:
  static constexpr int L = kLanes<T>;

  /// NHWC.
  template <bool spread>
  void stage_pixels(const Window& window, Range vectors, T* to) const {
    const auto clip = [](int64_t n, int64_t most) { return n < 0 ? 0 : n < most ? n : most; };
    const int64_t C = images_.C, channels = channels_, copies = copies_, stride = cols_ * L;
    for (int64_t h = window.rows.begin; h < window.rows.end; ++h, to += row_size_) {
      const bool outside = h < 0 || h >= images_.H;
      const int64_t begin = outside ? cols_ : clip(-window.cols.begin, cols_);
      const int64_t end = outside ? cols_ : clip(images_.W - window.cols.begin, cols_);
      for (int64_t k = 0; k < vectors.size() * copies; ++k) {
        zero(begin * L, to + k * stride);
        zero((cols_ - end) * L, to + k * stride + end * L);
      }
      for (int64_t j = begin; j < end; ++j) {
        const T* pixel = images_.at(window.n, 0, h, window.cols.begin + j);
        T* row = to + j * L;
        for (int64_t v = vectors.begin; v < vectors.end; ++v) {
          const int64_t c = v * channels;
          const Vec<T> x = c + L <= C ? load(pixel + c) : load_partial(pixel + c, C - c);
          if constexpr (spread)
            for (int64_t copy = 0; copy < copies; ++copy, row += stride) store(row, permute(x, source_[copy]));
          else
            store(row, x), row += stride;
        }
      }
    }
  }

  /// NCHW, one vector.
  void stage_planes(const Window& window, int64_t c, T* to, T* plain) const {
    const int64_t left = images_.C - c;
    dlk::cpu::DLK_ISA::stage(images_, window, c, left < channels_ ? left : channels_, plain);
    if (!spread_) return;
    const int64_t stride = cols_ * L;
    for (int64_t i = 0; i < window.rows.size(); ++i, plain += stride)
      for (int64_t copy = 0; copy < copies_; ++copy, to += stride) {
        const Vec<IntOf<T>> source = source_[copy];
        for (int64_t j = 0; j < stride; j += L) store(to + j, permute(load(plain + j), source));
      }
  }

  Images<const T> images_;
  int64_t channels_, copies_, cols_, row_size_, size_, plain_size_ = 0;
  bool spread_;
  T *data_, *plain_ = nullptr;
  Vec<IntOf<T>> source_[L];
};

/// How one operation is cut into tasks, and its input staged.
template <class T>
struct Plan {
  static constexpr int L = kLanes<T>;
  Tiles tiles;
  int64_t groups, vectors;       // groups of a vector; vectors of all groups
  int64_t share, shares, terms;  // vectors of a task; tasks per tile; terms of a sum
  Stage<T> input;
  int64_t* offsets;  // of the terms of a tile's first output

  Plan(const Correlation& q, const T* in, Context& context)
      : tiles(q),
        groups(L / (q.CI > q.CO ? q.CI : q.CO)),
        vectors(ceil_div(q.groups, groups)),
        share(vectors_of_task(q)),
        shares(ceil_div(vectors, share)),
        terms(q.taps * q.CI),
        input({in, q.groups * q.CI, q.IH, q.IW, q.channels_last}, groups * q.CI, q.CI, q.CO, share, tiles.in_rows(),
              tiles.in_cols(), context) {
    offsets = context.array<int64_t>(terms);
    for (int64_t k = 0; k < terms; ++k) {
      const int64_t t = k / q.CI, row = q.dh[t] - tiles.span.top, col = q.dw[t] - tiles.span.left;
      offsets[k] = row * input.row_size() + (k % q.CI * tiles.in_cols() + col) * L;
    }
  }

  Range task_vectors(int64_t i) const { return block_range(i, share, vectors); }
  Range vector_groups(int64_t v) const { return block_range(v, groups, tiles.q.groups); }

 private:
  int64_t vectors_of_task(const Correlation& q) const {
    if (!q.channels_last) return 1;
    const int64_t fit = kStripBytes / (tiles.in_rows() * tiles.in_cols() * q.CI * kVecBytes);
    return ceil_div(vectors, ceil_div(vectors, fit > 1 ? fit : 1));
  }
};

/// f(term k, lane l, offset in w) for the weights of a vector.
template <class F>
void for_each_weight(const Correlation& q, Range groups, F f) {
  for (int64_t g = groups.begin, l = 0; g < groups.end; ++g)
    for (int64_t m = 0; m < q.CO; ++m, ++l)
      for (int64_t t = 0, k = 0; t < q.taps; ++t)
        for (int64_t c = 0; c < q.CI; ++c, ++k) f(k, l, g * q.w_group + m * q.w_out + c * q.w_in + q.weight[t]);
}

/// The biases and weights of all vectors, [vector][1 + terms][lane].
template <class T>
struct PackedWeights {
  int64_t size;
  T* data;

  PackedWeights(const Plan<T>& plan, Context& context) : size((1 + plan.terms) * kLanes<T>) {
    data = context.array<T>(plan.vectors * size);
  }
  void pack(const Correlation& q, const Plan<T>& plan, int64_t v, const T* w, const T* bias) const {
    const Range groups = plan.vector_groups(v);
    T* to = data + v * size;
    zero(size, to);
    if (bias) copy(bias + groups.begin * q.CO, groups.size() * q.CO, to);
    for_each_weight(q, groups, [&](int64_t k, int64_t l, int64_t at) { to[(1 + k) * kLanes<T> + l] = w[at]; });
  }
};

/// Where the outputs of a tile go.
template <class T>
struct Target {
  T* data;
  int64_t row, pixel;  // strides
};

/// `wanted` of the next `outputs` outputs of a row, which read every step-th pixel of the strip.
template <class T, int outputs, class Step>
DLK_INLINE void sum_terms(int64_t n, const int64_t* offsets, Vec<T> bias, const T* weights, const T* from, Step step,
                          int64_t wanted, int64_t lanes, T* to, int64_t pixel) {
  Vec<T> sum[outputs];
  for (int o = 0; o < outputs; ++o) sum[o] = bias;
  for (int64_t k = 0; k < n; ++k) {
    const Vec<T> weight = load(weights + k * kLanes<T>);
    const T* x = from + offsets[k];
    for (int o = 0; o < outputs; ++o) sum[o] += load(x + o * step * kLanes<T>) * weight;
  }
  for (int o = 0; o < outputs; ++o)
    if (o < wanted) lanes == kLanes<T> ? store(to + o * pixel, sum[o]) : store_partial(to + o * pixel, sum[o], lanes);
}

/// One phase of a tile; its terms begin with first_term.
template <class T, class Step>
void correlate_tile(const Correlation& q, const Plan<T>& plan, int64_t tile, Range vectors, int64_t first_term,
                    const PackedWeights<T>& weights, const T* strips, Step step, const Target<T>& out) {
  constexpr int L = kLanes<T>;
  const Range rows = plan.tiles.row_range(tile), cols = plan.tiles.col_range(tile);
  const int64_t n = q.taps * q.CI, pixel = q.col_step * out.pixel;
  const int64_t last = plan.vector_groups(vectors.end - 1).end * q.CO;
  const int64_t* offsets = plan.offsets + first_term;
  for (int64_t i = 0; i < rows.size() && rows.begin + i < q.rows; ++i)
    for (int64_t j = 0; j < cols.size(); j += kOutputs) {
      const int64_t left = (cols.end < q.cols ? cols.end : q.cols) - cols.begin - j;
      T* to = out.data + (i * q.row_step + q.row0) * out.row + (j * q.col_step + q.col0) * out.pixel;
      const T* from = strips + i * q.step_h * plan.input.row_size() + j * step * L;
      for (int64_t v = vectors.begin; v < vectors.end; ++v, from += plan.input.vector_size()) {
        // What a vector writes past its channels, the next ones overwrite.
        const int64_t k = v * plan.groups * q.CO, size = plan.vector_groups(v).size() * q.CO;
        const int64_t lanes = k + L <= last ? L : size;
        const T *bias = weights.data + v * weights.size, *w = bias + (1 + first_term) * L;
        T* const at = to + (v - vectors.begin) * plan.groups * q.CO;
        if (left <= kOutputs / 2)
          sum_terms<T, kOutputs / 2>(n, offsets, load(bias), w, from, step, left, lanes, at, pixel);
        else
          sum_terms<T, kOutputs>(n, offsets, load(bias), w, from, step, left, lanes, at, pixel);
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

// ---- Gradient to the weight

/// One tile of x and dy, of one vector.
template <class T>
struct Products {
  const T *x, *dy;
  int64_t x_row, x_pixel, dy_row;  // strides
  int64_t rows, cols;
};

/// sums[k] += the sum over the tile for n terms.
template <class T, int n>
void add_products(const Products<T>& p, const int64_t* offsets, T* sums) {
  Vec<T> sum[n] = {};
  int64_t at[n];
  for (int k = 0; k < n; ++k) at[k] = offsets[k];
  for (int64_t i = 0; i < p.rows; ++i) {
    const T *x = p.x + i * p.x_row, *dy = p.dy + i * p.dy_row;
    for (int64_t j = 0; j < p.cols; ++j, x += p.x_pixel, dy += kLanes<T>) {
      const Vec<T> d = load(dy);
      for (int k = 0; k < n; ++k) sum[k] += load(x + at[k]) * d;
    }
  }
  for (int k = 0; k < n; ++k) store(sums + k * kLanes<T>, load(sums + k * kLanes<T>) + sum[k]);
}

/// All terms: nine sums at once hide the latency of an FMA, and are all of a 3 x 3 filter.
template <class T>
void add_all_products(const Products<T>& p, int64_t terms, const int64_t* offsets, T* sums) {
  int64_t k = 0;
  for (; k + 9 <= terms; k += 9) add_products<T, 9>(p, offsets + k, sums + k * kLanes<T>);
  for (; k + 3 <= terms; k += 3) add_products<T, 3>(p, offsets + k, sums + k * kLanes<T>);
  for (; k < terms; ++k) add_products<T, 1>(p, offsets + k, sums + k * kLanes<T>);
}

}  // namespace

template <class T>
void correlate_narrow(const Correlation* phases, int64_t count, const T* in, const T* w, const T* bias, T* out,
                      Context& context) {
  constexpr int L = kLanes<T>;
  Correlation q = phases[0];
  for (int64_t i = 1; i < count; ++i) q.taps += phases[i].taps;
  const Plan<T> plan(q, in, context);
  const PackedWeights<T> weights(plan, context);
  const Tiles& tiles = plan.tiles;
  const Images<T> y{out, q.groups * q.CO, q.OH, q.OW, q.channels_last};
  const int64_t out_size = q.channels_last ? 0 : tiles.rows * q.row_step * tiles.out_cols() * L;
  T* out_strips = context.array<T>(max_threads() * out_size);
  run_team(worth_threads(q), [&](const Team& team) {
    team.for_each(plan.vectors, [&](int64_t v) { weights.pack(q, plan, v, w, bias); });
    team.for_each(tiles.count() * plan.shares, [&](int64_t task) {
      const int64_t tile = task / plan.shares;
      const Range vectors = plan.task_vectors(task % plan.shares);
      const int64_t k = vectors.begin * plan.groups * q.CO;
      const Window window = tiles.output(tile);
      const T* strips = plan.input.stage(tiles.input(tile), vectors, team.rank);
      Target<T> target{out_strips + team.rank * out_size, tiles.out_cols() * L, L};
      if (q.channels_last) target = {y.at(window.n, k, window.rows.begin, window.cols.begin), y.W * y.C, y.C};
      with_step(q.step_w, [&](auto step) {
        for (int64_t i = 0, first_term = 0; i < count; first_term += phases[i++].taps * q.CI)
          correlate_tile(phases[i], plan, tile, vectors, first_term, weights, strips, step, target);
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
  const Stage<T> gradient({dy, q.groups * q.CO, q.OH, q.OW, q.channels_last}, plan.groups * q.CO, 1, 1, plan.share,
                          tiles.rows, tiles.out_cols(), context);
  const int64_t wanted = ceil_div(kTasks, plan.shares), splits = wanted < tiles.count() ? wanted : tiles.count();
  const int64_t size = plan.terms * L;
  T* partial = context.array<T>(plan.vectors * splits * size);  // [vector][split][term][lane]
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
          add_all_products<T>(
              {x + v * plan.input.vector_size(), d + v * gradient.vector_size(), q.step_h * plan.input.row_size(),
               q.step_w * L, gradient.row_size(), tiles.row_range(tile).size(), tiles.col_range(tile).size()},
              plan.terms, plan.offsets, sums(vectors.begin + v));
      }
    });
    team.for_each(plan.vectors, [&](int64_t v) {
      T* sums = partial + v * splits * size;
      for (int64_t split = 1; split < splits; ++split)
        for (int64_t i = 0; i < size; i += L) store(sums + i, load(sums + i) + load(sums + split * size + i));
      for_each_weight(q, plan.vector_groups(v), [&](int64_t k, int64_t l, int64_t at) { dw[at] = sums[k * L + l]; });
    });
  });
}

template void correlate_narrow(const Correlation*, int64_t, const float*, const float*, const float*, float*, Context&);
template void correlate_narrow(const Correlation*, int64_t, const double*, const double*, const double*, double*,
                               Context&);
template void narrow_weight(const Correlation&, const float*, const float*, float*, Context&);
template void narrow_weight(const Correlation&, const double*, const double*, double*, Context&);

}  // namespace dlk::cpu::DLK_ISA
