// What max and average pooling share: windows along one axis, and NCHW rows of outputs in vectors along OW.
//
// A vector holds adjacent outputs; tap s of theirs is every stride_w-th element of an input row, loaded and, with
// stride 2, sorted in registers (of all rows at once where nothing but their sum or maximum is wanted: Runs). At the
// ends of a row, where windows reach into the padding, and in rows shorter than a vector, loads are masked.
#pragma once

#include "csrc/core/pool2d.h"
#include "csrc/cpu/parallel.h"
#include "csrc/cpu/simd.h"

namespace dlk::cpu {
namespace {

struct Range {
  int64_t begin, end;
};

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
    return load_between(row + at, -at, W - at, padding);
  }
};

/// The runs of a row that hold all kS taps of kLanes windows. What combines taps in any order combines the runs of all
/// rows, and only then sorts them into taps, with the shuffles of one row.
template <class T, int kS, int kStride>
struct Runs {
  static constexpr int kCount = kStride == 1 ? kS : kS + kS % 2;
  Vec<T> of[kCount];

  explicit Runs(T value) {
    for (Vec<T>& v : of) v = splat(value);
  }
  /// Of run k, from the first tap of the first window.
  static constexpr int64_t offset(int k) { return kStride == 1 ? k : k / 2 + k % 2 * kLanes<T>; }

  DLK_INLINE Vec<T> tap(int s) const {
    if constexpr (kStride == 1) return of[s];
    const int pair = s / 2 * 2;  // as Taps: those from tap 0 have 0 and 1, those from tap 1 tap 2
    return s == 0 ? every_second<0>(of[0], of[1]) : every_second<1>(of[pair], of[pair + 1]);
  }
};

/// combine(runs, run k, its elements) for all runs of `rows` rows, `down` apart.
template <class Runs, class T, class Taps, class F>
DLK_INLINE Runs combine_runs(Runs runs, Taps taps, const T* row, int64_t rows, int64_t down, int64_t start, F combine) {
  for (int64_t r = 0; r < rows; ++r, row += down) {
#pragma GCC unroll 4
    for (int k = 0; k < Runs::kCount; ++k) combine(runs.of[k], taps.run(row, start + Runs::offset(k)));
  }
  return runs;
}

/// Fetches what the output row after the next three reads and those before it do not: rows are too short for the
/// hardware to see a stream in each.
template <class T>
DLK_INLINE void prefetch_rows_ahead(const Pool2d& p, const T* top) {
  constexpr int64_t kAhead = 4;
  const int64_t size = p.stride_h * p.W;
  for (int64_t i = 0; i < size; i += 64 / sizeof(T)) fetch_ahead(top + kAhead * size + i);
}

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

}  // namespace
}  // namespace dlk::cpu
