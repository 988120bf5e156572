// Winograd correlation: transform the input's tiles to V[plane][tile][term], the weights to U[plane][term][CO],
// multiply plane by plane, M[plane] = V[plane] U[plane], and transform M back. Terms (winograd_tiles.h): channels, of
// each group of taps.
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

/// Bytes of V and M of one block of tiles, so that they stay in L2 (1 MiB and more with AVX-512, else 512 KiB) with a
/// plane of U.
constexpr int64_t kBlockBytes = kIsa == Isa::avx512 ? 1 << 20 : 384 << 10;
/// But at least so many groups of rows of the micro-kernel, which read the same panels of U: a product of few rows has
/// few sums in flight (128 channels of 28x28, AVX2: 1.13 times as long with 7 tiles, a row of them, as with 21).
constexpr int64_t kLeastGroups = kIsa == Isa::avx512 ? 2 : 3;
/// Images so small that PyTorch's kernels lose least to rounding, unless they add many channels, and that tiles of 3
/// cost little: with 14 x 14 pixels they are 2 to 14 % faster than tiles of 4, which waste more at the borders, the
/// less the more channels there are.
bool is_small(const Correlation& q) { return q.pixels() < 512; }
/// Terms after which sums restart, which bounds their rounding error. In a sum of C random terms in runs of r, its
/// variance is as r + C / r: least at the root of C, and at r = sqrt(2 C) 6 % more for 0.7 of the restarts.
int64_t sum_terms(const Correlation& q, int64_t terms) {
  const int64_t least = is_small(q) ? 12 : 24;
  const auto root = static_cast<int64_t>(std::sqrt(2.0 * static_cast<double>(terms)));
  return std::max(least, root);
}
/// Channels of U that are transformed at once: of 3 x 3 taps they stay in L1.
constexpr int64_t kWeightChannels = 16;
constexpr int64_t kLine = 64 / sizeof(T);  // elements of a cache line

/// How many weights of one output and channel lie side by side in memory, as those of (K, C, R, S) do, the taps among
/// them (a phase of a gradient has not all); 0 if they do not.
int64_t adjacent_weights(const Correlation& q) {
  const int64_t size = std::min(q.w_in, q.w_out);
  for (int64_t t = 0; t < q.taps; ++t)
    if (q.weight[t] >= size) return 0;
  return size <= kMostTaps * kMostTaps ? size : 0;
}

/// Lines of the next channels are too far apart for the hardware to foresee them: they are fetched, of (K, C, R, S)
/// this many channels ahead (input gradients of 3x3/2, 128 to 512 channels: 1.1 times faster).
constexpr int64_t kFetched = 4;

/// Reads weights (m .. m + NR, c .. c + channels) into panel[c][tap][NR], or, of `adjacent` ones, all as they lie in
/// memory, into panel[c][weight][NR]; zeros beyond CO.
void read_weights(const Correlation& q, int64_t adjacent, const T* w, int64_t m, int64_t c, int64_t channels,
                  T* panel) {
  constexpr int64_t NR = B::NR;
  const int64_t n = q.CO - m < NR ? q.CO - m : NR;
  const T* from = w + m * q.w_out + c * q.w_in;
  if (adjacent > 0 && q.w_in == adjacent)  // all of an output is contiguous
    return pack_panel_transposed<T>(adjacent * channels, n, [&](int64_t j) { return from + j * q.w_out; }, panel);
  if (adjacent > 0) {
    for (int64_t i = 0; i < channels; ++i) {
      const T* of_channel = from + i * q.w_in;
      for (int64_t j = 0; j < n * adjacent; j += kLine) fetch_ahead<Fetch::into_l2>(of_channel + kFetched * q.w_in + j);
      const auto row = [=](int64_t weight) { return adjacent * i + weight; };
      pack_panel_transposed<T>(adjacent, n, [&](int64_t j) { return of_channel + j * q.w_out; }, panel, row);
    }
    return;
  }
  for (int64_t t = 0; t < q.taps; ++t) {
    const T* tap = from + q.weight[t];
    const auto row = [=](int64_t i) { return q.taps * i + t; };
    const T* next = tap + channels * q.w_in;
    if (q.w_in == 1) {
      for (int64_t j = 0; j < n; ++j) fetch_ahead<Fetch::into_l2>(next + j * q.w_out);
      pack_panel_transposed<T>(channels, n, [&](int64_t j) { return tap + j * q.w_out; }, panel, row);
    } else if (q.w_out == 1) {
      for (int64_t i = 0; i < channels; ++i)
        for (int64_t j = 0; j < n; j += kLine) fetch_ahead<Fetch::into_l2>(next + i * q.w_in + j);
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

/// From one plane of so many terms to the next: an odd number of rows, so that the kPlanes places where a transform
/// stores at once fall into different cache sets.
constexpr int64_t weights_plane(int64_t terms) { return (terms | 1) * B::NR; }

/// u[plane][term][NR] = the transformed weights of outputs [m, m + NR) and the terms of channels [channels), which
/// begin with a whole vector; zeros for terms that have no channel.
template <class W>
void transform_weights(const Correlation& q, const TileShape& tile, const T* w, int64_t m, Range channels, T* u,
                       int64_t plane) {
  static constexpr T zeros[kLanes<double>] = {};
  T taps[kWeightChannels * kMostTaps * kMostTaps * B::NR];
  const int64_t adjacent = adjacent_weights(q), size = (adjacent ? adjacent : q.taps) * B::NR;
  const int64_t end = channels.end < q.CI ? channels.end : q.CI;
  const int64_t all = tile.groups() == 1 ? end : channels.begin + round_up(end - channels.begin, L);
  for (int64_t c = channels.begin; c < all; c += kWeightChannels) {
    const int64_t count = std::min(all - c, kWeightChannels), read = std::min(end - c, count);
    read_weights(q, adjacent, w, m, c, read, taps);
    std::fill(taps + read * size, taps + count * size, T(0));
    for (int64_t g = 0; g < tile.groups(); ++g) {
      int64_t at[W::kTaps];  // in a row of the panel; -1: a zero
      for (int t = 0; t < W::kTaps; ++t) {
        const int64_t tap = tile.tap(g, t);
        at[t] = tap < 0 ? -1 : (adjacent ? q.weight[tap] : tap) * B::NR;
      }
      for (int64_t i = 0; i < count; ++i)
        for (int v = 0; v < B::NR; v += kLanes<double>) {
          const T* from = taps + i * size + v;
          T* to = u + tile.term(c - channels.begin + i, g) * B::NR + v;
          transform_2d<double, typename W::Weight>(
              [&](int r, int s) {
                const int64_t tap = at[r * W::kRowTaps + s];
                return load_as_double(tap < 0 ? zeros : from + tap);
              },
              [&](int r, int s, Vec<double> value) { store_as_float(to + (r * W::kAlpha + s) * plane, value); });
        }
    }
  }
}

/// What both orders of the work share.
template <class W>
struct Job {
  const Correlation& q;
  const Span span;
  const TileShape tile;
  const Images<const T> in;
  const Images<T> out;
  const T *w, *bias;
  const int64_t terms, panels, CO, v_row;  // CO: in whole vectors

  Job(const Correlation& q, const T* x, const T* w, const T* bias, T* y)
      : q(q),
        span(q),
        tile(Filter(q), W::kTile, W::kRowTaps),
        in(x, q.CI, q.IH, q.IW, q.channels_last),
        out(grid(y, q)),
        w(w),
        bias(bias),
        terms(tile.terms(q.CI)),
        panels(ceil_div(q.CO, B::NR)),
        CO(round_up(q.CO, L)),
        v_row(row_stride<T>(terms)) {}

  /// V for a part of a block and the channels of group i (of kLanes).
  void input(const Window& part, int64_t first, int64_t i, T* strip, T* v, int64_t plane) const {
    const int64_t c = i * L, channels = q.CI - c < L ? q.CI - c : L;
    transform_input<T, W>(span, tile, in, part, first, c, channels, strip, v, v_row, plane);
  }

  /// The outputs of a part of a block, channels from k on, from m[plane][tile][...], whose rows begin with channel k0.
  void output(const Window& part, int64_t first, int64_t k0, int64_t k, T* strip, const T* m, int64_t row,
              int64_t plane) const {
    const int64_t channels = q.CO - k < L ? q.CO - k : L, width = part.cols.size();
    const auto [line, column] = tile.output_steps(width);
    for_each_tile(part, tile, first, [&, line = line, column = column](int64_t t, int64_t h, int64_t w) {
      const T* from = m + t * row + k - k0;
      T* to = strip + (h * width + w) * L;
      transform_2d<T, typename W::Output>(
          [&](int i, int j) { return load(from + (i * W::kAlpha + j) * plane); },
          [&](int i, int j, Vec<T> value) { store(to + i * line + j * column, value); });
    });
    unstage(out, part, k, channels, bias, strip);
  }
};

/// Many tiles: U first, then a task per block of tiles.
template <class W>
void by_tiles(const Job<W>& job, const TileBlocks& blocks, Context& context) {
  constexpr int64_t kPlanes = W::kPlanes, NR = B::NR;
  const Correlation& q = job.q;
  const int64_t u_plane = weights_plane(job.terms), u_panel = kPlanes * u_plane;
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
      T* to = u + panel * u_panel + job.tile.term(c, 0) * NR;
      transform_weights<W>(q, job.tile, job.w, panel * NR, {c, c + 2 * kWeightChannels}, to, u_plane);
    });
    T* v = all_v + team.rank * kPlanes * v_plane;
    T* m = all_m + team.rank * kPlanes * m_plane;
    T* strip = strips + team.rank * strip_size;
    team.for_each(blocks.count(), [&](int64_t b) {
      blocks.for_each_part(b, [&](const Window& part, int64_t first) {
        for (int64_t i = 0; i < ceil_div(q.CI, L); ++i) job.input(part, first, i, strip, v, v_plane);
      });
      for (int64_t plane = 0; plane < kPlanes; ++plane)
        for (int64_t c = 0; c < job.terms; c += B::KC) {
          const int64_t K = job.terms - c < B::KC ? job.terms - c : B::KC;
          const CView<T> to{.data = m + plane * m_plane, .row_stride = m_row, .accumulate = c > 0};
          multiply_block(blocks.size(b), job.CO, K, AView<T>{v + plane * v_plane + c, job.v_row, true},
                         u + plane * u_plane + c * NR, u_panel, NR, to, sum_terms(q, job.terms));
        }
      blocks.for_each_part(b, [&](const Window& part, int64_t first) {
        for (int64_t k = 0; k < q.CO; k += L) job.output(part, first, 0, k, strip, m, m_row, m_plane);
      });
    });
  });
}

/// Few tiles: V first, then a task per panel of output channels.
template <class W>
void by_channels(const Job<W>& job, const TileBlocks& blocks, Context& context) {
  constexpr int64_t kPlanes = W::kPlanes, NR = B::NR;
  const Correlation& q = job.q;
  const int64_t tiles = blocks.block_tiles(), m_row = row_stride<T>(NR);
  const int64_t v_plane = plane_stride<T>(tiles, job.v_row), m_plane = plane_stride<T>(tiles, m_row);
  // Terms of so many channels, whole vectors of them, are transformed at once.
  const int64_t groups = job.tile.groups(), most = std::max<int64_t>(B::KC / groups / L, 1) * L;
  const int64_t u_plane = weights_plane(std::min(most * groups, job.terms));
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
      for (int64_t c = 0; c < q.CI; c += most) {
        const int64_t first = job.tile.term(c, 0), K = std::min(most * groups, job.terms - first);
        transform_weights<W>(q, job.tile, job.w, k0, {c, c + most}, u, u_plane);
        for (int64_t plane = 0; plane < kPlanes; ++plane) {
          const CView<T> to{.data = m + plane * m_plane, .row_stride = m_row, .accumulate = c > 0};
          multiply_block(tiles, N, K, AView<T>{v + plane * v_plane + first, job.v_row, true}, u + plane * u_plane,
                         u_plane, NR, to, sum_terms(q, job.terms));
        }
      }
      blocks.for_each_part(0, [&](const Window& part, int64_t first) {
        for (int64_t k = k0; k < k0 + N; k += L) job.output(part, first, k0, k, strip, m, m_row, m_plane);
      });
    });
  });
}

template <class W>
void run(const Correlation& q, const T* in, const T* w, const T* bias, T* out, Context& context) {
  const Job<W> job(q, in, w, bias, out);
  const int64_t tile_bytes = W::kPlanes * (job.terms + q.CO) * int64_t{sizeof(T)};
  const TileBlocks blocks(q, job.tile, kBlockBytes / tile_bytes, kLeastGroups * B::MR);
  const int64_t tiles = blocks.tiles();
  if (q.CO > tiles && q.CO >= 4 * B::NR) return by_channels(job, TileBlocks(q, job.tile, tiles), context);
  by_tiles(job, blocks, context);
}

// ---- When, and with which tiles

/// Taps that are evenly apart, one group of channels; a stride without dilation and with taps that groups of 3 have
/// room for.
bool applies(const Correlation& q, const Filter& filter) {
  if (q.groups != 1 || !filter.is_all_of(q)) return false;
  if (filter.is_strided() && (filter.is_dilated() || filter.length() > 3)) return false;
  return filter.length() > 1 && filter.h.taps <= kMostTaps && filter.w.taps <= kMostTaps;
}

/// The largest tile whose error against float64 (RMS and maximum) stays within twice that of PyTorch's kernels for the
/// same pass and layout, as measured with oneDNN's AVX2 and AVX-512 kernels (docs/benchmarks/accuracy.md, which marks a
/// few maxima that do not, mostly of heavy-tailed inputs). Those sum NCHW in short runs with AVX-512, and so do
/// PyTorch's input gradients everywhere; gradients to the weight sum over pixels, the more accurately the fewer there
/// are; single small images are summed best, and with AVX2 dilated filters. Sums over few channels leave them little to
/// lose (there tiles of 3 cost 9 %, 32 channels of 14 x 14 pixels), but those over 128 and more lose as much in small
/// images as in all others. Lines of 7 taps make long sums of few roundings each, 2 taps, unless a stride makes them of
/// more, short ones.
int accurate_tile(const Correlation& q, const Filter& filter, Pass pass) {
  if (q.less_accurate) return 4;
  constexpr bool avx512 = kIsa == Isa::avx512;
  const bool exact = q.CI <= 32 || (is_small(q) && q.CI < 128);
  const bool single = q.pixels() < 256, is_phase = q.row_step > 1 || q.col_step > 1;
  const bool short_sums = single || (filter.length() == 2 && !filter.is_strided() && !is_phase);
  if (filter.is_line() && filter.length() == 7) return (pass == Pass::backward_weight ? single : exact) ? 3 : 4;
  switch (pass) {
    case Pass::forward:
      if (avx512 && !q.channels_last) return short_sums ? 2 : 3;
      return exact ? 3 : 4;
    case Pass::backward_input:
      if (q.channels_last && !exact && !is_phase) return 4;
      return short_sums ? 2 : 3;
    default:
      if (avx512 && q.channels_last) return q.pixels() >= 2048 && filter.length() > 2 ? 3 : 2;
      return is_small(q) || (!avx512 && filter.is_dilated()) ? 3 : 4;
  }
}

/// Whether tiles of m are clearly faster than implicit GEMM. Costs are multiplications per (input, output) channel;
/// constants as measured: products in small blocks run at 3/4 of the peak, unless several groups make their sums
/// longer; a tile's transforms to and from the layout cost as much as 450 products per channel on either side, those of
/// a group of taps as much as 300; a line's a sixth. (With AVX2 implicit GEMM of strided NHWC images, which reads them
/// where they lie and whose products run at the peak, was 5 to 19 % faster than tiles, although this predicts these to
/// gain as much; not so the gradients to the weight.)
bool pays(const Correlation& q, const Filter& filter, int m, Pass pass) {
  const bool reads_images = q.channels_last && filter.is_strided() && pass == Pass::forward && kIsa != Isa::avx512;
  const double implicit_gemm = reads_images ? 0.8 : 0.85 * 1.15;
  bool faster = false;
  with_winograd(filter, m, [&]<class W>() {
    const TileShape tile(filter, W::kTile, W::kRowTaps);
    const double tiles = TileBlocks(q, tile, 1).tiles(), taps = tile.groups();
    const double groups = 1.0 * tile.terms(q.CI) / q.CI;  // with the terms that fill a vector
    const double staged = std::max<double>(taps, q.step_h * q.step_w) * groups / taps;  // a stride skips some of them
    const double of_tile = filter.is_line() ? 75 : 450, of_filter = (filter.is_line() ? 50 : 300) * taps;
    const double transforms = of_tile * tiles * (1.0 / q.CI + staged / q.CO) + of_filter;
    const double products = (taps > 1 ? 1.15 : 1.3) * W::kPlanes * groups * tiles;
    faster = products + transforms < implicit_gemm * q.taps * q.pixels();
  });
  return faster;
}

}  // namespace

int winograd_tile(const Correlation& q, Pass pass) {
  const Filter filter(q);
  if (!applies(q, filter)) return 0;
  const int least = filter.length() == 2 ? 3 : 2;  // two taps have tiles as accurate as those of 3
  // Smaller tiles waste less at the borders.
  for (int m = accurate_tile(q, filter, pass); m >= least; --m)
    if (pays(q, filter, m, pass)) return m;
  return 0;
}

void winograd(const Correlation& q, int tile, const float* in, const float* w, const float* bias, float* out,
              Context& context) {
  with_winograd(Filter(q), tile, [&]<class W>() { run<W>(q, in, w, bias, out, context); });
}

}  // namespace dlk::cpu::DLK_ISA
