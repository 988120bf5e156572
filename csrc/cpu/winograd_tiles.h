// Tiles of Winograd's algorithm: which pixels they cover, and how pixels reach the transforms.
//
// Tiles of m x m output pixels are counted row by row through all images; a block of them is worked on at a time.
// Either memory layout is first staged as a strip, [row][column][kLanes channels] with the zeros of the padding, so
// that transforms load whole vectors of channels and know neither borders nor layouts: NCHW is transposed in registers.
#pragma once

#include "csrc/cpu/patches.h"
#include "csrc/cpu/winograd_transform.h"

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

/// Fills the strip with `channels` <= kLanes channels from c on; zeros outside of the image and for missing channels.
template <class T>
void stage(const Images<const T>& x, const Window& v, int64_t c, int64_t channels, T* strip) {
  constexpr int L = kLanes<T>;
  const bool inside = v.rows.begin >= 0 && v.cols.begin >= 0 && v.rows.end <= x.H && v.cols.end <= x.W;
  if (!inside)
    for (int64_t i = 0; i < v.pixels(); ++i) store(strip + i * L, Vec<T>{});
  const int64_t plane = x.H * x.W;
  for_each_run(v, x.H, x.W, [&](int64_t offset, int64_t h, int64_t w, int64_t length, int64_t width) {
    StripCursor<T> to{strip + offset * L, width, (v.cols.size() - width) * L};
    const T* from = x.at(v.n, c, h, w);
    if (x.channels_last) {
      for (int64_t i = 0; i < length; ++i)
        store(to.next(), channels == L ? load(from + i * x.C) : load_partial(from + i * x.C, channels));
      return;
    }
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
    StripCursor<T> from{strip + offset * L, width, (v.cols.size() - width) * L};
    T* to = y.at(v.n, c, h, w);
    if (y.channels_last) {
      for (int64_t i = 0; i < length; ++i) {
        const Vec<T> pixel = load(from.next()) + biases;
        channels == L ? store(to + i * y.C, pixel) : store_partial(to + i * y.C, pixel, channels);
      }
      return;
    }
    for (int64_t i = 0; i < length; i += L) {
      const int64_t count = length - i < L ? length - i : L;
      Vec<T> block[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) block[l] = l < count ? load(from.next()) + biases : Vec<T>{};
      store_transposed<T>(block, count, channels, to + i, plane);
    }
  });
}

/// The tiles of a correlation's output, cut into blocks of about `most` tiles by shape alone.
struct TileBlocks {
  int64_t m, rows_per_image, rows, cols;  // tiles
  int64_t block_rows, block_cols;

  TileBlocks(const Correlation& q, int64_t m, int64_t most)
      : m(m), rows_per_image(ceil_div(q.rows, m)), rows(q.N * rows_per_image), cols(ceil_div(q.cols, m)) {
    block_cols = ceil_div(cols, ceil_div(cols, most));
    const int64_t fit = most / block_cols > 1 ? most / block_cols : 1;
    block_rows = ceil_div(rows, ceil_div(rows, fit));
  }

  int64_t tiles() const { return rows * cols; }
  int64_t block_tiles() const { return block_rows * block_cols; }
  int64_t count() const { return ceil_div(rows, block_rows) * ceil_div(cols, block_cols); }
  /// Pixels of a strip that any part of a block needs, with `halo` more rows and columns than its tiles cover.
  int64_t strip_pixels(int64_t halo) const {
    const int64_t rows = block_rows < rows_per_image ? block_rows : rows_per_image;
    return (rows * m + halo) * (block_cols * m + halo);
  }

  /// Calls f(output window, first tile) for the parts of block b, one per image; tiles are counted within the block.
  template <class F>
  void for_each_part(int64_t b, F f) const {
    const auto [r, c] = block(b);
    for (int64_t row = r.begin; row < r.end;) {
      const int64_t n = row / rows_per_image, image_end = (n + 1) * rows_per_image;
      const int64_t end = image_end < r.end ? image_end : r.end, first = n * rows_per_image;
      f(Window{n, {(row - first) * m, (end - first) * m}, {c.begin * m, c.end * m}}, (row - r.begin) * c.size());
      row = end;
    }
  }
  /// Tiles of block b.
  int64_t size(int64_t b) const {
    const auto [r, c] = block(b);
    return r.size() * c.size();
  }

 private:
  struct Block {
    Range rows, cols;
  };
  Block block(int64_t b) const {
    const int64_t column_blocks = ceil_div(cols, block_cols);
    return {block_range(b / column_blocks, block_rows, rows), block_range(b % column_blocks, block_cols, cols)};
  }
};

/// Calls f(tile, strip offset of its first pixel) for the tiles of a part, whose strip is `width` pixels wide.
template <class T, class F>
DLK_INLINE void for_each_tile(const Window& v, int64_t m, int64_t first, int64_t width, F f) {
  for (int64_t i = 0; i < v.rows.size(); i += m)
    for (int64_t j = 0; j < v.cols.size(); j += m) f(first++, (i * width + j) * kLanes<T>);
}

/// Strides of [plane][row][columns]: rows in whole vectors, and where they would be far apart, as in packed operands,
/// an odd number of cache lines; planes always that, so that the kPlanes places where a transform stores at once fall
/// into different cache sets.
template <class T>
constexpr int64_t row_stride(int64_t columns) {
  const int64_t whole = round_up(columns, kLanes<T>);
  return whole < kFarStride<T> ? whole : packed_row_stride<T>(columns);
}
template <class T>
constexpr int64_t plane_stride(int64_t rows, int64_t stride) {
  return packed_row_stride<T>(rows * stride);
}

/// v[plane][tile][C] = the transformed input of one part's tiles, for channels [c, c + channels). `strip` is scratch.
template <class T, int m>
void transform_input(const Span& span, const Images<const T>& x, const Window& part, int64_t first, int64_t c,
                     int64_t channels, T* strip, T* v, int64_t stride, int64_t plane) {
  using W = Winograd<m>;
  const Window in{part.n,
                  {part.rows.begin + span.top, part.rows.end + span.top + 2},
                  {part.cols.begin + span.left, part.cols.end + span.left + 2}};
  stage(x, in, c, channels, strip);
  const int64_t row = in.cols.size() * kLanes<T>;
  for_each_tile<T>(part, W::kTile, first, in.cols.size(), [&](int64_t tile, int64_t offset) {
    const T* from = strip + offset;
    T* to = v + tile * stride + c;
    transform_2d<T, typename W::Input>(
        [&](int i, int j) { return load(from + i * row + j * kLanes<T>); },
        [&](int i, int j, Vec<T> value) { store(to + (i * W::kAlpha + j) * plane, value); });
  });
}

}  // namespace dlk::cpu::DLK_ISA
