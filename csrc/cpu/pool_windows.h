// What max and average pooling share: windows along one axis, and NCHW rows of outputs in vectors along OW. Depthwise
// convolution takes common windows in the same way.
//
// A vector holds adjacent outputs; tap s of theirs is every stride_w-th element of an input row, loaded and, with
// stride 2, sorted in registers. At the ends of a row, where windows reach into the padding, and in rows shorter than a
// vector, loads are masked.
//
// Common windows are taken in strips of one vector, down the rows of a plane: masks, and whatever else depends on the
// column, are made once, what windows share of a row is computed once, and no division is left. Others are taken row by
// row, but for max pooling's of short rows (forward_by_planes).
#pragma once

#include <algorithm>

#include "csrc/core/pool2d.h"
#include "csrc/cpu/parallel.h"
#include "csrc/cpu/simd.h"

namespace dlk::cpu {
namespace {

/// One axis of sliding windows: tap k of output o is input o stride - pad + k dilation.
struct Axis {
  int64_t in, out, kernel, stride, pad, dilation;

  int64_t start(int64_t o) const { return o * stride - pad; }
  /// The taps of output o that are not in the padding.
  Range taps(int64_t o) const {
    const int64_t first = start(o), begin = first < 0 ? ceil_div(-first, dilation) : 0;
    const int64_t end = first < in ? ceil_div(in - first, dilation) : 0;
    return {begin, end < kernel ? end : kernel};
  }
  /// The outputs of which no tap is in the padding.
  Range inside() const {
    const int64_t begin = ceil_div(pad, stride), last = in + pad - (kernel - 1) * dilation - 1;
    const int64_t end = last < 0 ? 0 : last / stride + 1;
    return begin < end && begin < out ? Range{begin, end < out ? end : out} : Range{0, 0};
  }
  /// The outputs whose window's extent holds input i.
  Range outputs(int64_t i) const {
    const int64_t behind = i + pad - (kernel - 1) * dilation;
    const int64_t begin = behind > 0 ? ceil_div(behind, stride) : 0, end = (i + pad) / stride + 1;
    return {begin, end < out ? end : out};
  }
};

inline Axis vertical(const Pool2d& p) { return {p.H, p.OH, p.R, p.stride_h, p.pad_h, p.dilation_h}; }
inline Axis horizontal(const Pool2d& p) { return {p.W, p.OW, p.S, p.stride_w, p.pad_w, p.dilation_w}; }

/// f(kS): the width of the windows as a constant where it is common and they are not dilated, else 0.
template <class F>
void with_width(const Pool2d& p, F f) {
  if (p.S == 2 && p.dilation_w == 1) return f(std::integral_constant<int, 2>{});
  if (p.S == 3 && p.dilation_w == 1) return f(std::integral_constant<int, 3>{});
  f(std::integral_constant<int, 0>{});
}

/// f(kStride): the distance of windows along a row likewise. (With stride 2, windows of one tap are not: see Taps.)
template <class F>
void with_stride(const Pool2d& p, F f) {
  if (p.stride_w == 1) return f(std::integral_constant<int, 1>{});
  if (p.stride_w == 2 && p.S > 1) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, 0>{});
}

template <class F>
void with_width_and_stride(const Pool2d& p, F f) {
  with_width(p, [&](auto kS) { with_stride(p, [&](auto kStride) { f(kS, kStride); }); });
}

/// The taps of kLanes adjacent windows of a row: those at distance `tap` from the first tap of each, of which the first
/// window's is at `start`. The windows lie within the row, or else (kPads) what is outside of its W elements is
/// `padding`. If kStride is 2 they have more than one tap.
template <int kStride, bool kPads, class T>
struct Taps {
  int64_t stride, W;
  T padding;

  DLK_INLINE Vec<T> operator()(const T* row, int64_t start, int64_t tap) const {
    if constexpr (kStride == 1) return run(row, start + tap);
    if constexpr (kStride == 2) {
      // The even of two vectors' elements, or the odd from one place before: then the last is still the window's.
      const int64_t at = start + tap - (tap > 0);
      const Vec<T> low = run(row, at), high = run(row, at + kLanes<T>);
      return tap > 0 ? every_second<1>(low, high) : every_second<0>(low, high);
    }
    Vec<T> v = splat(padding);
    int64_t at = start + tap;
    for (int l = 0; l < kLanes<T>; ++l, at += stride)
      if (!kPads || (at >= 0 && at < W)) v[l] = row[at];
    return v;
  }

  /// Adjacent elements.
  DLK_INLINE Vec<T> run(const T* row, int64_t at) const {
    if (!kPads || (at >= 0 && at + kLanes<T> <= W)) return load(row + at);
    return LanesBetween<T>(-at, W - at).load(row + at, padding);
  }
};

/// f(ow, lanes, taps) for the outputs of a row in vectors from ow on; the last may overlap the one before it. `inside`
/// is w.inside(), which takes two divisions.
template <int kStride, class T, class F>
DLK_INLINE void for_each_output_vec(const Axis& w, Range inside, T padding, F f) {
  constexpr std::integral_constant<int, kLanes<T>> all;
  const Taps<kStride, true, T> masked{w.stride, w.in, padding};
  if (w.out < all) return f(0, static_cast<int>(w.out), masked);
  for (int64_t i = 0; i < w.out; i += all) {
    const int64_t ow = i + all <= w.out ? i : w.out - all;
    if (inside.begin <= ow && ow + all <= inside.end)
      f(ow, all, Taps<kStride, false, T>{w.stride, w.in, padding});
    else
      f(ow, all, masked);
  }
}

// ---- Common windows in NCHW: strips of kLanes columns, down some rows of some planes

/// Square windows of kR x kR taps, kStride apart in both directions, not dilated; pad_w leaves remainder kPad of it.
template <int kR, int kStride, int kPad>
struct CommonWindows {};

/// f(CommonWindows) if they are the common ones; returns whether they are.
template <class F>
bool with_common_windows(const Pool2d& p, F f) {
  const bool square = p.R == p.S && p.stride_h == p.stride_w && p.dilation_h == 1 && p.dilation_w == 1;
  const auto is = [&](int64_t taps, int64_t stride) { return square && p.R == taps && p.stride_w == stride; };
  const bool odd = p.pad_w % 2 != 0;
  if (is(2, 2) && !odd) return f(CommonWindows<2, 2, 0>{}), true;
  if (is(2, 2)) return f(CommonWindows<2, 2, 1>{}), true;
  if (is(3, 2) && !odd) return f(CommonWindows<3, 2, 0>{}), true;
  if (is(3, 2)) return f(CommonWindows<3, 2, 1>{}), true;
  if (is(2, 1)) return f(CommonWindows<2, 1, 0>{}), true;
  if (is(3, 1)) return f(CommonWindows<3, 1, 0>{}), true;
  return false;
}

/// What a thread takes at once: some rows of one plane, or several planes. `columns`: elements of input and output that
/// a row comes to. Half of L1, so that strips find there what they share of lines, with what is fetched ahead; at least
/// 16 rows, so that few are read for two tasks.
struct PlaneTasks {
  static constexpr int64_t kElements = 4096, kRows = 16;
  int64_t planes, rows, planes_per_task, rows_per_task, bands, count;

  PlaneTasks(int64_t planes, int64_t rows, int64_t columns) : planes(planes), rows(rows) {
    rows_per_task = even_part(rows, std::max(kRows, kElements / columns));
    bands = ceil_div(rows, rows_per_task);
    planes_per_task = bands > 1 ? 1 : std::max(int64_t{1}, kElements / (rows * columns));
    count = ceil_div(planes, planes_per_task) * bands;
  }
  /// The most rows of outputs that a task needs.
  int64_t most_rows(const Pool2d& p) const {
    return planes_per_task > 1 ? planes_per_task * p.OH : std::min(p.OH, (rows_per_task + p.R - 2) / p.stride_h + 1);
  }
  struct Task {
    Range planes, rows;
  };
  Task operator[](int64_t i) const {
    const int64_t plane = i / bands * planes_per_task, row = i % bands * rows_per_task;
    return {{plane, std::min(planes, plane + planes_per_task)}, {row, std::min(rows, row + rows_per_task)}};
  }
};

/// The taps of kLanes adjacent common windows of a row.
template <class T, int kS, int kStride>
class StripTaps {
 public:
  /// Of outputs ow, ow + 1, ..., of which `outputs` are wanted.
  StripTaps(const Pool2d& p, int64_t ow, int64_t outputs = kLanes<T>) : start_(ow * kStride - p.pad_w) {
    for (int k = 0; k < kRuns; ++k) {
      const int64_t at = start_ + offset(k), wanted = outputs * kStride - (kStride == 1 ? 0 : k % 2 * kLanes<T>);
      lanes_[k] = LanesBetween<T>(-at, std::min(p.W - at, wanted));
    }
  }
  /// tap[s] of a row; `padding` outside of it, and for outputs that are not wanted. Fetches what is `ahead` elements
  /// later.
  DLK_INLINE void load(const T* row, T padding, int64_t ahead, Vec<T> (&tap)[kS]) const {
    Vec<T> run[kRuns];
    for (int k = 0; k < kRuns; ++k) run[k] = lanes_[k].load(row + start_ + offset(k), padding);
    for (int k = 0; k < kStride; ++k) fetch_ahead(row + start_ + offset(k) + ahead);
    for (int s = 0; s < kS; ++s)
      if constexpr (kStride == 1)
        tap[s] = run[s];
      else  // taps 0 and 1 are the even and odd elements from tap 0 on; tap 2 is among the odd ones from tap 1 on
        tap[s] = s == 0 ? every_second<0>(run[0], run[1]) : every_second<1>(run[s / 2 * 2], run[s / 2 * 2 + 1]);
  }

 private:
  static constexpr int kRuns = kStride == 1 ? kS : kS + kS % 2;
  static constexpr int64_t offset(int k) { return kStride == 1 ? k : k / 2 + k % 2 * kLanes<T>; }
  int64_t start_;
  LanesBetween<T> lanes_[kRuns];
};

/// out(row of outputs of all planes, oh, of[kR]) for some rows of outputs of some planes, `of` being along(plane, ih)
/// of the kR rows under the windows: what rows of windows share is computed once.
template <int kR, int kStride, int kPad, class Along, class Out>
DLK_INLINE void walk_down(CommonWindows<kR, kStride, kPad>, const Pool2d& p, const PlaneTasks::Task& task, Along along,
                          Out out) {
  constexpr int kShared = kR - kStride;
  for (int64_t plane = task.planes.begin; plane < task.planes.end; ++plane) {
    int64_t ih = task.rows.begin * kStride - p.pad_h;
    decltype(along(plane, ih)) of[kR];
#pragma GCC unroll 2
    for (int r = 0; r < kShared; ++r) of[kStride + r] = along(plane, ih++);
    for (int64_t oh = task.rows.begin; oh < task.rows.end; ++oh) {
#pragma GCC unroll 2
      for (int r = 0; r < kShared; ++r) of[r] = of[kStride + r];
#pragma GCC unroll 2
      for (int r = kShared; r < kR; ++r) of[r] = along(plane, ih++);
      out(plane * p.OH + oh, oh, of);
    }
  }
}

/// f(task, ow, lanes, ahead) for all tasks over the threads and all strips of outputs; the last may overlap the one
/// before it. `ahead` is from a task's elements to those of the next one, or a little further where that is near: rows
/// are too short for the hardware to see a stream in each.
template <class T, class F>
void for_each_strip(const Pool2d& pool, F f) {
  const PlaneTasks tasks(pool.N * pool.C, pool.OH, pool.stride_h * pool.W + pool.OW);
  run_team(tasks.count > 1 && pool.N * pool.C * pool.H * pool.W >= kGrainElements, [=](const Team& team) {
    constexpr std::integral_constant<int, kLanes<T>> all;
    const int64_t OW = pool.OW, ahead = std::max(PlaneTasks::kElements / 4,
                                                 tasks.planes_per_task * tasks.rows_per_task * pool.stride_h * pool.W);
    auto own = f;
    team.for_each(tasks.count, [&](int64_t i) {
      const PlaneTasks::Task task = tasks[i];
      if (OW < all) return own(task, 0, static_cast<int>(OW), ahead);
      for (int64_t ow = 0; ow < OW; ow += all) own(task, std::min(ow, OW - all), all, ahead);
    });
  });
}

}  // namespace
}  // namespace dlk::cpu
