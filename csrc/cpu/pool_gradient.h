// The gradient of pooling in NCHW by common windows (CommonWindows), and of depthwise convolution to its input with
// stride 2: every element of dx is written once, as the sum of what the outputs over it give to the tap that it is of
// their windows.
//
// Along a row, elements `stride` apart (a phase) are the same taps of adjacent outputs: of each tap, a run of memory. A
// strip, kLanes elements of each phase, is taken down some rows of a plane: a row of outputs is added to the R rows of
// dx under it, which wait in registers until the last has been added. Tasks are those of PlaneTasks.
#pragma once

#include <algorithm>

#include "csrc/cpu/pool_windows.h"
#include "csrc/cpu/streaming.h"

namespace dlk::cpu {
namespace {

/// write_n where `left` elements are left, if any.
template <bool streams, class T>
DLK_INLINE void write_left(T* to, Vec<T> v, int64_t left) {
  if (left >= kLanes<T>)
    write_n<streams>(to, v, std::integral_constant<int, kLanes<T>>{});
  else if (left > 0)
    store_partial(to, v, left);
}

/// The next elements of a row, of which `left` are left, from one phase or two.
template <bool streams, class T>
DLK_INLINE void write_phases(const Vec<T> (&phases)[1], T* to, int64_t left) {
  write_left<streams, T>(to, phases[0], left);
}
template <bool streams, class T>
DLK_INLINE void write_phases(const Vec<T> (&phases)[2], T* to, int64_t left) {
  write_left<streams, T>(to, interleave<0>(phases[0], phases[1]), left);
  write_left<streams, T>(to + kLanes<T>, interleave<1>(phases[0], phases[1]), left - kLanes<T>);
}

/// Elements m, m + 1, ... of each phase of some rows of each of some planes, from some rows of their outputs.
///
/// given(plane)(oh, ow, lanes): what outputs ow, ow + 1, ... of this row give, nothing those that are not in `lanes`.
/// Its add_to(sum, position) adds what they give to their tap `position`.
template <bool streams, class T, int kR, int kStride, int kPad, class Given>
DLK_INLINE void gather_strip(CommonWindows<kR, kStride, kPad>, const Pool2d& p, int64_t m, Range planes, Range rows,
                             Range outputs, Given given, T* dx) {
  // Tap s of a phase is that of the outputs from m + pad / stride + (phase + kPad - s) / stride on.
  constexpr int kBefore = (kR - 1) / kStride, kRuns = kBefore + 1 + (kPad + kStride - 1) / kStride;
  const int64_t first_run = m + p.pad_w / kStride - kBefore, left = p.W - m * kStride, pad_h = p.pad_h, W = p.W;
  LanesBetween<T> lanes[kRuns];
  for (int k = 0; k < kRuns; ++k) lanes[k] = LanesBetween<T>(-(first_run + k), p.OW - (first_run + k));

  for (int64_t plane = planes.begin; plane < planes.end; ++plane) {
    T* const to = dx + plane * p.H * W + m * kStride;
    const auto of_plane = given(plane);
    Vec<T> sums[kR][kStride] = {};  // rows ih, ih + 1, ... by phase
    for (int64_t oh = outputs.begin, ih = oh * kStride - pad_h; ih < rows.end; ++oh, ih += kStride) {
      if (oh < outputs.end) {
#pragma GCC unroll 4
        for (int k = 0; k < kRuns; ++k) {
          const auto run = of_plane(oh, first_run + k, lanes[k]);
#pragma GCC unroll 3
          for (int r = 0; r < kR; ++r)
#pragma GCC unroll 2
            for (int phase = 0; phase < kStride; ++phase)
              if (const int s = phase + kPad - (k - kBefore) * kStride; s >= 0 && s < kR)
                run.add_to(sums[r][phase], r * kR + s);
        }
      }
#pragma GCC unroll 2
      for (int r = 0; r < kStride; ++r)
        if (ih + r >= rows.begin && ih + r < rows.end) write_phases<streams, T>(sums[r], to + (ih + r) * W, left);
#pragma GCC unroll 3
      for (int r = 0; r < kR; ++r)
#pragma GCC unroll 2
        for (int phase = 0; phase < kStride; ++phase)
          sums[r][phase] = r + kStride < kR ? sums[(r + kStride) % kR][phase] : Vec<T>{};
    }
  }
}

inline PlaneTasks gradient_tasks(const Pool2d& p) { return {p.N * p.C, p.H, p.W + p.OW / p.stride_h}; }

/// dx of all planes. source(rank, rows): `given` for gather_strip, of those rows of outputs; a thread may keep them in
/// working memory of its rank.
template <bool streams, class T, class Windows, class Source>
void gather_planes(Windows windows, const Pool2d& p, T* dx, const PlaneTasks& tasks, Source source) {
  run_team(tasks.count > 1 && p.N * p.C * p.H * p.W >= kGrainElements, [=](const Team& team) {
    const Pool2d own = p;
    const Axis h = vertical(own);
    team.for_each(tasks.count, [&](int64_t task) {
      const auto [planes, rows] = tasks[task];
      const Range outputs{h.outputs(rows.begin).begin, h.outputs(rows.end - 1).end};
      const auto given =
          source(team.rank, {planes.begin * own.OH + outputs.begin, (planes.end - 1) * own.OH + outputs.end});
      for (int64_t m = 0; m * own.stride_w < own.W; m += kLanes<T>)
        gather_strip<streams, T>(windows, own, m, planes, rows, outputs, given, dx);
    });
    if constexpr (streams) drain_streams();
  });
}

}  // namespace
}  // namespace dlk::cpu
