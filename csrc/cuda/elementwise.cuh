// y[i] = f(x0[i], x1[i], ...): one kernel for all that is computed element by element. A thread takes 16 bytes of each
// operand at a time; the grid strides over the array.
#pragma once

#include "csrc/cuda/vec.cuh"

namespace dlk::DLK_DEVICE {
namespace {

/// Blocks of a grid that strides: a few times what the largest GPU holds at a time.
constexpr int64_t kMaxBlocks = 8192;

template <class T>
unsigned blocks_for(int64_t n) {
  const int64_t blocks = ceil_div(n, int64_t{kThreads} * kLanes<T>);
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

/// body(i) for the first element i of each run of kLanes<T> that is this thread's.
template <class T, class Body>
__device__ __forceinline__ void for_each_run(int64_t n, Body body) {
  const int64_t step = int64_t{gridDim.x} * kThreads * kLanes<T>;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kLanes<T>; i < n; i += step) body(i);
}

/// Any X that has load_operand(X, i, n, aligned) can be an operand; a plain pointer is an array of n elements.
template <class T>
__device__ __forceinline__ Elements<T> load_operand(const T* x, int64_t i, int64_t n, bool aligned) {
  return load_elements(x + i, n - i, aligned);
}

template <class T, class F, class... X>
__global__ void __launch_bounds__(kThreads) map_kernel(int64_t n, bool aligned, F f, T* y, X... x) {
  for_each_run<T>(n, [&](int64_t i) {
    const auto apply = [&](const auto&... operand) {
      Elements<T> out;
#pragma unroll
      for (int j = 0; j < kLanes<T>; ++j) out[j] = f(operand[j]...);
      store_elements(y + i, out, n - i, aligned);
    };
    apply(load_operand(x, i, n, aligned)...);
  });
}

/// y[i] = f(x[i]...) for i < n; y may be one of x. `aligned`: so are all pointers.
template <class T, class F, class... X>
void map(int64_t n, bool aligned, F f, T* y, Stream stream, X... x) {
  launch(map_kernel<T, F, X...>, dim3(blocks_for<T>(n)), dim3(kThreads), 0, stream, n, aligned, f, y, x...);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE
