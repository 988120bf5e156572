// Depthwise convolution of NCHW images, and of one channel to one in any format:
//
//   y[oh, ow] = bias + sum over r, s of w[r, s] x[oh stride - pad + r, ow stride - pad + s]
//   dx[ih, iw] = the sum of what the outputs over it give it;   dw[r, s] = sum over oh, ow of dy[oh, ow] x[...]
//
// for each plane with its channel's w. Its windows are those of pooling, and so is the way down a plane in strips of
// one vector, which pool_windows.h describes: a row's taps are loaded once for the windows that share them, and nothing
// is staged. dx is y of dy and the weights in reverse order; with stride 2, it is gathered (pool_gradient.h). y, dx:
// tasks are those of pooling. dw: a task is some channels and a split of their rows; sums are per strip of a band of
// rows first, in vectors, then (of wide planes) per band, then over all of the task, then over tasks in order.
#include "csrc/cpu/depthwise_planes.h"

#include <algorithm>

#include "csrc/cpu/pool_gradient.h"
#include "csrc/cpu/pool_windows.h"
#include "csrc/cpu/reduce.h"
#include "csrc/cpu/streaming.h"

namespace dlk::cpu::DLK_ISA {
namespace {

/// Padded by up to R - 1, more than pooling allows: strips do not mind.
Pool2d windows_of(const Conv2d& p) {
  return {.N = p.N,
          .C = p.C,
          .H = p.H,
          .W = p.W,
          .OH = p.OH,
          .OW = p.OW,
          .R = p.R,
          .S = p.S,
          .stride_h = p.stride_h,
          .stride_w = p.stride_w,
          .pad_h = p.pad_h,
          .pad_w = p.pad_w,
          .dilation_h = p.dilation_h,
          .dilation_w = p.dilation_w};
}

/// The windows over dy, with stride 1, that dx sees.
Pool2d reversed(const Pool2d& p) {
  Pool2d q = p;
  std::swap(q.H, q.OH);
  std::swap(q.W, q.OW);
  q.pad_h = p.R - 1 - p.pad_h;
  q.pad_w = p.S - 1 - p.pad_w;
  return q;
}

/// The weights of all channels.
template <class T>
class Weights {
 public:
  Weights(const Conv2d& p, const T* w) : w_(w), C_(p.C), w_k_(p.w_k), w_r_(p.w_r), w_s_(p.w_s) {}
  Weights reversed(const Conv2d& p) const {
    Weights weights = *this;
    weights.w_ += (p.R - 1) * w_r_ + (p.S - 1) * w_s_;
    weights.w_r_ = -w_r_;
    weights.w_s_ = -w_s_;
    return weights;
  }
  /// Those of a plane, each in all lanes.
  template <int kR>
  DLK_INLINE void of_plane(int64_t plane, Vec<T> (&to)[kR * kR]) const {
    const T* const from = w_ + plane % C_ * w_k_;
    for (int r = 0; r < kR; ++r)
      for (int s = 0; s < kR; ++s) to[r * kR + s] = splat(from[r * w_r_ + s * w_s_]);
  }

 private:
  const T* w_;
  int64_t C_, w_k_, w_r_, w_s_;
};

/// The taps of a row of input.
template <class T, int kR>
struct TapRow {
  Vec<T> tap[kR];
};

/// For walk_down: the taps of each row of x, zeros above and below the image.
template <class T, int kR, int kStride>
struct TapRows {
  const T* x;
  int64_t H, W, ahead;
  StripTaps<T, kR, kStride> taps;

  DLK_INLINE TapRow<T, kR> operator()(int64_t plane, int64_t ih) const {
    TapRow<T, kR> row{};
    if (ih >= 0 && ih < H) taps.load(x + (plane * H + ih) * W, T(0), ahead, row.tap);
    return row;
  }
};

template <class T, int kR, int kStride, int kPad>
void correlate(CommonWindows<kR, kStride, kPad> windows, const Pool2d& p, const T* x, Weights<T> weights, const T* bias,
               T* y) {
  for_each_strip<T>(p, [=](const PlaneTasks::Task& task, int64_t ow, auto lanes, int64_t ahead) {
    const TapRows<T, kR, kStride> rows{x, p.H, p.W, ahead, {p, ow}};
    for (int64_t plane = task.planes.begin; plane < task.planes.end; ++plane) {
      Vec<T> weight[kR * kR];
      weights.template of_plane<kR>(plane, weight);
      const Vec<T> first = splat(bias ? bias[plane % p.C] : T(0));
      walk_down(windows, p, {{plane, plane + 1}, task.rows}, rows,
                [&](int64_t row, int64_t, const TapRow<T, kR>(&of)[kR]) {
                  Vec<T> sum = first;
#pragma GCC unroll 3
                  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 3
                    for (int s = 0; s < kR; ++s) sum += of[r].tap[s] * weight[r * kR + s];
                  store_n(y + row * p.OW + ow, sum, lanes);
                });
    }
  });
}

/// For gather_strip: what outputs give.
template <class T>
struct WeightedRun {
  Vec<T> g;
  const Vec<T>* weights;
  DLK_INLINE void add_to(Vec<T>& sum, int position) const { sum += g * weights[position]; }
};

template <bool streams, class T, int kR, int kStride, int kPad>
void gather(CommonWindows<kR, kStride, kPad> windows, const Pool2d& p, const T* dy, Weights<T> weights, T* dx) {
  const int64_t OH = p.OH, OW = p.OW;
  gather_planes<streams>(windows, p, dx, gradient_tasks(p), [=](int64_t /*rank*/, Range /*rows*/) {
    return [=](int64_t plane) {
      Vec<T> weight[kR * kR];
      weights.template of_plane<kR>(plane, weight);
      return [=](int64_t oh, int64_t ow, LanesBetween<T> lanes) {
        return WeightedRun<T>{lanes.load(dy + (plane * OH + oh) * OW + ow), weight};
      };
    };
  });
}

// ---- Gradient to the weight

/// How dw is cut into tasks: a part of the channels, of a split of all rows of them.
struct WeightTasks {
  /// Their sums, of 3 x 3 taps, stay in L2.
  static constexpr int64_t kChannels = 64;
  /// Tasks enough to balance a few threads.
  static constexpr int64_t kEnough = 16;
  int64_t C, channels, parts;
  /// A part of one image in pieces, planes or bands of rows, whose x and dy stay in L1, that all strips find them
  /// there.
  PlaneTasks near;
  int64_t pieces, splits, count;

  explicit WeightTasks(const Pool2d& p)
      : C(p.C),
        channels(even_part(C, kChannels)),
        parts(ceil_div(C, channels)),
        near(channels, p.OH, p.stride_h * p.W + p.OW),
        pieces(p.N * near.count),
        splits(std::min(pieces, ceil_div(kEnough, parts))),
        count(parts * splits) {}
  struct Task {
    int64_t split;
    Range channels, pieces;
  };
  Task task(int64_t i) const {
    const int64_t split = i / parts, begin = i % parts * channels;
    return {split, {begin, std::min(C, begin + channels)}, {pieces * split / splits, pieces * (split + 1) / splits}};
  }
};

/// sums[plane - planes.begin][position] += the products of outputs ow, ow + 1, ..., `lanes` of them, of some rows.
template <class T, int kR, int kStride, int kPad, class Count>
DLK_INLINE void add_strip(CommonWindows<kR, kStride, kPad> windows, const Pool2d& p, Range planes, Range rows,
                          const T* x, const T* dy, int64_t ow, Count lanes, T* sums) {
  constexpr int64_t kTaps = kR * kR, L = kLanes<T>;
  const int64_t next_dy = planes.size() * rows.size() * p.OW, next = next_dy * kStride * kStride;
  const TapRows<T, kR, kStride> tap_rows{x, p.H, p.W, next, {p, ow, lanes}};
  for (int64_t plane = planes.begin; plane < planes.end; ++plane, sums += kTaps * L) {
    Vec<T> sum[kTaps] = {};
    walk_down(windows, p, {{plane, plane + 1}, rows}, tap_rows,
              [&](int64_t row, int64_t, const TapRow<T, kR>(&of)[kR]) {
                const T* const at = dy + row * p.OW + ow;
                fetch_ahead(at + next_dy);
                const Vec<T> g = load_n(at, lanes);
#pragma GCC unroll 3
                for (int r = 0; r < kR; ++r)
#pragma GCC unroll 3
                  for (int s = 0; s < kR; ++s) sum[r * kR + s] += of[r].tap[s] * g;
              });
    for (int64_t i = 0; i < kTaps; ++i) store(sums + i * L, load(sums + i * L) + sum[i]);
  }
}

/// to[i] = the sum of the lanes of vector i of n.
template <class T>
void sum_lanes(int64_t n, const T* vectors, T* to) {
  constexpr int64_t L = kLanes<T>;
  for_each_vec<T>(n, [&](int64_t i, auto count) {
    Vec<T> block[L] = {};
    for (int l = 0; l < count; ++l) block[l] = load(vectors + (i + l) * L);
    transpose<T>(block);
    store_n(to + i, sum_of(block), count);
  });
}

template <class T, int kR, int kStride, int kPad>
void sum_products(CommonWindows<kR, kStride, kPad> windows, const Conv2d& conv, const T* x, const T* dy, T* dw,
                  Context& context) {
  constexpr int64_t kTaps = kR * kR, kSize = kTaps * kLanes<T>;
  const Pool2d p = windows_of(conv);
  const WeightTasks tasks(p);
  T* const all_sums = context.array<T>(max_threads() * 2 * tasks.channels * kSize);
  T* const partial = context.array<T>(tasks.splits * p.C * kTaps);
  run_team(p.N * p.C * p.OH * p.OW >= kGrainElements, [=](const Team& team) {
    T* const sums = all_sums + team.rank * 2 * tasks.channels * kSize;  // [channel][position] vectors
    // Many strips are added among themselves first: a chain of all would lose digits.
    const bool apart = p.OW > 4 * kLanes<T>;
    T* const of_piece = apart ? sums + tasks.channels * kSize : sums;
    team.for_each(tasks.count, [&](int64_t i) {
      const auto [split, channels, pieces] = tasks.task(i);
      std::fill(sums, sums + channels.size() * kSize, T(0));
      for (int64_t k = pieces.begin; k < pieces.end; ++k) {
        const auto [planes, rows] = tasks.near[k % tasks.near.count];
        const int64_t first = k / tasks.near.count * p.C + channels.begin;
        // The last part may have fewer channels.
        const Range some{first + planes.begin, first + std::min(planes.end, channels.size())};
        const int64_t at = planes.begin * kSize, size = some.size() * kSize;
        if (apart) std::fill_n(of_piece + at, size, T(0));
        for_each_vec<T>(p.OW, [&, rows = rows](int64_t ow, auto lanes) {
          add_strip(windows, p, some, rows, x, dy, ow, lanes, of_piece + at);
        });
        for (int64_t i = 0; i < size && apart; ++i) sums[at + i] += of_piece[at + i];
      }
      sum_lanes(channels.size() * kTaps, sums, partial + (split * p.C + channels.begin) * kTaps);
    });
  });
  const T* from = partial;
  for (int64_t c = 0; c < p.C; ++c)
    for (int r = 0; r < kR; ++r)
      for (int s = 0; s < kR; ++s, ++from) {
        T sum = *from;
        for (int64_t split = 1; split < tasks.splits; ++split) sum += from[split * p.C * kTaps];
        dw[c * conv.w_k + r * conv.w_r + s * conv.w_s] = sum;
      }
}

}  // namespace

template <class T>
bool is_depthwise_planes(const Conv2d& p) {
  const bool planes = !p.channels_last || p.groups == 1;  // of one channel there is no other order
  const bool depthwise = p.C == p.groups && p.K == p.groups && planes;
  const bool reverses = p.pad_h < p.R && p.pad_w < p.S;  // as dx with stride 1 needs
  return depthwise && reverses && p.N > 0 && p.H > 0 && p.W > 0 && p.OH > 0 && 3 * p.OW >= kLanes<T> &&
         with_common_windows(windows_of(p), [](auto) {});
}

template <class T>
void depthwise_planes(const Conv2d& p, const T* x, const T* w, const T* bias, T* y) {
  const Pool2d pool = windows_of(p);
  with_common_windows(pool, [&](auto windows) { correlate(windows, pool, x, Weights<T>(p, w), bias, y); });
}

template <class T>
void depthwise_planes_input(const Conv2d& p, const T* dy, const T* w, T* dx) {
  const Pool2d pool = windows_of(p);
  const Weights<T> weights(p, w);
  with_common_windows(pool, [&]<int kR, int kStride, int kPad>(CommonWindows<kR, kStride, kPad> windows) {
    if constexpr (kStride == 1)
      correlate(windows, reversed(pool), dy, weights.reversed(p), static_cast<const T*>(nullptr), dx);
    else
      with_streaming(dx, p.W, p.N * p.C * (p.H * p.W + p.OH * p.OW),
                     [&](auto streams) { gather<streams>(windows, pool, dy, weights, dx); });
  });
}

template <class T>
void depthwise_planes_weight(const Conv2d& p, const T* x, const T* dy, T* dw, Context& context) {
  with_common_windows(windows_of(p), [&](auto windows) { sum_products(windows, p, x, dy, dw, context); });
}

#define DLK_INSTANTIATE(T)                                                         \
  template bool is_depthwise_planes<T>(const Conv2d&);                             \
  template void depthwise_planes(const Conv2d&, const T*, const T*, const T*, T*); \
  template void depthwise_planes_input(const Conv2d&, const T*, const T*, T*);     \
  template void depthwise_planes_weight(const Conv2d&, const T*, const T*, T*, Context&);
DLK_INSTANTIATE(float)
DLK_INSTANTIATE(double)
#undef DLK_INSTANTIATE

}  // namespace dlk::cpu::DLK_ISA
