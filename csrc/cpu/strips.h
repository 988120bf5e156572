// Strips: a window of an image in either memory layout, staged as [row][column][kLanes channels] with the zeros of the
// padding, so that what computes on it loads whole vectors of channels and knows neither borders nor layouts: NCHW is
// transposed in registers.
#pragma once

#include "csrc/cpu/patches.h"

namespace dlk::cpu::DLK_ISA {

/// N images of H x W pixels, or a grid of theirs, with the elements from one to the next along each axis.
template <class T>
struct Images {
  T* data;
  int64_t C, H, W;
  int64_t image, channel, row, pixel;
  bool channels_last;

  Images(T* data, int64_t C, int64_t H, int64_t W, bool channels_last)
      : data(data),
        C(C),
        H(H),
        W(W),
        image(C * H * W),
        channel(channels_last ? 1 : H * W),
        row(channels_last ? W * C : W),
        pixel(channels_last ? C : 1),
        channels_last(channels_last) {}

  /// Element (n, c, h, w).
  T* at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return data + n * image + c * channel + h * row + w * pixel;
  }
};

/// The grid of a correlation's output images.
template <class T>
Images<T> grid(T* out, const Correlation& q) {
  Images<T> y(out, q.groups * q.CO, q.OH, q.OW, q.channels_last);
  y.data += q.row0 * y.row + q.col0 * y.pixel;
  y.H = q.rows, y.W = q.cols, y.row *= q.row_step, y.pixel *= q.col_step;
  return y;
}

/// A rectangle of pixels of one image; it may reach over the borders.
struct Window {
  int64_t n;
  Range rows, cols;

  int64_t pixels() const { return rows.size() * cols.size(); }
};

/// Calls run(strip offset in pixels, h, w, length, width) for the runs of a window's pixels that are evenly apart in an
/// image: whole rows that follow each other are one run, whose strip has gaps after every `width` pixels.
template <class T, class F>
DLK_INLINE void for_each_run(const Window& v, const Images<T>& x, F run) {
  const Range h{v.rows.begin > 0 ? v.rows.begin : 0, v.rows.end < x.H ? v.rows.end : x.H};
  const Range w{v.cols.begin > 0 ? v.cols.begin : 0, v.cols.end < x.W ? v.cols.end : x.W};
  if (h.size() <= 0 || w.size() <= 0) return;
  const int64_t rows_per_run = w.size() == x.W && x.row == x.W * x.pixel ? h.size() : 1;
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
DLK_INLINE void for_each_pixel(const Window& v, int64_t pixel, int64_t length, int64_t width, F f) {
  for (int64_t i = 0, in_image = 0, in_strip = 0; i < length; i += width) {
    for (int64_t j = 0; j < width; ++j) f(in_image + j * pixel, in_strip + j * kLanes<T>);
    in_image += width * pixel;
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
  for_each_run(v, x, [&](int64_t offset, int64_t h, int64_t w, int64_t length, int64_t width) {
    const T* from = x.at(v.n, c, h, w);
    T* row = strip + offset * L;
    if (x.channels_last) {
      for_each_vec<T>(channels, [&](int64_t, auto lanes) {
        for_each_pixel<T>(v, x.pixel, length, width,
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
        const T* source = from + l * x.channel + i;
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
  const Vec<T> biases = bias ? load_partial(bias + c, channels) : Vec<T>{};
  for_each_run(v, y, [&](int64_t offset, int64_t h, int64_t w, int64_t length, int64_t width) {
    T *row = strip + offset * L, *to = y.at(v.n, c, h, w);
    if (y.channels_last) {
      for_each_vec<T>(channels, [&](int64_t, auto lanes) {
        for_each_pixel<T>(v, y.pixel, length, width,
                          [=](int64_t pixel, int64_t at) { store_n(to + pixel, load(row + at) + biases, lanes); });
      });
      return;
    }
    StripCursor<T> from{row, width, (v.cols.size() - width) * L};
    if (y.pixel > 1) {
      for (int64_t i = 0; i < length; ++i) {
        T* const sum = from.next();
        store(sum, load(sum) + biases);
        for (int64_t l = 0; l < channels; ++l) to[i * y.pixel + l * y.channel] = sum[l];
      }
      return;
    }
    for (int64_t i = 0; i < length; i += L) {
      const int64_t count = length - i < L ? length - i : L;
      Vec<T> block[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) block[l] = l < count ? load(from.next()) + biases : Vec<T>{};
      store_transposed<T>(block, count, channels, to + i, y.channel);
    }
  });
}

}  // namespace dlk::cpu::DLK_ISA
