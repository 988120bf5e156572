// Softmax over C of a contiguous (outer, C, inner) tensor:
//     softmax      y_c = exp(x_c - m) / s        dx_c = y_c (dy_c - sum_k dy_k y_k)
//     log-softmax  y_c = (x_c - m) - log(s)      dx_c = dy_c - exp(y_c) sum_k dy_k
// with m = max_k x_k and s = sum_k exp(x_k - m) >= 1, so that nothing overflows.
//
// Two passes over a line (lines.cuh): m and s together, then the results. NaN anywhere makes its line NaN, as do +Inf
// and a line of -Inf only.
#include "csrc/core/softmax.h"
#include "csrc/cuda/lines.cuh"

namespace dlk::DLK_DEVICE {
namespace {

template <class T, bool kColumns, bool log>
__global__ void __launch_bounds__(kLineThreads<kColumns>, 1) forward_kernel(LineGrid grid, const T* x, T* y) {
  using A = Accumulate<T>;
  const Line<T, kColumns> line(grid);
  const ExpSum<A> total = exp_sum(line, x);
  const A log_sum = log ? std::log(total.sum) : A(0);
  for (int64_t c = line.first; c < line.C; c += line.step) {
    auto v = line.load(x, c);
#pragma unroll
    for (int i = 0; i < line.kRun; ++i) {
      const A d = v[i] - total.m;
      v[i] = log ? d - log_sum : std::exp(d) / total.sum;
    }
    line.store(y, c, v);
  }
}

template <class T, bool kColumns, bool log>
__global__ void __launch_bounds__(kLineThreads<kColumns>, 1)
    backward_kernel(LineGrid grid, const T* dy, const T* y, T* dx) {
  using A = Accumulate<T>;
  const Line<T, kColumns> line(grid);
  A part = 0;
  for (int64_t c = line.first; c < line.C; c += line.step) {
    const auto g = line.load(dy, c), v = line.load(y, c);
#pragma unroll
    for (int i = 0; i < line.kRun; ++i) part += log ? g[i] : g[i] * v[i];
  }
  const A sum = line.sum(part);
  for (int64_t c = line.first; c < line.C; c += line.step) {
    auto g = line.load(dy, c);
    const auto v = line.load(y, c);
#pragma unroll
    for (int i = 0; i < line.kRun; ++i) g[i] = log ? g[i] - std::exp(v[i]) * sum : v[i] * (g[i] - sum);
    line.store(dx, c, g);
  }
}

template <class T>
void forward(SoftmaxShape shape, bool log, const T* x, T* y, Context& context) {
  const LineGrid g = line_grid<T>(shape, all_aligned(x, y));
  const bool columns = shape.inner > 1;
  const auto kernel = columns ? (log ? forward_kernel<T, true, true> : forward_kernel<T, true, false>)
                              : (log ? forward_kernel<T, false, true> : forward_kernel<T, false, false>);
  launch(kernel, g.blocks, g.threads, 0, context.stream(), g, x, y);
}

template <class T>
void backward(SoftmaxShape shape, bool log, const T* dy, const T* y, T* dx, Context& context) {
  const LineGrid g = line_grid<T>(shape, all_aligned(dy, y, dx));
  const bool columns = shape.inner > 1;
  const auto kernel = columns ? (log ? backward_kernel<T, true, true> : backward_kernel<T, true, false>)
                              : (log ? backward_kernel<T, false, true> : backward_kernel<T, false, false>);
  launch(kernel, g.blocks, g.threads, 0, context.stream(), g, dy, y, dx);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

DLK_DEVICE_TABLE(SoftmaxKernels<float>, {forward<float>, backward<float>})
DLK_DEVICE_TABLE(SoftmaxKernels<double>, {forward<double>, backward<double>})
DLK_DEVICE_TABLE(SoftmaxKernels<f16>, {forward<f16>, backward<f16>})
DLK_DEVICE_TABLE(SoftmaxKernels<bf16>, {forward<bf16>, backward<bf16>})
