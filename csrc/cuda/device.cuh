// The only header that a kernel file includes. A kernel is written once and compiled twice: by nvcc, for GPUs, into
// namespace dlk::cuda; by the host's compiler, for the executor of csrc/simt, into namespace dlk::simt. A kernel file:
//
//     #include "csrc/cuda/device.cuh"
//     namespace dlk::DLK_DEVICE {
//     namespace {
//     template <class T>
//     __global__ void __launch_bounds__(256) scale(const T* x, T* y, int64_t n, float factor) { ... }
//     template <class T>
//     void forward(const T* x, T* y, int64_t n, Stream stream) {
//       launch(scale<T>, dim3((n + 255) / 256), dim3(256), 0, stream, x, y, n, 2.0f);
//     }
//     }  // namespace
//     }  // namespace dlk::DLK_DEVICE
//     DLK_DEVICE_TABLE(ScaleKernels<float>, {forward<float>})
//
// Kernels use of CUDA what csrc/simt/builtins.h lists, and the following instead of what differs between the compilers.
#pragma once

#include <cstdint>

#include "csrc/core/types.h"
#include "csrc/cuda/dispatch.h"

#ifdef __CUDACC__

#define DLK_DEVICE cuda

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cassert>
#include <type_traits>

/// Shared memory of the block: SHARED(float, tile, [16][17]); is float tile[16][17]. Starts at a multiple of 16.
#define SHARED(T, name, dims) __shared__ alignas(16) T name dims

namespace dlk::cuda {

/// The shared memory whose size is given at launch. Starts at a multiple of 128.
template <class T>
__device__ __forceinline__ T* dynamic_smem() {
  extern __shared__ __align__(128) unsigned char dlk_dynamic_smem[];
  return reinterpret_cast<T*>(dlk_dynamic_smem);
}

/// Runs the kernel on grid x block threads with `smem` bytes of dynamic shared memory, after what `stream` has to do
/// before. Errors stay in cudaGetLastError(). An empty grid is no launch.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t smem, Stream stream,
            Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (smem > 48 << 10)  // more must be asked for; if that fails, so does the launch
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem));
  kernel<<<grid, block, smem, static_cast<cudaStream_t>(stream)>>>(static_cast<Parameters>(arguments)...);
}

/// Between float, double, f16 and bf16, to nearest even.
template <class To, class From>
__device__ __forceinline__ To convert(From x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else if constexpr (std::is_same_v<From, f16>) {
    return convert<To>(__half2float(__ushort_as_half(x.bits)));
  } else if constexpr (std::is_same_v<From, bf16>) {
    return convert<To>(__uint_as_float(static_cast<unsigned>(x.bits) << 16));
  } else if constexpr (std::is_same_v<To, f16>) {
    if constexpr (std::is_same_v<From, double>)
      return {__half_as_ushort(__double2half(x))};
    else
      return {__half_as_ushort(__float2half_rn(x))};
  } else if constexpr (std::is_same_v<To, bf16>) {
    if constexpr (std::is_same_v<From, double>)
      return {__bfloat16_as_ushort(__double2bfloat16(x))};
    else
      return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  } else {
    return static_cast<To>(x);
  }
}

__device__ __forceinline__ void check_alignment(const void*, size_t, const char*) {}

}  // namespace dlk::cuda

#else

#define DLK_DEVICE simt

#include "csrc/simt/builtins.h"

#define SHARED(T, name, dims)     \
  static char dlk_site_of_##name; \
  auto& name =                    \
      *static_cast<T(*) dims>(::dlk::simt::executor::declared_shared(&dlk_site_of_##name, #name, sizeof(T dims)))

namespace dlk::simt {

template <class T>
T* dynamic_smem() {
  return static_cast<T*>(executor::dynamic_shared());
}

}  // namespace dlk::simt

#endif

namespace dlk::DLK_DEVICE {

/// N values that are loaded and stored by one instruction.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  static_assert(sizeof(T) * N <= 16 && (N & (N - 1)) == 0);
  T value[N];
  __host__ __device__ __forceinline__ T& operator[](int i) { return value[i]; }
  __host__ __device__ __forceinline__ const T& operator[](int i) const { return value[i]; }
};

/// Whether load_vec<N> and store_vec can be used at p.
template <class T, int N>
__host__ __device__ __forceinline__ bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % alignof(Pack<T, N>) == 0;
}

template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_vec(const T* p) {
  check_alignment(p, alignof(Pack<T, N>), "load_vec");
  return *reinterpret_cast<const Pack<T, N>*>(p);
}

template <class T, int N>
__device__ __forceinline__ void store_vec(T* p, const Pack<T, N>& values) {
  check_alignment(p, alignof(Pack<T, N>), "store_vec");
  *reinterpret_cast<Pack<T, N>*>(p) = values;
}

}  // namespace dlk::DLK_DEVICE

#include "csrc/cuda/ptx.cuh"
