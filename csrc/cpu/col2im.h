// Gradient to the input by col2im (Chellapilla, Puri & Simard 2006), for few pixels of dy and many weights: one product
// for the contributions of all taps, which are then added up,
//
//   col[(c, r, s), p] = sum over k of w[k, c, r, s] dy[k, p]
//   dx[c, h, w] = bias[c] + sum over r, s of col[(c, r, s), p], p the pixel of dy whose tap (r, s) read x[c, h, w]
//
// The product reads w once, where it lies. As a correlation (conv2d.cpp) the weights would be reordered first, which
// takes longer than a few products with them. NHWC has the transpose of col, whose rows (r, s, c) are then in the order
// of w as well. Each element of dx is summed by one thread, in the order of the taps.
#pragma once

#include <algorithm>

#include "csrc/core/context.h"
#include "csrc/core/conv2d.h"
#include "csrc/core/gemm.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/parallel.h"
#include "csrc/cpu/simd.h"

namespace dlk::cpu {
namespace {

/// Whether col is no larger than the weights, and these are dense in the order that dx wants. (Up to there it takes 0.2
/// to 0.95 times as long as correlations, of twice as many pixels about as long.)
inline bool has_few_pixels(const Conv2d& p) {
  const int64_t taps = p.R * p.S, pixels = p.N * p.OH * p.OW;
  const int64_t w_c = p.channels_last ? 1 : taps, w_s = p.channels_last ? p.C : 1;
  const bool dense = p.w_k == p.C * taps && p.w_c == w_c && p.w_r == p.S * w_s && p.w_s == w_s;
  return p.groups == 1 && taps > 1 && dense && pixels > 0 && pixels <= p.K;
}

/// dy as the K x pixels of one matrix.
template <class T>
const T* join_images(const Conv2d& p, const T* dy, Context& context) {
  const int64_t plane = p.OH * p.OW;
  if (p.N == 1) return dy;
  T* const to = context.array<T>(p.K * p.N * plane);
  parallel_for(p.K, 2 * p.N * plane, [=](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k)
      for (int64_t n = 0; n < p.N; ++n) std::copy_n(dy + (n * p.K + k) * plane, plane, to + (k * p.N + n) * plane);
  });
  return to;
}

/// The outputs along an axis of `n` whose tap, `offset` from the first, lies in an input of `size`.
inline Range outputs_inside(int64_t n, int64_t size, int64_t stride, int64_t offset) {
  const int64_t end = size > offset ? (size - 1 - offset) / stride + 1 : 0;
  return {offset < 0 ? ceil_div(-offset, stride) : 0, end < n ? end : n};
}

/// One plane of dx, from rows of col that begin with its image.
template <class T>
void add_taps(const Conv2d& p, const T* col, int64_t pixels, T* plane) {
  for (int64_t r = 0; r < p.R; ++r)
    for (int64_t s = 0; s < p.S; ++s, col += pixels) {
      const int64_t h0 = r * p.dilation_h - p.pad_h, w0 = s * p.dilation_w - p.pad_w;
      const Range rows = outputs_inside(p.OH, p.H, p.stride_h, h0), columns = outputs_inside(p.OW, p.W, p.stride_w, w0);
      for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
        const T* const from = col + oh * p.OW;
        T* const to = plane + (oh * p.stride_h + h0) * p.W + w0;
        for (int64_t ow = columns.begin; ow < columns.end; ++ow) to[ow * p.stride_w] += from[ow];
      }
    }
}

/// Row h of one NHWC image of dx, from the rows of col's transpose, a pixel each.
template <class T>
void add_taps_of_row(const Conv2d& p, const T* col, int64_t h, T* row) {
  const int64_t terms = p.R * p.S * p.C;
  for (int64_t r = 0; r < p.R; ++r) {
    const int64_t at = h + p.pad_h - r * p.dilation_h, oh = at / p.stride_h;
    if (at < 0 || at % p.stride_h != 0 || oh >= p.OH) continue;
    for (int64_t s = 0; s < p.S; ++s) {
      const int64_t w0 = s * p.dilation_w - p.pad_w;
      const Range columns = outputs_inside(p.OW, p.W, p.stride_w, w0);
      for (int64_t ow = columns.begin; ow < columns.end; ++ow) {
        const T* const from = col + (oh * p.OW + ow) * terms + (r * p.S + s) * p.C;
        T* const to = row + (ow * p.stride_w + w0) * p.C;
        for_each_vec<T>(p.C, [&](int64_t c, auto n) { store_n(to + c, load_n(to + c, n) + load_n(from + c, n), n); });
      }
    }
  }
}

template <class T>
void col2im_pixels(const Conv2d& p, const T* dy, const T* w, const T* bias, T* dx, Context& context) {
  const int64_t plane = p.OH * p.OW, pixels = p.N * plane, terms = p.R * p.S * p.C, length = p.W * p.C;
  T* const col = context.array<T>(pixels * terms);
  const Gemm product{
      .M = pixels, .N = terms, .K = p.K, .a_row = p.K, .a_col = 1, .b_row = terms, .b_col = 1, .c_row = terms};
  kernel_table<GemmKernels<T>, kIsa>().multiply(product, dy, w, nullptr, col, context);
  parallel_for(p.N * p.H, length + terms * p.OW / p.stride_h, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* const row = dx + i * length;
      for (int64_t at = 0; at < length; at += p.C)
        bias ? std::copy_n(bias, p.C, row + at) : std::fill_n(row + at, p.C, T(0));
      add_taps_of_row(p, col + i / p.H * plane * terms, i % p.H, row);
    }
  });
}

template <class T>
void col2im_planes(const Conv2d& p, const T* dy, const T* w, const T* bias, T* dx, Context& context) {
  const int64_t plane = p.OH * p.OW, pixels = p.N * plane, taps = p.R * p.S, terms = p.C * taps;
  T* const col = context.array<T>(terms * pixels);
  const Gemm product{
      .M = terms, .N = pixels, .K = p.K, .a_row = 1, .a_col = terms, .b_row = pixels, .b_col = 1, .c_row = pixels};
  kernel_table<GemmKernels<T>, kIsa>().multiply(product, w, join_images(p, dy, context), nullptr, col, context);
  parallel_for(p.N * p.C, p.H * p.W + taps * plane, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* const to = dx + i * p.H * p.W;
      std::fill_n(to, p.H * p.W, bias ? bias[i % p.C] : T(0));
      add_taps(p, col + i % p.C * taps * pixels + i / p.C * plane, pixels, to);
    }
  });
}

}  // namespace
}  // namespace dlk::cpu
