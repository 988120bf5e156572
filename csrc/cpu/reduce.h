// Sums over long arrays, the same for every number of threads: in a vector's lanes, in four chains, in T; and over
// blocks of a fixed size, which are combined in order in double.
#pragma once

#include <algorithm>

#include "csrc/core/context.h"
#include "csrc/cpu/parallel.h"
#include "csrc/cpu/simd.h"

namespace dlk::cpu {
namespace {

template <class V, int n>
DLK_INLINE V sum_of(const V (&x)[n]) {
  V sum = x[0];
  for (int i = 1; i < n; ++i) sum += x[i];
  return sum;
}

/// The numbers that one pass sums, each in the lanes of a vector.
template <class T, int count>
struct Sums {
  Vec<T> of[count] = {};

  DLK_INLINE Sums operator+(const Sums& b) const {
    Sums sum;
    for (int k = 0; k < count; ++k) sum.of[k] = of[k] + b.of[k];
    return sum;
  }
};

/// The chains that for_each_vec's additions fall into: they do not wait for each other's latency, and lose fewer digits
/// for being shorter.
constexpr int kChains = 4;

/// f(i, lanes, chain) as for_each_vec over [0, n), where a chain starts as a copy of `start`; combines the chains.
template <class T, class Chain, class F, class Combine>
DLK_INLINE Chain accumulate_vecs(int64_t n, Chain start, F f, Combine combine) {
  Chain a = start, b = start, c = start, d = start;
  constexpr std::integral_constant<int, kLanes<T>> whole;
  int64_t i = 0;
  for (; i + kChains * kLanes<T> <= n; i += kChains * kLanes<T>) {
    f(i, whole, a);
    f(i + kLanes<T>, whole, b);
    f(i + 2 * kLanes<T>, whole, c);
    f(i + 3 * kLanes<T>, whole, d);
  }
  for_each_vec<T>(n - i, [&](int64_t j, auto lanes) { f(i + j, lanes, a); });
  return combine(combine(a, b), combine(c, d));
}

/// The sums of what add(i, lanes, sums) adds over [0, n).
template <int count, class T, class Add>
DLK_INLINE Sums<T, count> sum_vecs(int64_t n, Add add) {
  return accumulate_vecs<T>(n, Sums<T, count>{}, add, [](const auto& x, const auto& y) { return x + y; });
}

constexpr int64_t kRestartAfter = 16;

/// The same with chains of at most kRestartAfter terms. After ReLU half of the terms are equal, and their roundings all
/// have one sign: with chains of 64 a variance, or a mean loss, lost a digit.
template <int count, class T, class Add>
DLK_INLINE Sums<T, count> sum_vecs_restarting(int64_t n, Add add) {
  constexpr int64_t kRestart = kRestartAfter * kChains * kLanes<T>;
  const auto add_from = [&](int64_t begin) {
    return [&add, begin](int64_t i, auto lanes, auto& sums) { add(begin + i, lanes, sums); };
  };
  Sums<T, count> total;
  int64_t begin = 0;
  for (; begin + kRestart <= n; begin += kRestart)  // of constant length: up to 1.15 times faster
    total = total + sum_vecs<count, T>(kRestart, add_from(begin));
  if (begin < n) total = total + sum_vecs<count, T>(n - begin, add_from(begin));
  return total;
}

/// The sum of the lanes, which are added in double.
template <class V>
DLK_INLINE double reduce_sum_in_double(V x) {
  if constexpr (sizeof(Lane<V>) == 8) {
    return reduce_sum(x);
  } else {
    constexpr int n = sizeof(V) / sizeof(float);
    constexpr std::make_integer_sequence<int, n / 2> half;
    using Wide = typename VecOf<double, n / 2 * 8>::type;
    return reduce_sum(__builtin_convertvector(lanes_from<0>(x, half), Wide) +
                      __builtin_convertvector(lanes_from<n / 2>(x, half), Wide));
  }
}

/// Lane l is reduce(rows[l], f), to the bit; rows are lost. For all of them it takes little more than that for one.
template <class T, class F>
DLK_INLINE Vec<T> reduce_rows(Vec<T> (&rows)[kLanes<T>], F f) {
  transpose<T>(rows);
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) rows[i] = f(rows[i], rows[i + half]);
  return rows[0];
}

/// sums[l] = the sum of the lanes of rows[l], in double; rows are lost.
template <class T>
DLK_INLINE void sum_lanes_in_double(Vec<T> (&rows)[kLanes<T>], double (&sums)[kLanes<T>]) {
  using Wide = typename VecOf<double, kLanes<T> * 8>::type;
  transpose<T>(rows);
  Wide total{};
  for (const Vec<T>& row : rows) total += __builtin_convertvector(row, Wide);
  __builtin_memcpy(sums, &total, sizeof(total));
}

/// x[0] + ... + x[n - 1], in the order of a fixed number of chains, whatever the instruction set.
template <class T>
double sum_in_double(int64_t n, const T* x) {
  constexpr int kSums = 32;  // four vectors with AVX-512: the compiler vectorizes over them
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums)
    for (int k = 0; k < kSums; ++k) sums[k] += x[i + k];
  double total = 0;
  for (; i < n; ++i) total += x[i];
  for (double sum : sums) total += sum;
  return total;
}

constexpr int64_t kSumBlock = 1024;

/// The sum over [0, n) of what `block(begin, end)` returns for its range; `cost`: streaming work per element.
template <class T, class Block>
double sum_blocks(int64_t n, int64_t cost, Context& context, Block block) {
  const int64_t blocks = ceil_div(n, kSumBlock);
  T* partial = context.array<T>(blocks);
  parallel_for(blocks, kSumBlock * cost, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) partial[b] = block(b * kSumBlock, std::min(n, (b + 1) * kSumBlock));
  });
  double sum = 0;
  for (int64_t b = 0; b < blocks; ++b) sum += partial[b];
  return sum;
}

}  // namespace
}  // namespace dlk::cpu
