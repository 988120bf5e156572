// Depthwise convolution of NHWC images. Forward and gradient to the input: out[pixel, c] = bias[c] + sum over taps t of
// w[c, t] in[pixel t reads, c]; gradient to the weight: dw[c, t] = sum over pixels of dy[pixel, c] in[pixel t reads,
// c].
//
// Channels are the lanes of vectors, and pixels are read where they lie: nothing is staged. Taps that fall outside of
// the image are left out. Several pixels share each weight, or sum, that is loaded, and where the taps of common
// filters are adjacent, each input. Forward, a task is a row of the grid; its taps are added in a fixed order. The
// weights' gradient has sums per row, then per fixed split of all rows, which are added in order.
#include <algorithm>
#include <array>
#include <utility>

#include "csrc/cpu/narrow_groups.h"
#include "csrc/cpu/streaming.h"

namespace dlk::cpu::DLK_ISA {
namespace {

/// Pixels computed at once: with 4, loading their inputs, not the weights, is what takes time. Where an input is loaded
/// once for all that read it, 6 (with 4: 0.92, with 2: 0.7).
constexpr int kPixels = 4, kPixelsOfRows = 6;

/// Channels up to which a row's groups of pixels are taken for each vector of channels in turn; with more, the channels
/// for each group, in the order of memory, which the prefetchers follow (8 to 40: 1.1 to 1.3 times faster; 96: 0.95).
constexpr int64_t kFewChannels = 64;

/// Pixels that add to a weight's sum between loading and storing it: their inputs, of three rows, stay in L1.
constexpr int64_t kPixelsPerSum = 8;
/// Splits of the sum over all rows: enough to balance a few threads.
constexpr int64_t kSplits = 16;

/// The taps that some pixels read: where in memory, from a pixel's own position on, and where tap t's weights are among
/// [tap][C].
struct TapList {
  int64_t count;
  int64_t *offsets, *weights;
};

/// Pixels [begin, end) of a row of the grid that read the same taps.
struct Run {
  int64_t begin, end;
  TapList taps;
};

/// Whether pixel j of a row reads no column outside of the image.
bool inside_columns(const Correlation& q, const Span& span, int64_t j) {
  const int64_t first = j * q.step_w + span.left;
  return first >= 0 && first + span.width <= q.IW;
}

/// Room for the runs of a row, for each thread: none in the same cache lines as another's, since they are written
/// often.
struct RunMemory {
  int64_t most = 1, run_size, list_size;
  Run* runs;
  int64_t* lists;

  RunMemory(const Correlation& q, const Span& span, Context& context) {
    for (int64_t j = 0; j < q.cols; ++j) most += !inside_columns(q, span, j);
    run_size = round_up(most, 8), list_size = round_up(most * 2 * q.taps, 16);
    runs = context.array<Run>(max_threads() * run_size);
    lists = context.array<int64_t>(max_threads() * list_size);
  }
};

/// The runs of the rows of a grid, for one thread: rows that read the same rows of taps have the same. `whole`: a row
/// is one run, and its pixels' taps may be beside the image.
class RowRuns {
 public:
  RowRuns(const Correlation& q, const Span& span, const RunMemory& memory, const Team& team, bool whole)
      : q_(q),
        span_(span),
        runs_(memory.runs + team.rank * memory.run_size),
        lists_(memory.lists + team.rank * memory.list_size),
        whole_(whole) {}

  /// f(run) for those of row i.
  template <class F>
  DLK_INLINE void for_each(int64_t i, F f) {
    const Range taps = taps_inside(q_, i, i);
    if (count_ == 0 || taps.begin != taps_.begin || taps.end != taps_.end) make(taps);
    for (int64_t r = 0; r < count_; ++r) f(runs_[r]);
  }

 private:
  void make(Range taps) {
    taps_ = taps, count_ = 0;
    for (int64_t j = 0, end; j < q_.cols; j = end, ++count_) {
      const bool inside = inside_columns(q_, span_, j);
      for (end = j + 1; inside && end < q_.cols && inside_columns(q_, span_, end);) ++end;
      if (whole_) end = q_.cols;
      int64_t* const list = lists_ + count_ * 2 * q_.taps;
      Run& run = runs_[count_] = {j, end, {0, list, list + q_.taps}};
      for (int64_t t = taps.begin; t < taps.end; ++t) {
        const int64_t column = j * q_.step_w + q_.dw[t];
        if (!whole_ && (column < 0 || column >= q_.IW)) continue;
        run.taps.offsets[run.taps.count] = (q_.dh[t] * q_.IW + q_.dw[t]) * q_.groups;
        run.taps.weights[run.taps.count++] = t * q_.groups;
      }
    }
  }

  const Correlation& q_;
  const Span& span_;
  Run* runs_;
  int64_t* lists_;
  bool whole_;
  Range taps_{0, 0};
  int64_t count_ = 0;
};

/// What the kernels know of the image: its channels, columns, the column of the first pixel's first tap, and where,
/// from a pixel's inputs on, those are that the next row of the grid is the first to read. The hardware does not look
/// across rows, and is slow to follow as many runs as these kernels have.
struct ImageRows {
  int64_t C, IW, left, next;

  ImageRows(const Correlation& q, const Span& span)
      : C(q.groups), IW(q.IW), left(span.left), next((span.top + span.height) * q.IW * q.groups) {}
  /// Fetches those of one pixel, of one vector of channels, into L2. Of a stride known to be 2, four inputs (1.3 to 1.9
  /// times faster).
  template <int stride, class T>
  DLK_INLINE void fetch_next(const T* pixel) const {
    for (int row = 0; row < stride; ++row)
      for (int column = 0; column < stride; ++column)
        fetch_ahead<Fetch::into_l2>(pixel + next + (row * IW + column) * C);
  }
};

/// Writes the sums of adjacent pixels.
template <bool streams, int stride, class T, int pixels, class Count>
DLK_INLINE void store_sums(const Vec<T> (&sum)[pixels], const T* in, int64_t step, ImageRows rows, T* out,
                           int64_t out_step, Count lanes) {
  for (int o = 0; o < pixels; ++o) {
    rows.fetch_next<stride>(in + o * step);
    write_n<streams>(out + o * out_step, sum[o], lanes);
  }
}

/// `pixels` outputs, out_step apart, whose inputs are `step` apart.
template <bool streams, class T, int pixels>
void sum_taps(const TapList& taps, const T* weights, const T* in, int64_t step, ImageRows rows, const T* bias, T* out,
              int64_t out_step) {
  for_each_vec<T>(rows.C, [&](int64_t c, auto lanes) {
    Vec<T> sum[pixels];
    for (int o = 0; o < pixels; ++o) sum[o] = bias ? load_n(bias + c, lanes) : Vec<T>{};
    for (int64_t k = 0; k < taps.count; ++k) {
      const Vec<T> weight = load_n(weights + taps.weights[k] + c, lanes);
      for (int o = 0; o < pixels; ++o) sum[o] += load_n(in + taps.offsets[k] + o * step + c, lanes) * weight;
    }
    store_sums<streams, 1>(sum, in + c, step, rows, out + c, out_step, lanes);
  });
}

/// The same for `groups` groups of pixels whose taps come in rows of S adjacent columns, `stride` columns apart from
/// pixel to pixel: an input is loaded once for all pixels that read it. `inside`: those of a group's columns of inputs
/// that are in the image; if not `all` are, there is one group.
template <bool streams, class T, int S, int stride, int pixels, bool all>
void sum_tap_rows(const TapList& taps, const T* weights, const T* in, int64_t step, ImageRows rows, const T* bias,
                  T* out, int64_t out_step, int64_t groups, Range inside) {
  const int64_t C = rows.C;
  for_each_vec<T>(C, [&](int64_t c, auto lanes) {
    const T* from = in + c;
    T* to = out + c;
    for (int64_t g = 0; g < groups; ++g, from += pixels * step, to += pixels * out_step) {
      Vec<T> sum[pixels];
      for (int o = 0; o < pixels; ++o) sum[o] = bias ? load_n(bias + c, lanes) : Vec<T>{};
      for (int64_t k = 0; k < taps.count; k += S) {
        const T *const row = from + taps.offsets[k], *const of_row = weights + taps.weights[k] + c;
        Vec<T> weight[S];
#pragma GCC unroll 7
        for (int s = 0; s < S; ++s) weight[s] = load_n(of_row + s * C, lanes);
#pragma GCC unroll 13
        for (int column = 0; column < (pixels - 1) * stride + S; ++column) {
          if (!all && (column < inside.begin || column >= inside.end)) continue;
          const Vec<T> x = load_n(row + column * C, lanes);
#pragma GCC unroll 6
          for (int o = 0; o < pixels; ++o)
            if (const int s = column - o * stride; 0 <= s && s < S) sum[o] += x * weight[s];
        }
      }
      store_sums<streams, stride>(sum, from, step, rows, to, out_step, lanes);
    }
  });
}

/// The outputs of n pixels.
template <class T>
using SumRun = void (*)(const TapList&, const T*, const T*, int64_t, ImageRows, const T*, T*, int64_t, int64_t);

/// Of a run.
template <bool streams, class T>
void sum_run(const TapList& taps, const T* weights, const T* in, int64_t step, ImageRows rows, const T* bias, T* out,
             int64_t out_step, int64_t n) {
  for (; n >= kPixels; n -= kPixels, in += kPixels * step, out += kPixels * out_step)
    sum_taps<streams, T, kPixels>(taps, weights, in, step, rows, bias, out, out_step);
  for (; n > 0; --n, in += step, out += out_step)
    sum_taps<streams, T, 1>(taps, weights, in, step, rows, bias, out, out_step);
}

/// Of a whole row, whose taps come in rows of S adjacent columns.
template <bool streams, class T, int S, int stride>
void sum_whole_row(const TapList& taps, const T* weights, const T* in, int64_t step, ImageRows rows, const T* bias,
                   T* out, int64_t out_step, int64_t n) {
  constexpr auto by_pixels = []<bool all, int... i>(std::bool_constant<all>, std::integer_sequence<int, i...>) {
    return std::array{sum_tap_rows<streams, T, S, stride, 1 + i, all>...};
  };
  constexpr std::make_integer_sequence<int, kPixelsOfRows> numbers;
  constexpr auto all_inside = by_pixels(std::true_type{}, numbers), some_inside = by_pixels(std::false_type{}, numbers);
  // Streaming wants a cache line at once, not its halves a row apart (AVX2: half as fast as without).
  const bool few_channels = rows.C <= kFewChannels && (!streams || kVecBytes == 64);
  for (int64_t first = rows.left; n > 0;) {  // first: the column of the first tap
    const int64_t pixels = std::min<int64_t>(n, kPixelsOfRows), width = (pixels - 1) * stride + S;
    const Range inside{std::max(-first, int64_t{0}), rows.IW - first};
    const bool all = inside.begin == 0 && inside.end >= width;
    int64_t groups = 1;
    if (all && few_channels) groups = std::min(n, (inside.end - S) / stride + 1) / pixels;
    const auto sum = (all ? all_inside : some_inside)[pixels - 1];
    sum(taps, weights, in, step, rows, bias, out, out_step, groups, inside);
    const int64_t done = groups * pixels;
    n -= done, in += done * step, out += done * out_step, first += done * stride;
  }
}

/// Whether the taps come in rows of adjacent columns.
bool in_rows(const Correlation& q, const Span& span) {
  for (int64_t t = 0; t < q.taps; ++t)
    if (const int64_t s = t % span.width; q.dw[t] != span.left + s || q.dh[t] != q.dh[t - s]) return false;
  return q.taps % span.width == 0;
}

/// What takes whole rows, of common filters; null for others.
template <bool streams, class T>
SumRun<T> whole_row_function(const Correlation& q, const Span& span) {
  if (!in_rows(q, span)) return nullptr;
  if (span.width == 3 && q.step_w == 1) return sum_whole_row<streams, T, 3, 1>;
  if (span.width == 3 && q.step_w == 2) return sum_whole_row<streams, T, 3, 2>;
  if (span.width == 5 && q.step_w == 1) return sum_whole_row<streams, T, 5, 1>;
  if (span.width == 7 && q.step_w == 1) return sum_whole_row<streams, T, 7, 1>;
  return nullptr;
}

/// Row i of image n: `weights` are [tap][C].
template <class T>
void correlate_row(const Correlation& q, ImageRows rows, SumRun<T> sum, int64_t n, int64_t i, const T* in,
                   const T* weights, const T* bias, T* out, RowRuns& runs) {
  const int64_t C = q.groups, step = q.step_w * C, out_step = q.col_step * C;
  const T* from = in + (n * q.IH + i * q.step_h) * q.IW * C;
  T* to = out + (n * q.OH * q.OW + q.output_pixel(i, 0)) * C;
  runs.for_each(i, [&](const Run& run) {
    sum(run.taps, weights, from + run.begin * step, step, rows, bias, to + run.begin * out_step, out_step,
        run.end - run.begin);
  });
}

/// Adds the products of `pixels` pixels to the sums [tap][C] of taps first .. first + n of the list. Unless `stride` is
/// 0, fetches what the next row of the grid reads, `next_dy` further on of dy.
template <class T, int n, int stride>
void add_products(const TapList& taps, int64_t first, int64_t C, int64_t pixels, const T* in, int64_t step,
                  ImageRows rows, const T* dy, int64_t next_dy, T* sums) {
  const int64_t *offsets = taps.offsets + first, *weights = taps.weights + first;
  for_each_vec<T>(C, [&](int64_t c, auto lanes) {
    Vec<T> sum[n];
#pragma GCC unroll 9
    for (int k = 0; k < n; ++k) sum[k] = load_n(sums + weights[k] + c, lanes);
    for (int64_t j = 0; j < pixels; ++j) {
      const Vec<T> d = load_n(dy + j * C + c, lanes);
      if constexpr (stride > 0) fetch_ahead<Fetch::into_l2>(dy + next_dy + j * C + c);
      rows.fetch_next<stride>(in + j * step + c);
#pragma GCC unroll 9
      for (int k = 0; k < n; ++k) sum[k] += load_n(in + offsets[k] + j * step + c, lanes) * d;
    }
#pragma GCC unroll 9
    for (int k = 0; k < n; ++k) store_n(sums + weights[k] + c, sum[k], lanes);
  });
}

/// Adds the products of row i of image n to the sums [tap][C].
template <class T>
void add_row(const Correlation& q, ImageRows rows, int64_t n, int64_t i, const T* in, const T* dy, T* sums,
             RowRuns& runs) {
  const int64_t C = q.groups, step = q.step_w * C, next_dy = q.cols * C;
  const T *from = in + (n * q.IH + i * q.step_h) * q.IW * C, *row = dy + (n * q.rows + i) * next_dy;
  runs.for_each(i, [&](const Run& run) {
    const TapList& taps = run.taps;
    for (int64_t j = run.begin, pixels; j < run.end; j += pixels) {
      pixels = run.end - j < kPixelsPerSum ? run.end - j : kPixelsPerSum;
      const T *x = from + j * step, *d = row + j * C;
      int64_t t = 0;
      const auto add = [&]<int n>(std::integral_constant<int, n>) {  // the first taps fetch for all
        const auto products = t > 0           ? add_products<T, n, 0>
                              : q.step_w == 2 ? add_products<T, n, 2>
                                              : add_products<T, n, 1>;
        products(taps, t, C, pixels, x, step, rows, d, next_dy, sums);
        t += n;
      };
      while (t + 9 <= taps.count) add(std::integral_constant<int, 9>{});
      while (t + 3 <= taps.count) add(std::integral_constant<int, 3>{});
      while (t < taps.count) add(std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace

template <class T>
void depthwise_pixels(const Correlation& q, const T* in, const T* w, const T* bias, T* out, Context& context) {
  const int64_t C = q.groups;
  const Span span(q);
  T* weights = context.array<T>(q.taps * C);
  const RunMemory memory(q, span, context);
  const ImageRows rows(q, span);
  for (int64_t t = 0; t < q.taps; ++t)
    for (int64_t c = 0; c < C; ++c) weights[t * C + c] = w[c * q.w_group + q.weight[t]];
  with_streaming(out, C, q.N * C * (q.IH * q.IW + q.rows * q.cols), [&](auto streams) {
    const SumRun<T> whole_row = whole_row_function<streams, T>(q, span),
                    sum = whole_row ? whole_row : sum_run<streams, T>;
    run_team(worth_threads(q), [&](const Team& team) {
      RowRuns runs(q, span, memory, team, whole_row != nullptr);
      team.for_each(q.N * q.rows, [&](int64_t task) {
        correlate_row(q, rows, sum, task / q.rows, task % q.rows, in, weights, bias, out, runs);
      });
      if constexpr (streams) drain_streams();
    });
  });
}

template <class T>
void depthwise_pixels_weight(const Correlation& q, const T* in, const T* dy, T* dw, Context& context) {
  const int64_t C = q.groups, size = q.taps * C, all_rows = q.N * q.rows, splits = std::min(all_rows, kSplits);
  const Span span(q);
  T* row_sums = context.array<T>(max_threads() * size);
  T* partial = context.array<T>(splits * size);
  const RunMemory memory(q, span, context);
  const ImageRows rows(q, span);
  const auto add = [&](const T* from, T* to) {
    for_each_vec<T>(
        size, [&](int64_t i, auto lanes) { store_n(to + i, load_n(to + i, lanes) + load_n(from + i, lanes), lanes); });
  };
  run_team(worth_threads(q), [&](const Team& team) {
    RowRuns runs(q, span, memory, team, /*whole=*/false);
    T* const of_row = row_sums + team.rank * size;
    team.for_each(splits, [&](int64_t split) {
      zero(size, partial + split * size);
      for (int64_t r = all_rows * split / splits; r < all_rows * (split + 1) / splits; ++r) {
        zero(size, of_row);
        add_row(q, rows, r / q.rows, r % q.rows, in, dy, of_row, runs);
        add(of_row, partial + split * size);
      }
    });
  });
  for (int64_t split = 1; split < splits; ++split) add(partial + split * size, partial);
  for (int64_t t = 0; t < q.taps; ++t)
    for (int64_t c = 0; c < C; ++c) dw[c * q.w_group + q.weight[t]] = partial[t * C + c];
}

template void depthwise_pixels(const Correlation&, const float*, const float*, const float*, float*, Context&);
template void depthwise_pixels(const Correlation&, const double*, const double*, const double*, double*, Context&);
template void depthwise_pixels_weight(const Correlation&, const float*, const float*, float*, Context&);
template void depthwise_pixels_weight(const Correlation&, const double*, const double*, double*, Context&);

}  // namespace dlk::cpu::DLK_ISA
