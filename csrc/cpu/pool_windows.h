// What max and average pooling share: windows along one axis, and input rows laid out for vectors along OW.
//
// Split rows. With stride_w 2, tap s of consecutive outputs is every second element of a row, and the row's padding
// needs bounds checks. So each input row is first copied, with its padding as real elements, into `phases`: padded
// element j stride_w + q goes to phase q, place j. Then tap s of outputs ow, ow + 1, ... is a run of consecutive
// elements at offset(s) + ow, without a bound to check, for any stride, dilation and ceil_mode.
#pragma once

#include "csrc/core/context.h"
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
  /// The outputs whose window's extent holds input i.
  Range outputs(int64_t i) const {
    const int64_t behind = i + pad - (kernel - 1) * dilation;
    const int64_t begin = behind > 0 ? ceil_div(behind, stride) : 0, end = (i + pad) / stride + 1;
    return {begin, end < out ? end : out};
  }
};

inline Axis vertical(const Pool2d& p) { return {p.H, p.OH, p.R, p.stride_h, p.pad_h, p.dilation_h}; }
inline Axis horizontal(const Pool2d& p) { return {p.W, p.OW, p.S, p.stride_w, p.pad_w, p.dilation_w}; }

/// The layout of a split row of T.
template <class T>
struct SplitRow {
  Axis w;
  int64_t phases, length;  // of each phase: room for a whole vector at the last output

  explicit SplitRow(Axis w) : w(w) {
    const int64_t span = (w.kernel - 1) * w.dilation;
    phases = span + 1 < w.stride ? span + 1 : w.stride;
    length = w.out + span / w.stride + kLanes<T>;
  }
  int64_t size() const { return phases * length; }
  int64_t offset(int64_t s) const { return s * w.dilation % w.stride * length + s * w.dilation / w.stride; }

  /// Writes the elements of `row` to their places in `split`; the padding's places are left as they are.
  void fill(const T* row, T* split) const {
    if (w.stride == 1) return fill<1>(row, split);
    if (w.stride == 2) return fill<2>(row, split);
    fill<0>(row, split);
  }

 private:
  /// kStride: the stride as a constant, so that the copy vectorises, or 0.
  template <int kStride>
  void fill(const T* __restrict row, T* __restrict split) const {
    const int64_t stride = kStride ? kStride : w.stride;
    // The row after the next: between copies the hardware loses sight of the stream (without, 2 x 2 took 1.2 times as
    // long on Zen 3).
    for (int64_t i = 0; i < w.in; i += 64 / sizeof(T)) __builtin_prefetch(row + 2 * w.in + i);
    for (int64_t q = 0; q < phases; ++q) {
      const int64_t begin = q < w.pad ? ceil_div(w.pad - q, stride) : 0;
      const int64_t in_row = ceil_div(w.in + w.pad - q, stride);
      const int64_t count = (in_row < length ? in_row : length) - begin;
      const T* from = row + begin * stride + q - w.pad;
      T* to = split + q * length + begin;
      for (int64_t j = 0; j < count; ++j) to[j] = from[j * stride];
    }
  }
};

/// How many output rows of a plane one task computes, so that the split rows it reads stay in the cache.
inline int64_t band_rows(Axis h, int64_t row_bytes) {
  constexpr int64_t kCacheBytes = 128 * 1024;  // well within the L2 cache of a core
  const int64_t rows = kCacheBytes / row_bytes, extent = (h.kernel - 1) * h.dilation + 1;
  const int64_t band = rows > extent ? (rows - extent) / h.stride + 1 : 1;
  return band < h.out ? band : h.out;
}

/// The input rows that output rows [oh.begin, oh.end) read.
inline Range input_rows(Axis h, Range oh) {
  const int64_t first = h.start(oh.begin), last = h.start(oh.end - 1) + (h.kernel - 1) * h.dilation;
  return {first > 0 ? first : 0, last < h.in ? last + 1 : h.in};
}

/// Whether this much work pays for a parallel region.
inline bool worth_threads(int64_t elements) { return elements >= kGrainElements; }

/// An output row of a plane, and the split rows of its input.
template <class T>
struct OutputRow {
  int64_t plane, oh;
  const T* rows;
  int64_t first, size;  // which of these rows has tap 0 of oh (it may be in the padding), and how long they are

  const T* input(int64_t tap) const { return rows + (first + tap) * size; }
};

/// f(output row) for all rows of all planes, over the threads. Padding to the left and right is `padding`; there are no
/// rows above and below.
template <class T, class F>
void for_each_output_row(const Pool2d& p, const T* x, T padding, Context& context, F f) {
  const Axis h = vertical(p);
  const SplitRow<T> split(horizontal(p));
  const int64_t band = band_rows(h, split.size() * sizeof(T)), bands = ceil_div(p.OH, band);
  const int64_t extent = (band - 1) * h.stride + (h.kernel - 1) * h.dilation + 1;
  const int64_t buffer_size = (extent < p.H ? extent : p.H) * split.size();
  T* buffers = context.array<T>(max_threads() * buffer_size);

  const int64_t tasks = p.N * p.C * bands;
  run_team(tasks > 1 && worth_threads(p.N * p.C * p.H * p.W), [&](const Team& team) {
    T* buffer = buffers + team.rank * buffer_size;
    for (int64_t i = 0; i < buffer_size; ++i) buffer[i] = padding;
    team.for_each(tasks, [&](int64_t task) {
      const int64_t plane = task / bands, oh_begin = task % bands * band;
      const int64_t oh_end = oh_begin + band < p.OH ? oh_begin + band : p.OH;
      const Range in = input_rows(h, {oh_begin, oh_end});
      for (int64_t ih = in.begin; ih < in.end; ++ih)
        split.fill(x + (plane * p.H + ih) * p.W, buffer + (ih - in.begin) * split.size());
      for (int64_t oh = oh_begin; oh < oh_end; ++oh)
        f(OutputRow<T>{plane, oh, buffer, h.start(oh) - in.begin, split.size()});
    });
  });
}

/// Where tap s of output 0 is in a split row.
template <class T>
const int64_t* tap_offsets(const Pool2d& p, Context& context) {
  const SplitRow<T> split(horizontal(p));
  int64_t* offsets = context.array<int64_t>(p.S);
  for (int64_t s = 0; s < p.S; ++s) offsets[s] = split.offset(s);
  return offsets;
}

}  // namespace
}  // namespace dlk::cpu
