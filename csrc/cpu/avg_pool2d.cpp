// Average pooling, sliding and adaptive: y = sum over the window / divisor; dx = sum of dy / divisor over the windows
// that hold the element. The divisor is the number of the window's elements (the padding counted too, if asked) or
// given.
//
// Four ways, forward and backward each:
//   sliding        NCHW (backward: and few channels), windows of one size: vectors along OW (forward) or W (backward);
//                  common windows in strips down the planes (pool_windows.h, pool_gradient.h), of others row by row
//   global         NCHW, one window: a plane is a run of memory
//   by window      NCHW, windows of any sizes or wider than the output: vectors along W; a task is a plane
//   channels_last  vectors along C
// Each element is one gathered sum in a fixed order.
#include <algorithm>

#include "csrc/core/pool2d.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/pool_gradient.h"
#include "csrc/cpu/pool_windows.h"
#include "csrc/cpu/reduce.h"
#include "csrc/cpu/streaming.h"

namespace dlk::cpu {
namespace {

/// The windows along one axis, sliding or adaptive, clipped to the input.
struct Windows {
  Axis axis;
  bool adaptive, count_pad;

  Range inputs(int64_t o) const {
    if (adaptive) return {o * axis.in / axis.out, ceil_div((o + 1) * axis.in, axis.out)};
    const int64_t start = axis.start(o), end = start + axis.kernel;
    return {start > 0 ? start : 0, end < axis.in ? end : axis.in};
  }
  /// The elements that the divisor counts.
  int64_t count(int64_t o) const {
    if (adaptive || !count_pad) {
      const Range i = inputs(o);
      return i.end - i.begin;
    }
    const int64_t start = axis.start(o), limit = axis.in + axis.pad;  // ceil_mode windows may go beyond the padding
    return (start + axis.kernel < limit ? start + axis.kernel : limit) - start;
  }
  Range outputs(int64_t i) const {
    if (adaptive) return {i * axis.out / axis.in, ceil_div((i + 1) * axis.out, axis.in)};
    return axis.outputs(i);
  }
};

Windows vertical_windows(const AvgPool2d& p) { return {vertical(p), p.adaptive, p.count_include_pad}; }
Windows horizontal_windows(const AvgPool2d& p) { return {horizontal(p), p.adaptive, p.count_include_pad}; }

/// Whether this much work pays for a parallel region.
bool worth_threads(int64_t elements) { return elements >= kGrainElements; }

int64_t elements_of_pixel(const Pool2d& p) { return p.channels_last ? p.C : 1; }

/// The divisor of output (oh, ow) is h[oh] * w[ow]. w stands there for each element of a pixel with room
/// for a whole vector at the last.
template <class T>
struct Divisors {
  int64_t pixel;
  T *h, *w;

  Divisors(const AvgPool2d& p, Context& context)
      : pixel(elements_of_pixel(p)), h(context.array<T>(p.OH + p.OW * pixel + kLanes<T>)), w(h + p.OH) {
    const Windows rows = vertical_windows(p), columns = horizontal_windows(p);
    for (int64_t oh = 0; oh < p.OH; ++oh)
      h[oh] = static_cast<T>(p.divisor_override ? p.divisor_override : rows.count(oh));
    for (int64_t i = 0; i < p.OW * pixel; ++i) w[i] = static_cast<T>(p.divisor_override ? 1 : columns.count(i / pixel));
    for (int64_t i = 0; i < kLanes<T>; ++i) w[p.OW * pixel + i] = 1;
  }
  T at(int64_t oh, int64_t ow) const { return h[oh] * w[ow * pixel]; }
  /// For elements i, i + 1, ... of output row oh.
  Vec<T> vector_at(int64_t oh, int64_t i) const { return load(w + i) * h[oh]; }
};

/// Sums of kVecs vectors whose errors do not grow with their length, for windows as large as the image: sums of kBlock
/// terms are added with their rounding error kept beside (Knuth's two-sum).
template <class T, int kVecs>
class LongSum {
 public:
  static constexpr int kBlock = 32;
  /// Adds the vectors at x, x + kLanes, ...
  template <class Count>
  DLK_INLINE void add(const T* x, Count lanes) {
    for (int k = 0; k < kVecs; ++k) block_[k] += load_n(x + k * kLanes<T>, lanes);
    if (++terms_ == kBlock) add_block();
  }
  DLK_INLINE Vec<T> value(int k) {
    if (terms_ > 0) add_block();
    return sum_[k] + (error_[k] == error_[k] ? error_[k] : Vec<T>{});  // NaN where the sum is not finite
  }

 private:
  DLK_INLINE void add_block() {
    for (int k = 0; k < kVecs; ++k) {
      const Vec<T> sum = sum_[k] + block_[k], added = sum - sum_[k];
      error_[k] += (sum_[k] - (sum - added)) + (block_[k] - added);
      sum_[k] = sum;
      block_[k] = Vec<T>{};
    }
    terms_ = 0;
  }
  Vec<T> sum_[kVecs] = {}, error_[kVecs] = {}, block_[kVecs] = {};
  int terms_ = 0;
};

// ---- Sliding

/// NCHW, common windows: sums along rows first, then down.
template <class T, int kR, int kStride, int kPad>
void forward_in_strips(CommonWindows<kR, kStride, kPad> windows, const AvgPool2d& p, const T* x, T* y,
                       Divisors<T> divisors) {
  for_each_strip<T>(p, [=](const PlaneTasks::Task& task, int64_t ow, auto lanes, int64_t ahead) {
    const StripTaps<T, kR, kStride> taps(p, ow);
    const auto along = [&](int64_t plane, int64_t ih) {
      if (ih < 0 || ih >= p.H) return Vec<T>{};
      Vec<T> tap[kR];
      taps.load(x + (plane * p.H + ih) * p.W, T(0), ahead, tap);
      return sum_of(tap);
    };
    walk_down(windows, p, task, along, [&](int64_t row, int64_t oh, const Vec<T>(&of)[kR]) {
      store_n(y + row * p.OW + ow, sum_of(of) / divisors.vector_at(oh, ow), lanes);
    });
  });
}

template <class T>
void forward_sliding(const AvgPool2d& p, const T* x, T* y, Divisors<T> divisors) {
  with_stride(p, [&](auto kStride) {
    const Axis h = vertical(p), w = horizontal(p);
    const Range inside = w.inside();
    parallel_for(p.N * p.C * p.OH, p.stride_h * p.W, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t oh = row % p.OH;
        const Range r_taps = h.taps(oh);
        const T* const top = x + (row / p.OH * p.H + h.start(oh) + r_taps.begin) * p.W;
        for_each_output_vec<kStride>(w, inside, T(0), [&](int64_t ow, auto lanes, auto taps) {
          Vec<T> sum{};
          for (int64_t r = 0; r < r_taps.end - r_taps.begin; ++r)
            for (int64_t s = 0; s < p.S; ++s) sum += taps(top + r * p.W, w.start(ow), s);
          store_n(y + row * p.OW + ow, sum / divisors.vector_at(oh, ow), lanes);
        });
      }
    });
  });
}

/// What outputs give, to any tap.
template <class T>
struct ShareRun {
  Vec<T> g;
  DLK_INLINE void add_to(Vec<T>& sum, int /*position*/) const { sum += g; }
};

/// NCHW, common windows.
template <bool streams, class T, class Windows>
void backward_in_strips(Windows windows, const AvgPool2d& p, const T* dy, T* dx, Divisors<T> divisors,
                        Context& context) {
  const PlaneTasks tasks = gradient_tasks(p);
  const int64_t OW = p.OW, OH = p.OH, size = tasks.most_rows(p) * OW + kLanes<T>;
  T* const buffers = context.array<T>(max_threads() * size);
  gather_planes<streams>(windows, p, dx, tasks, [=](int64_t rank, Range rows) {
    T* const g = buffers + rank * size;
    int64_t oh = rows.begin % OH;
    for (int64_t row = rows.begin; row < rows.end; ++row, oh = oh + 1 < OH ? oh + 1 : 0)
      for_each_vec<T>(OW, [&](int64_t i, auto lanes) {  // the next row covers what is too much
        store(g + (row - rows.begin) * OW + i, load_n(dy + row * OW + i, lanes) / divisors.vector_at(oh, i));
      });
    return [=](int64_t plane) {
      const int64_t first = plane * OH - rows.begin;
      return [=](int64_t oh, int64_t ow, LanesBetween<T> lanes) {
        return ShareRun<T>{lanes.load(g + (first + oh) * OW + ow)};
      };
    };
  });
}

/// The rows of dx, split into `stride` phases, and the rows of g = dy / divisor that they are sums of. A pixel is an
/// element (NCHW) or all channels of one (channels_last): vectors run over pixels, however few channels they have.
template <class T>
struct SplitGradient {
  Axis w;
  int64_t pixel;
  int64_t left;          // zeros before a row of g
  int64_t g_length;      // with the zeros on both sides
  int64_t phase_length;  // whole vectors

  explicit SplitGradient(const Pool2d& p) : w(horizontal(p)), pixel(elements_of_pixel(p)) {
    left = (w.kernel - 1) / w.stride * pixel;
    phase_length = ceil_div(ceil_div(w.in + w.pad, w.stride) * pixel, kLanes<T>) * kLanes<T>;
    g_length = left + std::max(phase_length, w.out * pixel);
  }

  /// Padded element j stride + q takes part, as tap s = q, q + stride, ..., in output j - (s - q) / stride. So phase q
  /// is a sum of shifted runs of these `rows` rows of g. Numbers that are constants where they are not 0 leave no loop
  /// inside that of vectors, whose short ones the processor would mispredict.
  template <int kS, int kStride, int kRows>
  void sum_phases(int64_t rows, const T* g, T* phases) const {
    const int64_t S = kS ? kS : w.kernel, stride = kStride ? kStride : w.stride;
    for (int64_t i = 0; i < phase_length; i += kLanes<T>) {
#pragma GCC unroll 2
      for (int64_t q = 0; q < stride; ++q) {
        Vec<T> sum{};
        const T* row = g + left + i;
#pragma GCC unroll 2
        for (int64_t r = 0; r < (kRows ? kRows : rows); ++r, row += g_length) {
          const T* at = row;
#pragma GCC unroll 3
          for (int64_t s = q; s < S; s += stride, at -= pixel) sum += load(at);
        }
        store(phases + q * phase_length + i, sum);
      }
    }
  }

  void sum_phases(const Pool2d& p, int64_t rows, const T* g, T* phases) const {
    with_width_and_stride(p, [&](auto kS, auto kStride) {
      constexpr bool kKnown = kS != 0;
      if (kKnown && rows == 1) return sum_phases<kS, kStride, kKnown ? 1 : 0>(rows, g, phases);
      if (kKnown && rows == 2) return sum_phases<kS, kStride, kKnown ? 2 : 0>(rows, g, phases);
      sum_phases<kS, kStride, 0>(rows, g, phases);
    });
  }

  /// Writes a row of padded pixels; it and the phases have room for a vector more.
  void merge(const T* phases, T* row) const {
    if (w.stride == 2 && pixel == 1) {
      for (int64_t i = 0; i < phase_length; i += kLanes<T>) {
        const Vec<T> even = load(phases + i), odd = load(phases + phase_length + i);
        store(row + 2 * i, interleave<0>(even, odd));
        store(row + 2 * i + kLanes<T>, interleave<1>(even, odd));
      }
      return;
    }
    const T* end = row + (w.in + w.pad) * pixel;
    for (const T* place = phases; row < end; place += pixel)
      for (int64_t q = 0; q < w.stride && row < end; ++q, row += pixel)  // a pixel covers what the last wrote too much
        for (int64_t c = 0; c < pixel; c += kLanes<T>) store(row + c, load(place + q * phase_length + c));
  }
};

template <bool streams, class T>
void backward_sliding(const AvgPool2d& p, const T* dy, T* dx, Divisors<T> divisors, Context& context) {
  const Axis h = vertical(p);
  const SplitGradient<T> split(p);
  const int64_t pixel = split.pixel, planes = p.N * p.C / pixel, length = p.W * pixel;
  constexpr int64_t kBand = 16;  // input rows per task: a few times the taps, so that g is seldom computed twice
  const int64_t bands = ceil_div(p.H, kBand), g_rows = (kBand + p.R - 2) / h.stride + 1;
  const int64_t g_size = std::min(g_rows, p.OH) * split.g_length;
  const int64_t row_size = p.stride_w * split.phase_length + kLanes<T>;
  T* buffers = context.array<T>(max_threads() * (g_size + 2 * row_size));

  run_team(planes * bands > 1 && worth_threads(p.N * p.C * p.H * p.W), [&](const Team& team) {
    T* g = buffers + team.rank * (g_size + 2 * row_size);
    T *phases = g + g_size, *merged = phases + row_size;
    std::fill(g, merged, T(0));
    team.for_each(planes * bands, [&](int64_t task) {
      const int64_t plane = task / bands, ih_begin = task % bands * kBand, ih_end = std::min(p.H, ih_begin + kBand);
      const int64_t first = h.outputs(ih_begin).begin, last = h.outputs(ih_end - 1).end;
      for (int64_t oh = first; oh < last; ++oh) {
        const T* dy_row = dy + (plane * p.OH + oh) * p.OW * pixel;
        T* g_row = g + (oh - first) * split.g_length + split.left;
        for_each_vec<T>(p.OW * pixel, [&](int64_t i, auto lanes) {
          store_n(g_row + i, load_n(dy_row + i, lanes) / divisors.vector_at(oh, i), lanes);
        });
      }
      Range done{-1, -1};
      for (int64_t ih = ih_begin; ih < ih_end; ++ih) {
        const Range oh = h.outputs(ih);
        if (oh.begin != done.begin || oh.end != done.end) {  // else the same row again
          split.sum_phases(p, oh.end - oh.begin, g + (oh.begin - first) * split.g_length, phases);
          if (p.stride_w > 1) split.merge(phases, merged);
          done = oh;
        }
        const T* row = p.stride_w > 1 ? merged : phases;
        T* const to = dx + (plane * p.H + ih) * length;
        for_each_vec<T>(length, [&](int64_t i, auto lanes) {
          write_n<streams>(to + i, load_n(row + p.pad_w * pixel + i, lanes), lanes);
        });
      }
    });
    if constexpr (streams) drain_streams();
  });
}

// ---- By window

/// The sum of n consecutive elements, in blocks that are added in double: a chain of more runs in T would lose digits.
/// (Inlined, it makes short sums 1.2 times slower.)
template <class T>
__attribute__((noinline)) T sum_of_many(const T* x, int64_t n) {
  constexpr int64_t kBlock = 16 * kRestartAfter * kChains * kLanes<T>;
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const auto add = [=](int64_t i, auto lanes, auto& sums) { sums.of[0] += load_n(x + begin + i, lanes); };
    sum += reduce_sum(sum_vecs_restarting<1, T>(std::min(kBlock, n - begin), add).of[0]);
  }
  return static_cast<T>(sum);
}

/// The sum of n consecutive elements.
template <class T>
T sum_of(const T* x, int64_t n) {
  if (n < kLanes<T>) {
    T sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += x[i];
    return sum;
  }
  if (n > kRestartAfter * kChains * kLanes<T>) return sum_of_many(x, n);
  const auto add = [=](int64_t i, auto lanes, auto& sums) { sums.of[0] += load_n(x + i, lanes); };
  return reduce_sum(sum_vecs<1, T>(n, add).of[0]);
}

/// The windows' inputs along one axis: an array, since adaptive ones cost two divisions.
const Range* inputs_of(const Windows& windows, Context& context) {
  Range* inputs = context.array<Range>(windows.axis.out);
  for (int64_t o = 0; o < windows.axis.out; ++o) inputs[o] = windows.inputs(o);
  return inputs;
}

/// f(plane, row) for all planes over the threads, with a row of W elements to work in.
template <class T, class F>
void for_each_plane(const Pool2d& p, Context& context, F f) {
  const int64_t length = ceil_div(p.W, kLanes<T>) * kLanes<T>;
  T* rows = context.array<T>(max_threads() * length);
  run_team(worth_threads(p.N * p.C * p.H * p.W), [&](const Team& team) {
    team.for_each(p.N * p.C, [&](int64_t plane) { f(plane, rows + team.rank * length); });
  });
}

/// Sums each row of windows by columns, then the columns of each window.
template <class T>
void forward_by_window(const AvgPool2d& p, const T* x, T* y, Divisors<T> divisors, Context& context) {
  const Range* ih = inputs_of(vertical_windows(p), context);
  const Range* iw = inputs_of(horizontal_windows(p), context);
  for_each_plane<T>(p, context, [&](int64_t plane, T* columns) {
    for (int64_t oh = 0; oh < p.OH; ++oh) {
      const T* rows = x + (plane * p.H + ih[oh].begin) * p.W;
      const int64_t count = ih[oh].end - ih[oh].begin;
      T* y_row = y + (plane * p.OH + oh) * p.OW;
      if (p.OW == 1 && iw[0].end - iw[0].begin == p.W) {  // whole rows: one run
        y_row[0] = sum_of(rows, count * p.W) / divisors.at(oh, 0);
        continue;
      }
      for_each_vec<T>(p.W, [&](int64_t i, auto lanes) {
        LongSum<T, 1> sum;
        for (int64_t r = 0; r < count; ++r) sum.add(rows + r * p.W + i, lanes);
        store_n(columns + i, sum.value(0), lanes);
      });
      for (int64_t ow = 0; ow < p.OW; ++ow)
        y_row[ow] = sum_of(columns + iw[ow].begin, iw[ow].end - iw[ow].begin) / divisors.at(oh, ow);
    }
  });
}

/// Whether there is one window, the whole image.
bool is_global(const AvgPool2d& p) {
  const Range h = vertical_windows(p).inputs(0), w = horizontal_windows(p).inputs(0);
  return p.OH * p.OW == 1 && h.end - h.begin == p.H && w.end - w.begin == p.W;
}

/// The mean of each plane.
template <class T>
void forward_global(const AvgPool2d& p, const T* x, T* y, Divisors<T> divisors) {
  const int64_t plane_size = p.H * p.W;
  const T divisor = divisors.at(0, 0);
  parallel_for(p.N * p.C, plane_size, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) y[plane] = sum_of(x + plane * plane_size, plane_size) / divisor;
  });
}

/// Writes a number to each plane.
template <bool streams, class T>
void backward_global(const AvgPool2d& p, const T* dy, T* dx, Divisors<T> divisors) {
  const int64_t plane_size = p.H * p.W;
  parallel_for<streams>(p.N * p.C, plane_size, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const Vec<T> g = splat(dy[plane] / divisors.at(0, 0));
      for_each_vec<T>(plane_size,
                      [&](int64_t i, auto lanes) { write_n<streams>(dx + plane * plane_size + i, g, lanes); });
    }
  });
}

/// Adds to the rows of each row of windows what these give its columns.
template <class T>
void backward_by_window(const AvgPool2d& p, const T* dy, T* dx, Divisors<T> divisors, Context& context) {
  const Range* ih = inputs_of(vertical_windows(p), context);
  const Range* iw = inputs_of(horizontal_windows(p), context);
  for_each_plane<T>(p, context, [&](int64_t plane, T* columns) {
    T* const dx_plane = dx + plane * p.H * p.W;
    std::fill(dx_plane, dx_plane + p.H * p.W, T(0));
    for (int64_t oh = 0; oh < p.OH; ++oh) {
      std::fill(columns, columns + p.W, T(0));
      for (int64_t ow = 0; ow < p.OW; ++ow) {
        const T g = dy[(plane * p.OH + oh) * p.OW + ow] / divisors.at(oh, ow);
        for (int64_t i = iw[ow].begin; i < iw[ow].end; ++i) columns[i] += g;
      }
      for (int64_t i = ih[oh].begin; i < ih[oh].end; ++i)
        for_each_vec<T>(p.W, [&](int64_t j, auto lanes) {
          T* to = dx_plane + i * p.W + j;
          store_n(to, load_n(to, lanes) + load_n(columns + j, lanes), lanes);
        });
    }
  });
}

// ---- channels_last

/// As LongSum, of so few terms that errors do not grow.
template <class T, int kVecs>
class ShortSum {
 public:
  template <class Count>
  DLK_INLINE void add(const T* x, Count lanes) {
    for (int k = 0; k < kVecs; ++k) sum_[k] += read_n(x + k * kLanes<T>, lanes);
  }
  DLK_INLINE Vec<T> value(int k) const { return sum_[k]; }

 private:
  Vec<T> sum_[kVecs] = {};
};

/// One pixel of y from a window of rows x columns pixels at x.
template <template <class, int> class Sum, class T>
DLK_INLINE void mean_of_window(const AvgPool2d& p, int64_t rows, int64_t columns, const T* x, T divisor, T* y) {
  const int64_t C = p.C, down = p.W * C;
  const auto mean = [=]<int kVecs>(Sum<T, kVecs> sum, int64_t c, auto lanes) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t s = 0; s < columns; ++s) sum.add(x + r * down + s * C + c, lanes);
    for (int k = 0; k < kVecs; ++k) store_n(y + c + k * kLanes<T>, sum.value(k) / divisor, lanes);
  };
  // Four vectors at once: each window is read in longer runs, and the additions do not wait for each other.
  constexpr int64_t kRun = 4 * kLanes<T>;
  const int64_t whole = C / kRun * kRun;
  for (int64_t c = 0; c < whole; c += kRun) mean(Sum<T, 4>{}, c, std::integral_constant<int, kLanes<T>>{});
  for_each_vec<T>(C - whole, [&](int64_t c, auto lanes) { mean(Sum<T, 1>{}, whole + c, lanes); });
}

template <class T>
void forward_channels_last(const AvgPool2d& p, const T* x, T* y, Divisors<T> divisors, Context& context) {
  const Range* const ih = inputs_of(vertical_windows(p), context);
  const Range* const iw = inputs_of(horizontal_windows(p), context);
  parallel_for(p.N * p.OH * p.OW, p.H * p.W * p.C / (p.OH * p.OW), [=](int64_t begin, int64_t end) {
    int64_t n = begin / (p.OH * p.OW), oh = begin / p.OW % p.OH, ow = begin % p.OW;
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const int64_t rows = ih[oh].end - ih[oh].begin, columns = iw[ow].end - iw[ow].begin;
      const T* const from = x + ((n * p.H + ih[oh].begin) * p.W + iw[ow].begin) * p.C;
      if (rows * columns <= LongSum<T, 1>::kBlock)
        mean_of_window<ShortSum>(p, rows, columns, from, divisors.at(oh, ow), y + pixel * p.C);
      else
        mean_of_window<LongSum>(p, rows, columns, from, divisors.at(oh, ow), y + pixel * p.C);
      if (++ow < p.OW) continue;
      ow = 0;
      if (++oh == p.OH) oh = 0, ++n;
    }
  });
}

/// A row of dx from a row of g = dy / divisor, summed over the windows' rows: that is kept for the next rows under the
/// same windows.
template <bool streams, class T>
void backward_channels_last(const AvgPool2d& p, const T* dy, T* dx, Divisors<T> divisors, Context& context) {
  const int64_t C = p.C, size = p.OW * C;
  T* const buffers = context.array<T>(max_threads() * size);
  Range* const columns = context.array<Range>(p.W);
  for (int64_t iw = 0; iw < p.W; ++iw) columns[iw] = horizontal_windows(p).outputs(iw);
  run_team(worth_threads(p.N * C * p.H * p.W), [=](const Team& team) {
    const Windows h = vertical_windows(p);
    T* const g = buffers + team.rank * size;
    int64_t image = -1;
    Range done{};
    team.for_each(p.N * p.H, [&](int64_t row) {
      const int64_t n = row / p.H;
      const Range oh = h.outputs(row % p.H);
      if (n != image || oh.begin != done.begin || oh.end != done.end) {
        for_each_vec<T>(size, [&](int64_t i, auto lanes) {
          Vec<T> sum{};
          for (int64_t o = oh.begin; o < oh.end; ++o)
            sum += load_n(dy + (n * p.OH + o) * size + i, lanes) / divisors.vector_at(o, i);
          store_n(g + i, sum, lanes);
        });
        image = n, done = oh;
      }
      for (int64_t iw = 0; iw < p.W; ++iw) {
        const Range ow = columns[iw];
        T* const to = dx + (row * p.W + iw) * C;
        for_each_vec<T>(C, [&](int64_t c, auto lanes) {
          Vec<T> sum{};
          for (int64_t o = ow.begin; o < ow.end; ++o) sum += load_n(g + o * C + c, lanes);
          write_n<streams>(to + c, sum, lanes);
        });
      }
    });
    if constexpr (streams) drain_streams();
  });
}

/// Adaptive windows that are all of one size slide.
AvgPool2d as_sliding(AvgPool2d p) {
  if (!p.adaptive || p.H % p.OH != 0 || p.W % p.OW != 0) return p;
  p.adaptive = false;
  p.R = p.stride_h = p.H / p.OH;
  p.S = p.stride_w = p.W / p.OW;
  p.pad_h = p.pad_w = 0;
  return p;
}

/// Whether a row of the output fills vectors better than a row of a window does.
bool slides(const AvgPool2d& p) { return !p.adaptive && !p.channels_last && p.OW >= p.S; }

/// Whether pixels are so short that their last, partial vectors cost more than splitting rows does.
template <class T>
bool few_channels(const AvgPool2d& p) {
  return !p.adaptive && p.channels_last && p.C < 4 * kLanes<T>;
}

template <class T>
void forward(const AvgPool2d& given, const T* x, T* y, Context& context) {
  const AvgPool2d p = as_sliding(given);
  const Divisors<T> divisors(p, context);
  if (p.channels_last) return forward_channels_last(p, x, y, divisors, context);
  if (is_global(p)) return forward_global(p, x, y, divisors);
  if (slides(p)) {
    if (with_common_windows(p, [&](auto windows) { forward_in_strips(windows, p, x, y, divisors); })) return;
    return forward_sliding(p, x, y, divisors);
  }
  forward_by_window(p, x, y, divisors, context);
}

template <class T>
void backward(const AvgPool2d& given, const T* dy, T* dx, Context& context) {
  const AvgPool2d p = as_sliding(given);
  const Divisors<T> divisors(p, context);
  const int64_t elements = p.N * p.C * (p.H * p.W + p.OH * p.OW);
  if (slides(p) && with_common_windows(p, [&](auto windows) {
        with_streaming(dx, p.W, elements,
                       [&](auto streams) { backward_in_strips<streams>(windows, p, dy, dx, divisors, context); });
      }))
    return;
  if (slides(p) || few_channels<T>(p))
    return with_streaming(dx, p.W * elements_of_pixel(p), elements,
                          [&](auto streams) { backward_sliding<streams>(p, dy, dx, divisors, context); });
  if (p.channels_last)
    return with_streaming(dx, p.C, elements,
                          [&](auto streams) { backward_channels_last<streams>(p, dy, dx, divisors, context); });
  if (is_global(p))
    return with_streaming(dx, p.H * p.W, elements,
                          [&](auto streams) { backward_global<streams>(p, dy, dx, divisors); });
  backward_by_window(p, dy, dx, divisors, context);
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(AvgPool2dKernels<float>, {forward<float>, backward<float>})
DLK_KERNEL_TABLE(AvgPool2dKernels<double>, {forward<double>, backward<double>})
