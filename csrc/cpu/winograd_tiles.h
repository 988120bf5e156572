// Tiles of Winograd's algorithm: which pixels they cover, and how pixels reach the transforms.
//
// Tiles of m x m output pixels are counted row by row through all images; a block of them is worked on at a time, and
// reaches the transforms as a strip (strips.h). With dilation d, every d-th row and column of an image is a problem of
// its own, and a tile covers pixels d apart: d x d tiles, one of each problem, make a square that is counted as one
// tile is without.
#pragma once

#include "csrc/cpu/strips.h"
#include "csrc/cpu/winograd_transform.h"

namespace dlk::cpu::DLK_ISA {

/// How far the taps of a 3 x 3 filter are apart.
struct Dilation {
  int64_t h, w;

  explicit Dilation(const Correlation& q) : h(q.dh[3] - q.dh[0]), w(q.dw[1] - q.dw[0]) {}
};

/// The tiles of a correlation's output, cut into blocks of about `most` tiles by shape alone.
struct TileBlocks {
  Dilation dilation;
  int64_t height, width, tiles_each;   // of a square: pixels; tiles
  int64_t rows_per_image, rows, cols;  // squares
  int64_t block_rows, block_cols;      // likewise

  TileBlocks(const Correlation& q, int64_t m, int64_t most)
      : dilation(q),
        height(m * dilation.h),
        width(m * dilation.w),
        tiles_each(dilation.h * dilation.w),
        rows_per_image(ceil_div(q.rows, height)),
        rows(q.N * rows_per_image),
        cols(ceil_div(q.cols, width)) {
    const int64_t squares = most / tiles_each > 1 ? most / tiles_each : 1;
    block_cols = even_part(cols, squares);
    const int64_t fit = squares / block_cols > 1 ? squares / block_cols : 1;
    block_rows = even_part(rows, fit);
  }

  int64_t tiles() const { return rows * cols * tiles_each; }
  int64_t block_tiles() const { return block_rows * block_cols * tiles_each; }
  int64_t count() const { return ceil_div(rows, block_rows) * ceil_div(cols, block_cols); }
  /// Pixels of a strip that any part of a block needs, with the pixels around its tiles that the outer taps reach.
  int64_t strip_pixels() const {
    const int64_t rows = block_rows < rows_per_image ? block_rows : rows_per_image;
    return (rows * height + 2 * dilation.h) * (block_cols * width + 2 * dilation.w);
  }

  /// Calls f(output window, first tile) for the parts of block b, one per image; tiles are counted within the block.
  template <class F>
  void for_each_part(int64_t b, F f) const {
    const auto [r, c] = block(b);
    for (int64_t row = r.begin; row < r.end;) {
      const int64_t n = row / rows_per_image, image_end = (n + 1) * rows_per_image;
      const int64_t end = image_end < r.end ? image_end : r.end, first = n * rows_per_image;
      f(Window{n, {(row - first) * height, (end - first) * height}, {c.begin * width, c.end * width}},
        (row - r.begin) * c.size() * tiles_each);
      row = end;
    }
  }
  /// Tiles of block b.
  int64_t size(int64_t b) const {
    const auto [r, c] = block(b);
    return r.size() * c.size() * tiles_each;
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

/// Calls f(tile, strip offset of its first pixel) for the m x m tiles of a part, whose strip is `width` pixels wide.
template <class T, class F>
DLK_INLINE void for_each_tile(const Window& v, int64_t m, Dilation d, int64_t first, int64_t width, F f) {
  for (int64_t i = 0; i < v.rows.size(); i += m * d.h)
    for (int64_t j = 0; j < v.cols.size(); j += m * d.w)
      for (int64_t h = i; h < i + d.h; ++h)
        for (int64_t w = j; w < j + d.w; ++w) f(first++, (h * width + w) * kLanes<T>);
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
void transform_input(const Span& span, Dilation d, const Images<const T>& x, const Window& part, int64_t first,
                     int64_t c, int64_t channels, T* strip, T* v, int64_t stride, int64_t plane) {
  using W = Winograd<m>;
  const Window in{part.n,
                  {part.rows.begin + span.top, part.rows.end + span.top + 2 * d.h},
                  {part.cols.begin + span.left, part.cols.end + span.left + 2 * d.w}};
  stage(x, in, c, channels, strip);
  const int64_t row = in.cols.size() * kLanes<T> * d.h, column = kLanes<T> * d.w;
  for_each_tile<T>(part, W::kTile, d, first, in.cols.size(), [&](int64_t tile, int64_t offset) {
    const T* from = strip + offset;
    T* to = v + tile * stride + c;
    transform_2d<T, typename W::Input>(
        [&](int i, int j) { return load(from + i * row + j * column); },
        [&](int i, int j, Vec<T> value) { store(to + (i * W::kAlpha + j) * plane, value); });
  });
}

}  // namespace dlk::cpu::DLK_ISA
