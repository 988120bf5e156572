// The one operation behind a convolution's forward pass and its gradient to the input: a correlation
//
//   out[n, m, i, j] = bias[m] + sum over c, t of w(m, c, t) * in[n, c, i * step_h + dh[t], j * step_w + dw[t]]
//
// over a list of taps t in ascending order of dh, then dw, on a grid of output pixels (i, j) that may be every
// row_step-th row and col_step-th column of the output image. Forward, a tap is a filter position, the step is the
// stride and the grid is all of y. Backward, dx falls into stride_h * stride_w phases: within one, all pixels see the
// same taps, and dy is read with step 1. The gradient to the weight sums products of either's pixels.
#pragma once

#include "csrc/core/context.h"
#include "csrc/core/conv2d.h"
#include "csrc/cpu/gemm_kernel.h"

namespace dlk::cpu::DLK_ISA {

struct Correlation {
  int64_t N, groups;
  int64_t CI, IH, IW;                                  // channels of `in` per group, its image
  int64_t CO, OH, OW;                                  // channels of `out` per group, its image
  int64_t rows, row0, row_step, cols, col0, col_step;  // the grid: pixel (i, j) is out[row0 + i row_step, col0 + ...]
  int64_t step_h, step_w;
  int64_t taps, *dh, *dw, *weight;  // weight[t]: offset of tap t in w
  int64_t w_out, w_in, w_group;     // strides of w along m, c and the groups
  bool channels_last;
  bool less_accurate;  // Conv2d::allow_tf32

  int64_t pixels() const { return N * rows * cols; }
  int64_t multiplies() const { return groups * CO * CI * taps * pixels(); }
  /// Pixel (i, j) of the grid within its output image.
  int64_t output_pixel(int64_t i, int64_t j) const { return (row0 + i * row_step) * OW + col0 + j * col_step; }
};

/// Whether the weights of the taps lie `step` apart in the order of the taps, not just the first and the last of them:
/// a filter's axes may be swapped in memory.
inline bool taps_in_order(const Correlation& q, int64_t step) {
  for (int64_t t = 0; t < q.taps; ++t)
    if (q.weight[t] != t * step) return false;
  return true;
}

inline bool worth_threads(const Correlation& q) { return q.multiplies() >= kGrainMultiplies; }

/// Whether each pixel of the grid reads one pixel of the input, the same: 1 x 1 filters with stride 1.
inline bool reads_same_pixel(const Correlation& q) {
  return q.taps == 1 && q.dh[0] == 0 && q.dw[0] == 0 && q.step_h == 1 && q.step_w == 1 && q.rows == q.IH &&
         q.cols == q.IW;
}

/// Taps that may read rows of the image from the rows [first, last] of the grid.
inline Range taps_inside(const Correlation& q, int64_t first, int64_t last) {
  Range taps{0, q.taps};
  while (taps.size() > 0 && last * q.step_h + q.dh[taps.begin] < 0) ++taps.begin;
  while (taps.size() > 0 && first * q.step_h + q.dh[taps.end - 1] >= q.IH) --taps.end;
  return taps;
}

/// q, whose taps it changes, with small images of short rows taken as one long row each, if its taps are above each
/// other only: then a pixel's neighbours to the sides do not matter, and tiles of pixels need not end where a row does.
/// (Large images are cut by rows.)
inline Correlation flattened(Correlation q) {
  constexpr int64_t kSmall = 1024, kShort = 2 * Block<float>::MR;  // pixels
  if (q.cols >= kShort) return q;
  const bool whole = q.step_h == 1 && q.step_w == 1 && q.row_step == 1 && q.col_step == 1 && q.rows == q.OH &&
                     q.cols == q.OW && q.cols == q.IW && q.IH * q.IW <= kSmall;
  for (int64_t t = 0; t < q.taps; ++t)
    if (!whole || q.dw[t] != 0) return q;
  for (int64_t t = 0; t < q.taps; ++t) q.dw[t] = q.dh[t] * q.IW, q.dh[t] = 0;
  q.IW *= q.IH, q.OW *= q.OH, q.cols *= q.rows;
  q.IH = q.OH = q.rows = 1;
  return q;
}

/// The least and greatest tap offset along each axis.
struct Span {
  int64_t top, left, height, width;

  explicit Span(const Correlation& q) : top(q.dh[0]), left(q.dw[0]) {
    int64_t bottom = top, right = left;
    for (int64_t t = 1; t < q.taps; ++t) {
      if (q.dh[t] < top) top = q.dh[t];
      if (q.dh[t] > bottom) bottom = q.dh[t];
      if (q.dw[t] < left) left = q.dw[t];
      if (q.dw[t] > right) right = q.dw[t];
    }
    height = bottom - top + 1;
    width = right - left + 1;
  }

  /// Whether no pixel of the grid reads outside of the input image.
  bool inside(const Correlation& q) const {
    return top >= 0 && left >= 0 && (q.rows - 1) * q.step_h + top + height <= q.IH &&
           (q.cols - 1) * q.step_w + left + width <= q.IW;
  }
};

/// Whether a filter covers its image of several pixels, in the same order of memory: an output is one dot product.
inline bool covers_image(const Conv2d& p) {
  const bool whole = p.groups == 1 && p.R * p.S > 1 && p.R == p.H && p.S == p.W && p.OH == 1 && p.OW == 1 &&
                     p.pad_h == 0 && p.pad_w == 0 && p.dilation_h == 1 && p.dilation_w == 1;
  const int64_t w_s = p.channels_last ? p.C : 1;
  return whole && p.w_c == (p.channels_last ? 1 : p.R * p.S) && p.w_s == w_s && p.w_r == p.S * w_s;
}

/// Such a convolution as one of a pixel, whose channels are all elements of the image.
inline Conv2d of_one_pixel(Conv2d p) {
  p.C *= p.R * p.S;
  p.H = p.W = p.R = p.S = 1;
  p.stride_h = p.stride_w = 1;
  p.channels_last = true, p.w_c = 1;
  return p;
}

/// y as a correlation of x.
inline Correlation forward_correlation(const Conv2d& p, Context& context) {
  Correlation q{};
  q.N = p.N, q.groups = p.groups;
  q.CI = p.C / p.groups, q.IH = p.H, q.IW = p.W;
  q.CO = p.K / p.groups, q.OH = p.OH, q.OW = p.OW;
  q.rows = p.OH, q.row_step = 1, q.cols = p.OW, q.col_step = 1;
  q.step_h = p.stride_h, q.step_w = p.stride_w;
  q.w_out = p.w_k, q.w_in = p.w_c, q.w_group = q.CO * p.w_k;
  q.channels_last = p.channels_last, q.less_accurate = p.allow_tf32;
  q.dh = context.array<int64_t>(3 * p.R * p.S), q.dw = q.dh + p.R * p.S, q.weight = q.dw + p.R * p.S;
  for (int64_t r = 0; r < p.R; ++r)
    for (int64_t s = 0; s < p.S; ++s, ++q.taps) {
      q.dh[q.taps] = r * p.dilation_h - p.pad_h;
      q.dw[q.taps] = s * p.dilation_w - p.pad_w;
      q.weight[q.taps] = r * p.w_r + s * p.w_s;
    }
  return q;
}

/// Rows phase_h, phase_h + stride_h, ... and likewise columns of dx, as a correlation of dy: row h = phase_h + i
/// stride_h of x is read by row i + (phase_h + pad_h - r dilation_h) / stride_h of y, for the r where that division is
/// exact. `taps` is room for 3 R S values.
inline Correlation backward_correlation(const Conv2d& p, int64_t phase_h, int64_t phase_w, int64_t* taps) {
  Correlation q{};
  q.N = p.N, q.groups = p.groups;
  q.CI = p.K / p.groups, q.IH = p.OH, q.IW = p.OW;
  q.CO = p.C / p.groups, q.OH = p.H, q.OW = p.W;
  q.rows = ceil_div(p.H - phase_h, p.stride_h), q.row0 = phase_h, q.row_step = p.stride_h;
  q.cols = ceil_div(p.W - phase_w, p.stride_w), q.col0 = phase_w, q.col_step = p.stride_w;
  q.step_h = 1, q.step_w = 1;
  q.w_out = p.w_c, q.w_in = p.w_k, q.w_group = q.CI * p.w_k;
  q.channels_last = p.channels_last, q.less_accurate = p.allow_tf32;
  q.dh = taps, q.dw = q.dh + p.R * p.S, q.weight = q.dw + p.R * p.S;
  for (int64_t r = p.R - 1; r >= 0; --r)
    for (int64_t s = p.S - 1; s >= 0; --s) {
      const int64_t h = phase_h + p.pad_h - r * p.dilation_h, w = phase_w + p.pad_w - s * p.dilation_w;
      if (h % p.stride_h != 0 || w % p.stride_w != 0) continue;
      q.dh[q.taps] = h / p.stride_h;
      q.dw[q.taps] = w / p.stride_w;
      q.weight[q.taps++] = r * p.w_r + s * p.w_s;
    }
  return q;
}

}  // namespace dlk::cpu::DLK_ISA
