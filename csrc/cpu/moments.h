// Sums for normalisation, forward and backward: mean and variance without cancellation, the same for every number of
// threads: blocks of a fixed size, each about its own mean in T, combined in order in double (Chan, Golub & LeVeque
// 1983).
#pragma once

#include <algorithm>
#include <cmath>

#include "csrc/cpu/reduce.h"

namespace dlk::cpu {
namespace {

constexpr int64_t kMomentsBlock = 2048;  // elements: 8-16 KiB, so that the second pass over a block reads L1

/// Count, mean and sum of squared deviations of a set of numbers.
struct Moments {
  double n = 0, mean = 0, m2 = 0;

  /// Of n numbers x from s1 = sum(x - shift) and s2 = sum((x - shift)^2), shift being near their mean.
  static Moments shifted(double n, double shift, double s1, double s2) {
    // Inf among the numbers: the mean is shift, Inf or NaN, and the variance NaN.
    const double m2 = s2 - s1 * s1 / n;
    return {n, std::isfinite(shift) ? shift + s1 / n : shift, m2 < 0 ? 0 : m2};
  }

  void add(const Moments& b) {
    const double delta = b.mean - mean, total = n + b.n;
    m2 += b.m2 + delta * delta * (n * b.n / total);
    mean = (n * mean + b.n * b.mean) / total;
    n = total;
  }

  double variance() const { return m2 / n; }
};

/// Adds the n contiguous numbers at x.
template <class T>
void add_moments(Moments& moments, const T* x, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += kMomentsBlock) {
    const T* block = x + begin;
    const int64_t count = std::min(kMomentsBlock, n - begin);
    const auto sum =
        sum_vecs<1, T>(count, [&](int64_t i, auto lanes, auto& sums) { sums.of[0] += load_n(block + i, lanes); });
    const T shift = reduce_sum(sum.of[0]) / static_cast<T>(count);
    const auto add_powers = [=](int64_t i, auto lanes, auto& sums) {
      const Vec<T> d = load_n(block + i, lanes, shift) - shift;
      sums.of[0] += d;
      sums.of[1] += d * d;
    };
    // While this reads L1, memory would idle: fetch the next block, if there is one.
    const auto powers = n - begin <= kMomentsBlock
                            ? sum_vecs_restarting<2, T>(count, add_powers)
                            : sum_vecs_restarting<2, T>(count, [=](int64_t i, auto lanes, auto& sums) {
                                __builtin_prefetch(block + kMomentsBlock + i);
                                add_powers(i, lanes, sums);
                              });
    moments.add(Moments::shifted(static_cast<double>(count), shift, reduce_sum_in_double(powers.of[0]),
                                 reduce_sum_in_double(powers.of[1])));
  }
}

/// The sums over normalised elements that gradients need: of dy, and of dy (x - mean).
struct GradientSums {
  double dy = 0, dy_x = 0;
};

/// Adds n contiguous elements.
template <class T>
void add_gradient_sums(GradientSums& sums, const T* dy, const T* x, T mean, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += kMomentsBlock) {
    const auto block = sum_vecs<2, T>(std::min(kMomentsBlock, n - begin), [&](int64_t i, auto lanes, auto& block) {
      const Vec<T> g = load_n(dy + begin + i, lanes);
      block.of[0] += g;
      block.of[1] += g * (load_n(x + begin + i, lanes, mean) - mean);
    });
    sums.dy += reduce_sum(block.of[0]);
    sums.dy_x += reduce_sum(block.of[1]);
  }
}

/// Rows that sum_rows adds among themselves.
constexpr int64_t kRowGroup = 8;

/// For `add` below: column c of row n, whose next group is fetched ahead: a group's rows are more streams than the
/// hardware follows (batch norm's gradient, 144 channels: from 0.73 to 1.1 of PyTorch's speed on Zen 3).
template <class T, class Count>
DLK_INLINE Vec<T> load_row(const T* x, int64_t n, int64_t C, int64_t c, Count lanes) {
  __builtin_prefetch(x + (n + kRowGroup) * C + c);
  return load_n(x + n * C + c, lanes);
}

/// Rows that sum_rows should be given at a time: longer sums in T lose digits, shorter ones cost more to combine.
constexpr int64_t kSumRows = 128;

/// Adds to sums (count, C), over rows [begin, end), what add(n, c, lanes, sum) adds to sum[0..count) for row n. A group
/// of rows is added among themselves first: fewer loads and stores of the sums, and fewer roundings.
template <int count, class T, class Add>
DLK_INLINE void sum_rows(int64_t C, int64_t begin, int64_t end, T* sums, Add add) {
  const auto add_group = [&](int64_t n, auto rows) {
    for_each_vec<T>(C, [&](int64_t c, auto lanes) {
      Vec<T> sum[count] = {};
#pragma GCC unroll 8
      for (int64_t i = 0; i < rows; ++i) add(n + i, c, lanes, sum);
      for (int k = 0; k < count; ++k) store_n(sums + k * C + c, load_n(sums + k * C + c, lanes) + sum[k], lanes);
    });
  };
  int64_t n = begin;
  for (; n + kRowGroup <= end; n += kRowGroup) add_group(n, std::integral_constant<int64_t, kRowGroup>{});
  if (n < end) add_group(n, end - n);
}

}  // namespace
}  // namespace dlk::cpu
