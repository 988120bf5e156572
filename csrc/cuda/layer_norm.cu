// Layer and group normalisation of rows of D = channels * inner elements:
//     h = (x - mean) rstd,  y = h weight + bias          mean, rstd: of the row; rstd = 1 / sqrt(var + eps)
//     dx = rstd (g - sum(g) / D - h sum(g h) / D)        g = dy weight, sums over the row
//     dweight = sum dy h,  dbias = sum dy                over all elements that share a weight
//
// y and dx: a row is read by a team of 1 to 32 lanes or by a whole block, once for its sums and once more for the
// result. dweight and dbias are sums by channel of (samples, groups channels, inner) arrays: channels.cuh.
#include <cmath>

#include "csrc/core/layer_norm.h"
#include "csrc/cuda/channels.cuh"

namespace dlk::DLK_DEVICE {
namespace {

/// How rows are laid over the grid.
struct RowGrid {
  RowNormShape shape;
  int64_t D;
  int width;     // of teams
  bool aligned;  // so are all arrays, and all rows in them
  dim3 blocks, threads;
};

template <class T>
RowGrid row_grid(RowNormShape s, bool pointers_aligned) {
  const int64_t D = s.channels * s.inner;
  const int width = row_team<T>(D), threads = width > kThreads ? width : kThreads;
  return {s,
          D,
          width,
          pointers_aligned && D % kLanes<T> == 0,
          dim3(static_cast<unsigned>(ceil_div(s.rows, threads / width))),
          dim3(threads)};
}

/// A thread's part of its row: elements first .. first + kLanes, then `step` further on.
template <class T>
struct Row {
  using A = Accumulate<T>;
  Team team;
  int64_t index, D = 0, start = 0, first, step;
  int64_t first_channel = 0;
  int64_t inner;
  bool exists, aligned;

  __device__ explicit Row(const RowGrid& g)
      : team{g.width},
        index(int64_t{blockIdx.x} * team.count() + team.index()),
        first(team.lane() * kLanes<T>),
        step(team.width * kLanes<T>),
        inner(g.shape.inner),
        exists(index < g.shape.rows),
        aligned(g.aligned) {
    if (!exists) return;
    D = g.D;
    start = index * D;
    first_channel = index % g.shape.groups * g.shape.channels;
  }

  __device__ Elements<T> load(const T* x, int64_t i, A fill = 0) const {
    return load_elements(x + start + i, D - i, aligned, fill);
  }
  __device__ void store(T* y, int64_t i, const Elements<T>& v) const {
    store_elements(y + start + i, v, D - i, aligned);
  }

  /// The weights of elements i, i + 1, ...; `otherwise` if there are none.
  __device__ Elements<T> load_weights(const T* weight, int64_t i, A otherwise) const {
    Elements<T> w;
    if (weight != nullptr && inner == 1) return load_elements(weight + first_channel + i, D - i, aligned);
    int64_t c = i / inner, in_plane = i % inner;
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) {
      w[j] = weight != nullptr && i + j < D ? dlk::DLK_DEVICE::load(weight + first_channel + c) : otherwise;
      if (++in_plane == inner) in_plane = 0, ++c;
    }
    return w;
  }
};

template <class T>
__global__ void __launch_bounds__(kMaxRowThreads)
    forward_kernel(RowGrid grid, const T* x, const T* weight, const T* bias, Accumulate<T> eps, T* y,
                   Accumulate<T>* mean, Accumulate<T>* rstd) {
  using A = Accumulate<T>;
  const Row<T> row(grid);
  Moments<A> moments{};
  for (int64_t i = row.first; i < row.D; i += row.step) moments.add(row.load(x, i), row.D - i);
  moments = row.team.sum(moments);
  const A m = moments.mean(), r = A(1) / std::sqrt(moments.variance() + eps);
  if (row.exists && row.team.lane() == 0) {
    mean[row.index] = m;
    rstd[row.index] = r;
  }
  for (int64_t i = row.first; i < row.D; i += row.step) {
    Elements<T> v = row.load(x, i);
    const Elements<T> w = row.load_weights(weight, i, 1), b = row.load_weights(bias, i, 0);
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) v[j] = (v[j] - m) * r * w[j] + b[j];
    row.store(y, i, v);
  }
}

template <class T>
void forward(RowNormShape s, const T* x, const T* weight, const T* bias, double eps, T* y, Accumulate<T>* mean,
             Accumulate<T>* rstd, Context& context) {
  const RowGrid g = row_grid<T>(s, all_aligned(x, weight, bias, y));
  launch(forward_kernel<T>, g.blocks, g.threads, 0, context.stream(), g, x, weight, bias,
         static_cast<Accumulate<T>>(eps), y, mean, rstd);
}

// ---- Backward

/// a * b, which no compiler fuses into an addition: g - sum(g) of a row of one element is 0 only if both g are the
/// same.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }

template <class T>
__global__ void __launch_bounds__(kMaxRowThreads)
    input_gradient(RowGrid grid, const T* dy, const T* x, const Accumulate<T>* mean, const Accumulate<T>* rstd,
                   const T* weight, T* dx) {
  using A = Accumulate<T>;
  const Row<T> row(grid);
  const A m = row.exists ? mean[row.index] : A(0), r = row.exists ? rstd[row.index] : A(0);
  Tuple<A, 2> sums{};
  for (int64_t i = row.first; i < row.D; i += row.step) {
    const Elements<T> d = row.load(dy, i), v = row.load(x, i), w = row.load_weights(weight, i, 1);
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) {  // beyond the row, d is 0
      const A g = rounded_product(d[j], w[j]);
      sums[0] += g;
      sums[1] += g * ((v[j] - m) * r);
    }
  }
  sums = row.team.sum(sums);
  const A k1 = sums[0] / static_cast<A>(row.D), k2 = sums[1] / static_cast<A>(row.D);
  for (int64_t i = row.first; i < row.D; i += row.step) {
    Elements<T> d = row.load(dy, i);
    const Elements<T> v = row.load(x, i), w = row.load_weights(weight, i, 1);
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) d[j] = (rounded_product(d[j], w[j]) - k1 - (v[j] - m) * r * k2) * r;
    row.store(dx, i, d);
  }
}

/// The sums of a channel: of dy h, and of dy.
template <class T>
struct WeightGradients {
  using A = Accumulate<T>;
  using Value = Tuple<A, 2>;
  using Constants = int64_t;  // the channel's group
  const T *dy, *x;
  const A *mean, *rstd;
  int64_t groups, channels;

  __device__ int64_t constants(int64_t c) const { return groups == 1 ? 0 : c / channels; }

  template <int n>
  __device__ void add(Value (&sums)[n], const int64_t (&group)[n], int64_t sample, int64_t at, int64_t count,
                      bool aligned, int) const {
    const Elements<T> g = load_elements(dy + at, count, aligned), v = load_elements(x + at, count, aligned);
    int64_t row = sample * groups + group[0];
    A m = mean[row], r = rstd[row];
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) {  // beyond count, g is 0
      if (n > 1 && groups > 1 && j < count) {
        row = sample * groups + group[n == 1 ? 0 : j];
        m = mean[row];
        r = rstd[row];
      }
      Value& sum = sums[n == 1 ? 0 : j];
      sum[0] += g[j] * ((v[j] - m) * r);
      sum[1] += g[j];
    }
  }
};

template <class T>
struct StoreGradients {
  T *dweight, *dbias;
  __device__ void operator()(int64_t c, const Tuple<Accumulate<T>, 2>& sums) const {
    dweight[c] = convert<T>(sums[0]);
    dbias[c] = convert<T>(sums[1]);
  }
};

template <class T>
void backward(RowNormShape s, const T* dy, const T* x, const Accumulate<T>* mean, const Accumulate<T>* rstd,
              const T* weight, T* dx, T* dweight, T* dbias, Context& context) {
  const RowGrid g = row_grid<T>(s, all_aligned(dy, x, weight, dx));
  launch(input_gradient<T>, g.blocks, g.threads, 0, context.stream(), g, dy, x, mean, rstd, weight, dx);
  sum_channels<T>(channel_grid<T>(s.rows / s.groups, s.groups * s.channels, s.inner, all_aligned(dy, x)),
                  WeightGradients<T>{dy, x, mean, rstd, s.groups, s.channels}, StoreGradients<T>{dweight, dbias},
                  context);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

DLK_DEVICE_TABLE(RowNormKernels<float>, {forward<float>, backward<float>})
DLK_DEVICE_TABLE(RowNormKernels<double>, {forward<double>, backward<double>})
DLK_DEVICE_TABLE(RowNormKernels<f16>, {forward<f16>, backward<f16>})
DLK_DEVICE_TABLE(RowNormKernels<bf16>, {forward<bf16>, backward<bf16>})
