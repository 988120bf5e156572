// Winograd correlation, with any dilation: transform the input's tiles to V[plane][tile][CI], the weights to
// U[plane][CI][CO], multiply plane by plane, M[plane] = V[plane] U[plane], and transform M back.
//
// Many tiles: U is computed first; then a task is a block of tiles, whose V and M stay in its core's cache. Few tiles
// and many channels, where U is larger than V: V is computed first; then a task is a panel of NR output channels, which
// transforms its part of U and uses it at once. Tasks are cut by shape alone, an element of out is computed by one
// thread in a fixed order, and how tiles are blocked does not change it.
#include "csrc/cpu/winograd.h"

#include <algorithm>
#include <cmath>

#include "csrc/cpu/winograd_tiles.h"

namespace dlk::cpu::DLK_ISA {
namespace {

using T = float;
using B = Block<T>;
constexpr int L = kLanes<T>;

/// Bytes of V and M of one block of tiles: they stay in L2 (1 MiB and more with AVX-512, else 512 KiB) with a plane of
/// U.
constexpr int64_t kBlockBytes = kIsa == Isa::avx512 ? 1 << 20 : 384 << 10;
/// Images so small that PyTorch's kernels lose least to rounding, unless they add many channels, and that tiles of 3
/// cost little: with 14 x 14 pixels they are 2 to 14 % faster than tiles of 4, which waste more at the borders, the
/// less the more channels there are.
bool is_small(const Correlation& q) { return q.pixels() < 512; }
/// Channels after which sums restart, which bounds their rounding error. In a sum of C random terms in runs of r, its
/// variance is as r + C / r: least at the root of C, and at r = sqrt(2 C) 6 % more for 0.7 of the restarts.
int64_t sum_channels(const Correlation& q) {
  const int64_t least = is_small(q) ? 12 : 24;
  const auto root = static_cast<int64_t>(std::sqrt(2.0 * static_cast<double>(q.CI)));
  return std::max(least, root);
}
/// Channels of U that are transformed at once: their taps stay in L1.
constexpr int64_t kWeightChannels = 16;
constexpr int64_t kLine = 64 / sizeof(T);  // elements of a cache line

/// Reads weights (m .. m + NR, c .. c + channels) into panel[c][tap][NR]; zeros beyond CO.
void read_weights(const Correlation& q, const T* w, int64_t m, int64_t c, int64_t channels, T* panel) {
  constexpr int64_t NR = B::NR;
  const int64_t n = q.CO - m < NR ? q.CO - m : NR;
  const T* from = w + m * q.w_out + c * q.w_in;
  if (q.w_in == 9 && taps_in_order(q, 1))  // (CO, CI, 3, 3) in memory: all of a channel is contiguous
    return pack_panel_transposed<T>(9 * channels, n, [&](int64_t j) { return from + j * q.w_out; }, panel);
  if (q.w_out == 9 && taps_in_order(q, -1)) {  // (CI, CO, 3, 3), taps in reverse: backward
    for (int64_t i = 0; i < channels; ++i) {
      const T* taps = from + i * q.w_in;
      const auto row = [i](int64_t t) { return 9 * i + 8 - t; };
      pack_panel_transposed<T>(9, n, [&](int64_t j) { return taps + j * 9; }, panel, row);
    }
    return;
  }
  for (int t = 0; t < 9; ++t) {
    const T* tap = from + q.weight[t];
    const auto row = [t](int64_t i) { return 9 * i + t; };
    // Lines of the next channels, which are too far apart for the hardware to foresee them.
    const auto fetch = [next = tap + channels * q.w_in](int64_t offset) {
      __builtin_prefetch(next + offset, /*write=*/0, /*L2*/ 2);
    };
    if (q.w_in == 1) {
      for (int64_t j = 0; j < n; ++j) fetch(j * q.w_out);
      pack_panel_transposed<T>(channels, n, [&](int64_t j) { return tap + j * q.w_out; }, panel, row);
    } else if (q.w_out == 1) {
      for (int64_t i = 0; i < channels; ++i)
        for (int64_t j = 0; j < n; j += kLine) fetch(i * q.w_in + j);
      pack_panel(channels, n, tap, q.w_in, panel, row);
    } else {
      for (int64_t i = 0; i < channels; ++i)
        for (int64_t j = 0; j < NR; ++j) panel[row(i) * NR + j] = j < n ? tap[j * q.w_out + i * q.w_in] : T(0);
    }
  }
}

/// kLanes<double> floats.
DLK_INLINE Vec<double> load_as_double(const float* p) {
  Vec<double> v;
  for (int l = 0; l < kLanes<double>; ++l) v[l] = p[l];
  return v;
}
DLK_INLINE void store_as_float(float* p, Vec<double> v) {
  for (int l = 0; l < kLanes<double>; ++l) p[l] = static_cast<float>(v[l]);
}

/// u[plane][c][NR] = the transformed weights of outputs [m, m + NR) and channels [channels).
template <int tile>
void transform_weights(const Correlation& q, const T* w, int64_t m, Range channels, T* u, int64_t plane) {
  using W = Winograd<tile>;
  T taps[kWeightChannels * 9 * B::NR];
  for (int64_t c = channels.begin; c < channels.end; c += kWeightChannels) {
    const int64_t count = channels.end - c < kWeightChannels ? channels.end - c : kWeightChannels;
    read_weights(q, w, m, c, count, taps);
    for (int64_t i = 0; i < count; ++i)
      for (int v = 0; v < B::NR; v += kLanes<double>) {
        const T* from = taps + i * 9 * B::NR + v;
        T* to = u + (c - channels.begin + i) * B::NR + v;
        transform_2d<double, typename W::Weight>(
            [&](int r, int s) { return load_as_double(from + (3 * r + s) * B::NR); },
            [&](int r, int s, Vec<double> value) { store_as_float(to + (r * W::kAlpha + s) * plane, value); });
      }
  }
}

/// What both orders of the work share.
template <int tile>
struct Job {
  using W = Winograd<tile>;
  const Correlation& q;
  const Span span;
  const Dilation dilation;
  const Images<const T> in;
  const Images<T> out;
  const T *w, *bias;
  const int64_t panels, CO, v_row;  // CO: in whole vectors

  Job(const Correlation& q, const T* x, const T* w, const T* bias, T* y)
      : q(q),
        span(q),
        dilation(q),
        in{x, q.CI, q.IH, q.IW, q.channels_last},
        out{y, q.CO, q.OH, q.OW, q.channels_last},
        w(w),
        bias(bias),
        panels(ceil_div(q.CO, B::NR)),
        CO(round_up(q.CO, L)),
        v_row(row_stride<T>(q.CI)) {}

  /// V for a part of a block and the channels of group i (of kLanes).
  void input(const Window& part, int64_t first, int64_t i, T* strip, T* v, int64_t plane) const {
    const int64_t c = i * L, channels = q.CI - c < L ? q.CI - c : L;
    transform_input<T, tile>(span, dilation, in, part, first, c, channels, strip, v, v_row, plane);
  }

  /// The outputs of a part of a block, channels from k on, from m[plane][tile][...], whose rows begin with channel k0.
  void output(const Window& part, int64_t first, int64_t k0, int64_t k, T* strip, const T* m, int64_t row,
              int64_t plane) const {
    const int64_t channels = q.CO - k < L ? q.CO - k : L, width = part.cols.size();
    const int64_t line = width * L * dilation.h, column = L * dilation.w;
    for_each_tile<T>(part, W::kTile, dilation, first, width, [&](int64_t t, int64_t offset) {
      const T* from = m + t * row + k - k0;
      transform_2d<T, typename W::Output>(
          [&](int i, int j) { return load(from + (i * W::kAlpha + j) * plane); },
          [&](int i, int j, Vec<T> value) { store(strip + offset + i * line + j * column, value); });
    });
    unstage(out, part, k, channels, bias, strip);
  }
};

/// Many tiles: U first, then a task per block of tiles.
template <int tile>
void by_tiles(const Job<tile>& job, const TileBlocks& blocks, Context& context) {
  constexpr int64_t kPlanes = Winograd<tile>::kPlanes, NR = B::NR;
  const Correlation& q = job.q;
  const int64_t u_plane = q.CI * NR, u_panel = kPlanes * u_plane;
  const int64_t m_row = row_stride<T>(job.CO);
  const int64_t v_plane = plane_stride<T>(blocks.block_tiles(), job.v_row);
  const int64_t m_plane = plane_stride<T>(blocks.block_tiles(), m_row);
  const int64_t strip_size = blocks.strip_pixels() * L;
  T* u = context.array<T>(job.panels * u_panel);
  T* all_v = context.array<T>(max_threads() * kPlanes * v_plane);
  T* all_m = context.array<T>(max_threads() * kPlanes * m_plane);
  T* strips = context.array<T>(max_threads() * strip_size);

  run_team(worth_threads(q), [&](const Team& team) {
    const int64_t parts = ceil_div(q.CI, 2 * kWeightChannels);
    team.for_each(job.panels * parts, [&](int64_t i) {
      const int64_t c = i % parts * 2 * kWeightChannels, panel = i / parts;
      const Range channels{c, c + 2 * kWeightChannels < q.CI ? c + 2 * kWeightChannels : q.CI};
      transform_weights<tile>(q, job.w, panel * NR, channels, u + panel * u_panel + c * NR, u_plane);
    });
    T* v = all_v + team.rank * kPlanes * v_plane;
    T* m = all_m + team.rank * kPlanes * m_plane;
    T* strip = strips + team.rank * strip_size;
    team.for_each(blocks.count(), [&](int64_t b) {
      blocks.for_each_part(b, [&](const Window& part, int64_t first) {
        for (int64_t i = 0; i < ceil_div(q.CI, L); ++i) job.input(part, first, i, strip, v, v_plane);
      });
      for (int64_t plane = 0; plane < kPlanes; ++plane)
        for (int64_t c = 0; c < q.CI; c += B::KC) {
          const int64_t K = q.CI - c < B::KC ? q.CI - c : B::KC;
          const CView<T> to{.data = m + plane * m_plane, .row_stride = m_row, .accumulate = c > 0};
          multiply_block(blocks.size(b), job.CO, K, AView<T>{v + plane * v_plane + c, job.v_row, true},
                         u + plane * u_plane + c * NR, u_panel, NR, to, sum_channels(q));
        }
      blocks.for_each_part(b, [&](const Window& part, int64_t first) {
        for (int64_t k = 0; k < q.CO; k += L) job.output(part, first, 0, k, strip, m, m_row, m_plane);
      });
    });
  });
}

/// Few tiles: V first, then a task per panel of output channels.
template <int tile>
void by_channels(const Job<tile>& job, const TileBlocks& blocks, Context& context) {
  constexpr int64_t kPlanes = Winograd<tile>::kPlanes, NR = B::NR;
  const Correlation& q = job.q;
  const int64_t tiles = blocks.block_tiles(), m_row = row_stride<T>(NR);
  const int64_t v_plane = plane_stride<T>(tiles, job.v_row), m_plane = plane_stride<T>(tiles, m_row);
  const int64_t K = q.CI < B::KC ? q.CI : B::KC, u_plane = (K | 1) * NR;
  const int64_t strip_size = blocks.strip_pixels() * L;
  T* v = context.array<T>(kPlanes * v_plane);
  T* all_m = context.array<T>(max_threads() * kPlanes * m_plane);
  T* all_u = context.array<T>(max_threads() * kPlanes * u_plane);
  T* strips = context.array<T>(max_threads() * strip_size);

  run_team(worth_threads(q), [&](const Team& team) {
    T* strip = strips + team.rank * strip_size;
    team.for_each(ceil_div(q.CI, L), [&](int64_t i) {
      blocks.for_each_part(0, [&](const Window& part, int64_t first) { job.input(part, first, i, strip, v, v_plane); });
    });
    T* m = all_m + team.rank * kPlanes * m_plane;
    T* u = all_u + team.rank * kPlanes * u_plane;
    team.for_each(job.panels, [&](int64_t panel) {
      const int64_t k0 = panel * NR, N = job.CO - k0 < NR ? job.CO - k0 : NR;
      for (int64_t c = 0; c < q.CI; c += K) {
        const Range channels{c, c + K < q.CI ? c + K : q.CI};
        transform_weights<tile>(q, job.w, k0, channels, u, u_plane);
        for (int64_t plane = 0; plane < kPlanes; ++plane) {
          const CView<T> to{.data = m + plane * m_plane, .row_stride = m_row, .accumulate = c > 0};
          multiply_block(tiles, N, channels.size(), AView<T>{v + plane * v_plane + c, job.v_row, true},
                         u + plane * u_plane, u_plane, NR, to, sum_channels(q));
        }
      }
      blocks.for_each_part(0, [&](const Window& part, int64_t first) {
        for (int64_t k = k0; k < k0 + N; k += L) job.output(part, first, k0, k, strip, m, m_row, m_plane);
      });
    });
  });
}

template <int tile>
void run(const Correlation& q, const T* in, const T* w, const T* bias, T* out, Context& context) {
  const Job<tile> job(q, in, w, bias, out);
  const int64_t tile_bytes = Winograd<tile>::kPlanes * (q.CI + q.CO) * int64_t{sizeof(T)};
  const int64_t fit = kBlockBytes / tile_bytes, least = 2 * B::MR;
  const TileBlocks blocks(q, Winograd<tile>::kTile, fit > least ? fit : least);
  const int64_t tiles = blocks.tiles();
  if (q.CO > tiles && q.CO >= 4 * B::NR) return by_channels(job, TileBlocks(q, Winograd<tile>::kTile, tiles), context);
  by_tiles(job, blocks, context);
}

// ---- When, and with which tiles

/// 3 x 3 taps that are evenly apart, every pixel, one group.
bool applies(const Correlation& q) {
  if (q.taps != 9 || q.groups != 1 || q.step_h != 1 || q.step_w != 1 || q.row_step != 1 || q.col_step != 1)
    return false;
  const Dilation d(q);
  for (int t = 0; t < 9; ++t)
    if (q.dh[t] != q.dh[0] + t / 3 * d.h || q.dw[t] != q.dw[0] + t % 3 * d.w) return false;
  return d.h > 0 && d.w > 0;
}

bool is_dilated(const Correlation& q) { return Dilation(q).h > 1 || Dilation(q).w > 1; }

/// The largest tile whose error against float64 (RMS and maximum) stays within twice that of PyTorch's kernels for the
/// same pass and layout, as measured with oneDNN's AVX2 and AVX-512 kernels (docs/benchmarks/accuracy.md, which marks a
/// few maxima that do not, mostly of heavy-tailed inputs). Those sum
/// NCHW in short runs with AVX-512, and so do PyTorch's input gradients everywhere; gradients to the weight sum over
/// pixels, the more accurately the fewer there are; single small images are summed best, and with AVX2 dilated filters.
/// Sums over few channels leave them little to lose (there tiles of 3 cost 9 %, 32 channels of 14 x 14 pixels), but
/// those over 128 and more lose as much in small images as in all others.
int accurate_tile(const Correlation& q, Pass pass) {
  if (q.less_accurate) return 4;
  constexpr bool avx512 = kIsa == Isa::avx512;
  const bool exact = q.CI <= 32 || (is_small(q) && q.CI < 128);
  const bool single = q.pixels() < 256;
  switch (pass) {
    case Pass::forward:
      if (avx512 && !q.channels_last) return single ? 2 : 3;
      return exact ? 3 : 4;
    case Pass::backward_input:
      if (q.channels_last && !exact) return 4;
      return single ? 2 : 3;
    default:
      if (avx512 && q.channels_last) return q.pixels() >= 2048 ? 3 : 2;
      return is_small(q) || (!avx512 && is_dilated(q)) ? 3 : 4;
  }
}

/// Whether tiles of m x m are clearly faster than implicit GEMM. Costs are multiplications per (input, output) channel;
/// constants as measured: products in small blocks run at 3/4 of the peak, a tile's transforms to and from the layout
/// cost as much as 450 products per channel on either side, those of a filter as much as 300.
bool pays(const Correlation& q, int64_t m) {
  const int64_t tiles = TileBlocks(q, m, 1).tiles();
  const double transforms = 450.0 * tiles * (1.0 / q.CI + 1.0 / q.CO) + 300;
  const double winograd = 1.3 * (m + 2) * (m + 2) * tiles + transforms, direct = 1.15 * 9 * q.pixels();
  return winograd < 0.85 * direct;
}

}  // namespace

int winograd_tile(const Correlation& q, Pass pass) {
  if (!applies(q)) return 0;
  // Smaller tiles waste less at the borders.
  for (int m = accurate_tile(q, pass); m >= 2; --m)
    if (pays(q, m)) return m;
  return 0;
}

void winograd(const Correlation& q, int tile, const float* in, const float* w, const float* bias, float* out,
              Context& context) {
  with_winograd_tile(tile, [&]<int m>() { run<m>(q, in, w, bias, out, context); });
}

}  // namespace dlk::cpu::DLK_ISA
