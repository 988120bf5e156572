// What softmax and cross-entropy share: the walk over a contiguous (outer, C, inner) tensor, and the maximum m and the
// sum of exp(x - m) over C.
//
// inner == 1: each row of C is contiguous, vectors run along it and their lanes are combined at the end, those of
// several short rows together; a pass over a long row does for its neighbours what is due there. inner > 1: vectors run
// along inner, one sum per lane, on tiles of columns: a tile of C rows stays in cache from one pass to the next, and
// its rows are as long as that allows, for the prefetchers and the TLB.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>

#include "csrc/core/softmax.h"
#include "csrc/cpu/parallel.h"
#include "csrc/cpu/reduce.h"
#include "csrc/cpu/streaming.h"
#include "csrc/cpu/vmath.h"

namespace dlk::cpu {
namespace {

constexpr int64_t kTile = 512;   // columns at most
constexpr int64_t kExpCost = 4;  // an exp and three passes, in elements of streaming work
template <class T>
constexpr T kLowest = -std::numeric_limits<T>::infinity();

/// The columns of a tile, whole cache lines: C rows of the three tensors of backward, or of two and what is fetched of
/// the next tile, within a core's L2 cache.
template <class T>
int64_t tile_width(int64_t C) {
  constexpr int64_t kBytes = 128 * 1024, kLine = 64 / sizeof(T);
  const int64_t columns = kBytes / (std::max<int64_t>(C, 1) * static_cast<int64_t>(sizeof(T)));
  return std::clamp(columns / kLine * kLine, 4 * kLine, kTile);
}

/// From a tile of `width` columns to the next, which its last pass fetches into L2.
inline int64_t next_tile(int64_t C, int64_t inner, int64_t width) { return width < inner ? width : C * inner; }

/// Rows of more elements are long: bounds as measured, near which batches of rows and single ones take about as long.
constexpr int64_t kMostShort = kIsa == Isa::avx512 ? 160 : 512;

/// Of `rows` rows, how many a kernel is given at once: of short ones as many as a vector has lanes, so that these are
/// combined together (1.1 to 1.3 times faster); of long ones so many that each thread gets a few times some.
template <class T>
int64_t rows_at_once(int64_t C, int64_t rows) {
  constexpr int64_t kTurns = 4, kMost = 16;
  return C <= kMostShort ? kLanes<T> : std::clamp<int64_t>(rows / (kTurns * max_threads()), 1, kMost);
}

/// x[j] = log(x[j]) for the first `count` sums, and the rest of their vectors.
template <class T>
DLK_INLINE void take_logs(int64_t count, T* x) {
  for (int64_t j = 0; j < count; j += kLanes<T>) store(x + j, log_from_one(load(x + j)));
}

/// rows(i, count) for each rows_at_once() of the `outer` rows, or tile(i, j, width) for columns [j, j + width) of each
/// i, over the threads.
template <class T, bool streams = false, class Rows, class Tile>
void for_each_row_or_tile(SoftmaxShape s, Rows rows, Tile tile) {
  if (s.inner == 1) {
    const int64_t most = rows_at_once<T>(s.C, s.outer);
    parallel_for<streams>(ceil_div(s.outer, most), most * s.C * kExpCost, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * most; i < std::min(s.outer, end * most); i += most) rows(i, std::min(most, s.outer - i));
    });
    return;
  }
  const int64_t width = tile_width<T>(s.C), tiles = ceil_div(s.inner, width);
  parallel_for<streams>(s.outer * tiles, s.C * std::min(s.inner, width) * kExpCost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t j = i % tiles * width;
      tile(i / tiles, j, std::min(width, s.inner - j));
    }
  });
}

/// The maximum of each lane of a row. A NaN is passed over: it comes back in the sum of exp(x - m), as does Inf - Inf,
/// of m = +Inf or a row of -Inf only.
template <class T>
DLK_INLINE Vec<T> row_max(int64_t C, const T* row) {
  const auto take_max = [&](int64_t c, auto lanes, Vec<T>& most) {
    most = max(load_n(row + c, lanes, kLowest<T>), most);
  };
  return accumulate_vecs<T>(C, splat(kLowest<T>), take_max, [](auto a, auto b) { return max(a, b); });
}

/// to[r] = reduce(of_row[r], f) for up to kLanes rows.
template <class T, class F>
DLK_INLINE void reduce_each(int64_t rows, Vec<T> (&of_row)[kLanes<T>], F f, T (&to)[kLanes<T>]) {
  if (rows == 1)
    to[0] = reduce(of_row[0], f);
  else
    store(to, reduce_rows<T>(of_row, f));
}

/// Of each of up to kLanes short rows, m = max x and the sum of e = exp(x - m), handing each e to keep(r, c, e, lanes).
template <class T, class Keep>
DLK_INLINE void rows_max_sum(int64_t C, int64_t rows, const T* x, T (&m)[kLanes<T>], T (&sum)[kLanes<T>], Keep keep) {
  Vec<T> of_row[kLanes<T>] = {};
  for (int64_t r = 0; r < rows; ++r) of_row[r] = row_max(C, x + r * C);
  reduce_each(rows, of_row, Greater{}, m);
  for (int64_t r = 0; r < rows; ++r) {
    const T top = m[r];  // not in the loop, which would read it again after each store
    const T* const row = x + r * C;
    Vec<T> sums = {};
    for_each_vec_and_next_row<T, 1>(C, [&](int64_t c, auto lanes, auto fetch) {
      fetch(row + (rows - 1) * C);
      const Vec<T> e = exp_or_zero(load_n(row + c, lanes, kLowest<T>) - top);
      keep(r, c, e, lanes);
      sums += e;
    });
    of_row[r] = sums;
  }
  reduce_each(rows, of_row, std::plus<>{}, sum);
}

/// The same for any number of long rows, one after another: done(r, m, sum) after each, and then finish(r, c, lanes)
/// for each of its vectors. The pass that sums a row finds the maximum of the next and finishes the one before: loads
/// and stores are done while the processor multiplies (1.3 to 1.5 times faster, 1000 columns).
template <class T, class Keep, class Done, class Finish>
DLK_INLINE void long_rows_max_sum(int64_t C, int64_t rows, const T* x, Keep keep, Done done, Finish finish) {
  constexpr int64_t kRun = 64 * kLanes<T>;  // sums restart, which bounds their rounding error
  T m = reduce(row_max(C, x), Greater{});
  const auto pass = [&](int64_t r, auto is_first) {
    const T* const row = x + r * C;
    const T* const next = r + 1 < rows ? row + C : row;
    const T top = m;
    Vec<T> sums = {}, most = splat(kLowest<T>);
    for (int64_t begin = 0; begin < C; begin += kRun) {
      Vec<T> of_run = {};
      for_each_vec<T>(std::min(kRun, C - begin), [&](int64_t i, auto lanes) {
        const int64_t c = begin + i;
        const Vec<T> e = exp_or_zero(load_n(row + c, lanes, kLowest<T>) - top);
        keep(r, c, e, lanes);
        of_run += e;
        most = max(read_n(next + c, lanes, kLowest<T>), most);
        if constexpr (!is_first) finish(r - 1, c, lanes);
      });
      sums += of_run;
    }
    done(r, top, reduce_sum(sums));
    m = reduce(most, Greater{});
  };
  pass(0, std::true_type{});
  for (int64_t r = 1; r < rows; ++r) pass(r, std::false_type{});
  for_each_vec<T>(C, [&](int64_t c, auto lanes) { finish(rows - 1, c, lanes); });
}

/// The same for `width` <= kTile columns whose rows are `inner` apart: m[j], sum[j]; keep(c, j, e, lanes).
template <class T, class Keep>
DLK_INLINE void tile_max_sum(int64_t C, int64_t inner, int64_t width, const T* x, T (&m)[kTile], T (&sum)[kTile],
                             Keep keep) {
  for (int64_t j = 0; j < width; j += kLanes<T>) {
    store(m + j, splat(kLowest<T>));
    store(sum + j, Vec<T>{});
  }
  for (int64_t c = 0; c < C; ++c)
    for_each_vec<T>(width,
                    [&](int64_t j, auto lanes) { store(m + j, max(load_n(x + c * inner + j, lanes), load(m + j))); });
  const int64_t next = next_tile(C, inner, width);
  for (int64_t c = 0; c < C; ++c)
    for_each_vec<T>(width, [&](int64_t j, auto lanes) {
      fetch_ahead<Fetch::into_l2>(x + next + c * inner + j);
      const Vec<T> e = exp_or_zero(load_n(x + c * inner + j, lanes) - load(m + j));
      keep(c, j, e, lanes);
      store(sum + j, load(sum + j) + e);
    });
}

}  // namespace
}  // namespace dlk::cpu
