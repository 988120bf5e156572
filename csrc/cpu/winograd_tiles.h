// Tiles of Winograd's algorithm: which pixels they cover, and how pixels reach the transforms.
//
// Tiles of m x m output pixels (m x 1 or 1 x m where the filter has one axis only) are counted row by row through all
// images; a block of them is worked on at a time, and reaches the transforms as a strip (strips.h). With dilation d,
// every d-th row and column of an image is a problem of its own, and a tile covers pixels d apart: d x d tiles, one of
// each problem, make a square that is counted as one tile is without.
//
// More taps than F(m, r) has, which larger r would make less accurate, are cut into groups of r x r (the last ones with
// zeros): a group's taps are those of further channels, which read their pixels r further on. Such a channel of such a
// group is called a term.
#pragma once

#include "csrc/cpu/strips.h"
#include "csrc/cpu/winograd_transform.h"

namespace dlk::cpu::DLK_ISA {

/// An R x S filter, and how far its taps are apart along either axis.
struct Filter {
  int64_t R = 1, S, down = 1, right = 1;

  /// Of a correlation with one tap at least.
  explicit Filter(const Correlation& q) {
    for (S = 1; S < q.taps && q.dh[S] == q.dh[0];) ++S;
    R = q.taps / S;
    if (R > 1) down = q.dh[S] - q.dh[0];
    if (S > 1) right = q.dw[1] - q.dw[0];
  }
  /// Whether q's taps are all of such a filter.
  bool is_all_of(const Correlation& q) const {
    for (int64_t t = 0; t < q.taps; ++t)
      if (q.dh[t] != q.dh[0] + t / S * down || q.dw[t] != q.dw[0] + t % S * right) return false;
    return R * S == q.taps && down > 0 && right > 0;
  }
  bool is_line() const { return R == 1 || S == 1; }
  int64_t length() const { return R > S ? R : S; }
};

/// Taps along an axis at most, for which there is room.
constexpr int64_t kMostTaps = 7;

/// f.template operator()<W>() for the Winograd of a filter and tiles of m. Of a line, 4 stands for the 6 planes that
/// take the fewest products.
template <class F>
void with_winograd(const Filter& filter, int m, F f) {
  if (filter.is_line()) {
    if (m < 4) return f.template operator()<WinogradLine<3, 3>>();
    if (filter.length() == 4 || filter.length() >= 7) return f.template operator()<WinogradLine<3, 4>>();
    return f.template operator()<WinogradLine<4, 3>>();
  }
  if (m == 2) return f.template operator()<WinogradSquare<2, 3>>();
  if (m == 3) return f.template operator()<WinogradSquare<3, 3>>();
  return f.template operator()<WinogradSquare<4, 3>>();
}

/// The tiles of m outputs along each axis of a filter that has several taps, and its groups of r taps along each.
struct TileShape {
  Filter filter;
  int64_t rows, cols;              // outputs of a tile
  int64_t tap_rows, tap_cols;      // taps of a group
  int64_t group_rows, group_cols;  // groups

  TileShape(const Correlation& q, int64_t m, int64_t r)
      : filter(q),
        rows(filter.R > 1 ? m : 1),
        cols(filter.S > 1 ? m : 1),
        tap_rows(filter.R > 1 ? r : 1),
        tap_cols(filter.S > 1 ? r : 1),
        group_rows(ceil_div(filter.R, tap_rows)),
        group_cols(ceil_div(filter.S, tap_cols)) {}

  int64_t groups() const { return group_rows * group_cols; }
  /// Tap i of group g among those of the filter; -1 if it is a zero.
  int64_t tap(int64_t g, int64_t i) const {
    const int64_t row = g / group_cols * tap_rows + i / tap_cols, col = g % group_cols * tap_cols + i % tap_cols;
    return row < filter.R && col < filter.S ? row * filter.S + col : -1;
  }
  /// Terms of C channels: a vector of channels for each group, then the next vector.
  int64_t terms(int64_t C) const { return groups() == 1 ? C : round_up(C, kLanes<float>) * groups(); }
  int64_t term(int64_t c, int64_t g) const {
    constexpr int64_t L = kLanes<float>;
    return (c / L * groups() + g) * L + c % L;
  }

  /// How far a tile's first and last input are apart, less the tile.
  int64_t reach_down() const { return (group_rows * tap_rows - 1) * filter.down; }
  int64_t reach_right() const { return (group_cols * tap_cols - 1) * filter.right; }

  /// From a pixel to the next that a tile, or a filter, has, in a strip of `width` pixels a row; along the axes that
  /// the transforms take for rows and columns.
  struct Steps {
    int64_t row, column;
  };
  Steps steps(int64_t width) const {
    const int64_t down = width * kLanes<float> * filter.down, right = kLanes<float> * filter.right;
    return {down, filter.S > 1 ? right : down};
  }
  /// From the first group's pixels to those of group g.
  int64_t group_offset(int64_t g, int64_t width) const {
    const int64_t down = g / group_cols * tap_rows * filter.down, right = g % group_cols * tap_cols * filter.right;
    return (down * width + right) * kLanes<float>;
  }
};

/// The tiles of a correlation's output, cut into blocks of about `most` tiles by shape alone.
struct TileBlocks {
  TileShape tile;
  int64_t height, width, tiles_each;   // of a square: pixels; tiles
  int64_t rows_per_image, rows, cols;  // squares
  int64_t block_rows, block_cols;      // likewise

  TileBlocks(const Correlation& q, const TileShape& tile, int64_t most)
      : tile(tile),
        height(tile.rows * tile.filter.down),
        width(tile.cols * tile.filter.right),
        tiles_each(tile.filter.down * tile.filter.right),
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
    return (rows * height + tile.reach_down()) * (block_cols * width + tile.reach_right());
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

/// Calls f(tile, strip offset of its first pixel) for the tiles of a part, whose strip is `width` pixels wide.
template <class T, class F>
DLK_INLINE void for_each_tile(const Window& v, const TileShape& tile, int64_t first, int64_t width, F f) {
  const int64_t down = tile.filter.down, right = tile.filter.right;
  for (int64_t i = 0; i < v.rows.size(); i += tile.rows * down)
    for (int64_t j = 0; j < v.cols.size(); j += tile.cols * right)
      for (int64_t h = i; h < i + down; ++h)
        for (int64_t w = j; w < j + right; ++w) f(first++, (h * width + w) * kLanes<T>);
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

/// v[plane][tile][term] = the transformed input of one part's tiles, for channels [c, c + channels) of all groups.
/// `strip` is scratch.
template <class T, class W>
void transform_input(const Span& span, const TileShape& tile, const Images<const T>& x, const Window& part,
                     int64_t first, int64_t c, int64_t channels, T* strip, T* v, int64_t stride, int64_t plane) {
  const int64_t top = part.rows.begin + span.top, left = part.cols.begin + span.left;
  const Window in{
      part.n, {top, top + part.rows.size() + tile.reach_down()}, {left, left + part.cols.size() + tile.reach_right()}};
  stage(x, in, c, channels, strip);
  const auto [row, column] = tile.steps(in.cols.size());
  for (int64_t g = 0; g < tile.groups(); ++g) {
    const T* of_group = strip + tile.group_offset(g, in.cols.size());
    T* to_group = v + tile.term(c, g);
    for_each_tile<T>(part, tile, first, in.cols.size(), [&, row = row, column = column](int64_t t, int64_t offset) {
      const T* from = of_group + offset;
      T* to = to_group + t * stride;
      transform_2d<T, typename W::Input>(
          [&](int i, int j) { return load(from + i * row + j * column); },
          [&](int i, int j, Vec<T> value) { store(to + (i * W::kAlpha + j) * plane, value); });
    });
  }
}

}  // namespace dlk::cpu::DLK_ISA
