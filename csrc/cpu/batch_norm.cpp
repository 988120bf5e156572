// Batch normalisation of x (N, C, inner), per channel over its M = N * inner elements:
//     y = (x - mean) a + bias                               a = weight / sqrt(var + eps)
//     dbias = sum dy,  dweight = r sum dy (x - mean)        r = 1 / sqrt(var + eps)
//     training: dx = (dy - dbias / M - (x - mean) r dweight / M) a;   eval: dx = dy a
//
// y may be clamped at once, which saves ReLU's pass over it; then dy counts as 0 where y is at a bound or beyond, which
// backward finds anew from x: it reads that anyway.
//
// inner > 1: vectors run along inner. A thread computes whole channels, a few together if planes are small: statistics
// first, then y while they are still in its cache; sums are over parts of a plane, or of several small ones, combined
// in double. Evaluation takes plane after plane.
//
// inner == 1 (channels_last, 2-D): vectors run along C, or along several rows where it is short (wide_rows.h). Blocks
// of rows are summed by themselves, per channel, and combined in order in double; then each row is normalised.
#include "csrc/core/batch_norm.h"

#include <cmath>

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/moments.h"
#include "csrc/cpu/parallel.h"
#include "csrc/cpu/streaming.h"

namespace dlk::cpu {
namespace {

inline double inverse_std(double var, double eps) { return 1 / std::sqrt(var + eps); }

/// The rows that channels_last x has; of NCHW, none.
template <class T>
WideRows<T> rows_of(BatchNormShape s) {
  return {s.inner == 1 ? s.N : 0, s.C};
}

/// y = (x - mean) a + b for each channel, as arrays over C, or over the columns of wide rows.
template <class T>
struct Affine {
  WideRows<T> rows;
  T *mean, *a, *b;

  Affine(WideRows<T> rows, Context& context)
      : rows(rows),
        mean(context.array<T>(rows.width)),
        a(context.array<T>(rows.width)),
        b(context.array<T>(rows.width)) {}

  void set(int64_t c, T mean_c, T var, const T* weight, const T* bias, double eps) const {
    mean[c] = mean_c;
    a[c] = static_cast<T>((weight ? weight[c] : 1) * inverse_std(var, eps));
    b[c] = bias ? bias[c] : 0;
  }

  void set_all(const T* means, const T* vars, const T* weight, const T* bias, double eps) const {
    std::copy(means, means + rows.C, mean);
    T* const __restrict to = a;  // so that roots and quotients are taken in vectors
    for (int64_t c = 0; c < rows.C; ++c) to[c] = static_cast<T>((weight ? weight[c] : 1) * inverse_std(vars[c], eps));
    for (int64_t c = 0; c < rows.C; ++c) b[c] = bias ? bias[c] : 0;
    for (T* array : {mean, a, b}) rows.repeat(array);
  }
};

/// y as it is.
template <class T>
struct Unclamped {
  using V = Vec<T>;
  static constexpr bool kClamps = false;
  DLK_INLINE V forward(V y) const { return y; }
  DLK_INLINE V backward(V dy, V) const { return dy; }
};

/// y within the bounds, if only below (`above` false) with half of the comparisons.
template <class T, bool above>
struct Clamped {
  using V = Vec<T>;
  static constexpr bool kClamps = true;
  T low, high, lower_edge, upper_edge;

  explicit Clamped(Clamp clamp)
      : low(static_cast<T>(clamp.low)),
        high(static_cast<T>(clamp.high)),
        lower_edge(static_cast<T>(clamp.lower_edge())),
        upper_edge(static_cast<T>(clamp.upper_edge())) {}

  DLK_INLINE V forward(V y) const {
    const V raised = max(splat(low), y);
    return above ? min(splat(high), raised) : raised;
  }
  DLK_INLINE V backward(V dy, V y) const {
    auto flat = y <= lower_edge;
    if constexpr (above) flat |= y >= upper_edge;
    return flat ? V{} : dy;
  }
};

template <class T, class F>
void with_clamp(Clamp clamp, F f) {
  if (clamp.bounds_above()) return f(Clamped<T, true>(clamp));
  clamp.bounds_below() ? f(Clamped<T, false>(clamp)) : f(Unclamped<T>{});
}

inline Planes planes_of(BatchNormShape s) { return {s.N, s.inner, s.C * s.inner}; }

/// Normalises a plane of channel c.
template <bool streams, Fetch fetch, class T, class Clamping>
void normalise_plane(int64_t inner, int64_t c, const T* x, const Affine<T>& affine, Clamping clamp, T* y) {
  const T mean = affine.mean[c], a = affine.a[c], b = affine.b[c];
  for_each_vec<T>(inner, [&](int64_t i, auto lanes) {
    write_n<streams>(y + i, clamp.forward((read_n<fetch>(x + i, lanes) - mean) * a + b), lanes);
  });
}

/// Normalises rows of C channels. (By way of for_each_wide_row, whose closures the compiler keeps in memory, gradients
/// took 1.2 times as long.)
template <class T, class Clamping>
void normalise_rows(const T* x, const Affine<T>& affine, Clamping clamp, T* y) {
  const WideRows<T> rows = affine.rows;
  with_streaming(y, rows.width, 2 * rows.rows * rows.C, [=](auto streams) {
    parallel_for<streams>(rows.count, rows.width, [=](int64_t begin, int64_t end) {
      for_each_block_from_the_end<T>(begin, end, rows.width, [&](int64_t first, int64_t last) {
        for (int64_t n = first, at = n * rows.width; n < last; ++n, at += rows.width)
          for_each_vec<T>(rows.size(n), [&](int64_t c, auto lanes) {
            const Vec<T> d = read_n<kFetchIfStreams<streams>>(x + at + c, lanes) - load_n(affine.mean + c, lanes);
            const Vec<T> v = d * load_n(affine.a + c, lanes) + load_n(affine.b + c, lanes);
            write_n<streams>(y + at + c, clamp.forward(v), lanes);
          });
      });
    });
  });
}

/// mean and var of each column of the N rows.
template <class T>
void column_statistics(BatchNormShape s, const T* x, T* mean, T* var, Context& context) {
  const int64_t C = s.C, block = rows_to_sum<T>(C), blocks = ceil_div(s.N, block);
  T* partial = context.array<T>(blocks * 3 * C);  // per block: shift, s1, s2 of Moments::shifted
  parallel_for(blocks, 2 * block * C, [=](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      T* shift = partial + k * 3 * C;
      shifted_sums(x + k * block * C, C, std::min(block, s.N - k * block), shift, shift + C, [=](int64_t rows) {
        for (int64_t c = 0; c < C; ++c) shift[c] /= static_cast<T>(rows);
      });
    }
  });
  using Wide = typename VecOf<double, kLanes<T> * 8>::type;
  parallel_for(ceil_div(C, kLanes<T>), blocks * kLanes<T>, [=](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) {
      const int64_t c = v * kLanes<T>;
      const int lanes = static_cast<int>(std::min<int64_t>(C - c, kLanes<T>));
      const auto wide = [=](const T* p) { return __builtin_convertvector(load_partial(p + c, lanes), Wide); };
      Moments<Wide> moments;
      for (int64_t k = 0; k < blocks; ++k) {
        const T* p = partial + k * 3 * C;
        const double rows = static_cast<double>(std::min(block, s.N - k * block));
        moments.add(Moments<Wide>::shifted(rows, wide(p), wide(p + C), wide(p + 2 * C)));
      }
      store_partial(mean + c, __builtin_convertvector(moments.mean, Vec<T>), lanes);
      store_partial(var + c, __builtin_convertvector(moments.variance(), Vec<T>), lanes);
    }
  });
}

template <class T>
void forward_training(BatchNormShape s, const T* x, const T* weight, const T* bias, double eps, Clamp bounds, T* y,
                      T* mean, T* var, Context& context) {
  const Affine<T> affine(rows_of<T>(s), context);
  if (s.inner == 1) {
    column_statistics(s, x, mean, var, context);
    affine.set_all(mean, var, weight, bias, eps);
    return with_clamp<T>(bounds, [=](auto clamp) { normalise_rows(x, affine, clamp, y); });
  }
  with_clamp<T>(bounds, [=](auto clamp) {
    with_streaming(y, s.inner, 2 * s.N * s.C * s.inner, [=](auto streams) {
      parallel_for<streams>(s.C, 3 * s.N * s.inner, [=](int64_t begin, int64_t end) {
        for_each_neighbours(s.inner, begin, end, [&](int64_t first, int64_t last) {
          Moments<> moments[kMostNeighbours];
          add_moments(moments, last - first, x + first * s.inner, planes_of(s));
          for (int64_t c = first; c < last; ++c) {
            mean[c] = static_cast<T>(moments[c - first].mean);
            var[c] = static_cast<T>(moments[c - first].variance());
            affine.set(c, mean[c], var[c], weight, bias, eps);
          }
          for (int64_t n = 0; n < s.N; ++n)
            for (int64_t c = first; c < last; ++c) {
              const int64_t plane = (n * s.C + c) * s.inner;
              normalise_plane<streams, Fetch::nothing>(s.inner, c, x + plane, affine, clamp, y + plane);
            }
        });
      });
    });
  });
}

template <class T>
void forward_eval(BatchNormShape s, const T* x, const T* mean, const T* var, const T* weight, const T* bias, double eps,
                  Clamp bounds, T* y, Context& context) {
  const Affine<T> affine(rows_of<T>(s), context);
  affine.set_all(mean, var, weight, bias, eps);
  with_clamp<T>(bounds, [=](auto clamp) {
    if (s.inner == 1) return normalise_rows(x, affine, clamp, y);
    with_streaming(y, s.inner, 2 * s.N * s.C * s.inner, [=](auto streams) {
      parallel_for<streams>(s.N * s.C, s.inner, [=](int64_t begin, int64_t end) {  // planes in the order of memory
        for (int64_t plane = begin; plane < end; ++plane)
          normalise_plane<streams, kFetch<streams>>(s.inner, plane % s.C, x + plane * s.inner, affine, clamp,
                                                    y + plane * s.inner);
      });
    });
  });
}

// ---- Backward

/// The arguments of backward, and dx = (dy - k1 - (x - mean) k2) a for each channel: k1 and k2 as arrays over C, or
/// over the columns of wide rows, as those of `affine`. Threads work on copies, which may stay in registers: see
/// DLK_ONE_COPY.
template <class T, class Clamping>
struct Backward {
  using V = Vec<T>;
  BatchNormShape s;
  bool training;
  const T *dy, *x, *mean, *var;
  double eps;
  Clamping clamp;
  T *dx, *dweight, *dbias;
  Affine<T> affine;
  T *k1, *k2;

  int64_t elements() const { return 3 * s.N * s.C * s.inner; }  // that dx takes to read and write
  bool needs_sums() const { return training || dweight != nullptr || dbias != nullptr; }

  /// From the sums of channel c, its gradients and the constants for its dx.
  void finish(int64_t c, GradientSums sums) const {
    const double r = inverse_std(var[c], eps), M = static_cast<double>(s.N * s.inner);
    if (dweight) dweight[c] = static_cast<T>(sums.dy_x * r);
    if (dbias) dbias[c] = static_cast<T>(sums.dy);
    k1[c] = static_cast<T>(sums.dy / M);
    k2[c] = static_cast<T>(sums.dy_x * r * r / M);
  }

  template <bool streams>
  DLK_INLINE void plane_dx(int64_t n, int64_t c) const {
    const T mean_c = mean[c], k1_c = k1[c], k2_c = k2[c], a = affine.a[c], b = affine.b[c];
    const int64_t plane = (n * s.C + c) * s.inner;
    for_each_vec<T>(s.inner, [&](int64_t i, auto lanes) {
      V g = load_n(dy + plane + i, lanes);
      if (training || Clamping::kClamps) {
        const V d = load_n(x + plane + i, lanes) - mean_c;
        g = clamp.backward(g, d * a + b);
        if (training) g = g - k1_c - d * k2_c;
      }
      write_n<streams>(dx + plane + i, g * a, lanes);
    });
  }

  /// The sums of channels [first, last).
  DLK_INLINE void plane_sums(int64_t first, int64_t last, GradientSums* sums) const {
    const T *const a = affine.a + first, *const b = affine.b + first;
    add_gradient_sums(sums, last - first, dy + first * s.inner, x + first * s.inner, mean + first, planes_of(s),
                      [=, this](int64_t k, V g, V d) { return clamp.backward(g, d * a[k] + b[k]); });
  }

  void by_channel() const {
    with_streaming(dx, s.inner, elements(), [call = *this](auto streams) {
      parallel_for<streams>(call.s.C, 4 * call.s.N * call.s.inner, [=](int64_t begin, int64_t end) {
        for_each_neighbours(call.s.inner, begin, end, [&](int64_t first, int64_t last) {
          GradientSums sums[kMostNeighbours];
          if (call.needs_sums()) call.plane_sums(first, last, sums);
          for (int64_t c = first; c < last; ++c) call.finish(c, sums[c - first]);
          for (int64_t n = 0; n < call.s.N; ++n)
            for (int64_t c = first; c < last; ++c) call.template plane_dx<streams>(n, c);
        });
      });
    });
  }

  /// Sums over the block of `most` rows that begins with `row`: partial[0 or 1][C] = sum dy, sum dy (x - mean).
  DLK_INLINE void block_sums(int64_t row, int64_t most, T* partial) const {
    const T *const of_dy = dy + row * s.C, *const of_x = x + row * s.C;
    const int64_t rows = std::min(most, s.N - row);
    if constexpr (!Clamping::kClamps)
      gradient_column_sums(of_dy, of_x, Columns<T, 1>{mean}, s.C, rows, partial, AsItIs{});
    else
      gradient_column_sums(
          of_dy, of_x, Columns<T, 3>{mean, affine.a, affine.b}, s.C, rows, partial,
          [=, this](const auto& of_column, V g, V d) { return clamp.backward(g, d * of_column[1] + of_column[2]); });
  }

  template <bool streams>
  DLK_INLINE void row_dx(int64_t row, int64_t n) const {
    for_each_vec<T>(n, [&](int64_t c, auto lanes) {
      const V a = load_n(affine.a + c, lanes);
      V g = read_n<kFetchIfStreams<streams>>(dy + row + c, lanes);
      if (training || Clamping::kClamps) {
        const V d = read_n<kFetchIfStreams<streams>>(x + row + c, lanes) - load_n(affine.mean + c, lanes);
        g = clamp.backward(g, d * a + load_n(affine.b + c, lanes));
        if (training) g = g - load_n(k1 + c, lanes) - d * load_n(k2 + c, lanes);
      }
      write_n<streams>(dx + row + c, g * a, lanes);
    });
  }

  void by_row(Context& context) const {
    const int64_t C = s.C, rows = rows_to_sum<T>(C), blocks = needs_sums() ? ceil_div(s.N, rows) : 0;
    T* partial = context.array<T>(blocks * 2 * C);
    parallel_for(blocks, 2 * rows * C, [=, call = *this](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) call.block_sums(k * rows, rows, partial + k * 2 * C);
    });
    parallel_for(C, blocks, [=, call = *this](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        GradientSums sums;
        for (int64_t k = 0; k < blocks; ++k) {
          sums.dy += partial[k * 2 * C + c];
          sums.dy_x += partial[k * 2 * C + C + c];
        }
        call.finish(c, sums);
      }
    });
    for (T* array : {k1, k2}) affine.rows.repeat(array);
    with_streaming(dx, affine.rows.width, elements(), [call = *this](auto streams) {
      const WideRows<T> wide = call.affine.rows;
      parallel_for<streams>(wide.count, 2 * wide.width, [=](int64_t begin, int64_t end) {
        for_each_block_from_the_end<T>(begin, end, wide.width, [&](int64_t first, int64_t last) {
          for (int64_t n = first; n < last; ++n) call.template row_dx<streams>(n * wide.width, wide.size(n));
        });
      });
    });
  }
};

template <class T>
void backward(BatchNormShape s, bool training, const T* dy, const T* x, const T* mean, const T* var, const T* weight,
              const T* bias, double eps, Clamp bounds, T* dx, T* dweight, T* dbias, Context& context) {
  const Affine<T> affine(rows_of<T>(s), context);
  affine.set_all(mean, var, weight, bias, eps);
  T *const k1 = context.array<T>(affine.rows.width), *const k2 = context.array<T>(affine.rows.width);
  with_clamp<T>(bounds, [&](auto clamp) {
    const Backward<T, decltype(clamp)> call{s,     training, dy,      x,     mean,   var, eps,
                                            clamp, dx,       dweight, dbias, affine, k1,  k2};
    s.inner == 1 ? call.by_row(context) : call.by_channel();
  });
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(BatchNormKernels<float>, {forward_training<float>, forward_eval<float>, backward<float>})
DLK_KERNEL_TABLE(BatchNormKernels<double>, {forward_training<double>, forward_eval<double>, backward<double>})
