// Convolution gradient to the weight, by implicit GEMM: dw[k, feature] = sum over pixels of dy[k, pixel] patch(pixel,
// feature), where a feature is a (tap, channel of the group): csrc/core/conv2d.h.
//
// The pipeline of gemm_tile.cuh with pixels as its k, which it cuts into splits where dw is small: their sums are added
// in order. dy is read as the patches of a 1 x 1 filter. In NCHW neighbouring pixels are neighbours in memory, in
// channels_last neighbouring channels. Groups are a batch.
#include "csrc/core/conv2d.h"
#include "csrc/cuda/conv_sources.cuh"
#include "csrc/cuda/depthwise.cuh"

namespace dlk::DLK_DEVICE {
namespace {

/// Where dw[group, m, feature n] lies.
struct FilterAddress {
  Features features;
  FilterStrides strides;
  __device__ __forceinline__ int64_t operator()(int g, int m, int n) const {
    int channel, r, s;
    features.split(n, channel, r, s);
    return g * strides.group + m * strides.lane + (channel * strides.channel + r * strides.r + s * strides.s);
  }
};

template <class T>
struct WeightGradient {
  const Conv2d& p;
  const T *x, *dy;
  Features features;
  Sink<T, FilterAddress> sink;
  Context& context;

  void run() const {
    constexpr int kWide = 16 / sizeof(T);
    const int64_t plane = p.OH * p.OW, outputs = p.K / p.groups;
    if (p.channels_last) {
      const bool wide = features.channels % kWide == 0 && outputs % kWide == 0 && copies_16_bytes(x, {p.C}) &&
                        copies_16_bytes(dy, {p.K});
      return wide ? run<Order::lane, kWide, kWide>() : run<Order::lane, 1, 1>();
    }
    return copies_16_bytes(dy, {plane}) ? run<Order::k, kWide, 1>() : run<Order::k, 1, 1>();
  }

 private:
  template <Order kOrder, int kGradientWidth, int kImageWidth>
  void run() const {
    const TapAxis one{1, 0, 0, 0, 0};
    const int64_t outputs = p.K / p.groups;
    const PatchSource<T, LaneIs::feature, kOrder, kGradientWidth> gradient{
        Image<T>(dy, p.K, p.OH, p.OW, p.channels_last), Features(one, one, outputs, p.channels_last),
        PixelGrid(p.N, p.OH, p.OW, 1, 1)};
    const PatchSource<T, LaneIs::feature, kOrder, kImageWidth> patches{
        Image<T>(x, p.C, p.H, p.W, p.channels_last), features, PixelGrid(p.N, p.OH, p.OW, p.stride_h, p.stride_w)};
    const int64_t pixels = p.N * p.OH * p.OW;
    launch_product</*kMayBeLarge=*/(kImageWidth > 1)>(p.allow_tf32, outputs, features.count(), pixels, p.groups,
                                                      gradient, patches, sink, context);
  }
};

template <class T>
void backward_weight(const Conv2d& p, const T* x, const T* dy, T* dw, Context& context) {
  if (p.K * p.C * p.R * p.S == 0) return;
  if (is_depthwise(p)) return depthwise_backward_weight(p, x, dy, dw, context);
  const Features features(all_taps(p.R, p.pad_h, p.dilation_h), all_taps(p.S, p.pad_w, p.dilation_w), p.C / p.groups,
                          p.channels_last);
  const FilterStrides strides = filter_strides(p, p.w_k, p.K / p.groups * p.w_k, p.w_c);
  const int64_t channels = features.channels, r = p.channels_last ? p.S * channels : p.S,
                s = p.channels_last ? channels : 1, c = p.channels_last ? 1 : p.R * p.S;
  const bool in_order = p.w_c == c && (p.R == 1 || p.w_r == r) && (p.S == 1 || p.w_s == s);
  Sink<T, FilterAddress> sink{.c = dw, .address = {features, strides}};
  sink.vectors = in_order && copies_16_bytes(dw, {p.w_k, features.count()});
  WeightGradient<T>{p, x, dy, features, sink, context}.run();
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

DLK_DEVICE_TABLE(Conv2dWeightKernels<float>, {backward_weight<float>})
DLK_DEVICE_TABLE(Conv2dWeightKernels<double>, {backward_weight<double>})
DLK_DEVICE_TABLE(Conv2dWeightKernels<f16>, {backward_weight<f16>})
DLK_DEVICE_TABLE(Conv2dWeightKernels<bf16>, {backward_weight<bf16>})
