// How convolutions with narrow groups are cut into tasks, and how a task's input is staged.
//
// A task is one tile of an image and some vectors of channels, each of which holds whole groups of D lanes: D is the
// power of two that has room for a group's inputs and for its outputs. The tile is staged as strips, rows of vectors
// with the zeros of the padding: NHWC some vectors at a time, so that runs of memory are read in order; NCHW,
// transposed in registers, one vector at a time.
#pragma once

#include "csrc/cpu/strips.h"

namespace dlk::cpu::DLK_ISA {

/// Outputs of a row that depthwise convolution computes at once. An FMA takes 4 cycles, two start per cycle: with 8
/// sums none waits.
constexpr int kOutputs = 8;

/// Pixels of a tile's grid, and of one of its rows. Planes like long rows, which transpose in whole squares; NHWC short
/// ones, so that many vectors' rows stay in L1.
constexpr int64_t kTilePixels = 512, kPlaneColumns = 64, kPixelColumns = 16;
/// What the rows under a filter may take of L1: two thirds of AVX-512's 48 KiB.
constexpr int64_t kWindowBytes = 32 << 10;

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
    col_count = ceil_div(q.cols, at_least(q.channels_last ? kPixelColumns : kPlaneColumns, span.width, q.step_w));
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
    const int64_t c = vectors.begin * channels;
    // Vectors that can be loaded without passing the pixel's end: they overlap where channels are fewer than lanes.
    const int64_t whole = clip(C - c < L ? 0 : (C - c - L) / channels + 1, vectors.size());
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
        for (int64_t v = whole; v < vectors.size(); ++v)
          store(row + v * stride, load_partial(pixel + v * channels, C - c - v * channels));
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
    const int64_t fit = kWindowBytes / (tiles.span.height * tiles.in_cols() * kVecBytes);
    return even_part(vectors, fit > 1 ? fit : 1);
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

}  // namespace dlk::cpu::DLK_ISA
