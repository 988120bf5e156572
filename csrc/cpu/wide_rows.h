// channels_last tensors of few channels, and matrices of few columns, in full vectors.
//
// A row of C values, C not a multiple of a vector's lanes, ends in a partial vector: three channels use 3 of 16 lanes.
// Several rows follow each other in memory, so kernels take them as one, with what belongs to a channel repeated
// (normalisation of three channels: 4 to 9 times faster).
#pragma once

#include <algorithm>
#include <numeric>

#include "csrc/cpu/parallel.h"
#include "csrc/cpu/simd.h"

namespace dlk::cpu {
namespace {

/// (rows, C), where C is not much more than a vector's lanes, as wider rows that are `copies` of them: column j of a
/// wide row is column j % C, and its vectors are full. The last wide row may be shorter.
template <class T>
struct WideRows {
  static constexpr int64_t kWide = 4 * kLanes<T>;             // columns enough by themselves
  static constexpr int64_t kMostColumns = kWide * kLanes<T>;  // of a wide row

  int64_t rows, C, copies = copies_of(C), width = copies * C, count = ceil_div(rows, copies);

  /// A power of two: 1, or such that `width` is a multiple of the lanes and kWide at least.
  static int64_t copies_of(int64_t C) {
    int64_t copies = 1;
    while (C > 0 && C < kWide && (copies * C < kWide || copies * C % kLanes<T> != 0)) copies *= 2;
    return copies;
  }

  /// The columns of wide row n.
  int64_t size(int64_t n) const { return std::min(width, rows * C - n * width); }

  /// What all wide rows begin at a multiple of, those of several samples, one after the other.
  int64_t alignment(int64_t samples) const { return samples > 1 ? std::gcd(width, rows * C) : width; }

  /// Repeats x[0..C) in as many columns as there are.
  void repeat(T* x) const {
    for (int64_t j = C; j < size(0); ++j) x[j] = x[j - C];
  }

  /// x[c] for c < C becomes the sum of all columns that are copies of c, if there are some.
  void fold(T* x) const {
    for (int64_t half = width / 2; half >= C; half /= 2)
      for (int64_t j = 0; j < half; ++j) x[j] += x[half + j];
  }
};

/// f(first, last) for rows [begin, end) of `width` elements in blocks [first, last), the last one first: what was read
/// last, for sums, is still in the cache. Blocks are long for prefetchers, and to read a page ahead: of 32 KiB, whose
/// first pages are not foreseen, 26 MB took 1.1 to 1.4 times as long.
template <class T, class F>
DLK_INLINE void for_each_block_from_the_end(int64_t begin, int64_t end, int64_t width, F f) {
  constexpr int64_t kBlock = (1 << 20) / sizeof(T);
  const int64_t block = std::max(kBlock / width, int64_t{1});
  for (int64_t last = end; last > begin; last -= block) f(std::max(begin, last - block), last);
}

/// f(sample, at, n) for each wide row of each sample, over the threads, from the end: its n columns, `at` from the
/// first sample.
template <bool streams, class T, class F>
void for_each_wide_row(int64_t samples, WideRows<T> wide, F f) {
  parallel_for<streams>(samples * wide.count, wide.width, [=](int64_t begin, int64_t end) {
    for_each_block_from_the_end<T>(begin, end, wide.width, [&](int64_t row, int64_t end_of_block) {
      while (row < end_of_block) {
        const int64_t sample = row / wide.count, first = sample * wide.count;
        const int64_t last = std::min(end_of_block, first + wide.count), start = sample * wide.rows * wide.C;
        for (; row < last; ++row) f(sample, start + (row - first) * wide.width, wide.size(row - first));
      }
    });
  });
}

}  // namespace
}  // namespace dlk::cpu
