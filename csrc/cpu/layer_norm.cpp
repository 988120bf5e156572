// Layer and group normalisation of rows of D = channels * inner elements:
//     h = (x - mean) rstd,  y = h weight + bias          mean, rstd: of the row; rstd = 1 / sqrt(var + eps)
//     dx = rstd (g - sum(g) / D - h sum(g h) / D)        g = dy weight, sums over the row
//     dweight = sum dy h,  dbias = sum dy                over all elements that share a weight
//
// inner == 1 (layer normalisation): weights run along the row with x, and so do vectors; the statistics of short rows
// are reduced for several together. Sums over rows are kept per block of kRows rows. inner > 1 (group normalisation):
// vectors run along a plane, whose weight is one number, and everything follows from two sums per plane; for
// channels_last see group_norm.h. A thread computes whole rows, or blocks of them; rows stay in its cache from one pass
// to the next. Blocks are combined in order, in double.
#include "csrc/core/layer_norm.h"

#include <cmath>

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/group_norm.h"
#include "csrc/cpu/moments.h"
#include "csrc/cpu/parallel.h"
#include "csrc/cpu/streaming.h"

namespace dlk::cpu {
namespace {

constexpr int64_t kRows = 32;
constexpr int64_t kColumns = 64;  // columns of one task when blocks of rows are combined

/// `lanes` elements of p from i on, or `otherwise` if p is null.
template <class T, class Count>
DLK_INLINE Vec<T> load_or(const T* p, int64_t i, Count lanes, T otherwise) {
  return p ? load_n(p + i, lanes) : splat(otherwise);
}

/// y of one row. Statistics have read those after it already, up to `next` elements.
template <bool streams, class T>
DLK_INLINE void normalise_row(RowNormShape s, int64_t row, T mean, T rstd, const T* x, const T* weight, const T* bias,
                              T* y, int64_t next = 0) {
  const int64_t first = row % s.groups * s.channels;
  if (s.inner == 1) {
    const auto write = [&](int64_t i, auto lanes) {
      const Vec<T> h = (load_n(x + i, lanes) - mean) * rstd;
      const Vec<T> b = load_or(bias, first + i, lanes, T(0));
      write_n<streams>(y + i, h * load_or(weight, first + i, lanes, T(1)) + b, lanes);
    };
    if (s.channels > kMomentsBlock) return for_each_vec<T>(s.channels, write);  // the prefetchers follow its sums
    return for_each_vec_and_next_row<T, 1>(s.channels, [&](int64_t i, auto lanes, auto fetch) {
      fetch(x + next);
      write(i, lanes);
    });
  }
  for (int64_t k = 0; k < s.channels; ++k) {
    const int64_t c = first + k, plane = k * s.inner;
    const T a = weight ? weight[c] * rstd : rstd, b = bias ? bias[c] : 0;
    for_each_vec<T>(s.inner, [&](int64_t i, auto lanes) {
      write_n<streams>(y + plane + i, (load_n(x + plane + i, lanes) - mean) * a + b, lanes);
    });
  }
}

/// The elements that a vector of y or dx runs along.
int64_t run_of(RowNormShape s) { return s.inner == 1 ? s.channels : s.inner; }

/// Rows whose statistics take longer to reduce than to sum: as many as a vector has lanes are reduced together, where
/// L1 holds that many (1.1 to 2.6 times faster).
template <class T>
bool are_short(RowNormShape s) {
  constexpr int64_t kBytes = 32 * 1024;
  return s.inner == 1 && kLanes<T> * s.channels * static_cast<int64_t>(sizeof(T)) <= kBytes;
}

/// mean and rstd of `count` <= kLanes rows of D elements, a lane each.
template <class T>
void short_row_statistics(int64_t D, int64_t count, const T* x, double eps, T* mean, T* rstd) {
  constexpr int L = kLanes<T>;
  Vec<T> first[L] = {}, second[L] = {};
  const int64_t sampled = sample_of(D);
  for (int64_t r = 0; r < count; ++r) first[r] = lane_sums(sampled, x + r * D);
  double shift[L], s1[L], s2[L];
  sum_lanes_in_double<T>(first, shift);
  for (int64_t r = 0; r < count; ++r) {
    const T near_mean = finite_or_zero(static_cast<T>(shift[r] / static_cast<double>(sampled)));
    const auto powers = sum_vecs_restarting<2, T>(D, [&](int64_t i, auto lanes, auto& sums) {
      const Vec<T> d = load_n(x + r * D + i, lanes, near_mean) - near_mean;
      sums.of[0] += d;
      sums.of[1] += d * d;
    });
    shift[r] = near_mean, first[r] = powers.of[0], second[r] = powers.of[1];
  }
  sum_lanes_in_double<T>(first, s1);
  sum_lanes_in_double<T>(second, s2);
  for (int64_t r = 0; r < count; ++r) {
    const auto moments = Moments<>::shifted(static_cast<double>(D), shift[r], s1[r], s2[r]);
    mean[r] = static_cast<T>(moments.mean);
    rstd[r] = static_cast<T>(1 / std::sqrt(moments.variance() + eps));
  }
}

template <class T>
void forward_short_rows(RowNormShape s, const T* x, const T* weight, const T* bias, double eps, T* y, T* mean,
                        T* rstd) {
  const int64_t D = s.channels;
  with_streaming(y, D, 2 * s.rows * D, [=](auto streams) {
    parallel_for<streams>(ceil_div(s.rows, kLanes<T>), 3 * kLanes<T> * D, [=](int64_t begin, int64_t end) {
      for (int64_t first = begin * kLanes<T>, last; first < std::min(s.rows, end * kLanes<T>); first = last) {
        last = std::min(s.rows, first + kLanes<T>);
        short_row_statistics(D, last - first, x + first * D, eps, mean + first, rstd + first);
        for (int64_t row = first; row < last; ++row)
          normalise_row<streams>(s, row, mean[row], rstd[row], x + row * D, weight, bias, y + row * D,
                                 (kLanes<T> - 1) * D);
      }
    });
  });
}

template <class T>
void forward(RowNormShape s, const T* x, const T* weight, const T* bias, double eps, T* y, T* mean, T* rstd,
             Context& context) {
  if (s.channels_last) return forward_channels_last(s, x, weight, bias, eps, y, mean, rstd, context);
  if (are_short<T>(s)) return forward_short_rows(s, x, weight, bias, eps, y, mean, rstd);
  const int64_t D = s.channels * s.inner;
  with_streaming(y, run_of(s), 2 * s.rows * D, [=](auto streams) {
    parallel_for<streams>(s.rows, 3 * D, [=](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        Moments<> moments;
        add_moments(&moments, 1, x + row * D, {1, D, 0});
        mean[row] = static_cast<T>(moments.mean);
        rstd[row] = static_cast<T>(1 / std::sqrt(moments.variance() + eps));
        normalise_row<streams>(s, row, mean[row], rstd[row], x + row * D, weight, bias, y + row * D);
      }
    });
  });
}

// ---- inner == 1

/// dx of one row, and dweight += dy h, dbias += dy.
template <bool streams, class T>
void backward_row(int64_t D, const T* dy, const T* x, T mean, T rstd, const T* weight, T* dx, T* dweight, T* dbias) {
  using V = Vec<T>;
  double sum_g = 0, sum_gh = 0;
  for (int64_t begin = 0; begin < D; begin += kMomentsBlock) {
    const auto sums = sum_vecs<2, T>(std::min(kMomentsBlock, D - begin), [&](int64_t i, auto lanes, auto& block) {
      const V d = load_n(dy + begin + i, lanes), h = (load_n(x + begin + i, lanes, mean) - mean) * rstd;
      const V g = d * load_or(weight, begin + i, lanes, T(1));
      block.of[0] += g;
      block.of[1] += g * h;
      store_n(dweight + begin + i, load_n(dweight + begin + i, lanes) + d * h, lanes);
      store_n(dbias + begin + i, load_n(dbias + begin + i, lanes) + d, lanes);
    });
    sum_g += reduce_sum(sums.of[0]);
    sum_gh += reduce_sum(sums.of[1]);
  }
  const T k1 = static_cast<T>(sum_g / static_cast<double>(D)), k2 = static_cast<T>(sum_gh / static_cast<double>(D));
  for_each_vec_and_next_row<T, 2>(D, [&](int64_t i, auto lanes, auto fetch) {
    fetch(x), fetch(dy);
    const V h = (load_n(x + i, lanes) - mean) * rstd;
    const V g = load_n(dy + i, lanes) * load_or(weight, i, lanes, T(1));
    write_n<streams>(dx + i, (g - k1 - h * k2) * rstd, lanes);
  });
}

/// sum[i] = the sum over blocks of partial[block * stride + i], for i in [0, D).
template <class T>
void combine_blocks(int64_t blocks, int64_t stride, int64_t D, const T* partial, T* sum) {
  parallel_for(ceil_div(D, kColumns), blocks * kColumns, [=](int64_t first, int64_t last) {
    for (int64_t begin = first * kColumns; begin < std::min(D, last * kColumns); begin += kColumns) {
      const int64_t width = std::min(kColumns, D - begin);
      double total[kColumns] = {};
      for (int64_t k = 0; k < blocks; ++k)
        for (int64_t i = 0; i < width; ++i) total[i] += partial[k * stride + begin + i];
      for (int64_t i = 0; i < width; ++i) sum[begin + i] = static_cast<T>(total[i]);
    }
  });
}

template <class T>
void backward_rows(int64_t rows, int64_t D, const T* dy, const T* x, const T* mean, const T* rstd, const T* weight,
                   T* dx, T* dweight, T* dbias, Context& context) {
  const int64_t blocks = ceil_div(rows, kRows);
  T* partial = context.array<T>(blocks * 2 * D);  // per block: dweight, dbias
  with_streaming(dx, D, 3 * rows * D, [=](auto streams) {
    parallel_for<streams>(blocks, 4 * std::min(rows, kRows) * D, [=](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) {
        T* sums = partial + k * 2 * D;
        std::fill(sums, sums + 2 * D, T(0));
        for (int64_t row = k * kRows; row < std::min(rows, (k + 1) * kRows); ++row)
          backward_row<streams>(D, dy + row * D, x + row * D, mean[row], rstd[row], weight, dx + row * D, sums,
                                sums + D);
      }
    });
  });
  combine_blocks(blocks, 2 * D, D, partial, dweight);
  combine_blocks(blocks, 2 * D, D, partial + D, dbias);
}

// ---- inner > 1, or several groups

template <class T>
void backward_planes(RowNormShape s, const T* dy, const T* x, const T* mean, const T* rstd, const T* weight, T* dx,
                     T* dweight, T* dbias, Context& context) {
  const int64_t D = s.channels * s.inner;
  GradientSums* sums = context.array<GradientSums>(s.rows * s.channels);  // of each plane
  with_streaming(dx, s.inner, 3 * s.rows * D, [=](auto streams) {
    parallel_for<streams>(s.rows, 4 * D, [=](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T m = mean[row], r = rstd[row];
        for (int64_t plane = row * s.channels; plane < (row + 1) * s.channels; ++plane) {
          sums[plane] = {};
          add_gradient_sums(sums + plane, 1, dy + plane * s.inner, x + plane * s.inner, &m, {1, s.inner, 0}, AsItIs{});
        }
        const RowGradient<T> gradient(s, row, sums, weight, r);
        for (int64_t k = 0; k < s.channels; ++k) {
          const T w = weight ? weight[row % s.groups * s.channels + k] : T(1);
          const int64_t at = row * D + k * s.inner;
          for_each_vec<T>(s.inner, [&](int64_t i, auto lanes) {
            const Vec<T> g = load_n(dy + at + i, lanes) * w;
            const Vec<T> d = load_n(x + at + i, lanes) - m;
            write_n<streams>(dx + at + i, (g - gradient.k1 - d * gradient.k2) * r, lanes);
          });
        }
      }
    });
  });
  weight_gradients(s, sums, rstd, dweight, dbias);
}

template <class T>
void backward(RowNormShape s, const T* dy, const T* x, const T* mean, const T* rstd, const T* weight, T* dx, T* dweight,
              T* dbias, Context& context) {
  if (s.channels_last)
    backward_channels_last(s, dy, x, mean, rstd, weight, dx, dweight, dbias, context);
  else if (s.inner == 1 && s.groups == 1)
    backward_rows(s.rows, s.channels, dy, x, mean, rstd, weight, dx, dweight, dbias, context);
  else
    backward_planes(s, dy, x, mean, rstd, weight, dx, dweight, dbias, context);
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(RowNormKernels<float>, {forward<float>, backward<float>})
DLK_KERNEL_TABLE(RowNormKernels<double>, {forward<double>, backward<double>})
