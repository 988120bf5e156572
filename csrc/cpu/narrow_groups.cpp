// Convolutions with narrow groups, forward and both gradients, directly on vectors of channels.
//
// A task is one tile of an image and one vector of output channels, which holds whole groups. The tile of the input is
// staged as a strip (strips.h) from either memory layout; where a group has several channels, the strip holds each
// pixel CI times: copy c has, in each lane, input channel c of the lane's group. So every term (tap, c) of the sum is
// one vector at a fixed distance, and every lane of every FMA is of use. All is in L1 and L2: what remains is reading
// and writing the tensors once.
//
// The weight gradient keeps a vector of sums per term in registers over a tile, then adds tiles to a fixed number of
// partial sums, which are added in order: the same for any number of threads.
#include "csrc/cpu/narrow_groups.h"

#include "csrc/cpu/strips.h"

namespace dlk::cpu::DLK_ISA {
namespace {

/// Outputs of a row that share the load of a weight. An FMA takes 4 cycles, two start per cycle: with 8 sums none
/// waits. Rows end with half as many, and are padded to a multiple of that.
constexpr int kOutputs = 8;
constexpr int64_t kColumnMultiple = kOutputs / 2;

/// Pixels of a tile's grid, and of one row of it: 512 vectors of AVX-512, in and out, are 64 KiB.
constexpr int64_t kTilePixels = 512, kTileColumns = 64;

/// Vectors of output channels: each is as many whole groups as have both inputs and outputs in one vector.
template <class T>
struct Lanes {
  int64_t all_groups, groups, count;

  explicit Lanes(const Correlation& q) : all_groups(q.groups), groups(kLanes<T> / (q.CI > q.CO ? q.CI : q.CO)) {
    count = ceil_div(all_groups, groups);
  }
  Range range(int64_t block) const { return block_range(block, groups, all_groups); }
};

/// A grid cut into tiles, all of the same width, and what the strips of a tile cover.
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
    cols = round_up(ceil_div(q.cols, col_count), kColumnMultiple);
    row_count = ceil_div(q.rows, at_least(kTilePixels / cols, span.height, q.step_h));
    rows = ceil_div(q.rows, row_count);
  }

  int64_t count() const { return q.N * row_count * col_count; }
  int64_t image(int64_t i) const { return i / col_count / row_count; }
  Range row_range(int64_t i) const { return block_range(i / col_count % row_count, rows, q.rows); }
  Range col_range(int64_t i) const { return block_range(i % col_count, cols, q.cols); }

  int64_t in_cols() const { return (cols - 1) * q.step_w + span.width; }
  int64_t in_pixels() const { return ((rows - 1) * q.step_h + span.height) * in_cols(); }
  Window input(int64_t i) const {
    const Range r = row_range(i);
    const int64_t left = col_range(i).begin * q.step_w + span.left;
    return {image(i),
            {r.begin * q.step_h + span.top, (r.end - 1) * q.step_h + span.top + span.height},
            {left, left + in_cols()}};
  }
  int64_t out_cols() const { return cols * q.col_step; }
  int64_t out_pixels() const { return rows * q.row_step * out_cols(); }
  Window output(int64_t i) const {
    const Range r = row_range(i);
    const int64_t left = col_range(i).begin * q.col_step;
    return {image(i), {r.begin * q.row_step, r.end * q.row_step}, {left, left + out_cols()}};
  }
};

/// The input of one tile at a time, as the vectors that terms (tap, c) of the sum multiply.
template <class T>
class Terms {
 public:
  Terms(const Correlation& q, const Tiles& tiles, Context& context)
      : q_(q), spread_(q.CI > 1 || q.CO > 1), tiles_(tiles) {
    strip_size_ = tiles.in_pixels() * kLanes<T>;
    strips_ = context.array<T>(max_threads() * strip_size_);
    if (spread_) copies_ = context.array<T>(max_threads() * strip_size_ * q.CI);
    offsets_ = context.array<int64_t>(count());
    for (int64_t k = 0; k < count(); ++k) {
      const int64_t t = k / q.CI, row = q.dh[t] - tiles.span.top, col = q.dw[t] - tiles.span.left;
      offsets_[k] = row * row_size() + (k % q.CI * tiles.in_cols() + col) * kLanes<T>;
    }
  }

  int64_t count() const { return q_.taps * q_.CI; }
  /// Elements of a row of the strip: all pixels of copy 0, then of copy 1 ...
  int64_t row_size() const { return tiles_.in_cols() * q_.CI * kLanes<T>; }
  /// Where term k of the tile's first output is, from what stage() returned.
  const int64_t* offsets() const { return offsets_; }

  const T* stage(const T* in, int64_t tile, Range groups, int64_t rank) const {
    T* strip = strips_ + rank * strip_size_;
    const Images<const T> images{in, q_.groups * q_.CI, q_.IH, q_.IW, q_.channels_last};
    const Window window = tiles_.input(tile);
    dlk::cpu::DLK_ISA::stage(images, window, groups.begin * q_.CI, groups.size() * q_.CI, strip);
    if (!spread_) return strip;
    T* copies = copies_ + rank * strip_size_ * q_.CI;
    const int64_t rows = window.rows.size(), cols = window.cols.size();
    for (int64_t c = 0; c < q_.CI; ++c) {
      Vec<IntOf<T>> source;
      for (int l = 0; l < kLanes<T>; ++l) source[l] = (l / q_.CO * q_.CI + c) % kLanes<T>;  // unused lanes: any
      for (int64_t i = 0; i < rows; ++i) {
        const T* from = strip + i * cols * kLanes<T>;
        T* to = copies + (i * q_.CI + c) * cols * kLanes<T>;
        for (int64_t j = 0; j < cols * kLanes<T>; j += kLanes<T>) store(to + j, permute(load(from + j), source));
      }
    }
    return copies;
  }

 private:
  const Correlation& q_;
  const bool spread_;
  const Tiles& tiles_;
  int64_t strip_size_;
  T *strips_, *copies_ = nullptr;
  int64_t* offsets_;
};

/// f(term k, lane l, offset in w) for the weights of a vector of channels.
template <class F>
void for_each_weight(const Correlation& q, Range groups, F f) {
  for (int64_t g = groups.begin, l = 0; g < groups.end; ++g)
    for (int64_t m = 0; m < q.CO; ++m, ++l)
      for (int64_t t = 0, k = 0; t < q.taps; ++t)
        for (int64_t c = 0; c < q.CI; ++c, ++k) f(k, l, g * q.w_group + m * q.w_out + c * q.w_in + q.weight[t]);
}

/// to[o] = the sum over n terms for `outputs` pixels of a row, which read every step-th pixel of the strip.
template <class T, int outputs, class Step>
DLK_INLINE void sum_terms(int64_t n, const int64_t* offsets, const T* weights, const T* from, Step step, T* to,
                          int64_t to_step) {
  Vec<T> sum[outputs] = {};
  for (int64_t k = 0; k < n; ++k) {
    const Vec<T> weight = load(weights + k * kLanes<T>);
    const T* x = from + offsets[k];
    for (int o = 0; o < outputs; ++o) sum[o] += load(x + o * step * kLanes<T>) * weight;
  }
  for (int o = 0; o < outputs; ++o) store(to + o * to_step * kLanes<T>, sum[o]);
}

/// One phase of a tile's output.
template <class T, class Step>
void correlate_tile(const Correlation& q, const Tiles& tiles, const Terms<T>& terms, int64_t rows, int64_t first_term,
                    const T* weights, const T* strip, Step step, T* out) {
  const int64_t n = q.taps * q.CI, cols = tiles.cols, to_step = q.col_step;
  const int64_t* offsets = terms.offsets() + first_term;
  weights += first_term * kLanes<T>;
  for (int64_t i = 0; i < rows; ++i) {
    const T* from = strip + i * q.step_h * terms.row_size();
    T* to = out + ((i * q.row_step + q.row0) * tiles.out_cols() + q.col0) * kLanes<T>;
    int64_t j = 0;
    for (; j + kOutputs <= cols; j += kOutputs)
      sum_terms<T, kOutputs>(n, offsets, weights, from + j * step * kLanes<T>, step, to + j * to_step * kLanes<T>,
                             to_step);
    if (j < cols)
      sum_terms<T, kColumnMultiple>(n, offsets, weights, from + j * step * kLanes<T>, step,
                                    to + j * to_step * kLanes<T>, to_step);
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

/// sums[k] += the sum over one tile for `n` terms from k on.
template <class T, int n>
void add_products(const Correlation& q, const Terms<T>& terms, int64_t rows, int64_t cols, int64_t k, const T* strip,
                  const T* dy, int64_t dy_row, T* sums) {
  const int64_t step = q.step_w * kLanes<T>;
  int64_t offsets[n];
  for (int i = 0; i < n; ++i) offsets[i] = terms.offsets()[k + i];
  Vec<T> sum[n] = {};
  for (int64_t i = 0; i < rows; ++i) {
    const T *x = strip + i * q.step_h * terms.row_size(), *d = dy + i * dy_row;
    for (int64_t j = 0; j < cols; ++j, x += step, d += kLanes<T>) {
      const Vec<T> gradient = load(d);
      for (int l = 0; l < n; ++l) sum[l] += load(x + offsets[l]) * gradient;
    }
  }
  for (int i = 0; i < n; ++i) store(sums + (k + i) * kLanes<T>, load(sums + (k + i) * kLanes<T>) + sum[i]);
}

}  // namespace

template <class T>
void correlate_narrow(const Correlation* phases, int64_t count, const T* in, const T* w, const T* bias, T* out,
                      Context& context) {
  constexpr int L = kLanes<T>;
  Correlation q = phases[0];
  for (int64_t i = 1; i < count; ++i) q.taps += phases[i].taps;
  const Lanes<T> lanes(q);
  const Tiles tiles(q);
  const Terms<T> terms(q, tiles, context);
  const int64_t out_size = tiles.out_pixels() * L;
  T* weights = context.array<T>(lanes.count * terms.count() * L);  // [vector of channels][term][lane]
  T* outs = context.array<T>(max_threads() * out_size);
  const Images<T> y{out, q.groups * q.CO, q.OH, q.OW, q.channels_last};
  run_team(worth_threads(q), [&](const Team& team) {
    team.for_each(lanes.count, [&](int64_t v) {
      T* to = weights + v * terms.count() * L;
      zero(terms.count() * L, to);
      for_each_weight(q, lanes.range(v), [&](int64_t k, int64_t l, int64_t offset) { to[k * L + l] = w[offset]; });
    });
    T* out_strip = outs + team.rank * out_size;
    team.for_each(tiles.count() * lanes.count, [&](int64_t task) {
      const int64_t v = task % lanes.count, tile = task / lanes.count;
      const Range groups = lanes.range(v);
      const T* strip = terms.stage(in, tile, groups, team.rank);
      for (int64_t i = 0, first_term = 0; i < count; first_term += phases[i++].taps * q.CI)
        with_step(q.step_w, [&](auto step) {
          correlate_tile(phases[i], tiles, terms, tiles.row_range(tile).size(), first_term,
                         weights + v * terms.count() * L, strip, step, out_strip);
        });
      unstage(y, tiles.output(tile), groups.begin * q.CO, groups.size() * q.CO, bias, out_strip);
    });
  });
}

template <class T>
void narrow_weight(const Correlation& q, const T* in, const T* dy, T* dw, Context& context) {
  constexpr int L = kLanes<T>;
  constexpr int64_t kTasks = 16;  // enough to balance a few threads
  const Lanes<T> lanes(q);
  const Tiles tiles(q);
  const Terms<T> terms(q, tiles, context);
  const int64_t wanted = ceil_div(kTasks, lanes.count), splits = wanted < tiles.count() ? wanted : tiles.count();
  const int64_t size = terms.count() * L, dy_size = tiles.out_pixels() * L;
  T* partial = context.array<T>(lanes.count * splits * size);  // [vector of channels][split][term][lane]
  T* dy_strips = context.array<T>(max_threads() * dy_size);
  const Images<const T> gradients{dy, q.groups * q.CO, q.OH, q.OW, q.channels_last};
  run_team(worth_threads(q), [&](const Team& team) {
    T* dy_strip = dy_strips + team.rank * dy_size;
    team.for_each(splits * lanes.count, [&](int64_t task) {
      const int64_t split = task / lanes.count, v = task % lanes.count;
      const Range groups = lanes.range(v);
      T* sums = partial + (v * splits + split) * size;
      zero(size, sums);
      for (int64_t tile = tiles.count() * split / splits; tile < tiles.count() * (split + 1) / splits; ++tile) {
        const T* strip = terms.stage(in, tile, groups, team.rank);
        stage(gradients, tiles.output(tile), groups.begin * q.CO, groups.size() * q.CO, dy_strip);
        const int64_t rows = tiles.row_range(tile).size(), cols = tiles.col_range(tile).size();
        const auto add = [&]<int n>(std::integral_constant<int, n>, int64_t k) {
          add_products<T, n>(q, terms, rows, cols, k, strip, dy_strip, tiles.out_cols() * L, sums);
        };
        int64_t k = 0;  // 9 sums hide the latency of an FMA, and are all of a 3 x 3 filter
        for (; k + 9 <= terms.count(); k += 9) add(std::integral_constant<int, 9>{}, k);
        for (; k + 3 <= terms.count(); k += 3) add(std::integral_constant<int, 3>{}, k);
        for (; k < terms.count(); ++k) add(std::integral_constant<int, 1>{}, k);
      }
    });
    team.for_each(lanes.count, [&](int64_t v) {
      T* sums = partial + v * splits * size;
      for (int64_t split = 1; split < splits; ++split)
        for (int64_t i = 0; i < size; i += L) store(sums + i, load(sums + i) + load(sums + split * size + i));
      for_each_weight(q, lanes.range(v), [&](int64_t k, int64_t l, int64_t offset) { dw[offset] = sums[k * L + l]; });
    });
  });
}

template void correlate_narrow(const Correlation*, int64_t, const float*, const float*, const float*, float*, Context&);
template void correlate_narrow(const Correlation*, int64_t, const double*, const double*, const double*, double*,
                               Context&);
template void narrow_weight(const Correlation&, const float*, const float*, float*, Context&);
template void narrow_weight(const Correlation&, const double*, const double*, double*, Context&);

}  // namespace dlk::cpu::DLK_ISA
