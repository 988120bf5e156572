// What max and average pooling share: windows along one axis, and which elements a thread computes.
//
// A thread computes one element of an NCHW tensor, or 16 bytes of channels of a channels_last one: kRun elements whose
// windows are the same. Neighbouring threads have neighbouring elements of memory either way.
#pragma once

#include "csrc/core/pool2d.h"
#include "csrc/cuda/elementwise.cuh"

namespace dlk::DLK_DEVICE {
namespace {

struct Range {
  int64_t begin, end;
};

/// One axis of sliding windows: tap k of output o is input o stride - pad + k dilation.
struct Axis {
  int64_t in, out, kernel, stride, pad, dilation;

  __device__ int64_t start(int64_t o) const { return o * stride - pad; }
  /// The taps of output o that are not in the padding.
  __device__ Range taps(int64_t o) const {
    const int64_t first = start(o), begin = first < 0 ? ceil_div(-first, dilation) : 0;
    const int64_t end = first < in ? ceil_div(in - first, dilation) : 0;
    return {begin, end < kernel ? end : kernel};
  }
  /// The outputs whose window's extent holds input i.
  __device__ Range outputs(int64_t i) const {
    const int64_t behind = i + pad - (kernel - 1) * dilation;
    const int64_t begin = behind > 0 ? ceil_div(behind, stride) : 0, end = (i + pad) / stride + 1;
    return {begin, end < out ? end : out};
  }
};

__host__ __device__ inline Axis vertical(const Pool2d& p) {
  return {p.H, p.OH, p.R, p.stride_h, p.pad_h, p.dilation_h};
}
__host__ __device__ inline Axis horizontal(const Pool2d& p) {
  return {p.W, p.OW, p.S, p.stride_w, p.pad_w, p.dilation_w};
}

template <class T, bool kChannelsLast>
constexpr int kRun = kChannelsLast ? kLanes<T> : 1;

/// Places of work in a tensor of `rows` x `columns` images: runs of channels at a pixel.
template <class T, bool kChannelsLast>
struct Place {
  int64_t image;  // n, or n C + c
  int64_t row, column;
  int64_t channel;  // the first of the run; NCHW: 0
  int64_t count;    // how many channels there are from there on

  __device__ Place(int64_t index, int64_t C, int64_t rows, int64_t columns) : channel(0), count(1) {
    if constexpr (kChannelsLast) {
      const int64_t runs = ceil_div(C, kRun<T, kChannelsLast>);
      channel = index % runs * kRun<T, kChannelsLast>;
      count = C - channel;
      index /= runs;
    }
    column = index % columns;
    index /= columns;
    row = index % rows;
    image = index / rows;
  }

  __device__ static int64_t how_many(const Pool2d& p, int64_t rows, int64_t columns) {
    return kChannelsLast ? p.N * rows * columns * ceil_div(p.C, kRun<T, kChannelsLast>) : p.N * p.C * rows * columns;
  }

  /// The offset of these channels at a pixel of an image of that size.
  __device__ int64_t at(const Pool2d& p, int64_t rows, int64_t columns, int64_t r, int64_t c) const {
    const int64_t pixel = (image * rows + r) * columns + c;
    return kChannelsLast ? pixel * p.C + channel : pixel;
  }
};

/// body(place) for each place of a rows x columns image that is this thread's.
template <class T, bool kChannelsLast, class Body>
__device__ __forceinline__ void for_each_place(const Pool2d& p, int64_t rows, int64_t columns, Body body) {
  const int64_t n = Place<T, kChannelsLast>::how_many(p, rows, columns), step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += step)
    body(Place<T, kChannelsLast>(i, p.C, rows, columns));
}

/// The grid for that.
template <class T>
dim3 place_blocks(const Pool2d& p, int64_t rows, int64_t columns) {
  const int64_t runs = p.channels_last ? ceil_div(p.C, kLanes<T>) : p.C;
  const int64_t blocks = ceil_div(p.N * runs * rows * columns, kThreads);
  return dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks));
}

/// Whether channels can be read as vectors.
template <class T, class... P>
bool channels_aligned(const Pool2d& p, const P*... pointers) {
  return p.channels_last && p.C % kLanes<T> == 0 && all_aligned(pointers...);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE
