// Sums for normalisation, forward and backward: mean and variance without cancellation, the same for every number of
// threads: blocks of a fixed size, each about the mean of a sample or of the blocks before in T, combined in order in
// double (Chan, Golub & LeVeque 1983).
#pragma once

#include <algorithm>
#include <array>

#include "csrc/cpu/reduce.h"
#include "csrc/cpu/wide_rows.h"

namespace dlk::cpu {
namespace {

constexpr int64_t kMomentsBlock = 2048;  // elements of a part that is summed in T; longer runs prefetchers follow

/// Count, mean and sum of squared deviations of a set of numbers; of one set per lane, where V is a vector of double.
template <class V = double>
struct Moments {
  double n = 0;
  V mean{}, m2{};

  /// Of n numbers x from s1 = sum(x - shift) and s2 = sum((x - shift)^2), shift being near their mean, and finite.
  static Moments shifted(double n, V shift, V s1, V s2) {
    const V m2 = s2 - s1 * s1 / n, zero{};
    return {n, shift + s1 / n, m2 < zero ? zero : m2};
  }

  DLK_INLINE void add(const Moments& b) {
    const double total = n + b.n;
    const V delta = b.mean - mean;
    m2 += b.m2 + delta * delta * (n * b.n / total);
    mean = (n * mean + b.n * b.mean) / total;
    n = total;
  }

  V variance() const { return m2 / n; }
};

/// `count` planes of n contiguous numbers each, `stride` apart: a channel of NCHW. Of one plane the stride is nothing.
struct Planes {
  int64_t count, n, stride;
};

constexpr int64_t kMostNeighbours = 16;

/// f(first, last) for channels [begin, end), a few together if their planes are small (`plane`: elements): of each
/// image these are one run of memory, as long as a block, where single ones share lines and are too short for the
/// prefetchers (planes of 7 x 7 to 28 x 28: up to 1.5 times faster).
template <class F>
void for_each_neighbours(int64_t plane, int64_t begin, int64_t end, F f) {
  const int64_t most = plane == 0 ? kMostNeighbours : std::clamp(kMomentsBlock / plane, int64_t{1}, kMostNeighbours);
  for (int64_t c = begin; c < end; c += most) f(c, std::min(end, c + most));
}

/// f(at, part, next) for parts of kMomentsBlock numbers at most, in order: of a long plane, or of several short ones.
/// From the first number of all to the part's are `at`, from there to the next part's `next` (0: it is the last).
template <class F>
DLK_INLINE void for_each_part(Planes all, F f) {
  // What planes add up to is added in a chain: no longer than those of sum_vecs_restarting.
  constexpr int64_t kMostPlanes = 16;
  if (all.n == 0) return;
  if (all.n > kMomentsBlock) {
    for (int64_t p = 0; p < all.count; ++p)
      for (int64_t begin = 0; begin < all.n; begin += kMomentsBlock) {
        const int64_t rest = all.n - begin, next_plane = p + 1 < all.count ? all.stride - begin : 0;
        f(p * all.stride + begin, Planes{1, std::min(rest, kMomentsBlock), 0},
          rest > kMomentsBlock ? kMomentsBlock : next_plane);
      }
    return;
  }
  const int64_t planes = std::min(kMostPlanes, kMomentsBlock / all.n);
  for (int64_t p = 0; p < all.count; p += planes) {
    const int64_t rest = all.count - p;
    f(p * all.stride, Planes{std::min(rest, planes), all.n, all.stride}, rest > planes ? planes * all.stride : 0);
  }
}

/// The sums of what add(at, lanes, sums) adds over the numbers of a part, which are `at` from its first.
template <int count, class T, class Add>
DLK_INLINE Sums<T, count> sum_part(Planes part, Add add) {
  Sums<T, count> total;
  for (int64_t p = 0; p < part.count; ++p)
    total = total + sum_vecs_restarting<count, T>(
                        part.n, [&](int64_t i, auto lanes, auto& sums) { add(p * part.stride + i, lanes, sums); });
  return total;
}

/// The same of add(at, lanes, sums, fetch), where fetch(p) fetches what comes `ahead` of p, unless that is 0.
template <int count, class T, class Add>
DLK_INLINE Sums<T, count> sum_part_fetching(Planes part, int64_t ahead, Add add) {
  if (ahead == 0)
    return sum_part<count, T>(part, [=](int64_t at, auto lanes, auto& sums) { add(at, lanes, sums, [](const T*) {}); });
  return sum_part<count, T>(part, [=](int64_t at, auto lanes, auto& sums) {
    add(at, lanes, sums, [=](const T* p) { fetch_ahead(p + ahead); });
  });
}

/// The first of n numbers, whose mean is a shift for all: one in kSampled, or kLeastSample if that is more. If k of n
/// numbers have a mean that is off by d, the sum of squared deviations is d^2 k (n - k) / n at least, so that the sum
/// of (x - shift)^2 is at most about n / k times it: more digits are not lost, and in all but made-up cases none.
inline int64_t sample_of(int64_t n) {
  constexpr int64_t kSampled = 8, kLeastSample = 64;
  return std::min(n, std::max(n / kSampled, kLeastSample));
}

/// The sum of n numbers, in lanes.
template <class T>
DLK_INLINE Vec<T> lane_sums(int64_t n, const T* x) {
  return sum_vecs<1, T>(n, [=](int64_t i, auto lanes, auto& sums) { sums.of[0] += load_n(x + i, lanes); }).of[0];
}

/// A shift. Inf or NaN in a sample: the sums over all shall tell which, and what the other numbers say to it.
template <class T>
T finite_or_zero(T shift) {
  return shift - shift == T(0) ? shift : T(0);
}

/// For a part of some numbers: the mean of those before, or of a sample. One pass over x is enough.
template <class T>
DLK_INLINE T shift_of(const Moments<>& before, Planes part, const T* x) {
  if (before.n > 0) return finite_or_zero(static_cast<T>(before.mean));
  const int64_t n = sample_of(part.count * part.n), planes = ceil_div(n, part.n), of_plane = std::min(n, part.n);
  Vec<T> sum{};
  for (int64_t p = 0; p < planes; ++p) sum += lane_sums(of_plane, x + p * part.stride);
  return finite_or_zero(reduce_sum(sum) / static_cast<T>(planes * of_plane));
}

/// Adds the numbers of planes, the first of them at x, to moments[0], of those that follow each of them to moments[1],
/// and so on: of `channels` planes that are neighbours in memory.
template <class T>
void add_moments(Moments<>* moments, int64_t channels, const T* x, Planes planes) {
  for_each_part(planes, [&](int64_t first, Planes part, int64_t next) {
    const int64_t ahead = planes.n > kMomentsBlock ? 0 : next;
    for (int64_t k = 0; k < channels; ++k) {
      const T* const block = x + k * planes.n + first;
      const int64_t count = part.count * part.n;
      const T shift = shift_of(moments[k], part, block);
      const auto powers = sum_part_fetching<2, T>(part, ahead, [=](int64_t at, auto lanes, auto& sums, auto fetch) {
        fetch(block + at);
        const Vec<T> d = load_n(block + at, lanes, shift) - shift;
        sums.of[0] += d;
        sums.of[1] += d * d;
      });
      moments[k].add(Moments<>::shifted(static_cast<double>(count), shift, reduce_sum_in_double(powers.of[0]),
                                        reduce_sum_in_double(powers.of[1])));
    }
  });
}

/// Gradients as they are, of what takes others too.
struct AsItIs {
  template <class Which, class V>
  DLK_INLINE V operator()(const Which&, V dy, V) const {
    return dy;
  }
};

/// The sums over normalised elements that gradients need: of dy, and of dy (x - mean).
struct GradientSums {
  double dy = 0, dy_x = 0;
};

/// As add_moments, the gradient sums about mean[0], mean[1], and so on, of gradient(channel, dy, x - mean) as dy. It
/// fetches the next part of short ones meanwhile (1.05 to 1.2 times faster from L3). The hardware's prefetchers follow
/// long ones.
template <class T, class Gradient>
void add_gradient_sums(GradientSums* sums, int64_t channels, const T* dy, const T* x, const T* mean, Planes planes,
                       Gradient gradient) {
  for_each_part(planes, [&](int64_t first, Planes part, int64_t next) {
    const int64_t ahead = planes.n > kMomentsBlock ? 0 : next;
    for (int64_t k = 0; k < channels; ++k) {
      const T *const of_dy = dy + k * planes.n + first, *const of_x = x + k * planes.n + first;
      const T mean_k = mean[k];
      const auto of_part = sum_part_fetching<2, T>(part, ahead, [=](int64_t at, auto lanes, auto& sums, auto fetch) {
        fetch(of_dy + at);
        fetch(of_x + at);
        const Vec<T> d = load_n(of_x + at, lanes, mean_k) - mean_k, g = gradient(k, load_n(of_dy + at, lanes), d);
        sums.of[0] += g;
        sums.of[1] += g * d;
      });
      sums[k].dy += reduce_sum(of_part.of[0]);
      sums[k].dy_x += reduce_sum(of_part.of[1]);
    }
  });
}

/// Rows that sum_rows adds among themselves.
constexpr int64_t kRowGroup = 8;

/// Rows, wide ones, that sum_rows should be given at a time: longer sums in T lose digits, shorter ones cost more to
/// combine.
constexpr int64_t kSumRows = 128;

/// The same in rows of C columns.
template <class T>
int64_t rows_to_sum(int64_t C) {
  return kSumRows * WideRows<T>::copies_of(C);
}

/// What sum_rows has for each of C columns: n arrays (C).
template <class T, size_t n>
using Columns = std::array<const T*, n>;

/// Adds to sums (count, C), over `rows` rows, what add(at, lanes, of_column, sum) adds to sum[0..count) for some
/// columns of one row, which are `at` elements from the first one's; of_column[i]: what columns[i] has for them. A
/// group of rows is added among themselves first: fewer loads and stores of the sums, and fewer roundings.
///
/// The arrays `from` are fetched ahead, the next group or two pages, and in the order of memory, which prefetchers see
/// as a stream: the group's rows are too many for them, where several share a page (Zen 4, 64 to 512 channels, from L3:
/// from 20 to 40 GB/s; in the order of use, fetching changes nothing, into L2 it is up to 1.1 times slower).
template <int count, class T, size_t n_columns, class Add, class... From>
DLK_INLINE void sum_whole_rows(int64_t C, int64_t rows, Columns<T, n_columns> columns, T* sums, Add add,
                               const From*... from) {
  constexpr int64_t kAhead = 2 * 4096 / sizeof(T);
  const auto add_group = [&](int64_t n, auto group) {
    int64_t next = n * C + std::max(kRowGroup * C, kAhead);
    for_each_vec<T>(C, [&](int64_t c, auto lanes) {
      Vec<T> sum[count] = {};
      std::array<Vec<T>, n_columns> of_column;
      for (size_t i = 0; i != n_columns; ++i) of_column[i] = load_n(columns[i] + c, lanes);
      int64_t at = n * C + c;
      for (int64_t i = 0; i < group; ++i) {
        asm volatile("" : "+r"(at));  // else the compiler keeps an address for each row, in memory
        (fetch_ahead<Fetch::into_l1>(from + next + i * lanes), ...);
        add(at, lanes, of_column, sum);
        at += C;
      }
      next += group * lanes;
      for (int k = 0; k < count; ++k) store_n(sums + k * C + c, load_n(sums + k * C + c, lanes) + sum[k], lanes);
    });
  };
  int64_t n = 0;
  for (; n + kRowGroup <= rows; n += kRowGroup) add_group(n, std::integral_constant<int64_t, kRowGroup>{});
  if (n < rows) add_group(n, rows - n);
}

/// The same, narrow rows as wide ones. `from` are at the first row.
template <int count, class T, size_t n_columns, class Add, class... From>
DLK_INLINE void sum_rows(int64_t C, int64_t rows, Columns<T, n_columns> columns, T* sums, Add add,
                         const From*... from) {
  const WideRows<T> wide{rows, C};
  const int64_t whole = wide.copies == 1 ? 0 : rows / wide.copies, rest = whole * wide.width;
  if (whole > 0) {
    T repeated[std::max<size_t>(n_columns, 1)][WideRows<T>::kMostColumns],
        sums_of_wide[count * WideRows<T>::kMostColumns];
    Columns<T, n_columns> of_wide;
    for (size_t i = 0; i != n_columns; ++i) {
      std::copy(columns[i], columns[i] + C, repeated[i]), wide.repeat(repeated[i]);
      of_wide[i] = repeated[i];
    }
    std::fill(sums_of_wide, sums_of_wide + count * wide.width, T(0));
    sum_whole_rows<count, T>(wide.width, whole, of_wide, sums_of_wide, add, from...);
    for (int k = 0; k < count; ++k) {
      T* const of_k = sums_of_wide + k * wide.width;
      wide.fold(of_k);
      for (int64_t c = 0; c < C; ++c) sums[k * C + c] += of_k[c];
    }
  }
  sum_whole_rows<count, T>(
      C, rows - whole * wide.copies, columns, sums,
      [=](int64_t at, auto lanes, const auto& of_column, auto* sum) { add(rest + at, lanes, of_column, sum); },
      (from + rest)...);
}

/// For each of C columns of `rows` rows: s1 = sum(x - shift) and s2 = sum((x - shift)^2), which are (2, C). The
/// shift is the mean of the first group of rows, so that one pass over rows_to_sum is enough; of fewer, whose few
/// roundings nothing averages, it is the mean of all. mean(rows) is to make it of the sums over so many, which it finds
/// in `shift`. If these k of n rows have a mean that is off by d, the sum of squared deviations is d^2 k (n - k) / n at
/// least, so that s2 is at most about n / k times it: more digits are not lost.
template <class T, class Mean>
DLK_INLINE void shifted_sums(const T* x, int64_t C, int64_t rows, T* shift, T* s, Mean mean) {
  const int64_t most = rows_to_sum<T>(C), first = rows < most ? rows : most / kSumRows * kRowGroup;
  std::fill(shift, shift + C, T(0));
  std::fill(s, s + 2 * C, T(0));
  sum_rows<1, T>(C, first, Columns<T, 0>{}, shift,
                 [=](int64_t at, auto lanes, const auto&, Vec<T>* sum) { sum[0] += load_n(x + at, lanes); });
  mean(first);
  for (int64_t c = 0; c < C; ++c) shift[c] = finite_or_zero(shift[c]);
  const auto add = [=](int64_t at, auto lanes, const auto& shift, Vec<T>* sum) {
    const Vec<T> d = load_n(x + at, lanes) - shift[0];
    sum[0] += d;
    sum[1] += d * d;
  };
  sum_rows<2, T>(C, rows, Columns<T, 1>{shift}, s, add, x);
}

/// For each of C columns of `rows` rows: sums (2, C) = sum dy, sum dy (x - mean), of gradient(of_column, dy, x - mean)
/// as dy; mean: columns[0].
template <class T, size_t n_columns, class Gradient>
DLK_INLINE void gradient_column_sums(const T* dy, const T* x, Columns<T, n_columns> columns, int64_t C, int64_t rows,
                                     T* sums, Gradient gradient) {
  std::fill(sums, sums + 2 * C, T(0));
  const auto add = [=](int64_t at, auto lanes, const auto& of_column, Vec<T>* sum) {
    const Vec<T> d = load_n(x + at, lanes) - of_column[0], g = gradient(of_column, load_n(dy + at, lanes), d);
    sum[0] += g;
    sum[1] += g * d;
  };
  sum_rows<2, T>(C, rows, columns, sums, add, dy, x);
}

}  // namespace
}  // namespace dlk::cpu
