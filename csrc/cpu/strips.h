// Strips: a window of an image in either memory layout, staged as [row][column][kLanes channels] with the zeros of the
// padding, so that what computes on it loads whole vectors of channels and knows neither borders nor layouts: NCHW is
// transposed in registers.
#pragma once

#include "csrc/cpu/patches.h"

namespace dlk::cpu::DLK_ISA {

/// N images of C channels.
template <class T>
struct Images {
  T* data;
  int64_t C, H, W;
  bool channels_last;

  /// Element (n, c, h, w).
  T* at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return data + (channels_last ? ((n * H + h) * W + w) * C + c : ((n * C + c) * H + h) * W + w);
  }
};

/// A rectangle of pixels of one image; it may reach over the borders.
struct Window {
  int64_t n;
  Range rows, cols;

  int64_t pixels() const { return rows.size() * cols.size(); }
};

/// Calls run(strip offset in pixels, h, w, length, width) for the contiguous runs of a window's pixels in an NCHW
/// image: whole rows that follow each other are one run, whose strip has gaps after every `width` pixels.
template <class F>
DLK_INLINE void for_each_run(const Window& v, int64_t H, int64_t W, F run) {
  const Range h{v.rows.begin > 0 ? v.rows.begin : 0, v.rows.end < H ? v.rows.end : H};
  const Range w{v.cols.begin > 0 ? v.cols.begin : 0, v.cols.end < W ? v.cols.end : W};
  if (h.size() <= 0 || w.size() <= 0) return;
  const int64_t rows_per_run = w.size() == W ? h.size() : 1;
  for (int64_t row = h.begin; row < h.end; row += rows_per_run)
    run((row - v.rows.begin) * v.cols.size() + w.begin - v.cols.begin, row, w.begin, rows_per_run * w.size(), w.size());
}

/// Walks over the pixels of a run in its strip.
template <class T>
struct StripCursor {
  T* at;
  int64_t width, gap, column = 0;

  DLK_INLINE T* next() {
    T* here = at;
    at += kLanes<T>;
    if (++column == width) at += gap, column = 0;
    return here;
  }
};

/// f(pixel's offset in an NHWC image, in the strip) over the pixels of a run.
template <class T, class F>
DLK_INLINE void for_each_pixel(const Window& v, int64_t C, int64_t length, int64_t width, F f) {
  for (int64_t i = 0, in_image = 0, in_strip = 0; i < length; i += width) {
    for (int64_t j = 0; j < width; ++j) f(in_image + j * C, in_strip + j * kLanes<T>);
    in_image += width * C;
    in_strip += v.cols.size() * kLanes<T>;
  }
}

/// Fills the strip with `channels` <= kLanes channels from c on; zeros outside of the image and for missing channels.
template <class T>
void stage(const Images<const T>& x, const Window& v, int64_t c, int64_t channels, T* strip) {
  constexpr int L = kLanes<T>;
  const bool inside = v.rows.begin >= 0 && v.cols.begin >= 0 && v.rows.end <= x.H && v.cols.end <= x.W;
  if (!inside)
    for (int64_t i = 0; i < v.pixels(); ++i) store(strip + i * L, Vec<T>{});
  const int64_t plane = x.H * x.W;
  for_each_run(v, x.H, x.W, [&](int64_t offset, int64_t h, int64_t w, int64_t length, int64_t width) {
    const T* from = x.at(v.n, c, h, w);
    T* row = strip + offset * L;
    if (x.channels_last) {
      for_each_vec<T>(channels, [&](int64_t, auto lanes) {
        for_each_pixel<T>(v, x.C, length, width,
                          [=](int64_t pixel, int64_t at) { store(row + at, load_n(from + pixel, lanes)); });
      });
      return;
    }
    StripCursor<T> to{row, width, (v.cols.size() - width) * L};
    for (int64_t i = 0; i < length; i += L) {
      const int64_t count = length - i < L ? length - i : L;
      Vec<T> block[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) {
        const T* source = from + l * plane + i;
        block[l] = l >= channels ? Vec<T>{} : count == L ? load(source) : load_partial(source, count);
      }
      transpose<T>(block);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l)
        if (l < count) store(to.next(), block[l]);
    }
  });
}

/// The inverse: y = strip + bias, for what lies inside of the image.
template <class T>
void unstage(const Images<T>& y, const Window& v, int64_t c, int64_t channels, const T* bias, T* strip) {
  constexpr int L = kLanes<T>;
  const int64_t plane = y.H * y.W;
  const Vec<T> biases = bias ? load_partial(bias + c, channels) : Vec<T>{};
  for_each_run(v, y.H, y.W, [&](int64_t offset, int64_t h, int64_t w, int64_t length, int64_t width) {
    T *row = strip + offset * L, *to = y.at(v.n, c, h, w);
    if (y.channels_last) {
      for_each_vec<T>(channels, [&](int64_t, auto lanes) {
        for_each_pixel<T>(v, y.C, length, width,
                          [=](int64_t pixel, int64_t at) { store_n(to + pixel, load(row + at) + biases, lanes); });
      });
      return;
    }
    StripCursor<T> from{row, width, (v.cols.size() - width) * L};
    for (int64_t i = 0; i < length; i += L) {
      const int64_t count = length - i < L ? length - i : L;
      Vec<T> block[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) block[l] = l < count ? load(from.next()) + biases : Vec<T>{};
      store_transposed<T>(block, count, channels, to + i, plane);
    }
  });
}

}  // namespace dlk::cpu::DLK_ISA
