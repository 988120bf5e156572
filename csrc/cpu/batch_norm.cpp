// Batch normalisation of x (N, C, inner), per channel over its M = N * inner elements:
//     y = (x - mean) a + bias                               a = weight / sqrt(var + eps)
//     dbias = sum dy,  dweight = r sum dy (x - mean)        r = 1 / sqrt(var + eps)
//     training: dx = (dy - dbias / M - (x - mean) r dweight / M) a;   eval: dx = dy a
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
    for (int64_t c = 0; c < rows.C; ++c) set(c, means[c], vars[c], weight, bias, eps);
    for (T* array : {mean, a, b}) rows.repeat(array);
  }
};

inline Planes planes_of(BatchNormShape s) { return {s.N, s.inner, s.C * s.inner}; }

/// Normalises a plane of channel c.
template <bool streams, Fetch fetch, class T>
void normalise_plane(int64_t inner, int64_t c, const T* x, const Affine<T>& affine, T* y) {
  const T mean = affine.mean[c], a = affine.a[c], b = affine.b[c];
  for_each_vec<T>(inner, [&](int64_t i, auto lanes) {
    write_n<streams>(y + i, (read_n<fetch>(x + i, lanes) - mean) * a + b, lanes);
  });
}

/// f(n) for rows [begin, end), in blocks, the last one first: what was read last, for the sums, is still in the cache.
/// (Reading a page ahead misses the first page of each.)
template <class F>
DLK_INLINE void for_each_row_from_the_end(int64_t begin, int64_t end, F f) {
  for (int64_t last = end; last > begin; last -= kSumRows)
    for (int64_t n = std::max(begin, last - kSumRows); n < last; ++n) f(n);
}

/// Normalises rows of C channels.
template <class T>
void normalise_rows(const T* x, const Affine<T>& affine, T* y) {
  const WideRows<T> rows = affine.rows;
  with_streaming(y, rows.width, 2 * rows.rows * rows.C, [=](auto streams) {
    parallel_for<streams>(rows.count, rows.width, [=](int64_t begin, int64_t end) {
      for_each_row_from_the_end(begin, end, [&](int64_t n) {
        const int64_t row = n * rows.width;
        for_each_vec<T>(rows.size(n), [&](int64_t c, auto lanes) {
          const Vec<T> d = read_n<kFetchIfStreams<streams>>(x + row + c, lanes) - load_n(affine.mean + c, lanes);
          write_n<streams>(y + row + c, d * load_n(affine.a + c, lanes) + load_n(affine.b + c, lanes), lanes);
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
void forward_training(BatchNormShape s, const T* x, const T* weight, const T* bias, double eps, T* y, T* mean, T* var,
                      Context& context) {
  const Affine<T> affine(rows_of<T>(s), context);
  if (s.inner == 1) {
    column_statistics(s, x, mean, var, context);
    affine.set_all(mean, var, weight, bias, eps);
    return normalise_rows(x, affine, y);
  }
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
            normalise_plane<streams, Fetch::nothing>(s.inner, c, x + plane, affine, y + plane);
          }
      });
    });
  });
}

template <class T>
void forward_eval(BatchNormShape s, const T* x, const T* mean, const T* var, const T* weight, const T* bias, double eps,
                  T* y, Context& context) {
  const Affine<T> affine(rows_of<T>(s), context);
  affine.set_all(mean, var, weight, bias, eps);
  if (s.inner == 1) return normalise_rows(x, affine, y);
  with_streaming(y, s.inner, 2 * s.N * s.C * s.inner, [=](auto streams) {
    parallel_for<streams>(s.N * s.C, s.inner, [=](int64_t begin, int64_t end) {  // planes in the order of memory
      for (int64_t plane = begin; plane < end; ++plane)
        normalise_plane<streams, kFetch<streams>>(s.inner, plane % s.C, x + plane * s.inner, affine,
                                                  y + plane * s.inner);
    });
  });
}

// ---- Backward

/// dx = (dy - k1 - (x - mean) k2) a for each channel, as arrays over C, or over the columns of wide rows.
template <class T>
struct InputGradient {
  WideRows<T> rows;
  T *mean, *k1, *k2, *a;

  InputGradient(WideRows<T> rows, Context& context)
      : rows(rows),
        mean(context.array<T>(rows.width)),
        k1(context.array<T>(rows.width)),
        k2(context.array<T>(rows.width)),
        a(context.array<T>(rows.width)) {}

  void repeat() const {
    for (T* array : {mean, k1, k2, a}) rows.repeat(array);
  }
};

/// The arguments of backward. Threads work on copies of them, which may stay in registers: see DLK_ONE_COPY.
template <class T>
struct Backward {
  using V = Vec<T>;
  BatchNormShape s;
  bool training;
  const T *dy, *x, *mean, *var, *weight;
  double eps;
  T *dx, *dweight, *dbias;
  InputGradient<T> gradient;

  int64_t elements() const { return 3 * s.N * s.C * s.inner; }  // that dx takes to read and write
  bool needs_sums() const { return training || dweight != nullptr || dbias != nullptr; }

  /// From the sums of channel c, its gradients and the constants for its dx.
  void finish(int64_t c, GradientSums sums) const {
    const double r = inverse_std(var[c], eps), M = static_cast<double>(s.N * s.inner);
    if (dweight) dweight[c] = static_cast<T>(sums.dy_x * r);
    if (dbias) dbias[c] = static_cast<T>(sums.dy);
    gradient.mean[c] = mean[c];
    gradient.k1[c] = static_cast<T>(sums.dy / M);
    gradient.k2[c] = static_cast<T>(sums.dy_x * r * r / M);
    gradient.a[c] = static_cast<T>((weight ? weight[c] : 1) * r);
  }

  template <bool streams>
  DLK_INLINE void plane_dx(int64_t n, int64_t c) const {
    const T mean_c = mean[c], k1 = gradient.k1[c], k2 = gradient.k2[c], a = gradient.a[c];
    const int64_t plane = (n * s.C + c) * s.inner;
    for_each_vec<T>(s.inner, [&](int64_t i, auto lanes) {
      V g = load_n(dy + plane + i, lanes);
      if (training) g = g - k1 - (load_n(x + plane + i, lanes) - mean_c) * k2;
      write_n<streams>(dx + plane + i, g * a, lanes);
    });
  }

  void by_channel() const {
    with_streaming(dx, s.inner, elements(), [call = *this](auto streams) {
      parallel_for<streams>(call.s.C, 4 * call.s.N * call.s.inner, [=](int64_t begin, int64_t end) {
        for_each_neighbours(call.s.inner, begin, end, [&](int64_t first, int64_t last) {
          GradientSums sums[kMostNeighbours];
          const int64_t at = first * call.s.inner;
          if (call.needs_sums())
            add_gradient_sums(sums, last - first, call.dy + at, call.x + at, call.mean + first, planes_of(call.s));
          for (int64_t c = first; c < last; ++c) call.finish(c, sums[c - first]);
          for (int64_t n = 0; n < call.s.N; ++n)
            for (int64_t c = first; c < last; ++c) call.template plane_dx<streams>(n, c);
        });
      });
    });
  }

  /// Sums over the block of `most` rows that begins with `row`: partial[0 or 1][C] = sum dy, sum dy (x - mean).
  DLK_INLINE void block_sums(int64_t row, int64_t most, T* partial) const {
    gradient_column_sums(dy + row * s.C, x + row * s.C, mean, s.C, std::min(most, s.N - row), partial);
  }

  template <bool streams>
  DLK_INLINE void row_dx(int64_t n) const {
    const int64_t row = n * gradient.rows.width;
    for_each_vec<T>(gradient.rows.size(n), [&](int64_t c, auto lanes) {
      V g = read_n<kFetchIfStreams<streams>>(dy + row + c, lanes);
      if (training) {
        const V d = read_n<kFetchIfStreams<streams>>(x + row + c, lanes) - load_n(gradient.mean + c, lanes);
        g = g - load_n(gradient.k1 + c, lanes) - d * load_n(gradient.k2 + c, lanes);
      }
      write_n<streams>(dx + row + c, g * load_n(gradient.a + c, lanes), lanes);
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
    gradient.repeat();
    with_streaming(dx, gradient.rows.width, elements(), [call = *this](auto streams) {
      const WideRows<T> wide = call.gradient.rows;
      parallel_for<streams>(wide.count, 2 * wide.width, [=](int64_t begin, int64_t end) {
        for_each_row_from_the_end(begin, end, [&](int64_t n) { call.template row_dx<streams>(n); });
      });
    });
  }
};

template <class T>
void backward(BatchNormShape s, bool training, const T* dy, const T* x, const T* mean, const T* var, const T* weight,
              double eps, T* dx, T* dweight, T* dbias, Context& context) {
  const Backward<T> call{s,      training, dy, x,       mean,  var,
                         weight, eps,      dx, dweight, dbias, InputGradient<T>(rows_of<T>(s), context)};
  s.inner == 1 ? call.by_row(context) : call.by_channel();
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(BatchNormKernels<float>, {forward_training<float>, forward_eval<float>, backward<float>})
DLK_KERNEL_TABLE(BatchNormKernels<double>, {forward_training<double>, forward_eval<double>, backward<double>})
