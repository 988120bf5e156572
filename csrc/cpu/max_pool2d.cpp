// Max pooling: y = max over the window; the gradient goes to the one element that was found.
//
// Order as PyTorch's: taps are visited r by r, s by s, and one replaces the best so far if it is greater or NaN: the
// first of equal maxima wins, a NaN always does; a window of -Inf gives its first element. Padding never wins. What
// backward needs is the position in the window, one byte per output (see Positions); it is computed only when wanted.
//
// NCHW: vectors along OW, from split rows (pool_windows.h); a task is a band of output rows of one plane.
// channels_last: vectors along C; a task is a row. Backward: dy is added to each position's element one by one (NCHW,
// few channels, large windows), or rows of dx gather what the windows over them found there, with vectors along C.
#include <limits>

#include "csrc/core/pool2d.h"
#include "csrc/cpu/dispatch.h"
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
  if constexpr (kBytesOfFloats<T, P> && std::is_same_v<Count, int>) return load_bytes_partial(from, lanes);
  PositionVec<T, P, kLanes<T>> narrow{};
  __builtin_memcpy(&narrow, from, lanes * sizeof(P));
  if constexpr (kBytesOfFloats<T, P>) return widen_bytes(narrow);
  return __builtin_convertvector(narrow, Vec<IntOf<T>>);
}

/// The running maximum of a vector of windows.
template <class T>
struct Best {
  using I = IntOf<T>;
  Vec<T> value = splat(-std::numeric_limits<T>::infinity());
  Vec<I> position;

  explicit Best(I initial) : position(splat(initial)) {}
  DLK_INLINE void take(Vec<T> x, I at) {
    const auto wins = (x > value) | (x != x);
    value = wins ? x : value;
    position = wins ? splat(at) : position;  // optimised away where nobody stores it
  }
};

/// The position of a window's first tap inside the input; kNone if there is none.
template <class P>
P first_position(Range r, Range s, int64_t S) {
  return r.begin < r.end && s.begin < s.end ? static_cast<P>(r.begin * S + s.begin) : kNone<P>;
}

/// `positions` is null if they are not wanted; P is then any type. kS: the width of the window as a constant, or 0.
template <class T, class P, bool kPositions, int kS>
void forward_nchw(const Pool2d& p, const T* x, T* y, P* positions, Context& context) {
  const Axis h = vertical(p), w = horizontal(p);
  const int64_t* offsets = tap_offsets<T>(p, context);
  const int64_t edge = ceil_div(w.pad, w.stride);  // outputs whose window begins in the padding on the left

  for_each_output_row(p, x, -std::numeric_limits<T>::infinity(), context, [&](OutputRow<T> row) {
    const Range r_taps = h.taps(row.oh);
    const int64_t row_at = (row.plane * p.OH + row.oh) * p.OW;
    // In variables of their own: stores of bytes might change what `p` and `offsets` refer to, for all the compiler
    // knows.
    const int64_t S = kS ? kS : p.S, down = h.dilation * row.size, rows = r_taps.end - r_taps.begin;
    const T* const input = row.input(r_taps.begin * h.dilation);
    const IntOf<T> first = static_cast<IntOf<T>>(r_taps.begin * S);
    int64_t at[kS ? kS : 1];
    for (int s = 0; s < kS; ++s) at[s] = offsets[s];
    for_each_vec<T>(p.OW, [&](int64_t ow, auto lanes) {
      Best<T> best(first);
      const T* from = input + ow;
      IntOf<T> position = first;
      for (int64_t r = 0; r < rows; ++r, from += down) {
        if constexpr (kS > 0) {
#pragma GCC unroll 4
          for (int s = 0; s < kS; ++s) best.take(load(from + at[s]), position++);
        } else {
          for (int64_t s = 0; s < S; ++s) best.take(load(from + offsets[s]), position++);
        }
      }
      store_n(y + row_at + ow, best.value, lanes);
      if constexpr (kPositions) store_positions<T>(positions + row_at + ow, best.position, lanes);
    });
    if constexpr (kPositions) {
      // A window where nothing won points to (r_taps.begin, 0): right unless that is padding.
      const int64_t doubtful = rows > 0 && edge < p.OW ? edge : p.OW;
      for (int64_t ow = 0; ow < doubtful; ++ow) {
        P& position = positions[row_at + ow];
        if (position == static_cast<P>(first)) position = first_position<P>(r_taps, w.taps(ow), S);
      }
    }
  });
}

template <class T, class P, bool kPositions>
void forward_channels_last(const Pool2d& p, const T* x, T* y, P* positions) {
  const Axis h = vertical(p), w = horizontal(p);
  parallel_for(p.N * p.OH, p.H * p.W * p.C / p.OH, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / p.OH, oh = row % p.OH;
      const Range r_taps = h.taps(oh);
      const int64_t C = p.C, S = p.S, down = p.dilation_h * p.W * C, right = p.dilation_w * C;  // as in forward_nchw
      for (int64_t ow = 0; ow < p.OW; ++ow) {
        const Range s_taps = w.taps(ow);
        const T* window = x + ((n * p.H + h.start(oh)) * p.W + w.start(ow)) * C;
        const int64_t at = (row * p.OW + ow) * C;
        const P first = first_position<P>(r_taps, s_taps, S);
        for_each_vec<T>(C, [&](int64_t c, auto lanes) {
          Best<T> best(first);
          for (int64_t r = r_taps.begin; r < r_taps.end; ++r) {
            const T* from = window + r * down + s_taps.begin * right + c;
            IntOf<T> position = static_cast<IntOf<T>>(r * S + s_taps.begin);
            for (int64_t s = s_taps.begin; s < s_taps.end; ++s, from += right)
              best.take(load_n(from, lanes), position++);
          }
          store_n(y + at + c, best.value, lanes);
          if constexpr (kPositions) store_positions<T>(positions + at + c, best.position, lanes);
        });
      }
    }
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

/// channels_last: adds to each row of dx what the windows over it found there.
template <class T, class P>
void backward_overlapping(const Pool2d& p, const T* dy, const P* positions, T* dx) {
  const Axis h = vertical(p), w = horizontal(p);
  parallel_for(p.N * p.H, p.W * p.C, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / p.H, ih = row % p.H;
      T* dx_row = dx + row * p.W * p.C;
      for (int64_t i = 0; i < p.W * p.C; ++i) dx_row[i] = 0;
      const Range oh_range = h.outputs(ih);
      for (int64_t oh = oh_range.begin; oh < oh_range.end; ++oh) {
        if ((ih - h.start(oh)) % h.dilation != 0) continue;
        const int64_t r = (ih - h.start(oh)) / h.dilation;
        for (int64_t ow = 0; ow < p.OW; ++ow) {
          const int64_t at = ((n * p.OH + oh) * p.OW + ow) * p.C;
          const Range s_taps = w.taps(ow);
          for (int64_t s = s_taps.begin; s < s_taps.end; ++s) {
            T* to = dx_row + (w.start(ow) + s * w.dilation) * p.C;
            const auto position = static_cast<IntOf<T>>(r * p.S + s);
            for_each_vec<T>(p.C, [&](int64_t c, auto lanes) {
              const auto found = load_positions<T>(positions + at + c, lanes) == position;
              store_n(to + c, load_n(to + c, lanes) + (found ? load_n(dy + at + c, lanes) : Vec<T>{}), lanes);
            });
          }
        }
      }
    }
  });
}

/// channels_last, where no windows overlap: each pixel of dx is written once, from the one window over it or as zeros.
template <bool streams, class T, class P>
void backward_disjoint(const Pool2d& p, const T* dy, const P* positions, T* dx, const Range* columns) {
  const Axis h = vertical(p), w = horizontal(p);
  const auto tap_of = [](Axis axis, int64_t o, int64_t i) {  // the tap of output o that input i is, or -1
    const int64_t distance = i - axis.start(o);
    if (axis.dilation == 1) return distance;
    return distance % axis.dilation == 0 ? distance / axis.dilation : -1;
  };
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

template <class T, class P>
void backward_channels_last(const Pool2d& p, const T* dy, const P* positions, T* dx, Context& context) {
  const auto extent = [](Axis axis) { return (axis.kernel - 1) * axis.dilation + 1; };
  if (extent(vertical(p)) > p.stride_h || extent(horizontal(p)) > p.stride_w)
    return backward_overlapping(p, dy, positions, dx);
  Range* columns = context.array<Range>(p.W);
  for (int64_t iw = 0; iw < p.W; ++iw) columns[iw] = horizontal(p).outputs(iw);
  const int64_t elements = p.N * p.C * (p.H * p.W + p.OH * p.OW);  // and a byte per output
  with_streaming(dx, p.C, elements, [&](auto streams) { backward_disjoint<streams>(p, dy, positions, dx, columns); });
}

template <class T, class P, bool kPositions>
void forward_in_layout(const Pool2d& p, const T* x, T* y, P* positions, Context& context) {
  if (p.channels_last) return forward_channels_last<T, P, kPositions>(p, x, y, positions);
  const auto run = p.S == 2   ? forward_nchw<T, P, kPositions, 2>
                   : p.S == 3 ? forward_nchw<T, P, kPositions, 3>
                              : forward_nchw<T, P, kPositions, 0>;
  run(p, x, y, positions, context);
}

template <class T>
void forward(const Pool2d& p, const T* x, T* y, Positions positions, Context& context) {
  if (positions.narrow) return forward_in_layout<T, uint8_t, true>(p, x, y, positions.narrow, context);
  if (positions.wide) return forward_in_layout<T, int32_t, true>(p, x, y, positions.wide, context);
  forward_in_layout<T, uint8_t, false>(p, x, y, nullptr, context);
}

template <class T, class P>
void backward_in_layout(const Pool2d& p, const T* dy, const P* positions, T* dx, Context& context) {
  if (!p.channels_last) return backward_scattered(p, std::integral_constant<int, 1>{}, dy, positions, dx);
  // Gathering takes a step per tap and vector, about what scattering an output takes; a part of a vector takes two.
  const int64_t steps = p.C / kLanes<T> + (p.C % kLanes<T> ? 2 : 0);
  if (p.R * p.S * steps > p.C) return backward_scattered(p, p.C, dy, positions, dx);
  backward_channels_last(p, dy, positions, dx, context);
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
