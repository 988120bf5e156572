// Max pooling: y = max over the window; the gradient goes to the one element that was found.
//
// Order as PyTorch's: taps are visited r by r, s by s, and one replaces the best so far if it is greater or NaN: the
// first of equal maxima wins, a NaN always does; a window of -Inf gives its first element. Padding never wins: a window
// wholly in it gives -Inf and position -1. Backward gathers: an input adds up dy of the windows whose position is its
// own, so nothing is written twice and the order of the sum is fixed. Threads: pool_windows.cuh.
#include <limits>

#include "csrc/cuda/pool_windows.cuh"

namespace dlk::DLK_DEVICE {
namespace {

/// The position stored at i: -1 for none.
__device__ __forceinline__ int32_t position_at(const Positions& positions, int64_t i) {
  if (positions.wide) return positions.wide[i];
  const uint8_t position = positions.narrow[i];
  return position == 0xff ? -1 : position;
}

__device__ __forceinline__ void store_position(const Positions& positions, int64_t i, int32_t position) {
  if (positions.wide) positions.wide[i] = position;
  if (positions.narrow) positions.narrow[i] = static_cast<uint8_t>(position);
}

template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Pool2d p, bool aligned, const T* x, T* y, Positions positions) {
  using A = Accumulate<T>;
  constexpr int n = kRun<T, kChannelsLast>;
  const Axis h = vertical(p), w = horizontal(p);
  for_each_place<T, kChannelsLast>(p, p.OH, p.OW, [&](const Place<T, kChannelsLast>& place) {
    const Range rs = h.taps(place.row), ss = w.taps(place.column);
    const bool empty = rs.begin >= rs.end || ss.begin >= ss.end;
    Elements<T, n> best;
    int32_t position[n];
#pragma unroll
    for (int j = 0; j < n; ++j) {
      best[j] = -std::numeric_limits<A>::infinity();
      position[j] = empty ? -1 : static_cast<int32_t>(rs.begin * p.S + ss.begin);
    }
    for (int64_t r = rs.begin; r < rs.end; ++r)
      for (int64_t s = ss.begin; s < ss.end; ++s) {
        const int64_t ih = h.start(place.row) + r * h.dilation, iw = w.start(place.column) + s * w.dilation;
        const auto v = load_elements<T, n>(x + place.at(p, p.H, p.W, ih, iw), place.count, aligned);
#pragma unroll
        for (int j = 0; j < n; ++j) {
          const bool wins = v[j] > best[j] || v[j] != v[j];
          best[j] = wins ? v[j] : best[j];
          position[j] = wins ? static_cast<int32_t>(r * p.S + s) : position[j];
        }
      }
    const int64_t at = place.at(p, p.OH, p.OW, place.row, place.column);
    store_elements(y + at, best, place.count, aligned);
#pragma unroll
    for (int j = 0; j < n; ++j)
      if (j < place.count) store_position(positions, at + j, position[j]);
  });
}

template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Pool2d p, bool aligned, const T* dy, Positions positions, T* dx) {
  constexpr int n = kRun<T, kChannelsLast>;
  const Axis h = vertical(p), w = horizontal(p);
  for_each_place<T, kChannelsLast>(p, p.H, p.W, [&](const Place<T, kChannelsLast>& place) {
    const Range ohs = h.outputs(place.row), ows = w.outputs(place.column);
    Elements<T, n> sum{};
    for (int64_t oh = ohs.begin; oh < ohs.end; ++oh) {
      const int64_t down = place.row - h.start(oh);
      if (down % h.dilation != 0) continue;
      for (int64_t ow = ows.begin; ow < ows.end; ++ow) {
        const int64_t right = place.column - w.start(ow);
        if (right % w.dilation != 0) continue;
        const auto position = static_cast<int32_t>(down / h.dilation * p.S + right / w.dilation);
        const int64_t at = place.at(p, p.OH, p.OW, oh, ow);
        const auto g = load_elements<T, n>(dy + at, place.count, aligned);
#pragma unroll
        for (int j = 0; j < n; ++j)
          if (j < place.count && position_at(positions, at + j) == position) sum[j] += g[j];
      }
    }
    store_elements(dx + place.at(p, p.H, p.W, place.row, place.column), sum, place.count, aligned);
  });
}

template <class T>
void forward(const Pool2d& p, const T* x, T* y, Positions positions, Context& context) {
  launch(p.channels_last ? forward_kernel<T, true> : forward_kernel<T, false>, place_blocks<T>(p, p.OH, p.OW),
         dim3(kThreads), 0, context.stream(), p, channels_aligned<T>(p, x, y), x, y, positions);
}

template <class T>
void backward(const Pool2d& p, const T* dy, Positions positions, T* dx, Context& context) {
  launch(p.channels_last ? backward_kernel<T, true> : backward_kernel<T, false>, place_blocks<T>(p, p.H, p.W),
         dim3(kThreads), 0, context.stream(), p, channels_aligned<T>(p, dy, dx), dy, positions, dx);
}

__global__ void __launch_bounds__(kThreads) indices_kernel(Pool2d p, Positions positions, int64_t* indices) {
  const int64_t n = p.N * p.C * p.OH * p.OW, step = int64_t{gridDim.x} * kThreads;
  const int64_t channels = p.channels_last ? p.C : 1;  // that stand together at a pixel
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += step) {
    const int64_t pixel = i / channels, ow = pixel % p.OW, oh = pixel / p.OW % p.OH;
    const int32_t position = position_at(positions, i);
    const int64_t ih = oh * p.stride_h - p.pad_h + position / p.S * p.dilation_h;
    const int64_t iw = ow * p.stride_w - p.pad_w + position % p.S * p.dilation_w;
    indices[i] = position < 0 ? -1 : ih * p.W + iw;
  }
}

void indices(const Pool2d& p, Positions positions, int64_t* indices, Context& context) {
  launch(indices_kernel, dim3(blocks_for<int64_t>(p.N * p.C * p.OH * p.OW)), dim3(kThreads), 0, context.stream(), p,
         positions, indices);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

DLK_DEVICE_TABLE(MaxPool2dKernels<float>, {forward<float>, backward<float>})
DLK_DEVICE_TABLE(MaxPool2dKernels<double>, {forward<double>, backward<double>})
DLK_DEVICE_TABLE(MaxPool2dKernels<f16>, {forward<f16>, backward<f16>})
DLK_DEVICE_TABLE(MaxPool2dKernels<bf16>, {forward<bf16>, backward<bf16>})
DLK_DEVICE_TABLE(MaxPool2dIndexKernels, {indices})
