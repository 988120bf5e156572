// Batch normalisation of x (N, C, inner), per channel over its M = N * inner elements:
//     y = (x - mean) a + bias                               a = weight / sqrt(var + eps)
//     dbias = sum dy,  dweight = r sum dy (x - mean)        r = 1 / sqrt(var + eps)
//     training: dx = (dy - dbias / M - (x - mean) r dweight / M) a;   eval: dx = dy a
//
// y may be clamped at once; then dy counts as 0 where y is at a bound or beyond, which backward finds anew from x.
//
// Forward: the moments of each channel, then one pass that normalises. Backward: the two sums of each channel, then one
// pass for dx. Both by chunks of channels, see channels.cuh; mean, var and the constants of a pass stay on the device.
#include <cmath>

#include "csrc/core/batch_norm.h"
#include "csrc/cuda/channels.cuh"

namespace dlk::DLK_DEVICE {
namespace {

template <class A>
__device__ __forceinline__ A inverse_std(A var, A eps) {
  return A(1) / std::sqrt(var + eps);
}

/// An array over C that may be null.
template <class T>
__device__ __forceinline__ Accumulate<T> load_or(const T* p, int64_t c, Accumulate<T> otherwise) {
  return p ? load(p + c) : otherwise;
}

/// y as it is.
struct Unclamped {
  template <class A>
  __device__ A forward(A y) const {
    return y;
  }
  template <class A>
  __device__ A backward(A dy, A) const {
    return dy;
  }
};

/// y within the bounds.
template <class A>
struct Clamped {
  A low, high, lower_edge, upper_edge;

  explicit Clamped(Clamp clamp)
      : low(static_cast<A>(clamp.low)),
        high(static_cast<A>(clamp.high)),
        lower_edge(static_cast<A>(clamp.lower_edge())),
        upper_edge(static_cast<A>(clamp.upper_edge())) {}

  __device__ A forward(A y) const { return y < low ? low : y > high ? high : y; }
  __device__ A backward(A dy, A y) const { return y <= lower_edge || y >= upper_edge ? A(0) : dy; }
};

/// Kernels that do not clamp need fewer registers.
template <class A, class F>
void with_clamp(Clamp clamp, F f) {
  clamp.clamps() ? f(Clamped<A>(clamp)) : f(Unclamped{});
}

/// y of x, before it is clamped.
template <class A>
struct Affine {
  A mean, a, b;

  __device__ A operator()(A x) const { return (x - mean) * a + b; }
};

/// That of each channel.
template <class T>
struct AffineOf {
  using A = Accumulate<T>;
  const A *mean, *var;
  const T *weight, *bias;
  A eps;

  __device__ Affine<A> operator()(int64_t c) const {
    return {mean[c], load_or(weight, c, 1) * inverse_std(var[c], eps), load_or(bias, c, 0)};
  }
};

// ---- Forward

/// The statistics of a channel.
template <class T>
struct Statistics {
  using A = Accumulate<T>;
  using Value = Moments<A>;
  using Constants = None;
  const T* x;

  __device__ None constants(int64_t) const { return {}; }

  template <int n>
  __device__ void add(Value (&moments)[n], const None (&)[n], int64_t, int64_t at, int64_t count, bool aligned,
                      int visits) const {
    const Elements<T> v = load_elements(x + at, count, aligned);
    if constexpr (n == 1) {
      moments[0].add(v, count);
    } else {
      const A share = A(1) / static_cast<A>(visits);
#pragma unroll
      for (int j = 0; j < n; ++j) moments[j].add(v[j], static_cast<A>(visits), share);
    }
  }
};

template <class A>
struct StoreStatistics {
  A *mean, *var;
  __device__ void operator()(int64_t c, const Moments<A>& moments) const {
    mean[c] = moments.mean();
    var[c] = moments.variance();
  }
};

template <class T, class Clamping>
struct Normalise {
  using A = Accumulate<T>;
  using Constants = Affine<A>;
  AffineOf<T> affine;
  Clamping clamp;

  __device__ Constants constants(int64_t c) const { return affine(c); }
  __device__ A operator()(const Constants& y, A x) const { return clamp.forward(y(x)); }
};

template <class T>
void forward_eval(BatchNormShape s, const T* x, const Accumulate<T>* mean, const Accumulate<T>* var, const T* weight,
                  const T* bias, double eps, Clamp bounds, T* y, Context& context) {
  using A = Accumulate<T>;
  const AffineOf<T> affine{mean, var, weight, bias, static_cast<A>(eps)};
  const ChannelGrid grid = channel_grid<T>(s.N, s.C, s.inner, all_aligned(x, y));
  with_clamp<A>(bounds,
                [&]<class C>(C clamp) { map_channels(grid, Normalise<T, C>{affine, clamp}, y, context.stream(), x); });
}

template <class T>
void forward_training(BatchNormShape s, const T* x, const T* weight, const T* bias, double eps, Clamp bounds, T* y,
                      Accumulate<T>* mean, Accumulate<T>* var, Context& context) {
  sum_channels<T>(channel_grid<T>(s.N, s.C, s.inner, all_aligned(x)), Statistics<T>{x},
                  StoreStatistics<Accumulate<T>>{mean, var}, context);
  forward_eval(s, x, mean, var, weight, bias, eps, bounds, y, context);
}

// ---- Backward

/// The sums of a channel: of dy, and of dy (x - mean).
template <class T, class Clamping>
struct GradientSums {
  using A = Accumulate<T>;
  using Value = Tuple<A, 2>;
  using Constants = Affine<A>;
  const T *dy, *x;
  AffineOf<T> affine;
  Clamping clamp;

  __device__ Constants constants(int64_t c) const { return affine(c); }

  template <int n>
  __device__ void add(Value (&sums)[n], const Constants (&y)[n], int64_t, int64_t at, int64_t count, bool aligned,
                      int) const {
    const Elements<T> g = load_elements(dy + at, count, aligned), v = load_elements(x + at, count, aligned);
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) {  // beyond count, g is 0
      Value& sum = sums[n == 1 ? 0 : j];
      const Constants& of_channel = y[n == 1 ? 0 : j];
      const A dy_j = clamp.backward(g[j], of_channel(v[j]));
      sum[0] += dy_j;
      sum[1] += dy_j * (v[j] - of_channel.mean);
    }
  }
};

/// From the sums of a channel, its gradients and what its dx needs.
template <class T>
struct StoreGradients {
  using A = Accumulate<T>;
  const A* var;
  A eps, M;
  T *dweight, *dbias;
  A *k1, *k2;

  __device__ void operator()(int64_t c, const Tuple<A, 2>& sums) const {
    const A r = inverse_std(var[c], eps);
    if (dweight) dweight[c] = convert<T>(sums[1] * r);
    if (dbias) dbias[c] = convert<T>(sums[0]);
    k1[c] = sums[0] / M;
    k2[c] = sums[1] * r * r / M;
  }
};

template <class A>
struct GradientConstants {
  Affine<A> y;
  A k1, k2;
};

template <class T, class Clamping>
struct TrainingGradient {
  using A = Accumulate<T>;
  using Constants = GradientConstants<A>;
  AffineOf<T> affine;
  Clamping clamp;
  const A *k1, *k2;

  __device__ Constants constants(int64_t c) const { return {affine(c), k1[c], k2[c]}; }
  __device__ A operator()(const Constants& k, A dy, A x) const {
    return (clamp.backward(dy, k.y(x)) - k.k1 - (x - k.y.mean) * k.k2) * k.y.a;
  }
};

template <class T, class Clamping>
struct EvalGradient {
  using A = Accumulate<T>;
  using Constants = Affine<A>;
  AffineOf<T> affine;
  Clamping clamp;

  __device__ Constants constants(int64_t c) const { return affine(c); }
  __device__ A operator()(const Constants& y, A dy) const { return dy * y.a; }
  __device__ A operator()(const Constants& y, A dy, A x) const { return clamp.backward(dy, y(x)) * y.a; }
};

template <class T>
void backward(BatchNormShape s, bool training, const T* dy, const T* x, const Accumulate<T>* mean,
              const Accumulate<T>* var, const T* weight, const T* bias, double eps, Clamp bounds, T* dx, T* dweight,
              T* dbias, Context& context) {
  using A = Accumulate<T>;
  const ChannelGrid grid = channel_grid<T>(s.N, s.C, s.inner, all_aligned(dy, x, dx));
  const A e = static_cast<A>(eps);
  const AffineOf<T> affine{mean, var, weight, bias, e};
  A *k1 = context.array<A>(s.C), *k2 = context.array<A>(s.C);
  with_clamp<A>(bounds, [&]<class C>(C clamp) {
    if (training || dweight || dbias)
      sum_channels<T>(grid, GradientSums<T, C>{dy, x, affine, clamp},
                      StoreGradients<T>{var, e, static_cast<A>(s.N * s.inner), dweight, dbias, k1, k2}, context);
    if (training)
      map_channels(grid, TrainingGradient<T, C>{affine, clamp, k1, k2}, dx, context.stream(), dy, x);
    else if constexpr (std::is_same_v<C, Unclamped>)
      map_channels(grid, EvalGradient<T, C>{affine, clamp}, dx, context.stream(), dy);
    else
      map_channels(grid, EvalGradient<T, C>{affine, clamp}, dx, context.stream(), dy, x);
  });
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

DLK_DEVICE_TABLE(BatchNormKernels<float>, {forward_training<float>, forward_eval<float>, backward<float>})
DLK_DEVICE_TABLE(BatchNormKernels<double>, {forward_training<double>, forward_eval<double>, backward<double>})
DLK_DEVICE_TABLE(BatchNormKernels<f16>, {forward_training<f16>, forward_eval<f16>, backward<f16>})
DLK_DEVICE_TABLE(BatchNormKernels<bf16>, {forward_training<bf16>, forward_eval<bf16>, backward<bf16>})
