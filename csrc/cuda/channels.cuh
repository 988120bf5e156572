// Work by channel on contiguous arrays (N, C, inner): sums over N and inner, and elementwise maps with constants for
// each channel. What batch normalisation, bias gradients and the weight gradients of layer norms are made of.
//
// inner > 1, "planes": a block has one channel; its threads form teams, each on a piece of a plane.
// inner == 1, "columns": threads run along C, each with the kLanes channels of one 16-byte load; the teams of a block
// have rows of their own.
// A channel's planes or rows are cut into chunks, one per block, by sizes alone; sums over chunks are added in order.
//
// Both kernels take a functor F with `Constants`, and `Constants constants(c)` that gives those of channel c.
#pragma once

#include "csrc/cuda/reduce.cuh"

namespace dlk::DLK_DEVICE {
namespace {

/// The constants of a functor that needs none.
struct None {};

struct ChannelGrid {
  int64_t N, C, inner;
  bool aligned;           // so are all arrays, and all rows or planes in them
  int width;              // of the teams
  int64_t pieces, piece;  // a plane is cut into `pieces` of `piece` elements
  int64_t units, chunk;   // pieces of planes, or rows; how many a block has
  dim3 blocks;            // channels (columns: groups of them) x chunks

  bool columns() const { return inner == 1; }
};

template <class T>
ChannelGrid channel_grid(int64_t N, int64_t C, int64_t inner, bool pointers_aligned) {
  constexpr int64_t kPiece = 8192, kBlocks = 2048;  // blocks beyond those that fill a GPU only add partial sums
  constexpr int64_t V = kLanes<T>;
  ChannelGrid g{N, C, inner, pointers_aligned && (inner == 1 ? C : inner) % V == 0, 1, 1, inner, N, 0, {}};
  int64_t tiles = C;
  if (g.columns()) {
    g.width = team_width(C, V, 32);
    tiles = ceil_div(C, g.width * V);
  } else {
    g.pieces = ceil_div(inner, kPiece);
    g.piece = kPiece;
    g.units = N * g.pieces;
    g.width = team_width(inner < kPiece ? inner : kPiece, V, kThreads);
  }
  const int64_t useful = ceil_div(g.units, int64_t{4} * (kThreads / g.width));  // a block with less is not worth it
  const int64_t wanted = ceil_div(kBlocks, tiles), chunks = wanted < useful ? wanted : useful;
  g.chunk = chunks > 0 ? ceil_div(g.units, chunks) : 1;
  g.blocks = dim3(static_cast<unsigned>(tiles), g.units > 0 ? static_cast<unsigned>(ceil_div(g.units, g.chunk)) : 1);
  return g;
}

/// The channels whose elements this thread has: one, or as many as a load brings, from `first` on.
template <class T, bool kColumns>
struct ThreadChannels {
  static constexpr int kCount = kColumns ? kLanes<T> : 1;
  int64_t first;

  __device__ explicit ThreadChannels(const ChannelGrid& g)
      : first(kColumns ? (int64_t{blockIdx.x} * g.width + Team{g.width}.lane()) * kCount : blockIdx.x) {}

  template <class F>
  __device__ void constants(const ChannelGrid& g, const F& f, typename F::Constants (&k)[kCount]) const {
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      if (first + j < g.C) k[j] = f.constants(first + j);
  }
};

/// body(n, at, count, visits) for each 16 bytes of elements that are this thread's: `count` elements (or more than fit)
/// from offset `at` on, of image or row n; `visits` counts the calls.
template <class T, bool kColumns, class Body>
__device__ __forceinline__ void for_each_visit(const ChannelGrid& g, int64_t first_channel, Body body) {
  const Team team{g.width};
  const int64_t begin = int64_t{blockIdx.y} * g.chunk, limit = begin + g.chunk;
  const int64_t end = limit < g.units ? limit : g.units;
  int visits = 0;
  for (int64_t unit = begin + team.index(); unit < end; unit += team.count()) {
    if constexpr (kColumns) {
      if (first_channel < g.C) body(unit, unit * g.C + first_channel, g.C - first_channel, ++visits);
    } else {
      const int64_t n = unit / g.pieces, from = unit % g.pieces * g.piece;
      const int64_t to = from + g.piece < g.inner ? from + g.piece : g.inner,
                    plane = (n * g.C + first_channel) * g.inner;
      for (int64_t i = from + team.lane() * kLanes<T>; i < to; i += team.width * kLanes<T>)
        body(n, plane + i, to - i, ++visits);
    }
  }
}

// ---- Sums

/// partial[chunk * C + c] = the sum of a chunk of channel c. F also has `Value`, what is added, and
/// `add(Value (&sums)[n], constants, n, at, count, aligned, visits)` for a visit: n is 1, or the channels are many.
/// (One block per multiprocessor is asked for, lest ptxas spill registers to fit another.)
template <class T, bool kColumns, class F>
__global__ void __launch_bounds__(kThreads, 1) channel_partials(ChannelGrid g, F f, typename F::Value* partial) {
  using Value = typename F::Value;
  using Channels = ThreadChannels<T, kColumns>;
  constexpr int n = Channels::kCount;
  const Channels channels(g);
  typename F::Constants k[n] = {};
  channels.constants(g, f, k);
  Tuple<Value, n> sums{};
  for_each_visit<T, kColumns>(g, channels.first, [&](int64_t row, int64_t at, int64_t count, int visits) {
    f.add(sums.at, k, row, at, count, g.aligned, visits);
  });
  const Team team{kColumns ? g.width : kThreads};
  if constexpr (kColumns)
    sums = team.sum_over_teams(sums);
  else
    sums = team.sum(sums);
  if ((kColumns ? team.index() : team.lane()) != 0) return;
#pragma unroll
  for (int j = 0; j < n; ++j)
    if (channels.first + j < g.C) partial[int64_t{blockIdx.y} * g.C + channels.first + j] = sums[j];
}

/// finish(c, the sum of channel c): a team per channel.
template <class Value, class Finish>
__global__ void __launch_bounds__(kThreads)
    channel_totals(int64_t C, int chunks, int width, const Value* partial, Finish finish) {
  const Team team{width};
  const int64_t c = int64_t{blockIdx.x} * team.count() + team.index();
  Value sum{};
  if (c < C)
    for (int k = team.lane(); k < chunks; k += width) sum = sum + partial[k * C + c];
  sum = team.sum(sum);
  if (c < C && team.lane() == 0) finish(c, sum);
}

/// finish(c, the sum of f over channel c) for each channel.
template <class T, class F, class Finish>
void sum_channels(const ChannelGrid& g, F f, Finish finish, Context& context) {
  using Value = typename F::Value;
  const int chunks = static_cast<int>(g.blocks.y);
  Value* partial = context.array<Value>(chunks * g.C);
  launch(g.columns() ? channel_partials<T, true, F> : channel_partials<T, false, F>, g.blocks, dim3(kThreads), 0,
         context.stream(), g, f, partial);
  const int width = team_width(chunks, 1, 32);
  launch(channel_totals<Value, Finish>, dim3(static_cast<unsigned>(ceil_div(g.C, kThreads / width))), dim3(kThreads), 0,
         context.stream(), g.C, chunks, width, partial, finish);
}

// ---- Maps

template <class T, bool kColumns, class F, class... X>
__global__ void __launch_bounds__(kThreads) map_channels_kernel(ChannelGrid g, F f, T* y, X... x) {
  using Channels = ThreadChannels<T, kColumns>;
  const Channels channels(g);
  typename F::Constants k[Channels::kCount] = {};
  channels.constants(g, f, k);
  for_each_visit<T, kColumns>(g, channels.first, [&](int64_t, int64_t at, int64_t count, int) {
    const auto apply = [&](const auto&... operand) {
      Elements<T> out;
#pragma unroll
      for (int j = 0; j < kLanes<T>; ++j) out[j] = f(k[kColumns ? j : 0], operand[j]...);
      store_elements(y + at, out, count, g.aligned);
    };
    apply(load_elements(x + at, count, g.aligned)...);
  });
}

/// y[i] = f(constants of i's channel, x[i]...).
template <class T, class F, class... X>
void map_channels(const ChannelGrid& g, F f, T* y, Stream stream, const X*... x) {
  launch(g.columns() ? map_channels_kernel<T, true, F, const X*...> : map_channels_kernel<T, false, F, const X*...>,
         g.blocks, dim3(kThreads), 0, stream, g, f, y, x...);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE
