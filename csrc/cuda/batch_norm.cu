// Batch normalisation of x (N, C, inner), per channel over its M = N * inner elements:
//     y = (x - mean) a + bias                               a = weight / sqrt(var + eps)
//     dbias = sum dy,  dweight = r sum dy (x - mean)        r = 1 / sqrt(var + eps)
//     training: dx = (dy - dbias / M - (x - mean) r dweight / M) a;   eval: dx = dy a
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

template <class A>
struct Affine {
  A mean, a, b;
};

template <class T>
struct Normalise {
  using A = Accumulate<T>;
  using Constants = Affine<A>;
  const A *mean, *var;
  const T *weight, *bias;
  A eps;

  __device__ Constants constants(int64_t c) const {
    return {mean[c], load_or(weight, c, 1) * inverse_std(var[c], eps), load_or(bias, c, 0)};
  }
  __device__ A operator()(const Constants& k, A x) const { return (x - k.mean) * k.a + k.b; }
};

template <class T>
void forward_eval(BatchNormShape s, const T* x, const Accumulate<T>* mean, const Accumulate<T>* var, const T* weight,
                  const T* bias, double eps, T* y, Context& context) {
  const Normalise<T> normalise{mean, var, weight, bias, static_cast<Accumulate<T>>(eps)};
  map_channels(channel_grid<T>(s.N, s.C, s.inner, all_aligned(x, y)), normalise, y, context.stream(), x);
}

template <class T>
void forward_training(BatchNormShape s, const T* x, const T* weight, const T* bias, double eps, T* y,
                      Accumulate<T>* mean, Accumulate<T>* var, Context& context) {
  sum_channels<T>(channel_grid<T>(s.N, s.C, s.inner, all_aligned(x)), Statistics<T>{x},
                  StoreStatistics<Accumulate<T>>{mean, var}, context);
  forward_eval(s, x, mean, var, weight, bias, eps, y, context);
}

// ---- Backward

/// The sums of a channel: of dy, and of dy (x - mean).
template <class T>
struct GradientSums {
  using A = Accumulate<T>;
  using Value = Tuple<A, 2>;
  using Constants = A;
  const T *dy, *x;
  const A* mean;

  __device__ A constants(int64_t c) const { return mean[c]; }

  template <int n>
  __device__ void add(Value (&sums)[n], const A (&mean)[n], int64_t, int64_t at, int64_t count, bool aligned,
                      int) const {
    const Elements<T> g = load_elements(dy + at, count, aligned), v = load_elements(x + at, count, aligned);
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) {  // beyond count, g is 0
      Value& sum = sums[n == 1 ? 0 : j];
      sum[0] += g[j];
      sum[1] += g[j] * (v[j] - mean[n == 1 ? 0 : j]);
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
  A mean, k1, k2, a;
};

template <class T>
struct TrainingGradient {
  using A = Accumulate<T>;
  using Constants = GradientConstants<A>;
  const A *mean, *var, *k1, *k2;
  const T* weight;
  A eps;

  __device__ Constants constants(int64_t c) const {
    return {mean[c], k1[c], k2[c], load_or(weight, c, 1) * inverse_std(var[c], eps)};
  }
  __device__ A operator()(const Constants& k, A dy, A x) const { return (dy - k.k1 - (x - k.mean) * k.k2) * k.a; }
};

template <class T>
struct EvalGradient {
  using A = Accumulate<T>;
  using Constants = A;
  const A* var;
  const T* weight;
  A eps;

  __device__ A constants(int64_t c) const { return load_or(weight, c, 1) * inverse_std(var[c], eps); }
  __device__ A operator()(A a, A dy) const { return dy * a; }
};

template <class T>
void backward(BatchNormShape s, bool training, const T* dy, const T* x, const Accumulate<T>* mean,
              const Accumulate<T>* var, const T* weight, double eps, T* dx, T* dweight, T* dbias, Context& context) {
  using A = Accumulate<T>;
  const ChannelGrid grid = channel_grid<T>(s.N, s.C, s.inner, all_aligned(dy, x, dx));
  const A e = static_cast<A>(eps);
  A *k1 = context.array<A>(s.C), *k2 = context.array<A>(s.C);
  if (training || dweight || dbias)
    sum_channels<T>(grid, GradientSums<T>{dy, x, mean},
                    StoreGradients<T>{var, e, static_cast<A>(s.N * s.inner), dweight, dbias, k1, k2}, context);
  if (training)
    map_channels(grid, TrainingGradient<T>{mean, var, k1, k2, weight, e}, dx, context.stream(), dy, x);
  else
    map_channels(grid, EvalGradient<T>{var, weight, e}, dx, context.stream(), dy);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

DLK_DEVICE_TABLE(BatchNormKernels<float>, {forward_training<float>, forward_eval<float>, backward<float>})
DLK_DEVICE_TABLE(BatchNormKernels<double>, {forward_training<double>, forward_eval<double>, backward<double>})
DLK_DEVICE_TABLE(BatchNormKernels<f16>, {forward_training<f16>, forward_eval<f16>, backward<f16>})
DLK_DEVICE_TABLE(BatchNormKernels<bf16>, {forward_training<bf16>, forward_eval<bf16>, backward<bf16>})
