// What softmax and cross-entropy share: the lines of a contiguous (outer, C, inner) tensor, i.e. its elements along C,
// and the maximum m and the sum of exp(x - m) over a line in one pass.
//
// inner == 1: a line is a row of memory; a team of 1 to 32 lanes or a whole block reads it, 16 bytes per lane.
// inner > 1: neighbouring threads have neighbouring columns, so that their loads coalesce; long columns are shared by
// the up to 8 teams of a block.
#pragma once

#include <cmath>
#include <limits>

#include "csrc/core/softmax.h"
#include "csrc/cuda/reduce.cuh"

namespace dlk::DLK_DEVICE {
namespace {

template <class A>
constexpr A kLowest = -std::numeric_limits<A>::infinity();

/// The most threads of a block. Kernels ask for one block per multiprocessor, lest ptxas spill registers to fit
/// another.
template <bool kColumns>
constexpr int kLineThreads = kColumns ? kThreads : kMaxRowThreads;

/// How lines are laid over the grid.
struct LineGrid {
  SoftmaxShape shape;
  int width = 1;  // of teams
  bool aligned = false;
  dim3 blocks, threads;
};

template <class T>
LineGrid line_grid(SoftmaxShape s, bool pointers_aligned) {
  LineGrid g;
  g.shape = s;
  if (s.inner == 1) {
    g.width = row_team<T>(s.C);
    g.threads = dim3(g.width > kThreads ? g.width : kThreads);
    g.aligned = pointers_aligned && s.C % kLanes<T> == 0;
    g.blocks = dim3(static_cast<unsigned>(ceil_div(s.outer, g.threads.x / g.width)));
  } else {
    g.width = kThreads / team_width(s.C, 16, 8);
    g.threads = dim3(kThreads);
    g.blocks = dim3(static_cast<unsigned>(ceil_div(s.outer * s.inner, g.width)));
  }
  return g;
}

/// A thread's part of its line.
template <class T, bool kColumns>
struct Line {
  using A = Accumulate<T>;
  static constexpr int kRun = kColumns ? 1 : kLanes<T>;  // classes that are loaded together

  Team team;
  int64_t index;        // of the line: outer * inner of them
  int64_t C = 0;        // its length; 0 for threads beyond the last line
  int64_t start = 0;    // where it begins
  int64_t stride = 1;   // from class to class
  int64_t first, step;  // the thread's runs
  bool exists, aligned;

  __device__ explicit Line(const LineGrid& g) : team{g.width}, aligned(g.aligned) {
    const SoftmaxShape s = g.shape;
    if constexpr (kColumns) {
      index = int64_t{blockIdx.x} * team.width + team.lane();
      exists = index < s.outer * s.inner;
      stride = s.inner;
      if (exists) start = index / s.inner * s.C * s.inner + index % s.inner;
      first = team.index();
      step = team.count();
    } else {
      index = int64_t{blockIdx.x} * team.count() + team.index();
      exists = index < s.outer;
      if (exists) start = index * s.C;
      first = team.lane() * kRun;
      step = team.width * kRun;
    }
    if (exists) C = s.C;
  }

  /// Whether this thread speaks for the line.
  __device__ bool leads() const { return exists && (kColumns ? team.index() : team.lane()) == 0; }

  __device__ Elements<T, kRun> load(const T* x, int64_t c, A fill = 0) const {
    return load_elements<T, kRun>(x + start + c * stride, C - c, aligned, fill);
  }
  __device__ void store(T* y, int64_t c, const Elements<T, kRun>& v) const {
    store_elements(y + start + c * stride, v, C - c, aligned);
  }

  /// The sum over the threads of the line.
  template <class Value>
  __device__ Value sum(const Value& value) const {
    if constexpr (kColumns)
      return team.sum_over_teams(value);
    else
      return team.sum(value);
  }
};

/// m, a maximum, and the sum of exp(x - m); + combines. NaN is passed over by the maximum and comes back in the sum, as
/// does Inf - Inf where m = +Inf. A line of -Inf only has the sum 0; x - m is NaN then.
template <class A>
struct ExpSum {
  A m, sum;

  __device__ static ExpSum none() { return {kLowest<A>, 0}; }
  /// What is subtracted from an element, given m: not -Inf, so that exp(-Inf - shift) is 0.
  __device__ static A shift(A m) { return m == kLowest<A> ? A(0) : m; }

  __device__ friend ExpSum operator+(const ExpSum& a, const ExpSum& b) {
    const A m = std::fmax(a.m, b.m), s = shift(m);
    return {m, a.sum * std::exp(a.m - s) + b.sum * std::exp(b.m - s)};
  }

  template <class T, int N>
  __device__ void add(const Elements<T, N>& x) {
    A top = m;
#pragma unroll
    for (int i = 0; i < N; ++i) top = std::fmax(top, x[i]);
    const A s = shift(top);
    if (top > m) sum *= std::exp(m - s);
    m = top;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += std::exp(x[i] - s);
  }
};

/// m and the sum of exp(x - m) over the line, for each of its threads.
template <class T, bool kColumns>
__device__ ExpSum<Accumulate<T>> exp_sum(const Line<T, kColumns>& line, const T* x) {
  using A = Accumulate<T>;
  ExpSum<A> part = ExpSum<A>::none();
  for (int64_t c = line.first; c < line.C; c += line.step) part.add(line.load(x, c, kLowest<A>));
  return line.sum(part);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE
