// Softmax over C of a contiguous (outer, C, inner) tensor:
//     softmax      y_c = exp(x_c - m) / s        dx_c = y_c (dy_c - sum_k dy_k y_k)
//     log-softmax  y_c = (x_c - m) - log(s)      dx_c = dy_c - exp(y_c) sum_k dy_k
// with m = max_k x_k and s = sum_k exp(x_k - m) >= 1, so that nothing overflows.
//
// inner == 1: each row of C is contiguous, vectors run along it and their lanes are combined at the end of a sum.
// inner > 1: vectors run along inner, one softmax per lane, on tiles of kTile columns: each row of a tile is a run of
// whole cache lines, and a tile of C rows stays in cache from one pass to the next.
// A thread computes whole rows or tiles. NaN anywhere makes its row NaN, as do +Inf and a row of -Inf only.
#include "csrc/cpu/softmax.h"

#include <algorithm>
#include <limits>

#include "csrc/cpu/parallel.h"
#include "csrc/cpu/vmath.h"

namespace dlk::cpu {
namespace {

constexpr int64_t kTile = 64;    // columns; a multiple of every vector width
constexpr int64_t kExpCost = 4;  // an exp and three passes, in elements of streaming work
template <class T>
constexpr T kLowest = -std::numeric_limits<T>::infinity();

// ---- inner == 1

template <bool log, class T>
void forward_row(int64_t C, const T* x, T* y) {
  using V = Vec<T>;
  V top = splat(kLowest<T>), sums = {};
  // A NaN is passed over here: it comes back in the sum.
  for_each_vec<T>(C, [&](int64_t c, auto lanes) { top = max(load_n(x + c, lanes, kLowest<T>), top); });
  const T m = reduce_max(top);
  for_each_vec<T>(C, [&](int64_t c, auto lanes) {
    const V e = exp(load_n(x + c, lanes, kLowest<T>) - m);
    if constexpr (!log) store_n(y + c, e, lanes);
    sums += e;
  });
  const T sum = reduce_sum(sums);
  const T total = log ? std::log(sum) : sum;
  for_each_vec<T>(C, [&](int64_t c, auto lanes) {
    const V v = log ? (load_n(x + c, lanes) - m) - total : load_n(y + c, lanes) / total;
    store_n(y + c, v, lanes);
  });
}

template <bool log, class T>
void backward_row(int64_t C, const T* dy, const T* y, T* dx) {
  using V = Vec<T>;
  V sums = {};
  for_each_vec<T>(C, [&](int64_t c, auto lanes) {
    const V g = load_n(dy + c, lanes);
    sums += log ? g : g * load_n(y + c, lanes);
  });
  const T sum = reduce_sum(sums);
  for_each_vec<T>(C, [&](int64_t c, auto lanes) {
    const V g = load_n(dy + c, lanes), v = load_n(y + c, lanes);
    if constexpr (log)
      store_n(dx + c, g - exp(v) * sum, lanes);
    else
      store_n(dx + c, v * (g - sum), lanes);
  });
}

// ---- inner > 1: `width` <= kTile columns, rows `inner` apart

template <bool log, class T>
void forward_tile(int64_t C, int64_t inner, int64_t width, const T* x, T* y) {
  using V = Vec<T>;
  T m[kTile], total[kTile];
  for (int64_t j = 0; j < kTile; j += kLanes<T>) {
    store(m + j, splat(kLowest<T>));
    store(total + j, V{});
  }
  for (int64_t c = 0; c < C; ++c)
    for_each_vec<T>(width,
                    [&](int64_t j, auto lanes) { store(m + j, max(load_n(x + c * inner + j, lanes), load(m + j))); });
  for (int64_t c = 0; c < C; ++c)
    for_each_vec<T>(width, [&](int64_t j, auto lanes) {
      const V e = exp(load_n(x + c * inner + j, lanes) - load(m + j));
      if constexpr (!log) store_n(y + c * inner + j, e, lanes);
      store(total + j, load(total + j) + e);
    });
  if constexpr (log)
    for (int64_t j = 0; j < width; ++j) total[j] = std::log(total[j]);
  for (int64_t c = 0; c < C; ++c)
    for_each_vec<T>(width, [&](int64_t j, auto lanes) {
      const int64_t at = c * inner + j;
      const V v =
          log ? (load_n(x + at, lanes) - load(m + j)) - load(total + j) : load_n(y + at, lanes) / load(total + j);
      store_n(y + at, v, lanes);
    });
}

template <bool log, class T>
void backward_tile(int64_t C, int64_t inner, int64_t width, const T* dy, const T* y, T* dx) {
  using V = Vec<T>;
  T sum[kTile] = {};
  for (int64_t c = 0; c < C; ++c)
    for_each_vec<T>(width, [&](int64_t j, auto lanes) {
      const V g = load_n(dy + c * inner + j, lanes);
      store(sum + j, load(sum + j) + (log ? g : g * load_n(y + c * inner + j, lanes)));
    });
  for (int64_t c = 0; c < C; ++c)
    for_each_vec<T>(width, [&](int64_t j, auto lanes) {
      const int64_t at = c * inner + j;
      const V g = load_n(dy + at, lanes), v = load_n(y + at, lanes);
      if constexpr (log)
        store_n(dx + at, g - exp(v) * load(sum + j), lanes);
      else
        store_n(dx + at, v * (g - load(sum + j)), lanes);
    });
}

/// row(offset) for each row, or tile(offset, width) for each tile of columns, over the threads.
template <class Row, class Tile>
void for_each_softmax(SoftmaxShape s, Row row, Tile tile) {
  if (s.C == 0) return;
  if (s.inner == 1) {
    parallel_for(s.outer, s.C * kExpCost, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) row(i * s.C);
    });
    return;
  }
  const int64_t tiles = ceil_div(s.inner, kTile);
  parallel_for(s.outer * tiles, s.C * std::min(s.inner, kTile) * kExpCost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t j = i % tiles * kTile;
      tile(i / tiles * s.C * s.inner + j, std::min(kTile, s.inner - j));
    }
  });
}

template <bool log, class T>
void forward_as(SoftmaxShape s, const T* x, T* y) {
  for_each_softmax(
      s, [=](int64_t at) { forward_row<log>(s.C, x + at, y + at); },
      [=](int64_t at, int64_t width) { forward_tile<log>(s.C, s.inner, width, x + at, y + at); });
}

template <bool log, class T>
void backward_as(SoftmaxShape s, const T* dy, const T* y, T* dx) {
  for_each_softmax(
      s, [=](int64_t at) { backward_row<log>(s.C, dy + at, y + at, dx + at); },
      [=](int64_t at, int64_t width) { backward_tile<log>(s.C, s.inner, width, dy + at, y + at, dx + at); });
}

template <class T>
void forward(SoftmaxShape shape, bool log, const T* x, T* y) {
  log ? forward_as<true>(shape, x, y) : forward_as<false>(shape, x, y);
}

template <class T>
void backward(SoftmaxShape shape, bool log, const T* dy, const T* y, T* dx) {
  log ? backward_as<true>(shape, dy, y, dx) : backward_as<false>(shape, dy, y, dx);
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(SoftmaxKernels<float>, {forward<float>, backward<float>})
DLK_KERNEL_TABLE(SoftmaxKernels<double>, {forward<double>, backward<double>})
