// Depthwise convolution of NHWC images, forward and gradient to the input: out[pixel, c] = bias[c] + sum over taps t of
// w[c, t] in[pixel t reads, c].
//
// Channels are the lanes of vectors, and pixels are read where they lie: nothing is staged. Taps that fall outside of
// the image are left out: per row of the grid those above and below, per pixel at its ends those beside. In between,
// several pixels share each weight that is loaded. A task is a row of the grid; its taps are added in a fixed order.
#include "csrc/cpu/narrow_groups.h"

namespace dlk::cpu::DLK_ISA {
namespace {

/// Pixels computed at once: with 4, loading their inputs, not the weights, is what takes time.
constexpr int kPixels = 4;

/// The taps that some pixels read: where in memory from the first pixel's position on, and which weights.
template <class T>
struct TapList {
  int64_t count = 0;
  int64_t* offsets;
  const T** weights;

  void add(int64_t offset, const T* weight) {
    offsets[count] = offset;
    weights[count++] = weight;
  }
};

/// `pixels` outputs, out_step apart, of all C channels, whose inputs are `step` apart.
template <class T, int pixels>
void sum_taps(const TapList<T>& taps, int64_t C, const T* in, int64_t step, const T* bias, T* out, int64_t out_step) {
  for_each_vec<T>(C, [&](int64_t c, auto lanes) {
    Vec<T> sum[pixels];
    for (int o = 0; o < pixels; ++o) sum[o] = bias ? load_n(bias + c, lanes) : Vec<T>{};
    for (int64_t k = 0; k < taps.count; ++k) {
      const Vec<T> weight = load_n(taps.weights[k] + c, lanes);
      for (int o = 0; o < pixels; ++o) sum[o] += load_n(in + taps.offsets[k] + o * step + c, lanes) * weight;
    }
    for (int o = 0; o < pixels; ++o) store_n(out + o * out_step + c, sum[o], lanes);
  });
}

/// Row i of image n: `weights` are [tap][C].
template <class T>
void correlate_row(const Correlation& q, const Span& span, int64_t n, int64_t i, const T* in, const T* weights,
                   const T* bias, T* out, TapList<T> taps) {
  const int64_t C = q.groups, step = q.step_w * C, out_step = q.col_step * C;
  const T* image = in + n * q.IH * q.IW * C;
  T* to = out + (n * q.OH * q.OW + q.output_pixel(i, 0)) * C;
  // The taps of pixel j, whose inputs are counted from column j step_w on.
  const auto list = [&](int64_t j) {
    taps.count = 0;
    for (int64_t t = 0; t < q.taps; ++t) {
      const int64_t h = i * q.step_h + q.dh[t], column = j * q.step_w + q.dw[t];
      if (h >= 0 && h < q.IH && column >= 0 && column < q.IW) taps.add((h * q.IW + q.dw[t]) * C, weights + t * C);
    }
  };
  const auto inside = [&](int64_t j) {
    return j * q.step_w + span.left >= 0 && j * q.step_w + span.left + span.width <= q.IW;
  };
  for (int64_t j = 0; j < q.cols;) {
    list(j);
    if (!inside(j)) {
      sum_taps<T, 1>(taps, C, image + j * step, step, bias, to + j * out_step, out_step);
      ++j;
      continue;
    }
    for (; j + kPixels <= q.cols && inside(j + kPixels - 1); j += kPixels)
      sum_taps<T, kPixels>(taps, C, image + j * step, step, bias, to + j * out_step, out_step);
    for (; j < q.cols && inside(j); ++j)
      sum_taps<T, 1>(taps, C, image + j * step, step, bias, to + j * out_step, out_step);
  }
}

}  // namespace

template <class T>
void depthwise_pixels(const Correlation& q, const T* in, const T* w, const T* bias, T* out, Context& context) {
  const int64_t C = q.groups, threads = max_threads();
  const Span span(q);
  T* weights = context.array<T>(q.taps * C);
  int64_t* offsets = context.array<int64_t>(threads * q.taps);
  const T** of_taps = context.array<const T*>(threads * q.taps);
  for (int64_t t = 0; t < q.taps; ++t)
    for (int64_t c = 0; c < C; ++c) weights[t * C + c] = w[c * q.w_group + q.weight[t]];
  run_team(worth_threads(q), [&](const Team& team) {
    const TapList<T> taps{0, offsets + team.rank * q.taps, of_taps + team.rank * q.taps};
    team.for_each(q.N * q.rows, [&](int64_t task) {
      correlate_row(q, span, task / q.rows, task % q.rows, in, weights, bias, out, taps);
    });
  });
}

template void depthwise_pixels(const Correlation&, const float*, const float*, const float*, float*, Context&);
template void depthwise_pixels(const Correlation&, const double*, const double*, const double*, double*, Context&);

}  // namespace dlk::cpu::DLK_ISA
