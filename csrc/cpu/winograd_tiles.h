// Tiles of Winograd's algorithm: which pixels they cover, and how pixels reach the transforms.
//
// Tiles of m x m output pixels (m x 1 or 1 x m where the filter has one axis only) are counted row by row through all
// images; a block of them is worked on at a time, and reaches the transforms as a strip (strips.h). With dilation d,
// every d-th row and column of an image is a problem of its own, and a tile covers pixels d apart: d x d tiles, one of
// each problem, make a square that is counted as one tile is without.
//
// F(m, r) has no stride, and more taps would make it less accurate. But taps may be cut into groups of r x r (some of
// them zeros, which spread NaN and Inf from pixels that no tap reads): a group's taps are those of further channels,
// which read their pixels further on. With stride s, the taps that read every s-th row and column are a group; without,
// those that follow each other. Such a channel of such a group is called a term.
#pragma once

#include "csrc/cpu/strips.h"
#include "csrc/cpu/winograd_transform.h"

namespace dlk::cpu::DLK_ISA {

/// Taps along an axis at most, for which there is room.
constexpr int64_t kMostTaps = 7;

struct FilterAxis {
  int64_t taps, dilation, stride;

  /// Whether its groups are those of a stride.
  bool is_strided() const { return taps > 1 && stride > 1; }
  /// Taps that read pixels of one group's kind.
  int64_t length() const { return is_strided() ? ceil_div(taps, stride) : taps; }
};

/// The R x S taps of a correlation.
struct Filter {
  FilterAxis h{1, 1, 1}, w{1, 1, 1};

  /// Of a correlation with one tap at least.
  explicit Filter(const Correlation& q) {
    for (; w.taps < q.taps && q.dh[w.taps] == q.dh[0]; ++w.taps) {
    }
    h = {q.taps / w.taps, 1, q.step_h}, w.stride = q.step_w;
    if (h.taps > 1) h.dilation = q.dh[w.taps] - q.dh[0];
    if (w.taps > 1) w.dilation = q.dw[1] - q.dw[0];
  }
  /// Whether q's taps are all of such a filter.
  bool is_all_of(const Correlation& q) const {
    for (int64_t t = 0; t < q.taps; ++t)
      if (q.dh[t] != q.dh[0] + t / w.taps * h.dilation || q.dw[t] != q.dw[0] + t % w.taps * w.dilation) return false;
    return h.taps * w.taps == q.taps && h.dilation > 0 && w.dilation > 0;
  }
  bool is_line() const { return h.taps == 1 || w.taps == 1; }
  bool is_dilated() const { return h.dilation > 1 || w.dilation > 1; }
  bool is_strided() const { return h.is_strided() || w.is_strided(); }
  int64_t length() const { return h.length() > w.length() ? h.length() : w.length(); }
};

/// f.template operator()<W>() for the Winograd of a filter and size class m, 2 to 4: the outputs of a tile along each
/// axis, but a line has no smaller ones than 3, its 4 stands for the 6 planes that take the fewest products, and two
/// taps have the same tiles always.
template <class F>
void with_winograd(const Filter& filter, int m, F f) {
  if (filter.is_line()) {
    if (filter.length() == 2) return f.template operator()<WinogradLine<4, 2>>();
    if (m < 4) return f.template operator()<WinogradLine<3, 3>>();
    if (filter.length() == 4 || filter.length() == 7) return f.template operator()<WinogradLine<3, 4>>();
    return f.template operator()<WinogradLine<4, 3>>();
  }
  if (filter.length() == 2) return f.template operator()<WinogradSquare<4, 2>>();
  if (m == 2) return f.template operator()<WinogradSquare<2, 3>>();
  if (m == 3) return f.template operator()<WinogradSquare<3, 3>>();
  return f.template operator()<WinogradSquare<4, 3>>();
}

/// Along one axis of a filter: the outputs of a tile, the taps of a group, and the groups.
struct TileAxis {
  FilterAxis filter;
  int64_t outputs, taps, groups;

  TileAxis(FilterAxis f, int64_t m, int64_t r)
      : filter(f),
        outputs(f.taps > 1 ? m : 1),
        taps(f.taps > 1 ? r : 1),
        groups(f.is_strided() ? f.stride : ceil_div(f.taps, taps)) {}

  /// From an output of a tile to its next, in pixels; likewise an input. (A stride has no dilation.)
  int64_t output_step() const { return filter.dilation; }
  int64_t input_step() const { return filter.dilation * filter.stride; }
  /// Tap i of group g: beyond the filter's, it is a zero.
  int64_t tap(int64_t g, int64_t i) const { return filter.is_strided() ? g + i * filter.stride : g * taps + i; }
  /// From the first group's inputs to those of group g.
  int64_t group_offset(int64_t g) const { return filter.is_strided() ? g : g * taps * filter.dilation; }
  /// Inputs of `size` adjacent outputs.
  int64_t inputs(int64_t size) const { return (size - 1) * filter.stride + 1 + (groups * taps - 1) * filter.dilation; }
};

/// The tiles of m outputs along each axis of a filter that has several taps, and its groups of r taps along each.
struct TileShape {
  TileAxis h, w;

  TileShape(const Filter& filter, int64_t m, int64_t r) : h(filter.h, m, r), w(filter.w, m, r) {}

  int64_t groups() const { return h.groups * w.groups; }
  /// Tap i of group g among those of the filter; -1 if it is a zero.
  int64_t tap(int64_t g, int64_t i) const {
    const int64_t row = h.tap(g / w.groups, i / w.taps), column = w.tap(g % w.groups, i % w.taps);
    return row < h.filter.taps && column < w.filter.taps ? row * w.filter.taps + column : -1;
  }
  /// Terms of C channels: a vector of channels for each group, then the next vector.
  int64_t terms(int64_t C) const { return groups() == 1 ? C : round_up(C, kLanes<float>) * groups(); }
  int64_t term(int64_t c, int64_t g) const {
    constexpr int64_t L = kLanes<float>;
    return (c / L * groups() + g) * L + c % L;
  }

  /// In a strip of `width` pixels a row: from an output, or input, of a tile to its next, along the axes that the
  /// transforms take for rows and columns.
  struct Steps {
    int64_t row, column;
  };
  Steps output_steps(int64_t width) const { return steps(h.output_step(), w.output_step(), width); }
  Steps input_steps(int64_t width) const { return steps(h.input_step(), w.input_step(), width); }
  /// From the first group's inputs to those of group g.
  int64_t group_offset(int64_t g, int64_t width) const {
    return (h.group_offset(g / w.groups) * width + w.group_offset(g % w.groups)) * kLanes<float>;
  }

 private:
  Steps steps(int64_t rows, int64_t columns, int64_t width) const {
    const int64_t down = rows * width * kLanes<float>, right = columns * kLanes<float>;
    return {down, w.filter.taps > 1 ? right : down};
  }
};

/// The tiles of a correlation's output, cut by shape alone into blocks of about `most` tiles, and of `least` or more
/// (whole rows of them) even if that is more.
struct TileBlocks {
  TileShape tile;
  int64_t height, width, tiles_each;   // of a square: pixels; tiles
  int64_t rows_per_image, rows, cols;  // squares
  int64_t block_rows, block_cols;      // likewise

  TileBlocks(const Correlation& q, const TileShape& tile, int64_t most, int64_t least = 1)
      : tile(tile),
        height(tile.h.outputs * tile.h.output_step()),
        width(tile.w.outputs * tile.w.output_step()),
        tiles_each(tile.h.output_step() * tile.w.output_step()),
        rows_per_image(ceil_div(q.rows, height)),
        rows(q.N * rows_per_image),
        cols(ceil_div(q.cols, width)) {
    const int64_t squares = (most > least ? most : least) / tiles_each;
    block_cols = even_part(cols, squares > 1 ? squares : 1);
    const int64_t fit = most / tiles_each / block_cols, needed = ceil_div(least, tiles_each * block_cols);
    block_rows = even_part(rows, fit > needed ? fit : needed);
  }

  int64_t tiles() const { return rows * cols * tiles_each; }
  int64_t block_tiles() const { return block_rows * block_cols * tiles_each; }
  int64_t count() const { return ceil_div(rows, block_rows) * ceil_div(cols, block_cols); }
  /// Pixels of a strip that any part of a block needs, of inputs, which are more than the outputs.
  int64_t strip_pixels() const {
    const int64_t rows = block_rows < rows_per_image ? block_rows : rows_per_image;
    return tile.h.inputs(rows * height) * tile.w.inputs(block_cols * width);
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

/// Calls f(tile, row, column of its first output) for the tiles of a part.
template <class F>
DLK_INLINE void for_each_tile(const Window& v, const TileShape& tile, int64_t first, F f) {
  const int64_t down = tile.h.output_step(), right = tile.w.output_step();
  for (int64_t i = 0; i < v.rows.size(); i += tile.h.outputs * down)
    for (int64_t j = 0; j < v.cols.size(); j += tile.w.outputs * right)
      for (int64_t h = i; h < i + down; ++h)
        for (int64_t w = j; w < j + right; ++w) f(first++, h, w);
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
  const int64_t step_h = tile.h.filter.stride, step_w = tile.w.filter.stride;
  const int64_t top = part.rows.begin * step_h + span.top, left = part.cols.begin * step_w + span.left;
  const int64_t width = tile.w.inputs(part.cols.size());
  stage(x, Window{part.n, {top, top + tile.h.inputs(part.rows.size())}, {left, left + width}}, c, channels, strip);
  const auto [row, column] = tile.input_steps(width);
  for (int64_t g = 0; g < tile.groups(); ++g) {
    const T* of_group = strip + tile.group_offset(g, width);
    T* to_group = v + tile.term(c, g);
    for_each_tile(part, tile, first, [&, row = row, column = column](int64_t t, int64_t h, int64_t w) {
      const T* from = of_group + (h * step_h * width + w * step_w) * kLanes<T>;
      T* to = to_group + t * stride;
      transform_2d<T, typename W::Input>(
          [&](int i, int j) { return load(from + i * row + j * column); },
          [&](int i, int j, Vec<T> value) { store(to + (i * W::kAlpha + j) * plane, value); });
    });
  }
}

}  // namespace dlk::cpu::DLK_ISA
