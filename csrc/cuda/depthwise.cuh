// Depthwise convolution: one input channel per group, K / C outputs of each (the multiplier). An output is a sum of R S
// products of which little is reused, so memory sets the pace: one thread per output, neighbours in memory to
// neighbouring threads, filters and overlapping windows from L1.
//
// The gradient to the weight is a sum over pixels for each (k, tap): threads of a block are channels_per_block channels
// x shares of the pixels, blocks have further shares, and a second kernel adds theirs in order.
#pragma once

#include "csrc/cuda/conv_sources.cuh"
#include "csrc/cuda/reduce.cuh"

namespace dlk::DLK_DEVICE {
namespace {

inline bool is_depthwise(const Conv2d& p) { return p.groups > 1 && p.groups == p.C; }

/// Conv2d in 32 bits, with what divides an index into its parts.
template <class T>
struct Depthwise {
  int C, K, H, W, OH, OW, R, S, multiplier;
  int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int w_k, w_r, w_s;
  bool channels_last;
  Divisor by_stride_h, by_stride_w, by_multiplier;

  explicit Depthwise(const Conv2d& p)
      : C(p.C),
        K(p.K),
        H(p.H),
        W(p.W),
        OH(p.OH),
        OW(p.OW),
        R(p.R),
        S(p.S),
        multiplier(p.K / p.C),
        stride_h(p.stride_h),
        stride_w(p.stride_w),
        pad_h(p.pad_h),
        pad_w(p.pad_w),
        dilation_h(p.dilation_h),
        dilation_w(p.dilation_w),
        w_k(p.w_k),
        w_r(p.w_r),
        w_s(p.w_s),
        channels_last(p.channels_last),
        by_stride_h(p.stride_h),
        by_stride_w(p.stride_w),
        by_multiplier(p.K / p.C) {}

  /// Element (n, c, h, w) of an image of `channels` x height x width.
  __device__ __forceinline__ int64_t offset(int n, int c, int h, int w, int channels, int height, int width) const {
    const int64_t pixel = static_cast<int64_t>(h) * width + w, plane = static_cast<int64_t>(height) * width;
    return channels_last ? (n * plane + pixel) * channels + c
                         : (static_cast<int64_t>(n) * channels + c) * plane + pixel;
  }
};

/// Divides the index of an element, in memory order, into (n, c, h, w).
struct ElementIndex {
  Divisor channels, columns, rows;
  bool channels_last;

  ElementIndex(int64_t C, int64_t H, int64_t W, bool channels_last)
      : channels(C), columns(W), rows(H), channels_last(channels_last) {}

  __device__ __forceinline__ void split(int index, int& n, int& c, int& h, int& w) const {
    int rest = index;
    if (channels_last) channels.divide(rest, rest, c);
    columns.divide(rest, rest, w);
    rows.divide(rest, rest, h);
    if (channels_last)
      n = rest;
    else
      channels.divide(rest, n, c);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) depthwise_forward_kernel(int count, Depthwise<T> p, ElementIndex outputs,
                                                                     const T* x, const T* w, const T* bias, T* y) {
  const int index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= count) return;
  int n, k, i, j, c, part;
  outputs.split(index, n, k, i, j);
  p.by_multiplier.divide(k, c, part);
  Accumulate<T> sum = bias ? load(bias + k) : 0;
  for (int r = 0; r < p.R; ++r) {
    const int h = i * p.stride_h - p.pad_h + r * p.dilation_h;
    if (h < 0 || h >= p.H) continue;
    for (int s = 0; s < p.S; ++s) {
      const int column = j * p.stride_w - p.pad_w + s * p.dilation_w;
      if (column < 0 || column >= p.W) continue;
      sum += load(x + p.offset(n, c, h, column, p.C, p.H, p.W)) * load(w + k * p.w_k + r * p.w_r + s * p.w_s);
    }
  }
  y[index] = convert<T>(sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    depthwise_backward_input_kernel(int count, Depthwise<T> p, ElementIndex inputs, const T* dy, const T* w,
                                    const T* bias, T* dx) {
  const int index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= count) return;
  int n, c, h, column;
  inputs.split(index, n, c, h, column);
  Accumulate<T> sum = bias ? load(bias + c) : 0;
  for (int r = 0; r < p.R; ++r) {
    const int from_h = h + p.pad_h - r * p.dilation_h;
    if (from_h < 0) continue;
    int i, rest_h;
    p.by_stride_h.divide(from_h, i, rest_h);
    if (rest_h != 0 || i >= p.OH) continue;
    for (int s = 0; s < p.S; ++s) {
      const int from_w = column + p.pad_w - s * p.dilation_w;
      if (from_w < 0) continue;
      int j, rest_w;
      p.by_stride_w.divide(from_w, j, rest_w);
      if (rest_w != 0 || j >= p.OW) continue;
      for (int k = c * p.multiplier; k < (c + 1) * p.multiplier; ++k)
        sum += load(dy + p.offset(n, k, i, j, p.K, p.OH, p.OW)) * load(w + k * p.w_k + r * p.w_r + s * p.w_s);
    }
  }
  dx[index] = convert<T>(sum);
}

/// partial[share][tap][k], for the share of the pixels that is blockIdx.y's. Threads of a team are channels.
template <class T>
__global__ void __launch_bounds__(kThreads)
    depthwise_backward_weight_kernel(int pixels, int per_share, Depthwise<T> p, PixelGrid grid, int channels_per_block,
                                     const T* x, const T* dy, Accumulate<T>* partial) {
  const Team team{channels_per_block};
  const int taps = p.R * p.S, tap = blockIdx.x % taps, r = tap / p.S, s = tap % p.S;
  const int k = blockIdx.x / taps * channels_per_block + team.lane();
  const int begin = blockIdx.y * per_share, end = pixels - begin < per_share ? pixels : begin + per_share;
  Accumulate<T> sum = 0;
  for (int pixel = begin + team.index(); k < p.K && pixel < end; pixel += team.count()) {
    int n, i, j, c, part;
    grid.split(pixel, n, i, j);
    p.by_multiplier.divide(k, c, part);
    const int h = i * p.stride_h - p.pad_h + r * p.dilation_h, column = j * p.stride_w - p.pad_w + s * p.dilation_w;
    if (h >= 0 && h < p.H && column >= 0 && column < p.W)
      sum += load(x + p.offset(n, c, h, column, p.C, p.H, p.W)) * load(dy + p.offset(n, k, i, j, p.K, p.OH, p.OW));
  }
  sum = team.sum_over_teams(sum);
  if (team.index() == 0 && k < p.K) partial[(static_cast<int64_t>(blockIdx.y) * taps + tap) * p.K + k] = sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    depthwise_combine_kernel(Depthwise<T> p, int shares, const Accumulate<T>* partial, T* dw) {
  const int index = blockIdx.x * kThreads + threadIdx.x, count = p.R * p.S * p.K;
  if (index >= count) return;
  Accumulate<T> sum = 0;
  for (int share = 0; share < shares; ++share) sum += partial[static_cast<int64_t>(share) * count + index];
  const int tap = index / p.K, k = index % p.K;
  dw[k * p.w_k + tap / p.S * p.w_r + tap % p.S * p.w_s] = convert<T>(sum);
}

// ---- Host

inline dim3 blocks_of_threads(int64_t n) { return dim3(static_cast<unsigned>(ceil_div(n, kThreads))); }

template <class T>
void depthwise_forward(const Conv2d& p, const T* x, const T* w, const T* bias, T* y, Context& context) {
  const int count = static_cast<int>(p.N * p.K * p.OH * p.OW);
  launch(depthwise_forward_kernel<T>, blocks_of_threads(count), dim3(kThreads), 0, context.stream(), count,
         Depthwise<T>(p), ElementIndex(p.K, p.OH, p.OW, p.channels_last), x, w, bias, y);
}

template <class T>
void depthwise_backward_input(const Conv2d& p, const T* dy, const T* w, const T* bias, T* dx, Context& context) {
  const int count = static_cast<int>(p.N * p.C * p.H * p.W);
  launch(depthwise_backward_input_kernel<T>, blocks_of_threads(count), dim3(kThreads), 0, context.stream(), count,
         Depthwise<T>(p), ElementIndex(p.C, p.H, p.W, p.channels_last), dy, w, bias, dx);
}

template <class T>
void depthwise_backward_weight(const Conv2d& p, const T* x, const T* dy, T* dw, Context& context) {
  const int64_t pixels = p.N * p.OH * p.OW, taps = p.R * p.S;
  // Neighbouring threads read neighbouring channels, or, in NCHW, pixels of one channel.
  const int channels_per_block = p.channels_last ? 32 : 1, pixels_at_once = kThreads / channels_per_block;
  const int64_t blocks = ceil_div(p.K, channels_per_block) * taps;
  constexpr int64_t kLeastPixels = 16;  // per thread, so that a share is worth the pass through memory
  int64_t shares = ceil_div(8 * kWantedBlocks, blocks);
  if (shares > pixels / (kLeastPixels * pixels_at_once)) shares = pixels / (kLeastPixels * pixels_at_once);
  if (shares < 1) shares = 1;
  const int per_share = static_cast<int>(ceil_div(pixels, shares));
  auto* const partial = context.array<Accumulate<T>>(shares * taps * p.K);
  launch(depthwise_backward_weight_kernel<T>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(shares)),
         dim3(kThreads), 0, context.stream(), static_cast<int>(pixels), per_share, Depthwise<T>(p),
         PixelGrid(p.N, p.OH, p.OW, 1, 1), channels_per_block, x, dy, partial);
  launch(depthwise_combine_kernel<T>, blocks_of_threads(taps * p.K), dim3(kThreads), 0, context.stream(),
         Depthwise<T>(p), static_cast<int>(shares), partial, dw);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE
