// Convolution with filters of 1 x 1 taps and a stride (the shortcuts of ResNets): it reads every stride-th pixel of x,
// so it is one with stride 1 over an image of these pixels alone. They are copied into one: products of adjacent
// pixels are up to twice as fast as of pixels that lie apart, which costs more than the copy. (Not so the forward pass
// of channels_last, whose pixels are rows of a matrix as they lie.)
//
// by_phases (conv2d_weight.cpp) copies the pixels of a strided backward pass's phases likewise.
//
// The gradient to the input likewise: what stride 1 gives is spread over dx, between pixels that nothing reads.
#pragma once

#include <algorithm>

#include "csrc/core/context.h"
#include "csrc/core/conv2d.h"
#include "csrc/cpu/parallel.h"
#include "csrc/cpu/simd.h"

namespace dlk::cpu {
namespace {

inline bool reads_sampled_pixels(const Conv2d& p) {
  const bool inside = p.pad_h == 0 && p.pad_w == 0 && (p.OH - 1) * p.stride_h < p.H && (p.OW - 1) * p.stride_w < p.W;
  return p.groups == 1 && p.R == 1 && p.S == 1 && inside && p.stride_h * p.stride_w > 1;
}

/// p over the image of sampled pixels.
inline Conv2d over_samples(Conv2d p) {
  p.H = p.OH, p.W = p.OW;
  p.stride_h = p.stride_w = 1;
  return p;
}

/// Room for the pixels that p reads.
template <class T>
T* samples_of(const Conv2d& p, Context& context) {
  return context.array<T>(p.N * p.C * p.OH * p.OW);
}

/// f(row of all images or planes of x, row of samples) over the threads, for the rows that are sampled.
template <class F>
void for_each_sampled_row(const Conv2d& p, int64_t planes, int64_t cost, F f) {
  parallel_for(planes * p.OH, cost, [=](int64_t begin, int64_t end) {
    int64_t first = begin / p.OH * p.H, oh = begin % p.OH;  // of the plane
    for (int64_t sampled = begin; sampled < end; ++sampled) {
      f(first + oh * p.stride_h, sampled);
      if (++oh == p.OH) oh = 0, first += p.H;
    }
  });
}

/// to[i] = x[i stride] for n elements.
template <class T>
DLK_INLINE void sample(const T* x, int64_t n, int64_t stride, T* to) {
  int64_t i = 0;
  if (stride == 2)
    for (; i + kLanes<T> < n; i += kLanes<T>)  // not at the end, where the second vector may be longer than the row
      store(to + i, every_second<0>(load(x + 2 * i), load(x + 2 * i + kLanes<T>)));
  for (; i < n; ++i) to[i] = x[i * stride];
}

/// The inverse, into a row of W elements: `fill` is what the others become.
template <class T>
DLK_INLINE void spread(const T* from, int64_t n, int64_t stride, T fill, int64_t W, T* to) {
  int64_t i = 0;
  if (stride == 2)
    for (; i + kLanes<T> < n; i += kLanes<T>) {
      const Vec<T> v = load(from + i), others = splat(fill);
      store(to + 2 * i, interleave<0>(v, others));
      store(to + 2 * i + kLanes<T>, interleave<1>(v, others));
    }
  std::fill(to + i * stride, to + W, fill);
  for (; i < n; ++i) to[i * stride] = from[i];
}

/// The pixels of x that p reads, into an image at `to`, which it returns.
template <class T>
const T* sampled_pixels(const Conv2d& p, const T* x, T* to) {
  const int64_t C = p.C;
  if (p.channels_last)
    for_each_sampled_row(p, p.N, 2 * p.OW * C, [=](int64_t row, int64_t sampled) {
      const T* from = x + row * p.W * C;
      for (int64_t i = 0; i < p.OW; ++i, from += p.stride_w * C) std::copy_n(from, C, to + (sampled * p.OW + i) * C);
    });
  else
    for_each_sampled_row(p, p.N * C, 2 * p.OW, [=](int64_t row, int64_t sampled) {
      sample(x + row * p.W, p.OW, p.stride_w, to + sampled * p.OW);
    });
  return to;
}

/// dx from its sampled pixels; the others are the bias, or 0.
template <class T>
void spread_pixels(const Conv2d& p, const T* samples, const T* bias, T* dx) {
  const int64_t C = p.C, pixel = p.channels_last ? C : 1, planes = p.channels_last ? p.N : p.N * C;
  const auto fill_pixel = [=](T* to) { bias ? std::copy_n(bias, C, to) : std::fill_n(to, C, T(0)); };
  parallel_for(planes * p.H, 2 * p.W * pixel, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t plane = row / p.H, h = row % p.H, oh = h / p.stride_h;
      const bool sampled = h % p.stride_h == 0 && oh < p.OH;
      const T* const from = samples + (plane * p.OH + oh) * p.OW * pixel;
      T* const to = dx + row * p.W * pixel;
      if (!p.channels_last) {
        spread(from, sampled ? p.OW : 0, p.stride_w, bias ? bias[plane % C] : T(0), p.W, to);
        continue;
      }
      for (int64_t w = 0, ow = 0; w < p.W; ++w)
        if (sampled && w == ow * p.stride_w && ow < p.OW)
          std::copy_n(from + ow++ * C, C, to + w * C);
        else
          fill_pixel(to + w * C);
    }
  });
}

}  // namespace
}  // namespace dlk::cpu
