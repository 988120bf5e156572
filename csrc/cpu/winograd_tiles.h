// Tiles of Winograd's algorithm: which pixels they cover, and how pixels reach the transforms.
//
// Tiles of m x m output pixels are counted row by row through all images; a block of them is worked on at a time, and
// reaches the transforms as a strip (strips.h).
#pragma once

#include "csrc/cpu/strips.h"
#include "csrc/cpu/winograd_transform.h"

namespace dlk::cpu::DLK_ISA {

/// The tiles of a correlation's output, cut into blocks of about `most` tiles by shape alone.
struct TileBlocks {
  int64_t m, rows_per_image, rows, cols;  // tiles
  int64_t block_rows, block_cols;

  TileBlocks(const Correlation& q, int64_t m, int64_t most)
      : m(m), rows_per_image(ceil_div(q.rows, m)), rows(q.N * rows_per_image), cols(ceil_div(q.cols, m)) {
    block_cols = even_part(cols, most);
    const int64_t fit = most / block_cols > 1 ? most / block_cols : 1;
    block_rows = even_part(rows, fit);
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
