// Depthwise convolution of NHWC images. Forward and gradient to the input: out[pixel, c] = bias[c] + sum over taps t of
// w[c, t] in[pixel t reads, c]; gradient to the weight: dw[c, t] = sum over pixels of dy[pixel, c] in[pixel t reads,
// c].
//
// Channels are the lanes of vectors, and pixels are read where they lie: nothing is staged. Taps that fall outside of
// the image are left out: per row of the grid those above and below, per pixel at its ends those beside. In between,
// several pixels share each weight, or sum, that is loaded. Forward, a task is a row of the grid; its taps are added in
// a fixed order. The weights' gradient has sums per row, then per fixed split of all rows, which are added in order.
#include "csrc/cpu/narrow_groups.h"

namespace dlk::cpu::DLK_ISA {
namespace {

/// Pixels computed at once: with 4, loading their inputs, not the weights, is what takes time.
constexpr int kPixels = 4;

/// Pixels that add to a weight's sum between loading and storing it: their inputs, of three rows, stay in L1.
constexpr int64_t kRun = 8;
/// Splits of the sum over all rows: enough to balance a few threads.
constexpr int64_t kSplits = 16;

/// The taps that some pixels read: where in memory from the first pixel's position on, and where tap t's weights are
/// among [tap][C].
struct TapList {
  int64_t count;
  int64_t *offsets, *weights;

  void add(int64_t offset, int64_t weight) {
    offsets[count] = offset;
    weights[count++] = weight;
  }
};

/// A list for each thread, none in the same cache lines as another: they are written often.
struct TapLists {
  int64_t taps, size;
  int64_t* memory;

  TapLists(const Correlation& q, Context& context)
      : taps(q.taps), size(round_up(2 * taps, 16)), memory(context.array<int64_t>(max_threads() * size)) {}
  TapList of(const Team& team) const { return {0, memory + team.rank * size, memory + team.rank * size + taps}; }
};

/// f(j, end, taps) for runs of pixels [j, end) of grid row i that read the same taps, whose inputs are counted from
/// column j step_w of their image on.
template <class F>
void for_each_run(const Correlation& q, const Span& span, int64_t i, TapList taps, F&& f) {
  const int64_t C = q.groups;
  const auto inside = [&](int64_t j) {
    return j * q.step_w + span.left >= 0 && j * q.step_w + span.left + span.width <= q.IW;
  };
  for (int64_t j = 0, end; j < q.cols; j = end) {
    for (end = j + 1; inside(j) && end < q.cols && inside(end);) ++end;
    taps.count = 0;
    for (int64_t t = 0; t < q.taps; ++t) {
      const int64_t h = i * q.step_h + q.dh[t], column = j * q.step_w + q.dw[t];
      if (h >= 0 && h < q.IH && column >= 0 && column < q.IW) taps.add((h * q.IW + q.dw[t]) * C, t * C);
    }
    f(j, end, taps);
  }
}

/// Where, from a pixel's inputs on, those are that the next row of the grid is the first to read. The hardware does not
/// look across rows, and is slow to follow as many runs as these kernels have.
struct NextRow {
  int64_t distance, row_size, C;

  NextRow(const Correlation& q, const Span& span, int64_t i)
      : distance((i * q.step_h + span.top + span.height) * q.IW * q.groups), row_size(q.IW * q.groups), C(q.groups) {}
  /// Into L2: one pixel's, of one vector of channels. Of a stride known to be 2, four inputs (1.3 to 1.9 times faster).
  template <int stride, class T>
  DLK_INLINE void fetch(const T* pixel) const {
    for (int row = 0; row < stride; ++row)
      for (int column = 0; column < stride; ++column)
        fetch_ahead<Fetch::into_l2>(pixel + distance + row * row_size + column * C);
  }
};

/// Writes the sums of adjacent pixels, and fetches the next ones' outputs into L1.
template <int stride, class T, int pixels, class Count>
DLK_INLINE void store_sums(const Vec<T> (&sum)[pixels], const T* in, int64_t step, NextRow next, T* out,
                           int64_t out_step, Count lanes) {
  for (int o = 0; o < pixels; ++o) {
    next.fetch<stride>(in + o * step);
    __builtin_prefetch(out + (o + pixels) * out_step, 1);
    store_n(out + o * out_step, sum[o], lanes);
  }
}

/// `pixels` outputs, out_step apart, of all C channels, whose inputs are `step` apart.
template <class T, int pixels>
void sum_taps(const TapList& taps, int64_t C, const T* weights, const T* in, int64_t step, NextRow next, const T* bias,
              T* out, int64_t out_step) {
  for_each_vec<T>(C, [&](int64_t c, auto lanes) {
    Vec<T> sum[pixels];
    for (int o = 0; o < pixels; ++o) sum[o] = bias ? load_n(bias + c, lanes) : Vec<T>{};
    for (int64_t k = 0; k < taps.count; ++k) {
      const Vec<T> weight = load_n(weights + taps.weights[k] + c, lanes);
      for (int o = 0; o < pixels; ++o) sum[o] += load_n(in + taps.offsets[k] + o * step + c, lanes) * weight;
    }
    store_sums<1>(sum, in + c, step, next, out + c, out_step, lanes);
  });
}

/// The same for `groups` groups of kPixels pixels whose taps come in rows of S adjacent columns, `stride` columns apart
/// from pixel to pixel: there an input is loaded once for all pixels that read it.
template <class T, int S, int stride>
void sum_tap_rows(const TapList& taps, int64_t C, const T* weights, const T* in, int64_t step, NextRow next,
                  const T* bias, T* out, int64_t out_step, int64_t groups) {
  for_each_vec<T>(C, [&](int64_t c, auto lanes) {
    const T* from = in + c;
    T* to = out + c;
    for (int64_t g = 0; g < groups; ++g, from += kPixels * step, to += kPixels * out_step) {
      Vec<T> sum[kPixels];
      for (int o = 0; o < kPixels; ++o) sum[o] = bias ? load_n(bias + c, lanes) : Vec<T>{};
      for (int64_t k = 0; k < taps.count; k += S) {
        const T *const row = from + taps.offsets[k], *const of_row = weights + taps.weights[k] + c;
        Vec<T> weight[S];
#pragma GCC unroll 7
        for (int s = 0; s < S; ++s) weight[s] = load_n(of_row + s * C, lanes);
#pragma GCC unroll 16
        for (int column = 0; column < (kPixels - 1) * stride + S; ++column) {
          const Vec<T> x = load_n(row + column * C, lanes);
#pragma GCC unroll 4
          for (int o = 0; o < kPixels; ++o)
            if (const int s = column - o * stride; 0 <= s && s < S) sum[o] += x * weight[s];
        }
      }
      store_sums<stride>(sum, from, step, next, to, out_step, lanes);
    }
  });
}

/// sum_taps for groups of kPixels pixels.
template <class T>
void sum_groups(const TapList& taps, int64_t C, const T* weights, const T* in, int64_t step, NextRow next,
                const T* bias, T* out, int64_t out_step, int64_t groups) {
  for (int64_t g = 0; g < groups; ++g, in += kPixels * step, out += kPixels * out_step)
    sum_taps<T, kPixels>(taps, C, weights, in, step, next, bias, out, out_step);
}

template <class T>
using SumGroups = void (*)(const TapList&, int64_t, const T*, const T*, int64_t, NextRow, const T*, T*, int64_t,
                           int64_t);

/// Whether the taps come in rows of adjacent columns.
bool in_rows(const Correlation& q, const Span& span) {
  for (int64_t t = 0; t < q.taps; ++t)
    if (const int64_t s = t % span.width; q.dw[t] != span.left + s || q.dh[t] != q.dh[t - s]) return false;
  return q.taps % span.width == 0;
}

/// For groups of pixels that read all columns of the taps: taps by rows are 1.1 to 1.3 times faster, but 3 columns of
/// more channels wait for memory, which likes the order of pixels better (144: 0.93 to 1.03).
template <class T>
SumGroups<T> group_function(const Correlation& q, const Span& span) {
  if (in_rows(q, span)) {
    if (span.width == 3 && q.step_w == 1 && q.groups <= 64) return sum_tap_rows<T, 3, 1>;
    if (span.width == 3 && q.step_w == 2) return sum_tap_rows<T, 3, 2>;
    if (span.width == 5 && q.step_w == 1) return sum_tap_rows<T, 5, 1>;
    if (span.width == 7 && q.step_w == 1) return sum_tap_rows<T, 7, 1>;
  }
  return sum_groups<T>;
}

/// Row i of image n: `weights` are [tap][C]; `sum_groups` is group_function()'s.
template <class T>
void correlate_row(const Correlation& q, const Span& span, SumGroups<T> sum_groups, int64_t n, int64_t i, const T* in,
                   const T* weights, const T* bias, T* out, const TapList& list) {
  const int64_t C = q.groups, step = q.step_w * C, out_step = q.col_step * C;
  const T* image = in + n * q.IH * q.IW * C;
  T* to = out + (n * q.OH * q.OW + q.output_pixel(i, 0)) * C;
  const NextRow next(q, span, i);
  for_each_run(q, span, i, list, [&](int64_t j, int64_t end, const TapList& taps) {
    const int64_t groups = (end - j) / kPixels;
    sum_groups(taps, C, weights, image + j * step, step, next, bias, to + j * out_step, out_step, groups);
    j += groups * kPixels;
    for (; j < end; ++j)
      sum_taps<T, 1>(taps, C, weights, image + j * step, step, next, bias, to + j * out_step, out_step);
  });
}

/// Adds the products of `pixels` pixels to the sums [tap][C] of taps first .. first + n of the list. Unless `stride` is
/// 0, fetches what the next row of the grid reads, `next_dy` further on of dy.
template <class T, int n, int stride>
void add_products(const TapList& taps, int64_t first, int64_t C, int64_t pixels, const T* in, int64_t step,
                  NextRow next, const T* dy, int64_t next_dy, T* sums) {
  const int64_t *offsets = taps.offsets + first, *weights = taps.weights + first;
  for_each_vec<T>(C, [&](int64_t c, auto lanes) {
    Vec<T> sum[n];
#pragma GCC unroll 9
    for (int k = 0; k < n; ++k) sum[k] = load_n(sums + weights[k] + c, lanes);
    for (int64_t j = 0; j < pixels; ++j) {
      const Vec<T> d = load_n(dy + j * C + c, lanes);
      if constexpr (stride > 0) fetch_ahead<Fetch::into_l2>(dy + next_dy + j * C + c);
      next.fetch<stride>(in + j * step + c);
#pragma GCC unroll 9
      for (int k = 0; k < n; ++k) sum[k] += load_n(in + offsets[k] + j * step + c, lanes) * d;
    }
#pragma GCC unroll 9
    for (int k = 0; k < n; ++k) store_n(sums + weights[k] + c, sum[k], lanes);
  });
}

/// Adds the products of row i of image n to the sums [tap][C].
template <class T>
void add_row(const Correlation& q, const Span& span, int64_t n, int64_t i, const T* in, const T* dy, T* sums,
             const TapList& list) {
  const int64_t C = q.groups, step = q.step_w * C, next_dy = q.cols * C;
  const T *image = in + n * q.IH * q.IW * C, *row = dy + (n * q.rows + i) * next_dy;
  const NextRow next(q, span, i);
  for_each_run(q, span, i, list, [&](int64_t j, int64_t end, const TapList& taps) {
    for (int64_t pixels; j < end; j += pixels) {
      pixels = end - j < kRun ? end - j : kRun;
      const T *x = image + j * step, *d = row + j * C;
      int64_t t = 0;
      const auto add = [&]<int n>(std::integral_constant<int, n>) {  // the first taps fetch for all
        const auto products = t > 0           ? add_products<T, n, 0>
                              : q.step_w == 2 ? add_products<T, n, 2>
                                              : add_products<T, n, 1>;
        products(taps, t, C, pixels, x, step, next, d, next_dy, sums);
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
  const TapLists lists(q, context);
  const SumGroups<T> sum_groups = group_function<T>(q, span);
  for (int64_t t = 0; t < q.taps; ++t)
    for (int64_t c = 0; c < C; ++c) weights[t * C + c] = w[c * q.w_group + q.weight[t]];
  run_team(worth_threads(q), [&](const Team& team) {
    const TapList list = lists.of(team);
    team.for_each(q.N * q.rows, [&](int64_t task) {
      correlate_row(q, span, sum_groups, task / q.rows, task % q.rows, in, weights, bias, out, list);
    });
  });
}

template <class T>
void depthwise_pixels_weight(const Correlation& q, const T* in, const T* dy, T* dw, Context& context) {
  const int64_t C = q.groups, size = q.taps * C, rows = q.N * q.rows, splits = rows < kSplits ? rows : kSplits;
  const Span span(q);
  T* row_sums = context.array<T>(max_threads() * size);
  T* partial = context.array<T>(splits * size);
  const TapLists lists(q, context);
  const auto add = [&](const T* from, T* to) {
    for_each_vec<T>(
        size, [&](int64_t i, auto lanes) { store_n(to + i, load_n(to + i, lanes) + load_n(from + i, lanes), lanes); });
  };
  run_team(worth_threads(q), [&](const Team& team) {
    const TapList list = lists.of(team);
    T* const of_row = row_sums + team.rank * size;
    team.for_each(splits, [&](int64_t split) {
      zero(size, partial + split * size);
      for (int64_t r = rows * split / splits; r < rows * (split + 1) / splits; ++r) {
        zero(size, of_row);
        add_row(q, span, r / q.rows, r % q.rows, in, dy, of_row, list);
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
