// Average pooling, sliding and adaptive: y = sum over the window / divisor; dx = sum of dy / divisor over the windows
// that hold the element. The divisor is the number of the window's elements (the padding counted too, if asked) or
// given.
//
// Each element is one gathered sum in a fixed order; threads: pool_windows.cuh. In NCHW a team of lanes shares a large
// window, so that global pooling reads rows of memory.
#include "csrc/cuda/pool_windows.cuh"
#include "csrc/cuda/reduce.cuh"

namespace dlk::DLK_DEVICE {
namespace {

/// The windows along one axis, sliding or adaptive, clipped to the input.
struct Windows {
  Axis axis;
  bool adaptive, count_pad;

  __device__ Range inputs(int64_t o) const {
    if (adaptive) return {o * axis.in / axis.out, ceil_div((o + 1) * axis.in, axis.out)};
    const int64_t start = axis.start(o), end = start + axis.kernel;
    return {start > 0 ? start : 0, end < axis.in ? end : axis.in};
  }
  /// The elements that the divisor counts.
  __device__ int64_t count(int64_t o) const {
    if (adaptive || !count_pad) {
      const Range i = inputs(o);
      return i.end - i.begin;
    }
    const int64_t start = axis.start(o), limit = axis.in + axis.pad;  // ceil_mode windows may go beyond the padding
    return (start + axis.kernel < limit ? start + axis.kernel : limit) - start;
  }
  __device__ Range outputs(int64_t i) const {
    if (adaptive) return {i * axis.out / axis.in, ceil_div((i + 1) * axis.out, axis.in)};
    return axis.outputs(i);
  }
};

/// Both axes.
template <class A>
struct Geometry {
  Windows h, w;
  A divisor_override;

  __device__ explicit Geometry(const AvgPool2d& p)
      : h{vertical(p), p.adaptive, p.count_include_pad},
        w{horizontal(p), p.adaptive, p.count_include_pad},
        divisor_override(static_cast<A>(p.divisor_override)) {}

  __device__ A divisor(int64_t oh, int64_t ow) const {
    if (divisor_override != 0) return divisor_override;
    return static_cast<A>(h.count(oh)) * static_cast<A>(w.count(ow));
  }
};

/// A sum whose rounding errors grow with the root of its length: of blocks of kBlock terms.
template <class T, int n>
struct LongSum {
  static constexpr int kBlock = 32;
  Elements<T, n> sum{}, block{};
  int terms = 0;

  __device__ void add(const Elements<T, n>& x) {
#pragma unroll
    for (int j = 0; j < n; ++j) block[j] += x[j];
    if (++terms == kBlock) end_block();
  }
  __device__ void end_block() {
#pragma unroll
    for (int j = 0; j < n; ++j) {
      sum[j] += block[j];
      block[j] = 0;
    }
    terms = 0;
  }
};

template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads) forward_kernel(AvgPool2d p, int width, bool aligned, const T* x, T* y) {
  using A = Accumulate<T>;
  constexpr int n = kRun<T, kChannelsLast>;
  const Geometry<A> windows(p);
  const Team team{width};
  const int64_t places = Place<T, kChannelsLast>::how_many(p, p.OH, p.OW), step = int64_t{gridDim.x} * team.count();
  for (int64_t begin = int64_t{blockIdx.x} * team.count(); begin < places; begin += step) {
    const bool exists = begin + team.index() < places;
    const Place<T, kChannelsLast> place(exists ? begin + team.index() : 0, p.C, p.OH, p.OW);
    const Range ihs = windows.h.inputs(place.row), iws = windows.w.inputs(place.column);
    LongSum<T, n> sum;
    int64_t ih = ihs.begin, iw = iws.begin + team.lane();
    while (iws.begin < iws.end) {
      while (iw >= iws.end) {
        iw -= iws.end - iws.begin;
        ++ih;
      }
      if (ih >= ihs.end || !exists) break;
      sum.add(load_elements<T, n>(x + place.at(p, p.H, p.W, ih, iw), place.count, aligned));
      iw += width;
    }
    sum.end_block();
    Elements<T, n> mean;
    const A divisor = windows.divisor(place.row, place.column);
#pragma unroll
    for (int j = 0; j < n; ++j) mean[j] = sum_lanes(sum.sum[j], width) / divisor;
    if (exists && team.lane() == 0)
      store_elements(y + place.at(p, p.OH, p.OW, place.row, place.column), mean, place.count, aligned);
  }
}

template <class T>
void forward(const AvgPool2d& p, const T* x, T* y, Context& context) {
  const int64_t R = p.adaptive ? ceil_div(p.H, p.OH) : p.R, S = p.adaptive ? ceil_div(p.W, p.OW) : p.S;
  const int width = p.channels_last ? 1 : team_width(R * S, 16, 32);
  const int64_t places = p.N * (p.channels_last ? ceil_div(p.C, kLanes<T>) : p.C) * p.OH * p.OW;
  const int64_t blocks = ceil_div(places, kThreads / width);
  launch(p.channels_last ? forward_kernel<T, true> : forward_kernel<T, false>,
         dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)), dim3(kThreads), 0, context.stream(), p,
         width, channels_aligned<T>(p, x, y), x, y);
}

template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads) backward_kernel(AvgPool2d p, bool aligned, const T* dy, T* dx) {
  using A = Accumulate<T>;
  constexpr int n = kRun<T, kChannelsLast>;
  const Geometry<A> windows(p);
  for_each_place<T, kChannelsLast>(p, p.H, p.W, [&](const Place<T, kChannelsLast>& place) {
    const Range ohs = windows.h.outputs(place.row), ows = windows.w.outputs(place.column);
    Elements<T, n> sum{};
    for (int64_t oh = ohs.begin; oh < ohs.end; ++oh)
      for (int64_t ow = ows.begin; ow < ows.end; ++ow) {
        const auto g = load_elements<T, n>(dy + place.at(p, p.OH, p.OW, oh, ow), place.count, aligned);
        const A divisor = windows.divisor(oh, ow);
#pragma unroll
        for (int j = 0; j < n; ++j) sum[j] += g[j] / divisor;
      }
    store_elements(dx + place.at(p, p.H, p.W, place.row, place.column), sum, place.count, aligned);
  });
}

template <class T>
void backward(const AvgPool2d& p, const T* dy, T* dx, Context& context) {
  launch(p.channels_last ? backward_kernel<T, true> : backward_kernel<T, false>, place_blocks<T>(p, p.H, p.W),
         dim3(kThreads), 0, context.stream(), p, channels_aligned<T>(p, dy, dx), dy, dx);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

DLK_DEVICE_TABLE(AvgPool2dKernels<float>, {forward<float>, backward<float>})
DLK_DEVICE_TABLE(AvgPool2dKernels<double>, {forward<double>, backward<double>})
DLK_DEVICE_TABLE(AvgPool2dKernels<f16>, {forward<f16>, backward<f16>})
DLK_DEVICE_TABLE(AvgPool2dKernels<bf16>, {forward<bf16>, backward<bf16>})
