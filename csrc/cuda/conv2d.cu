// Convolution forward and gradient to the input, by implicit GEMM: csrc/core/conv2d.h.
//
// Both are correlations of an image with a filter, on a grid of output pixels. Forward, the grid is all of y. Backward,
// dx falls into stride_h x stride_w phases, in each of which all pixels see the same taps of dy: no multiplication with
// the zeros between strides is done (at the price of a launch per phase, which only large strides on small images
// feel). The sum runs over features (tap, channel of the group).
//
//   channels_last:  out[pixels x channels] = patches[pixels x features] filter[channels x features]^T
//   NCHW:           out[channels x pixels] = filter[channels x features] patches[pixels x features]^T
//
// so that neighbouring threads read, and write, neighbours in memory. Groups are a batch. Depthwise convolution, where
// there is nothing to reuse, has kernels of its own (depthwise.cuh).
#include <numeric>

#include "csrc/core/conv2d.h"
#include "csrc/cuda/conv_sources.cuh"
#include "csrc/cuda/depthwise.cuh"

namespace dlk::DLK_DEVICE {
namespace {

/// Where result (group, m, n) lies: pixels along m for channels_last, along n for NCHW.
struct PixelAddress {
  Divisor image, row;
  bool pixels_along_m;
  int64_t stride_n, group;
  int stride_c, stride_h, stride_w;  // between neighbouring rows and columns of the grid
  int64_t first;                     // the grid's pixel (0, 0)

  __device__ __forceinline__ int64_t operator()(int g, int m, int n) const {
    int image_index, within, i, j;
    image.divide(pixels_along_m ? m : n, image_index, within);
    row.divide(within, i, j);
    return first + g * group + image_index * stride_n + static_cast<int64_t>(pixels_along_m ? n : m) * stride_c +
           i * stride_h + j * stride_w;
  }
};

/// out[n, m, row0 + i row_step, col0 + j col_step] = bias[m] + sum over features of patch(pixel, feature) filter(m,
/// feature).
template <class T>
struct Correlation {
  Image<T> in;
  Features features;
  PixelGrid pixels;
  const T* w;
  FilterStrides w_strides;
  int64_t groups, outputs;  // output channels per group
  bool channels_last;
  bool allow_tf32;
  Sink<T, PixelAddress> sink;

  void run(Context& context) const {
    const bool channel_inside = features.channels % kWide == 0;
    const bool wide_image = channels_last ? channel_inside && copies_16_bytes(in.p, {in.stride_w}) : pointwise();
    const bool along_channels = w_strides.channel == 1 && channel_inside &&
                                copies_16_bytes(w, {w_strides.lane, w_strides.group, w_strides.r, w_strides.s});
    const bool along_lanes = w_strides.lane == 1 && outputs % kWide == 0 &&
                             copies_16_bytes(w, {w_strides.channel, w_strides.group, w_strides.r, w_strides.s});
    if (channels_last) {
      if (wide_image && along_channels) return run_channels_last<kWide, Order::k, kWide>(context);
      if (wide_image && along_lanes) return run_channels_last<kWide, Order::lane, kWide>(context);
      return run_channels_last<1, Order::k, 1>(context);
    }
    if (wide_image && filter_is_matrix()) return run_nchw<kWide, kWide>(context);
    if (filter_is_matrix()) return run_nchw<1, kWide>(context);
    run_nchw<1, 1>(context);
  }

 private:
  static constexpr int kWide = 16 / sizeof(T);

  /// NCHW: the grid is the image, and kWide neighbours of one are neighbours in the other.
  bool pointwise() const {
    return features.count() == features.channels && features.h.offset == 0 && features.w.offset == 0 &&
           pixels.step_h == 1 && pixels.step_w == 1 && pixels.rows == in.H && pixels.columns == in.W &&
           copies_16_bytes(in.p, {pixels.rows * pixels.columns});
  }
  /// NCHW: the features of a lane are adjacent.
  bool filter_is_matrix() const {
    return (w_strides.s == 1 || features.w.count == 1) && (w_strides.r == features.w.count || features.h.count == 1) &&
           features.w.step == 1 && features.h.step == 1 && w_strides.channel == features.h.count * features.w.count &&
           copies_16_bytes(w, {w_strides.lane, w_strides.group, features.count()});
  }

  template <int kImageWidth, Order kFilterOrder, int kFilterWidth>
  void run_channels_last(Context& context) const {
    const PatchSource<T, LaneIs::pixel, Order::k, kImageWidth> patches{in, features, pixels};
    const FilterSource<T, kFilterOrder, kFilterWidth> filter{w, w_strides, features, static_cast<int>(outputs)};
    multiply(pixels.count, outputs, patches, filter, context);
  }
  template <int kImageWidth, int kFilterWidth>
  void run_nchw(Context& context) const {
    const PatchSource<T, LaneIs::pixel, Order::lane, kImageWidth> patches{in, features, pixels};
    const FilterSource<T, Order::k, kFilterWidth> filter{w, w_strides, features, static_cast<int>(outputs)};
    multiply(outputs, pixels.count, filter, patches, context);
  }
  template <class A, class B>
  void multiply(int64_t M, int64_t N, const A& a, const B& b, Context& context) const {
    constexpr bool kMayBeLarge = A::kWidth > 1 || B::kWidth > 1;
    launch_product<kMayBeLarge>(allow_tf32, M, N, features.count(), groups, a, b, sink, context);
  }
};

/// Results in an image of C channels, on the grid of rows row0, row0 + row_step, ... and likewise columns.
template <class T>
Sink<T, PixelAddress> image_sink(T* out, const T* bias, int64_t C, int64_t groups, int64_t H, int64_t W, int64_t rows,
                                 int64_t row0, int64_t row_step, int64_t columns, int64_t column0, int64_t column_step,
                                 bool channels_last) {
  const int64_t outputs = C / groups, plane = H * W, pitch_c = channels_last ? 1 : plane,
                pitch_h = channels_last ? W * C : W, pitch_w = channels_last ? C : 1;
  const bool vectors = channels_last ? copies_16_bytes(out, {C, outputs})
                                     : copies_16_bytes(out, {plane}) && row_step == 1 && column_step == 1;
  const PixelAddress address{Divisor(rows * columns),
                             Divisor(columns),
                             channels_last,
                             C * plane,
                             outputs * pitch_c,
                             static_cast<int>(pitch_c),
                             static_cast<int>(row_step * pitch_h),
                             static_cast<int>(column_step * pitch_w),
                             row0 * pitch_h + column0 * pitch_w};
  return {.c = out,
          .bias = bias,
          .bias_along_m = !channels_last,
          .bias_per_batch = static_cast<int>(outputs),
          .vectors = vectors,
          .address = address};
}

template <class T>
void forward(const Conv2d& p, const T* x, const T* w, const T* bias, T* y, Context& context) {
  if (p.N * p.K * p.OH * p.OW == 0) return;
  if (is_depthwise(p)) return depthwise_forward(p, x, w, bias, y, context);
  const int64_t outputs = p.K / p.groups;
  const Correlation<T> correlation{
      Image<T>(x, p.C, p.H, p.W, p.channels_last),
      Features(all_taps(p.R, p.pad_h, p.dilation_h), all_taps(p.S, p.pad_w, p.dilation_w), p.C / p.groups,
               p.channels_last),
      PixelGrid(p.N, p.OH, p.OW, p.stride_h, p.stride_w),
      w,
      filter_strides(p, p.w_k, outputs * p.w_k, p.w_c),
      p.groups,
      outputs,
      p.channels_last,
      p.allow_tf32,
      image_sink(y, bias, p.K, p.groups, p.OH, p.OW, p.OH, 0, 1, p.OW, 0, 1, p.channels_last)};
  correlation.run(context);
}

/// The taps that a phase sees: the r with (phase + pad - r dilation) divisible by stride, which come every stride /
/// gcd(stride, dilation).
TapAxis phase_taps(int64_t phase, int64_t count, int64_t stride, int64_t pad, int64_t dilation) {
  const int64_t common = std::gcd(stride, dilation), step = stride / common;
  for (int64_t r = 0; r < step && r < count; ++r) {
    const int64_t offset = phase + pad - r * dilation;
    if (offset % stride != 0) continue;
    return {static_cast<int>((count - 1 - r) / step + 1), static_cast<int>(offset / stride),
            static_cast<int>(-dilation / common), static_cast<int>(r), static_cast<int>(step)};
  }
  return {0, 0, 0, 0, 0};
}

template <class T>
void backward_input(const Conv2d& p, const T* dy, const T* w, const T* bias, T* dx, Context& context) {
  if (p.N * p.C * p.H * p.W == 0) return;
  if (is_depthwise(p)) return depthwise_backward_input(p, dy, w, bias, dx, context);
  const int64_t inputs = p.K / p.groups, outputs = p.C / p.groups;
  for (int64_t row = 0; row < p.stride_h && row < p.H; ++row)
    for (int64_t column = 0; column < p.stride_w && column < p.W; ++column) {
      const int64_t rows = ceil_div(p.H - row, p.stride_h), columns = ceil_div(p.W - column, p.stride_w);
      const Correlation<T> correlation{
          Image<T>(dy, p.K, p.OH, p.OW, p.channels_last),
          Features(phase_taps(row, p.R, p.stride_h, p.pad_h, p.dilation_h),
                   phase_taps(column, p.S, p.stride_w, p.pad_w, p.dilation_w), inputs, p.channels_last),
          PixelGrid(p.N, rows, columns, 1, 1),
          w,
          filter_strides(p, p.w_c, inputs * p.w_k, p.w_k),
          p.groups,
          outputs,
          p.channels_last,
          p.allow_tf32,
          image_sink(dx, bias, p.C, p.groups, p.H, p.W, rows, row, p.stride_h, columns, column, p.stride_w,
                     p.channels_last)};
      correlation.run(context);
    }
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

DLK_DEVICE_TABLE(Conv2dKernels<float>, {forward<float>, backward_input<float>})
DLK_DEVICE_TABLE(Conv2dKernels<double>, {forward<double>, backward_input<double>})
DLK_DEVICE_TABLE(Conv2dKernels<f16>, {forward<f16>, backward_input<f16>})
DLK_DEVICE_TABLE(Conv2dKernels<bf16>, {forward<bf16>, backward_input<bf16>})
