// Max pooling: y = max over the window; the gradient goes to the one element that was found.
//
// Order as PyTorch's: taps are visited r by r, s by s, and one replaces the best so far if it is greater or NaN: the
// first of equal maxima wins (of zeros any, where no position is wanted), a NaN always does; a window of -Inf gives its
// first element. Padding never wins. What backward needs is the position in the window, one byte per output where that
// is enough; it is computed only when wanted.
//
// NCHW: vectors along OW (pool_windows.h): by common windows in strips, by others row by row, or, of short rows, along
// planes. channels_last: vectors along C; a task is an output row.
// Backward: NCHW in strips likewise (pool_gradient.h). Else dy is added to each position's element one by one (few
// channels, large windows), or each pixel of dx gathers what the windows over it found there, with vectors along C.
#include <limits>

#include "csrc/core/pool2d.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/pool_gradient.h"
#include "csrc/cpu/pool_windows.h"
#include "csrc/cpu/streaming.h"

namespace dlk::cpu {
namespace {

template <class P>
constexpr P kNone = static_cast<P>(-1);

template <class T, class P, int lanes>
using PositionVec = typename VecOf<P, lanes* static_cast<int>(sizeof(P))>::type;

template <class T, class P>
constexpr bool kBytesOfFloats = sizeof(P) == 1 && sizeof(T) == 4;

template <class T, class P, class Count>
DLK_INLINE void store_positions(P* to, Vec<IntOf<T>> position, Count lanes) {
  if constexpr (kBytesOfFloats<T, P>) {
    store_bytes_partial(to, position, lanes);
  } else {
    const auto narrow = __builtin_convertvector(position, PositionVec<T, P, kLanes<T>>);
    __builtin_memcpy(to, &narrow, lanes * sizeof(P));
  }
}

template <class T, class P, class Count>
DLK_INLINE Vec<IntOf<T>> load_positions(const P* from, Count lanes) {
  if constexpr (kBytesOfFloats<T, P> && std::is_same_v<Count, int>) return LanesBetween<T>(0, lanes).load_bytes(from);
  PositionVec<T, P, kLanes<T>> narrow{};
  __builtin_memcpy(&narrow, from, lanes * sizeof(P));
  if constexpr (kBytesOfFloats<T, P>) return widen_bytes(narrow);
  return __builtin_convertvector(narrow, Vec<IntOf<T>>);
}

/// The running maximum of a vector of windows.
template <class T>
struct Best {
  using I = IntOf<T>;
  Vec<T> value;
  Vec<I> position;  // optimised away where nobody stores it

  Best() = default;
  Best(Vec<T> value, Vec<I> position) : value(value), position(position) {}
  explicit Best(I initial) : Best(splat(-std::numeric_limits<T>::infinity()), splat(initial)) {}
  /// If neither x nor the value is NaN.
  DLK_INLINE void take_number(Vec<T> x, Vec<I> at) {
    position = x > value ? at : position;
    value = max(x, value);
  }
  DLK_INLINE void take(Vec<T> x, Vec<I> at) {
    const auto wins = (x > value) | (x != x);
    value = wins ? x : value;
    position = wins ? at : position;
  }
};

/// The position of a window's first tap inside the input; kNone if there is none.
template <class P>
P first_position(Range r, Range s, int64_t S) {
  return r.begin < r.end && s.begin < s.end ? static_cast<P>(r.begin * S + s.begin) : kNone<P>;
}

/// The maxima of the taps that for_each_tap(f) passes to f(vector, position), `first` being that of the first.
template <class T, class ForEachTap>
DLK_INLINE Best<T> greatest(IntOf<T> first, ForEachTap for_each_tap) {
  Best<T> best(first);
  Vec<T> sum{};
  for_each_tap([&](Vec<T> x, Vec<IntOf<T>> at) {
    sum += x;
    best.take_number(x, at);
  });
  if (bits_of_lanes<T>(sum != sum) != 0) [[unlikely]] {  // a tap was NaN, or Inf met -Inf
    best = Best<T>(first);
    for_each_tap([&](Vec<T> x, Vec<IntOf<T>> at) { best.take(x, at); });
  }
  return best;
}

/// NCHW, common windows: the greatest along each row first, then down. Returns whether there was no NaN (or Inf that
/// met -Inf): else only kCareful's results are right.
template <bool kPositions, bool kCareful, class T, class P, int kR, int kStride, int kPad, class Count>
bool forward_strip(CommonWindows<kR, kStride, kPad> windows, const Pool2d& p, const PlaneTasks::Task& task, int64_t ow,
                   Count lanes, int64_t ahead, const T* x, T* y, P* positions) {
  using I = IntOf<T>;
  const auto take = [](Best<T>& best, Vec<T> value, Vec<I> at) {
    kCareful ? best.take(value, at) : best.take_number(value, at);
  };
  constexpr T kPadding = -std::numeric_limits<T>::infinity();
  const StripTaps<T, kR, kStride> taps(p, ow);
  Vec<I> first_tap{};  // of each window, in the row
  for (int l = 0; l < kLanes<T>; ++l) first_tap[l] = static_cast<I>(std::max(int64_t{0}, p.pad_w - (ow + l) * kStride));
  Vec<T> sum{};  // of all taps: NaN if one is
  const auto along = [&](int64_t plane, int64_t ih) {
    // As the first row, one above the image stands for the first in it, if nothing wins.
    if (ih < 0 || ih >= p.H) return Best<T>(splat(kPadding), first_tap - static_cast<I>(ih * kR));
    Vec<T> tap[kR];
    taps.load(x + (plane * p.H + ih) * p.W, kPadding, ahead, tap);
    Best<T> best(tap[0], first_tap);
    Vec<T> sum_of_row = tap[0];  // apart, so that rows wait for one addition each
    for (int s = 1; s < kR; ++s) {
      sum_of_row += tap[s];
      take(best, tap[s], splat(static_cast<I>(s)));
    }
    sum += sum_of_row;
    return best;
  };
  walk_down(windows, p, task, along, [&](int64_t row, int64_t /*oh*/, const Best<T>(&of)[kR]) {
    Best<T> best = of[0];
    for (int r = 1; r < kR; ++r) take(best, of[r].value, of[r].position + static_cast<I>(r * kR));
    store_n(y + row * p.OW + ow, best.value, lanes);
    if constexpr (kPositions) store_positions<T>(positions + row * p.OW + ow, best.position, lanes);
  });
  return bits_of_lanes<T>(sum != sum) == 0;
}

template <class T, class P, bool kPositions, class Windows>
void forward_in_strips(Windows windows, const Pool2d& p, const T* x, T* y, P* positions) {
  for_each_strip<T>(p, [=](const PlaneTasks::Task& task, int64_t ow, auto lanes, int64_t ahead) {
    if (!forward_strip<kPositions, false>(windows, p, task, ow, lanes, ahead, x, y, positions)) [[unlikely]]
      forward_strip<kPositions, true>(windows, p, task, ow, lanes, ahead, x, y, positions);
  });
}

/// `positions` is null if they are not wanted; P is then any type.
template <class T, class P, bool kPositions>
void forward_nchw(const Pool2d& pool, const T* x, T* y, P* positions) {
  with_stride(pool, [&](auto kStride) {
    parallel_for(pool.N * pool.C * pool.OH, pool.stride_h * pool.W, [=](int64_t begin, int64_t end) {
      const Pool2d p = pool;  // a thread's own: stores of bytes might change another, for all the compiler knows
      const Axis h = vertical(p), w = horizontal(p);
      const Range inside = w.inside();
      constexpr T kPadding = -std::numeric_limits<T>::infinity();
      const int64_t edge = ceil_div(w.pad, w.stride);  // outputs whose window begins in the padding on the left
      for (int64_t row = begin; row < end; ++row) {
        const int64_t oh = row % p.OH, at = row * p.OW;
        const Range r_taps = h.taps(oh);
        const T* const top = x + (row / p.OH * p.H + h.start(oh) + r_taps.begin * p.dilation_h) * p.W;
        const auto first = static_cast<IntOf<T>>(r_taps.begin * p.S);
        for_each_output_vec<kStride>(w, inside, kPadding, [&](int64_t ow, auto lanes, auto taps) {
          const Best<T> best = greatest<T>(first, [&](auto f) {
            const T* tap_row = top;
            auto position = splat(first);
            for (int64_t r = r_taps.begin; r < r_taps.end; ++r, tap_row += p.dilation_h * p.W)
              for (int64_t s = 0; s < p.S; ++s, position += 1)
                f(taps(tap_row, w.start(ow), s * p.dilation_w), position);
          });
          store_n(y + at + ow, best.value, lanes);
          if constexpr (kPositions) store_positions<T>(positions + at + ow, best.position, lanes);
        });
        if constexpr (kPositions) {
          // A window where nothing won points to (r_taps.begin, 0): right unless that is padding.
          const int64_t doubtful = r_taps.begin < r_taps.end && edge < p.OW ? edge : p.OW;
          for (int64_t ow = 0; ow < doubtful; ++ow) {
            P& position = positions[at + ow];
            if (position == static_cast<P>(first)) position = first_position<P>(r_taps, w.taps(ow), p.S);
          }
        }
      }
    });
  });
}

/// Whether rows of outputs do not fill a vector, but the planes of several channels do.
template <class T>
bool has_short_rows(const Pool2d& p) {
  return p.OW < kLanes<T> && p.N * p.C >= kLanes<T>;
}

/// NCHW with vectors along the planes, each lane's window in one of its own.
template <class T, class P, bool kPositions>
void forward_by_planes(const Pool2d& pool, const T* x, T* y, P* positions) {
  constexpr int64_t L = kLanes<T>;
  const int64_t planes = pool.N * pool.C;
  parallel_for(ceil_div(planes, L) * pool.OH, L * pool.H * pool.W / pool.OH, [=](int64_t begin, int64_t end) {
    const Pool2d p = pool;  // as in forward_nchw
    const Axis h = vertical(p), w = horizontal(p);
    const int64_t image = p.H * p.W, outputs = p.OH * p.OW;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t plane = row / p.OH * L, oh = row % p.OH, count = std::min(L, planes - plane);
      const Range r_taps = h.taps(oh);
      for (int64_t ow = 0; ow < p.OW; ++ow) {
        const Range s_taps = w.taps(ow);
        const T* const window = x + plane * image + h.start(oh) * p.W + w.start(ow);
        const Best<T> best = greatest<T>(first_position<P>(r_taps, s_taps, p.S), [&](auto f) {
          for (int64_t r = r_taps.begin; r < r_taps.end; ++r)
            for (int64_t s = s_taps.begin; s < s_taps.end; ++s) {
              const T* const tap = window + r * p.dilation_h * p.W + s * p.dilation_w;
              Vec<T> v{};
              for (int64_t l = 0; l < count; ++l) v[l] = tap[l * image];
              f(v, splat(static_cast<IntOf<T>>(r * p.S + s)));
            }
        });
        const int64_t to = plane * outputs + oh * p.OW + ow;
        for (int64_t l = 0; l < count; ++l) {
          y[to + l * outputs] = best.value[l];
          if constexpr (kPositions) positions[to + l * outputs] = static_cast<P>(best.position[l]);
        }
      }
    }
  });
}

template <class T, class P, bool kPositions>
void forward_channels_last(const Pool2d& pool, const T* x, T* y, P* positions) {
  with_width(pool, [&](auto kS) {
    parallel_for(pool.N * pool.OH, pool.H * pool.W * pool.C / pool.OH, [=](int64_t begin, int64_t end) {
      const Pool2d p = pool;  // as in forward_nchw
      const Axis h = vertical(p), w = horizontal(p);
      const Range inside = w.inside();
      const int64_t C = p.C, down = p.dilation_h * p.W * C, right = p.dilation_w * C;
      for (int64_t row = begin; row < end; ++row) {
        const Range r_taps = h.taps(row % p.OH);
        const T* const rows = x + (row / p.OH * p.H + h.start(row % p.OH)) * p.W * C;
        const auto pool_pixel = [&](int64_t ow, auto s_begin, auto s_end) {
          const T* const window = rows + w.start(ow) * C + r_taps.begin * down + s_begin * right;
          const int64_t at = (row * p.OW + ow) * C;
          const P first = first_position<P>(r_taps, {s_begin, s_end}, p.S);
          for_each_vec<T>(C, [&](int64_t c, auto lanes) {
            const Best<T> best = greatest<T>(first, [&](auto f) {
              const T* tap_row = window + c;
              auto position = splat(static_cast<IntOf<T>>(r_taps.begin * p.S + s_begin));
              for (int64_t r = r_taps.begin; r < r_taps.end;
                   ++r, tap_row += down, position += static_cast<IntOf<T>>(p.S - (s_end - s_begin)))
                for (int64_t s = 0; s < s_end - s_begin; ++s, position += 1)
                  f(load_n(tap_row + s * right, lanes), position);
            });
            store_n(y + at + c, best.value, lanes);
            if constexpr (kPositions) store_positions<T>(positions + at + c, best.position, lanes);
          });
        };
        for (int64_t ow = 0; ow < p.OW; ++ow) {
          const Range all{0, p.S}, s_taps = inside.begin <= ow && ow < inside.end ? all : w.taps(ow);
          if (kS != 0 && s_taps.end - s_taps.begin == kS)
            pool_pixel(ow, std::integral_constant<int64_t, 0>{}, std::integral_constant<int64_t, kS>{});
          else
            pool_pixel(ow, s_taps.begin, s_taps.end);
        }
      }
    });
  });
}

/// ih W + iw of the element at a position, relative to the window's start.
template <class P>
class ElementOffset {
 public:
  explicit ElementOffset(const Pool2d& p) : p_(p) {
    if constexpr (kTable)
      for (int64_t position = 0; position < p.R * p.S; ++position) table_[position] = compute(position);
  }
  int64_t operator()(P position) const {
    if constexpr (kTable) return table_[position];
    return compute(position);
  }

 private:
  static constexpr bool kTable = sizeof(P) == 1;
  int64_t compute(int64_t position) const {
    return position / p_.S * p_.dilation_h * p_.W + position % p_.S * p_.dilation_w;
  }
  const Pool2d& p_;
  int64_t table_[kTable ? 255 : 1];
};

/// Adds dy to each position's element; a task is an image of `pixel` channels: a plane of NCHW, where it is 1 and a
/// constant, or all of channels_last.
template <class T, class P, class Pixel>
void backward_scattered(const Pool2d& p, Pixel pixel, const T* dy, const P* positions, T* dx) {
  const int64_t image = p.H * p.W * pixel, row = p.OW * pixel;
  parallel_for(p.N * p.C / pixel, image, [=](int64_t begin, int64_t end) {
    const ElementOffset<P> offset(p);  // a thread's own: what it is read through, stores might change otherwise
    for (int64_t n = begin; n < end; ++n) {
      T* dx_image = dx + n * image;
      for (int64_t i = 0; i < image; ++i) dx_image[i] = 0;
      for (int64_t oh = 0; oh < p.OH; ++oh) {
        const P* found = positions + (n * p.OH + oh) * row;
        const T* g = dy + (n * p.OH + oh) * row;
        int64_t start = (oh * p.stride_h - p.pad_h) * p.W - p.pad_w;
        for (int64_t ow = 0; ow < p.OW; ++ow, start += p.stride_w, found += pixel, g += pixel)
          for (int64_t c = 0; c < pixel; ++c)
            if (found[c] != kNone<P>) dx_image[(start + offset(found[c])) * pixel + c] += g[c];
      }
    }
  });
}

/// Outputs, and the positions where each was found.
template <class T>
struct FoundRun {
  Vec<IntOf<T>> positions;
  Vec<T> g;

  DLK_INLINE void add_to(Vec<T>& sum, IntOf<T> position) const { sum = positions == position ? sum + g : sum; }
};

/// NCHW, common windows.
template <bool streams, class T, class Windows>
void backward_in_strips(Windows windows, const Pool2d& p, const T* dy, const uint8_t* positions, T* dx) {
  const int64_t OH = p.OH, OW = p.OW;
  gather_planes<streams>(windows, p, dx, gradient_tasks(p), [=](int64_t /*rank*/, Range /*rows*/) {
    return [=](int64_t plane) {
      return [=](int64_t oh, int64_t ow, LanesBetween<T> lanes) {
        const int64_t at = (plane * OH + oh) * OW + ow;
        return FoundRun<T>{lanes.load_bytes(positions + at), lanes.load(dy + at)};
      };
    };
  });
}

/// The tap of output o that input i is, or -1.
inline int64_t tap_of(const Axis& axis, int64_t o, int64_t i) {
  const int64_t distance = i - axis.start(o);
  if (axis.dilation == 1) return distance;
  return distance % axis.dilation == 0 ? distance / axis.dilation : -1;
}

/// channels_last, where no windows overlap: each pixel of dx is written once, from the one window over it or as zeros.
template <bool streams, class T>
void backward_disjoint(const Pool2d& p, const T* dy, const uint8_t* positions, T* dx, Context& context) {
  const Axis h = vertical(p), w = horizontal(p);
  Range* columns = context.array<Range>(p.W);
  for (int64_t iw = 0; iw < p.W; ++iw) columns[iw] = w.outputs(iw);
  parallel_for<streams>(p.N * p.H, p.W * p.C, [&](int64_t begin, int64_t end) {
    const int64_t C = p.C;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / p.H, ih = row % p.H;
      const Range rows = h.outputs(ih);
      const int64_t oh = rows.begin, r = oh < rows.end ? tap_of(h, oh, ih) : -1;
      T* to = dx + row * p.W * C;
      for (int64_t iw = 0; iw < p.W; ++iw, to += C) {
        const int64_t ow = columns[iw].begin, s = ow < columns[iw].end ? tap_of(w, ow, iw) : -1;
        const int64_t at = ((n * p.OH + oh) * p.OW + ow) * C;
        const auto position = static_cast<IntOf<T>>(r < 0 || s < 0 ? -1 : r * p.S + s);
        for_each_vec<T>(C, [&](int64_t c, auto lanes) {
          Vec<T> g{};
          if (position >= 0) {
            const auto here = load_positions<T>(positions + at + c, lanes) == position;
            g = here ? load_n(dy + at + c, lanes) : Vec<T>{};
          }
          write_n<streams>(to + c, g, lanes);
        });
      }
    }
  });
}

/// A window over a pixel: where its C outputs are, and the position that the pixel has in it.
template <class T>
struct Window {
  int64_t at;
  IntOf<T> position;
};
/// Over a pixel at most, of the windows that are gathered.
template <class T>
constexpr int64_t kMostWindows = 2 * kLanes<T>;

/// dx of one pixel. kCount: the number of windows as a constant, or 0.
template <int kCount, bool streams, class T>
DLK_INLINE void gather_pixel(int64_t C, const Window<T>* windows, int count, const T* dy, const uint8_t* positions,
                             T* dx) {
  constexpr int kAtOnce = 4;  // vectors that share what a window takes
  constexpr int64_t L = kLanes<T>;
  const auto add = [&](int64_t c, Window<T> window, auto lanes, Vec<T>& g) {
    const auto here = load_positions<T>(positions + window.at + c, lanes) == window.position;
    g += here ? load_n(dy + window.at + c, lanes) : Vec<T>{};
  };
  int64_t c = 0;
  for (; c + kAtOnce * L <= C; c += kAtOnce * L) {
    Vec<T> g[kAtOnce] = {};
    for (int k = 0; k < (kCount ? kCount : count); ++k) {
#pragma GCC unroll 4
      for (int v = 0; v < kAtOnce; ++v) add(c + v * L, windows[k], std::integral_constant<int, kLanes<T>>{}, g[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kAtOnce; ++v) write_n<streams>(dx + c + v * L, g[v], std::integral_constant<int, kLanes<T>>{});
  }
  for_each_vec<T>(C - c, [&](int64_t at, auto lanes) {
    Vec<T> g{};
    for (int k = 0; k < (kCount ? kCount : count); ++k) add(c + at, windows[k], lanes, g);
    write_n<streams>(dx + c + at, g, lanes);
  });
}

/// Lists the windows over element i of an axis: their outputs, `output_step` apart, and the positions of i in them,
/// `tap_step` a tap. Returns how many there are.
template <class T>
int windows_over(const Axis& axis, int64_t i, int64_t output_step, int64_t tap_step, Window<T>* windows) {
  int count = 0;
  const Range outputs = axis.outputs(i);
  for (int64_t o = outputs.begin; o < outputs.end; ++o)
    if (const int64_t tap = tap_of(axis, o, i); tap >= 0)
      windows[count++] = {o * output_step, static_cast<IntOf<T>>(tap * tap_step)};
  return count;
}

/// Those over each column, which all rows share.
template <class T>
struct ColumnWindows {
  Window<T>* windows;  // S for each column
  int* counts;

  ColumnWindows(const Pool2d& p, Context& context)
      : windows(context.array<Window<T>>(p.W * p.S)), counts(context.array<int>(p.W)) {
    for (int64_t iw = 0; iw < p.W; ++iw) counts[iw] = windows_over(horizontal(p), iw, p.C, 1, windows + iw * p.S);
  }
};

/// channels_last, any windows: each pixel of dx is written once, as the sum of what the windows over it found there.
template <bool streams, class T>
void backward_gathered(const Pool2d& pool, const T* dy, const uint8_t* positions, T* dx, Context& context) {
  const ColumnWindows<T> columns(pool, context);
  parallel_for<streams>(pool.N * pool.H, pool.W * pool.C, [=](int64_t begin, int64_t end) {
    const Pool2d p = pool;
    for (int64_t row = begin; row < end; ++row) {
      Window<T> of_row[kMostWindows<T>], windows[kMostWindows<T>];
      const int rows = windows_over(vertical(p), row % p.H, p.OW * p.C, p.S, of_row);
      const int64_t image = row / p.H * p.OH * p.OW * p.C;
      T* to = dx + row * p.W * p.C;
      for (int64_t iw = 0; iw < p.W; ++iw, to += p.C) {
        int count = 0;
        const Window<T>* const of_column = columns.windows + iw * p.S;
        for (int r = 0; r < rows; ++r)
          for (int s = 0; s < columns.counts[iw]; ++s)
            windows[count++] = {image + of_row[r].at + of_column[s].at, of_row[r].position + of_column[s].position};
        if (count == 1)
          gather_pixel<1, streams>(p.C, windows, count, dy, positions, to);
        else if (count == 2)
          gather_pixel<2, streams>(p.C, windows, count, dy, positions, to);
        else
          gather_pixel<0, streams>(p.C, windows, count, dy, positions, to);
      }
    }
  });
}

template <class T, class P, bool kPositions>
void forward_in_layout(const Pool2d& p, const T* x, T* y, P* positions) {
  if (p.channels_last) return forward_channels_last<T, P, kPositions>(p, x, y, positions);
  if (with_common_windows(p, [&](auto windows) { forward_in_strips<T, P, kPositions>(windows, p, x, y, positions); }))
    return;
  if (has_short_rows<T>(p)) return forward_by_planes<T, P, kPositions>(p, x, y, positions);
  forward_nchw<T, P, kPositions>(p, x, y, positions);
}

template <class T>
void forward(const Pool2d& p, const T* x, T* y, Positions positions, Context&) {
  if (positions.narrow) return forward_in_layout<T, uint8_t, true>(p, x, y, positions.narrow);
  if (positions.wide) return forward_in_layout<T, int32_t, true>(p, x, y, positions.wide);
  forward_in_layout<T, uint8_t, false>(p, x, y, static_cast<uint8_t*>(nullptr));
}

template <class T, class P>
void backward_in_layout(const Pool2d& p, const T* dy, const P* positions, T* dx, Context& context) {
  const int64_t elements = p.N * p.C * (p.H * p.W + p.OH * p.OW);  // and a byte per output
  if (!p.channels_last) {
    // Comparing a vector with each position takes what adding some 8 outputs does: with shorter vectors, or rows that
    // fill less of them, it was slower (0.6 to 0.95).
    if constexpr (sizeof(P) == 1 && kLanes<T> >= 16)
      if (3 * p.OW >= kLanes<T> && with_common_windows(p, [&](auto windows) {
            with_streaming(dx, p.W, elements,
                           [&](auto streams) { backward_in_strips<streams>(windows, p, dy, positions, dx); });
          }))
        return;
    return backward_scattered(p, std::integral_constant<int, 1>{}, dy, positions, dx);
  }
  // Gathering takes a step per tap and vector, about what scattering an output takes, and half of that where a pixel's
  // windows serve many vectors; a part of a vector takes two.
  const int64_t steps = p.C / kLanes<T> + (p.C % kLanes<T> ? 2 : 0), most = p.C >= 8 * kLanes<T> ? 2 * p.C : p.C;
  if constexpr (sizeof(P) == 1)
    if (p.R * p.S * steps <= most) {
      const auto extent = [](Axis axis) { return (axis.kernel - 1) * axis.dilation + 1; };
      const bool overlap = extent(vertical(p)) > p.stride_h || extent(horizontal(p)) > p.stride_w;
      return with_streaming(dx, p.C, elements, [&](auto streams) {
        overlap ? backward_gathered<streams>(p, dy, positions, dx, context)
                : backward_disjoint<streams>(p, dy, positions, dx, context);
      });
    }
  backward_scattered(p, p.C, dy, positions, dx);
}

template <class T>
void backward(const Pool2d& p, const T* dy, Positions positions, T* dx, Context& context) {
  if (positions.narrow) return backward_in_layout(p, dy, positions.narrow, dx, context);
  backward_in_layout(p, dy, positions.wide, dx, context);
}

template <class P>
void indices_of(const Pool2d& p, const P* positions, int64_t* indices) {
  const ElementOffset<P> offset(p);
  // The layouts differ in how many channels stand together: all of them at a pixel, or one.
  const int64_t planes = p.channels_last ? p.N : p.N * p.C, channels = p.channels_last ? p.C : 1;
  parallel_for(planes * p.OH, p.OW * channels, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t row_start = (row % p.OH * p.stride_h - p.pad_h) * p.W - p.pad_w;
      for (int64_t ow = 0; ow < p.OW; ++ow) {
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t at = (row * p.OW + ow) * channels + c;
          const P position = positions[at];
          indices[at] = position == kNone<P> ? -1 : row_start + ow * p.stride_w + offset(position);
        }
      }
    }
  });
}

void indices(const Pool2d& p, Positions positions, int64_t* indices, Context&) {
  if (positions.narrow) return indices_of(p, positions.narrow, indices);
  indices_of(p, positions.wide, indices);
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(MaxPool2dKernels<float>, {forward<float>, backward<float>})
DLK_KERNEL_TABLE(MaxPool2dKernels<double>, {forward<double>, backward<double>})
DLK_KERNEL_TABLE(MaxPool2dIndexKernels, {indices})
