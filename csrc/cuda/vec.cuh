// Consecutive elements as a thread loads, computes and stores them, and the choice of threads that work on them.
//
// Memory is read 16 bytes at a time where its alignment and the number of elements left allow, else one by one: the
// same kernel serves both, and every kernel that streams is written with load_elements and store_elements.
#pragma once

#include <cstdint>

#include "csrc/core/types.h"
#include "csrc/cuda/device.cuh"

namespace dlk::DLK_DEVICE {
namespace {

/// Elements of T in 16 bytes, the widest access.
template <class T>
constexpr int kLanes = 16 / sizeof(T);

/// Threads of a block, unless said otherwise. Larger kernels say __launch_bounds__(kThreads, 1), one block per
/// multiprocessor at least, lest ptxas spill registers to fit another.
constexpr int kThreads = 256;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
__device__ __forceinline__ Accumulate<T> load(const T* p) {
  return convert<Accumulate<T>>(*p);
}

/// N elements in registers, in the type that arithmetic on T is done in.
template <class T, int N = kLanes<T>>
struct Elements {
  Accumulate<T> at[N];
  __device__ __forceinline__ Accumulate<T>& operator[](int i) { return at[i]; }
  __device__ __forceinline__ const Accumulate<T>& operator[](int i) const { return at[i]; }
};

/// The first N of the `count` elements at p, and `fill` for those that are lacking. `aligned`: p is fit for vectors.
template <class T, int N = kLanes<T>>
__device__ __forceinline__ Elements<T, N> load_elements(const T* p, int64_t count, bool aligned,
                                                        Accumulate<T> fill = 0) {
  Elements<T, N> x;
  if (N > 1 && aligned && count >= N) {
    const Pack<T, N> pack = load_vec<N>(p);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = convert<Accumulate<T>>(pack[i]);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = i < count ? load(p + i) : fill;
  }
  return x;
}

/// Writes the first `count` of N elements to p.
template <class T, int N>
__device__ __forceinline__ void store_elements(T* p, const Elements<T, N>& x, int64_t count, bool aligned) {
  if (N > 1 && aligned && count >= N) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack[i] = convert<T>(x[i]);
    store_vec(p, pack);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < count) p[i] = convert<T>(x[i]);
  }
}

/// Whether every pointer is fit for vectors; null is.
template <class... T>
bool all_aligned(const T*... p) {
  return (is_aligned<T, kLanes<T>>(p) && ...);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE
