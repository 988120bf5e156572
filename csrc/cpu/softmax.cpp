// Softmax over C of a contiguous (outer, C, inner) tensor:
//     softmax      y_c = exp(x_c - m) / s        dx_c = y_c (dy_c - sum_k dy_k y_k)
//     log-softmax  y_c = (x_c - m) - log(s)      dx_c = dy_c - exp(y_c) sum_k dy_k
// with m = max_k x_k and s = sum_k exp(x_k - m) >= 1, so that nothing overflows.
//
// A thread computes whole rows, or whole tiles of columns where inner > 1 (softmax_passes.h). NaN anywhere makes its
// row NaN, as do +Inf and a row of -Inf only.
#include "csrc/core/softmax.h"

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/softmax_passes.h"
#include "csrc/cpu/streaming.h"

namespace dlk::cpu {
namespace {

/// Writes a vector of y: x's logarithm of the probability, or the numerator e as a probability. `by` is what the sum
/// does: it is subtracted as its logarithm, or divides.
template <bool log, bool streams, class T, class Of, class Count>
DLK_INLINE void finish_vec(const T* x, const T* e, Of top, Of by, T* y, Count lanes) {
  if constexpr (log)
    write_n<streams>(y, (load_n(x, lanes) - top) - by, lanes);
  else
    write_n<streams>(y, load_n(e, lanes) * by, lanes);
}

/// Short rows. e: room for the numerators of the rows: y itself, or working memory if y is streamed.
template <bool log, bool streams, class T>
void forward_rows(int64_t rows, int64_t C, const T* x, T* e, T* y) {
  T m[kLanes<T>], finish[kLanes<T>] = {};
  rows_max_sum(C, rows, x, m, finish, [&](int64_t r, int64_t c, Vec<T> v, auto lanes) {
    if constexpr (!log) store_n(e + r * C + c, v, lanes);
  });
  if (log) take_logs(rows, finish);
  for (int64_t r = 0; r < rows; ++r, x += C, e += C, y += C) {
    const T top = m[r], by = log ? finish[r] : 1 / finish[r];
    for_each_vec<T>(C, [&](int64_t c, auto lanes) { finish_vec<log, streams>(x + c, e + c, top, by, y + c, lanes); });
  }
}

/// The same for long rows, of which e has room for two if y is streamed.
template <bool log, bool streams, class T>
void forward_long_rows(int64_t rows, int64_t C, const T* x, T* e, T* y) {
  const auto numerators = [=](int64_t r) { return e + (streams ? r % 2 : r) * C; };
  T top = 0, by = 0;  // of the row that is finished
  long_rows_max_sum(
      C, rows, x,
      [&](int64_t r, int64_t c, Vec<T> v, auto lanes) {
        if constexpr (!log) store_n(numerators(r) + c, v, lanes);
      },
      [&](int64_t, T m, T sum) {
        top = m;
        by = log ? std::log(sum) : 1 / sum;
      },
      [&](int64_t r, int64_t c, auto lanes) {
        finish_vec<log, streams>(x + r * C + c, numerators(r) + c, top, by, y + r * C + c, lanes);
      });
}

template <bool log, bool streams, class T>
void backward_row(int64_t C, const T* dy, const T* y, T* dx) {
  using V = Vec<T>;
  const auto sums = sum_vecs<1, T>(C, [&](int64_t c, auto lanes, auto& chain) {
    const V g = load_n(dy + c, lanes);
    chain.of[0] += log ? g : g * load_n(y + c, lanes);
  });
  const T sum = reduce_sum(sums.of[0]);
  for_each_vec_and_next_row<T, 2>(C, [&](int64_t c, auto lanes, auto fetch) {
    fetch(dy), fetch(y);
    const V g = load_n(dy + c, lanes), v = load_n(y + c, lanes);
    write_n<streams>(dx + c, log ? g - exp_or_zero(v) * sum : v * (g - sum), lanes);
  });
}

/// e as in forward_rows, with rows `stride` apart.
template <bool log, bool streams, class T>
void forward_tile(int64_t C, int64_t inner, int64_t width, const T* x, T* e, int64_t stride, T* y) {
  T m[kTile], sum[kTile];
  tile_max_sum(C, inner, width, x, m, sum, [&](int64_t c, int64_t j, Vec<T> v, auto lanes) {
    if constexpr (!log) store_n(e + c * stride + j, v, lanes);
  });
  if (log) take_logs(width, sum);
  for (int64_t j = 0; j < width && !log; ++j) sum[j] = 1 / sum[j];
  for (int64_t c = 0; c < C; ++c)
    for_each_vec<T>(width, [&](int64_t j, auto lanes) {
      const int64_t at = c * inner + j;
      finish_vec<log, streams>(x + at, e + c * stride + j, load(m + j), load(sum + j), y + at, lanes);
    });
}

template <bool log, bool streams, class T>
void backward_tile(int64_t C, int64_t inner, int64_t width, const T* dy, const T* y, T* dx) {
  using V = Vec<T>;
  T sum[kTile] = {};
  for (int64_t c = 0; c < C; ++c)
    for_each_vec<T>(width, [&](int64_t j, auto lanes) {
      const V g = load_n(dy + c * inner + j, lanes);
      store(sum + j, load(sum + j) + (log ? g : g * load_n(y + c * inner + j, lanes)));
    });
  const int64_t next = next_tile(C, inner, width);
  for (int64_t c = 0; c < C; ++c)
    for_each_vec<T>(width, [&](int64_t j, auto lanes) {
      const int64_t at = c * inner + j;
      fetch_ahead<Fetch::into_l2>(dy + next + at);
      fetch_ahead<Fetch::into_l2>(y + next + at);
      const V g = load_n(dy + at, lanes), v = load_n(y + at, lanes), total = load(sum + j);
      write_n<streams>(dx + at, log ? g - exp_or_zero(v) * total : v * (g - total), lanes);
    });
}

template <bool log, class T>
void forward_as(SoftmaxShape s, const T* x, T* y, Context& context) {
  constexpr int64_t kMostRoom = 256 * 1024 / sizeof(T);  // which L2 keeps, beside what is read
  const bool is_long = s.inner == 1 && s.C > kMostShort, is_longest = is_long && !log && 2 * s.C > kMostRoom;
  const int64_t width = is_longest ? 1 : s.inner == 1 ? rows_at_once<T>(s.C, s.outer) : tile_width<T>(s.C);
  const int64_t tiles = ceil_div(s.inner, width), tasks = s.inner == 1 ? ceil_div(s.outer, width) : s.outer * tiles;
  const int64_t elements = s.outer * s.C * s.inner;
  const int64_t room = log ? 0 : ceil_div(s.C * (is_long ? std::min<int64_t>(width, 2) : width), kLanes<T>) * kLanes<T>;
  const int64_t worth = std::max(int64_t{1}, elements * kExpCost / kGrainElements);
  const int64_t threads = std::min<int64_t>({max_threads(), worth, tasks});
  const auto run = [&](auto streams) {
    T* const buffers = context.array<T>(streams ? threads * room : 0);
    run_threads(threads, [=](const Team& team) {
      T* const waiting = buffers + team.rank * room;
      team.for_each(tasks, [&](int64_t task) {
        if (s.inner == 1) {
          const int64_t i = task * width, at = i * s.C, rows = std::min(width, s.outer - i);
          T* const e = streams ? waiting : y + at;
          return is_long ? forward_long_rows<log, streams>(rows, s.C, x + at, e, y + at)
                         : forward_rows<log, streams>(rows, s.C, x + at, e, y + at);
        }
        const int64_t j = task % tiles * width, at = task / tiles * s.C * s.inner + j;
        forward_tile<log, streams>(s.C, s.inner, std::min(width, s.inner - j), x + at, streams ? waiting : y + at,
                                   streams ? width : s.inner, y + at);
      });
      if constexpr (streams) drain_streams();
    });
  };
  if (room > kMostRoom) return run(std::false_type{});  // y serves as well
  with_streaming(y, s.inner == 1 ? s.C : s.inner, 2 * elements, run);
}

template <bool log, class T>
void backward_as(SoftmaxShape s, const T* dy, const T* y, T* dx) {
  const int64_t elements = 3 * s.outer * s.C * s.inner;
  with_streaming(dx, s.inner == 1 ? s.C : s.inner, elements, [=](auto streams) {
    for_each_row_or_tile<T, streams>(
        s,
        [=](int64_t i, int64_t count) {
          for (int64_t at = i * s.C; at < (i + count) * s.C; at += s.C)
            backward_row<log, streams>(s.C, dy + at, y + at, dx + at);
        },
        [=](int64_t i, int64_t j, int64_t width) {
          const int64_t at = i * s.C * s.inner + j;
          backward_tile<log, streams>(s.C, s.inner, width, dy + at, y + at, dx + at);
        });
  });
}

template <class T>
void forward(SoftmaxShape shape, bool log, const T* x, T* y, Context& context) {
  log ? forward_as<true>(shape, x, y, context) : forward_as<false>(shape, x, y, context);
}

template <class T>
void backward(SoftmaxShape shape, bool log, const T* dy, const T* y, T* dx, Context&) {
  log ? backward_as<true>(shape, dy, y, dx) : backward_as<false>(shape, dy, y, dx);
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(SoftmaxKernels<float>, {forward<float>, backward<float>})
DLK_KERNEL_TABLE(SoftmaxKernels<double>, {forward<double>, backward<double>})
