// Winograd gradient to the weight: V[plane][tile][term] of the input and Z[plane][tile][CO] of the gradient, of one
// block of tiles at a time; M[plane] += V[plane]^T Z[plane], summed over the tiles; at the end M is transformed to dw.
//
// Blocks of tiles follow each other; within one, the team of threads first fills V and Z, then shares the products, cut
// into parts of the terms, CO and the planes by shape alone. An element of M is summed by one thread in the order of
// the tiles: the result does not depend on the number of threads.
#include <algorithm>

#include "csrc/cpu/winograd.h"
#include "csrc/cpu/winograd_tiles.h"

namespace dlk::cpu::DLK_ISA {
namespace {

using T = float;
using B = Block<T>;
constexpr int L = kLanes<T>;
constexpr int64_t NR = B::NR;

/// Enough tasks to balance a few threads.
constexpr int64_t kTasks = 8;
/// Bytes of V and Z of a block of tiles, which all cores read: a share of L3.
constexpr int64_t kBlockBytes = 4 << 20;
/// But so many tiles that M, which passes through the cache once per block, costs little next to the products.
constexpr int64_t kLeastTiles = 128;
/// Tiles after which sums restart, which bounds their rounding error: the sooner the smaller they are, since small ones
/// are chosen for their accuracy, and the fewer pixels the more accurately PyTorch adds them. Those of a line
/// hold fewer pixels.
template <class W>
int64_t sum_tiles(const Correlation& q) {
  constexpr bool is_line = W::kPlanes == W::kAlpha;
  constexpr int m = W::kTile;
  if (is_line) return q.pixels() < 2048 ? 16 : 32;
  return m == 4 ? 64 : m == 2 ? 12 : q.pixels() < 256 ? 8 : 32;
}

/// The parts that M is cut into: task = (part of the terms, part of CO, part of the planes).
template <class W>
struct Cut {
  static constexpr int64_t kPlanes = W::kPlanes;
  int64_t unit, terms, CO;         // unit: terms of channels that are written together; CO: in whole vectors
  int64_t c_size, k_size, planes;  // of a part
  int64_t c_parts, k_parts, plane_parts;
  int64_t row, plane;  // strides of a part of M

  Cut(const Correlation& q, const TileShape& tile)
      : unit(tile.groups() * L), terms(tile.terms(q.CI)), CO(round_up(q.CO, L)) {
    c_size = even_part(terms, 6 * B::MR), k_size = 2 * NR;
    if (tile.groups() > 1) c_size = round_up(c_size, unit);
    c_parts = ceil_div(terms, c_size), k_parts = ceil_div(CO, k_size);
    planes = kPlanes;
    if (c_parts * k_parts < kTasks)  // cut the planes instead
      c_size = terms, k_size = CO, c_parts = k_parts = 1, planes = ceil_div(kPlanes, kTasks);
    plane_parts = ceil_div(kPlanes, planes);
    row = row_stride<T>(k_size), plane = plane_stride<T>(c_size, row);
  }

  int64_t blocks() const { return c_parts * k_parts; }
  int64_t block_elements() const { return kPlanes * plane; }
  Range c(int64_t block) const { return block_range(block / k_parts, c_size, terms); }
  Range k(int64_t block) const { return block_range(block % k_parts, k_size, CO); }
  Range plane_range(int64_t i) const { return block_range(i, planes, kPlanes); }
};

/// z[plane][panel][tile][NR] = the transformed gradients of one part's tiles, for channels [k, k + kLanes).
template <class W>
void transform_gradient(const Correlation& q, const TileShape& tile, const Images<const T>& dy, const Window& part,
                        int64_t first, int64_t k, T* strip, T* z, int64_t panel, int64_t plane) {
  stage(dy, part, k, q.CO - k < L ? q.CO - k : L, strip);
  const int64_t width = part.cols.size();
  const auto [row, column] = tile.output_steps(width);
  T* to_panel = z + k / NR * panel + k % NR;
  for_each_tile(part, tile, first, [&, row = row, column = column](int64_t t, int64_t h, int64_t w) {
    const T* from = strip + (h * width + w) * L;
    T* to = to_panel + t * NR;
    transform_2d<T, typename W::Gradient>(
        [&](int i, int j) { return load(from + i * row + j * column); },
        [&](int i, int j, Vec<T> value) { store(to + (i * W::kAlpha + j) * plane, value); });
  });
}

/// dw of input channels [c, c + channels) (at most kLanes) and outputs [k, k + kLanes), from sums[plane][term][...].
template <class W>
void finish(const Correlation& q, const TileShape& tile, int64_t c, int64_t channels, int64_t k, const T* sums,
            int64_t row, int64_t plane, T* dw) {
  const bool taps_adjacent = q.w_in == q.taps && taps_in_order(q, 1);  // (K, C, R, S) in memory
  const int64_t outputs = q.CO - k < L ? q.CO - k : L;
  const int64_t tap_stride = taps_adjacent ? 1 : L, channel_stride = taps_adjacent ? q.taps : 1;
  T buffer[kMostTaps * kMostTaps * L * L];  // [channel][tap][output] or [tap][channel][output]
  for (int64_t g = 0; g < tile.groups(); ++g) {
    int64_t at[W::kTaps];  // in the buffer; -1: of a zero
    for (int t = 0; t < W::kTaps; ++t) at[t] = tile.tap(g, t) < 0 ? -1 : tile.tap(g, t) * tap_stride * L;
    for (int64_t i = 0; i < channels; ++i) {
      const T* from = sums + (g * L + i) * row;
      T* to = buffer + i * channel_stride * L;
      transform_2d<T, typename W::WeightGradient>(
          [&](int r, int s) { return load(from + (r * W::kAlpha + s) * plane); },
          [&](int r, int s, Vec<T> value) {
            if (const int64_t tap = at[r * W::kRowTaps + s]; tap >= 0) store(to + tap, value);
          });
    }
  }
  T* to = dw + k * q.w_out + c * q.w_in;
  if (taps_adjacent) return store_transposed(buffer, L, q.taps * channels, outputs, to, q.w_out);
  for (int64_t t = 0; t < q.taps; ++t) {
    const T* tap = buffer + t * L * L;
    if (q.w_in == 1) {
      store_transposed(tap, L, channels, outputs, to + q.weight[t], q.w_out);
    } else {
      for (int64_t i = 0; i < channels; ++i)
        for (int64_t l = 0; l < outputs; ++l) to[q.weight[t] + l * q.w_out + i * q.w_in] = tap[i * L + l];
    }
  }
}

/// dw of rows [rows) and all columns of a part of M.
template <class W>
void finish_rows(const Correlation& q, const TileShape& tile, Range rows, Range c, Range k, const T* sums,
                 const Cut<W>& cut, T* dw) {
  const int64_t groups = tile.groups();
  for (int64_t i = rows.begin; i < rows.end; i += cut.unit) {
    const int64_t channel = (c.begin + i) / groups, end = std::min(c.end / groups, q.CI);
    for (int64_t j = k.begin; j < k.end; j += L)
      finish<W>(q, tile, channel, std::min<int64_t>(end - channel, L), j, sums + i * cut.row + j - k.begin, cut.row,
                cut.plane, dw);
  }
}

template <class W>
void run(const Correlation& q, const T* in, const T* dy, T* dw, Context& context) {
  const Span span(q);
  const Images<const T> x(in, q.CI, q.IH, q.IW, q.channels_last), y(dy, q.CO, q.OH, q.OW, q.channels_last);
  const TileShape tile(Filter(q), W::kTile, W::kRowTaps);
  const Cut<W> cut(q, tile);
  const int64_t tile_bytes = W::kPlanes * (cut.terms + q.CO) * int64_t{sizeof(T)}, fit = kBlockBytes / tile_bytes;
  const TileBlocks blocks(q, tile, fit > kLeastTiles ? fit : kLeastTiles);

  const int64_t v_row = packed_row_stride<T>(cut.terms), v_plane = plane_stride<T>(blocks.block_tiles(), v_row);
  const int64_t z_panel = blocks.block_tiles() * NR, z_plane = packed_row_stride<T>(ceil_div(q.CO, NR) * z_panel);
  const int64_t strip_size = blocks.strip_pixels() * L;
  T* v = context.array<T>(W::kPlanes * v_plane);
  T* z = context.array<T>(W::kPlanes * z_plane);
  // Where one task makes a part of M in one go, it also transforms it, while it is in its cache.
  const bool at_once = blocks.count() == 1 && cut.plane_parts == 1;
  T* sums = context.array<T>((at_once ? max_threads() : cut.blocks()) * cut.block_elements());
  T* strips = context.array<T>(max_threads() * strip_size);

  run_team(worth_threads(q), [&](const Team& team) {
    T* strip = strips + team.rank * strip_size;
    const int64_t c_groups = ceil_div(q.CI, L), k_groups = ceil_div(q.CO, L);
    for (int64_t b = 0; b < blocks.count(); ++b) {
      team.for_each(c_groups + k_groups, [&](int64_t i) {
        blocks.for_each_part(b, [&](const Window& part, int64_t first) {
          if (i < c_groups) {
            const int64_t c = i * L, channels = q.CI - c < L ? q.CI - c : L;
            transform_input<T, W>(span, tile, x, part, first, c, channels, strip, v, v_row, v_plane);
          } else {
            transform_gradient<W>(q, tile, y, part, first, (i - c_groups) * L, strip, z, z_panel, z_plane);
          }
        });
      });
      team.for_each(cut.blocks() * cut.plane_parts, [&](int64_t task) {
        const int64_t block = task / cut.plane_parts;
        const Range c = cut.c(block), k = cut.k(block), planes = cut.plane_range(task % cut.plane_parts);
        T* to = sums + (at_once ? team.rank : block) * cut.block_elements();
        for (int64_t plane = planes.begin; plane < planes.end; ++plane) {
          const CView<T> c_view{.data = to + plane * cut.plane, .row_stride = cut.row, .accumulate = b > 0};
          multiply_block(c.size(), k.size(), blocks.size(b), AView<T>{v + plane * v_plane + c.begin, v_row, false},
                         z + plane * z_plane + k.begin / NR * z_panel, z_panel, NR, c_view, sum_tiles<W>(q));
        }
        if (at_once) finish_rows<W>(q, tile, {0, c.size()}, c, k, to, cut, dw);
      });
    }
    if (at_once) return;
    const int64_t parts = ceil_div(cut.c_size, cut.unit);
    team.for_each(cut.blocks() * parts, [&](int64_t i) {
      const int64_t block = i / parts, row = i % parts * cut.unit;
      const Range c = cut.c(block);
      const int64_t end = std::min(row + cut.unit, c.size());
      if (row < end) finish_rows<W>(q, tile, {row, end}, c, cut.k(block), sums + block * cut.block_elements(), cut, dw);
    });
  });
}

}  // namespace

void winograd_weight(const Correlation& q, int tile, const float* in, const float* dy, float* dw, Context& context) {
  with_winograd(Filter(q), tile, [&]<class W>() { run<W>(q, in, dy, dw, context); });
}

}  // namespace dlk::cpu::DLK_ISA
