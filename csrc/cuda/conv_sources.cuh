// The operands of convolutions, for the pipeline of gemm_tile.cuh: patches of an image, filters, and where results go.
//
// Sums run over features (tap, channel), or over pixels for the weight gradient. Taps are the positions of the filter,
// or those of them that a phase of the input gradient sees; along each axis they form an arithmetic progression. The
// order of features is that of memory: taps outside, channels inside for channels_last; the other way round for NCHW.
#pragma once

#include "csrc/core/conv2d.h"
#include "csrc/cuda/gemm_tile.cuh"

namespace dlk::DLK_DEVICE {

/// Divides 0 <= n < 2^31 by a fixed 1 <= d < 2^31 with a multiplication (Granlund & Montgomery, "Division by invariant
/// integers using multiplication", PLDI 1994).
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int64_t d) : d_(static_cast<uint32_t>(d)) {
    while ((uint64_t{1} << shift_) < d_) ++shift_;
    magic_ = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift_) - d_)) / d_ + 1);
  }
  __device__ __forceinline__ void divide(int n, int& quotient, int& remainder) const {
    const uint32_t high = static_cast<uint32_t>(static_cast<uint64_t>(static_cast<uint32_t>(n)) * magic_ >> 32);
    quotient = static_cast<int>((high + static_cast<uint32_t>(n)) >> shift_);
    remainder = n - quotient * static_cast<int>(d_);
  }

 private:
  uint32_t d_ = 1, magic_ = 1, shift_ = 0;
};

/// Taps along one axis: number i reads the image `offset + i offset_step` from the pixel, and is filter position
/// first + i step.
struct TapAxis {
  int count, offset, offset_step, first, step;
};

/// All positions of a filter, as the forward pass reads them.
inline TapAxis all_taps(int64_t count, int64_t pad, int64_t dilation) {
  return {static_cast<int>(count), static_cast<int>(-pad), static_cast<int>(dilation), 0, 1};
}

/// The taps and channels of a sum, or of the result for the weight gradient.
struct Features {
  TapAxis h, w;
  int channels;
  bool channels_inside;
  Divisor inside, columns;  // by channels or taps, whichever is inside; by w.count

  Features(TapAxis h, TapAxis w, int64_t channels, bool channels_inside)
      : h(h),
        w(w),
        channels(static_cast<int>(channels)),
        channels_inside(channels_inside),
        inside(at_least_1(channels_inside ? this->channels : h.count * w.count)),
        columns(at_least_1(w.count)) {}

  int64_t count() const { return static_cast<int64_t>(h.count) * w.count * channels; }

  static int at_least_1(int n) { return n > 0 ? n : 1; }  // no features: nothing is divided

  __device__ __forceinline__ void split(int feature, int& channel, int& row, int& column) const {
    int outer, inner;
    inside.divide(feature, outer, inner);
    channel = channels_inside ? inner : outer;
    columns.divide(channels_inside ? outer : inner, row, column);
  }
};

/// Output pixels (n, i, j) of a grid, numbered in this order; pixel (i, j) reads the image around (i step_h, j step_w).
struct PixelGrid {
  Divisor image, row;
  int64_t count, rows, columns;
  int step_h, step_w;

  PixelGrid(int64_t N, int64_t rows, int64_t columns, int64_t step_h, int64_t step_w)
      : image(rows * columns),
        row(columns),
        count(N * rows * columns),
        rows(rows),
        columns(columns),
        step_h(static_cast<int>(step_h)),
        step_w(static_cast<int>(step_w)) {}

  __device__ __forceinline__ void split(int pixel, int& n, int& i, int& j) const {
    int within;
    image.divide(pixel, n, within);
    row.divide(within, i, j);
  }
};

/// N images of `channels` per group; element (n, c, h, w) of group 0 is p[n stride_n + c stride_c + ...].
template <class T>
struct Image {
  const T* p;
  int64_t stride_n;
  int stride_c, stride_h, stride_w, H, W;

  Image(const T* p, int64_t C, int64_t H, int64_t W, bool channels_last)
      : p(p),
        stride_n(C * H * W),
        stride_c(static_cast<int>(channels_last ? 1 : H * W)),
        stride_h(static_cast<int>(channels_last ? W * C : W)),
        stride_w(static_cast<int>(channels_last ? C : 1)),
        H(static_cast<int>(H)),
        W(static_cast<int>(W)) {}
};

/// Which of a patch's two indices are the lanes of the operand; the other one is k.
enum class LaneIs { pixel, feature };

/// patch(pixel, feature): the image where the feature's tap lies from the pixel; 0 outside of the image.
template <class T, LaneIs kLaneIs, Order kOrder_, int kWidth_>
struct PatchSource {
  using Element = T;
  static constexpr Order kOrder = kOrder_;
  static constexpr int kWidth = kWidth_;

  Image<T> image;
  Features features;
  PixelGrid pixels;

  struct Pixel {
    const T* image;
    int h, w;
  };
  struct Feature {
    int channel_offset, h, w;
  };
  using Lane = std::conditional_t<kLaneIs == LaneIs::pixel, Pixel, Feature>;

  __device__ __forceinline__ void select(int group) { image.p += group * features.channels * image.stride_c; }

  __device__ __forceinline__ Lane lane(int i) const {
    constexpr int kOutside = -(1 << 30);  // so far above the image that every tap is outside
    if constexpr (kLaneIs == LaneIs::pixel) {
      if (i >= pixels.count) return {image.p, kOutside, 0};
      return pixel(i);
    } else {
      if (i >= features.channels * features.h.count * features.w.count) return {0, kOutside, 0};
      return feature(i);
    }
  }

  __device__ __forceinline__ const T* at(const Lane& lane, int k) const {
    if constexpr (kLaneIs == LaneIs::pixel)
      return at(lane, feature(k));
    else
      return at(pixel(k), lane);
  }

 private:
  __device__ __forceinline__ Pixel pixel(int index) const {
    int n, i, j;
    pixels.split(index, n, i, j);
    return {image.p + n * image.stride_n, i * pixels.step_h, j * pixels.step_w};
  }
  __device__ __forceinline__ Feature feature(int index) const {
    int channel, row, column;
    features.split(index, channel, row, column);
    return {channel * image.stride_c, features.h.offset + row * features.h.offset_step,
            features.w.offset + column * features.w.offset_step};
  }
  __device__ __forceinline__ const T* at(const Pixel& p, const Feature& f) const {
    const int h = p.h + f.h, w = p.w + f.w;
    const bool inside = static_cast<unsigned>(h) < static_cast<unsigned>(image.H) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(image.W);
    return inside ? p.image + (f.channel_offset + h * image.stride_h + w * image.stride_w) : nullptr;
  }
};

/// The strides of a filter: along the lanes (output channels of the pass), along summed channels, and its positions.
struct FilterStrides {
  int64_t lane, group;
  int channel, r, s;
};

/// Along an axis with one position the stride means nothing, and 0 is divisible by what copies of 16 bytes ask for.
inline FilterStrides filter_strides(const Conv2d& p, int64_t lane, int64_t group, int64_t channel) {
  return {lane, group, static_cast<int>(channel), static_cast<int>(p.R == 1 ? 0 : p.w_r),
          static_cast<int>(p.S == 1 ? 0 : p.w_s)};
}

/// filter(lane, feature).
template <class T, Order kOrder_, int kWidth_>
struct FilterSource {
  using Element = T;
  using Lane = const T*;
  static constexpr Order kOrder = kOrder_;
  static constexpr int kWidth = kWidth_;

  const T* p;
  FilterStrides strides;
  Features features;
  int lanes;

  __device__ __forceinline__ void select(int group) { p += group * strides.group; }
  __device__ __forceinline__ Lane lane(int i) const { return i < lanes ? p + i * strides.lane : nullptr; }
  __device__ __forceinline__ const T* at(Lane lane, int k) const {
    if (lane == nullptr) return nullptr;
    int channel, row, column;
    features.split(k, channel, row, column);
    const int r = features.h.first + row * features.h.step, s = features.w.first + column * features.w.step;
    return lane + (channel * strides.channel + r * strides.r + s * strides.s);
  }
};

}  // namespace dlk::DLK_DEVICE
