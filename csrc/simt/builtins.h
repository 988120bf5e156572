// What a kernel sees of CUDA when the host's compiler compiles it: see csrc/cuda/device.cuh.
//
// All of it is in namespace dlk::simt, where kernels are.
#pragma once

#include <math.h>

#include <bit>
#include <cstdint>
#include <cstdio>
#include <type_traits>

#include "csrc/core/types.h"
#include "csrc/simt/collectives.h"
#include "csrc/simt/convert.h"
#include "csrc/simt/executor.h"
#include "csrc/simt/memory.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

#undef assert
#define assert(condition) \
  ((condition) ? void(0) : ::dlk::simt::executor::assertion_failed(#condition, ::dlk::simt::executor::Place::current()))

namespace dlk::simt {

constexpr int warpSize = 32;

namespace executor {
[[noreturn]] void assertion_failed(const char* condition, Place place);
}

// ---- Barriers. That __syncwarp orders the lanes' memory accesses, and shuffles do not, matters to the race detector.

inline void __syncthreads(executor::Place place = executor::Place::current()) { executor::block_barrier(place); }
void __syncwarp(uint32_t mask = 0xffffffff, executor::Place place = executor::Place::current());

// ---- Shuffles and votes.

namespace executor {

template <class T>
struct Shuffle {
  T value;
  int source;
};

/// Every lane gets the value of lane `source`.
struct CombineShuffle {
  template <class T>
  void operator()(Lanes<Shuffle<T>> lanes) const {
    T values[32];
    for (int i = 0; i < 32; ++i)
      if (lanes.has(i)) values[i] = lanes[i].value;
    for (int i = 0; i < 32; ++i) {
      if (!lanes.has(i)) continue;
      const int source = lanes[i].source;
      if (!lanes.has(source))
        fail("lane " + std::to_string(i) + " shuffles from lane " + std::to_string(source) +
             ", which is not in the mask");
      lanes[i].value = values[source];
    }
  }
};

template <class T>
T shuffle(uint32_t mask, const char* kind, Place place, T value, int source) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  return collective<CombineShuffle>(mask, kind, place, Shuffle<T>{value, source}).value;
}

inline int this_lane() { return this_thread() % 32; }

}  // namespace executor

// Lanes shuffle within segments of `width`; who would read beyond its segment keeps its own value.
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, executor::Place place = executor::Place::current()) {
  const int lane = executor::this_lane();
  return executor::shuffle(mask, "__shfl_sync", place, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                 executor::Place place = executor::Place::current()) {
  const int lane = executor::this_lane(), source = lane - int(delta);
  return executor::shuffle(mask, "__shfl_up_sync", place, value, source < (lane & ~(width - 1)) ? lane : source);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                   executor::Place place = executor::Place::current()) {
  const int lane = executor::this_lane(), source = lane + int(delta);
  return executor::shuffle(mask, "__shfl_down_sync", place, value, source > (lane | (width - 1)) ? lane : source);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32,
                  executor::Place place = executor::Place::current()) {
  const int lane = executor::this_lane(), source = lane ^ lane_mask;
  return executor::shuffle(mask, "__shfl_xor_sync", place, value, source > (lane | (width - 1)) ? lane : source);
}

uint32_t __ballot_sync(uint32_t mask, int predicate, executor::Place place = executor::Place::current());
inline int __any_sync(uint32_t mask, int predicate, executor::Place place = executor::Place::current()) {
  return __ballot_sync(mask, predicate, place) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, executor::Place place = executor::Place::current()) {
  return __ballot_sync(mask, predicate, place) == mask;
}

// ---- Integer atomics, which return the value before. Floats have none: results must not depend on the order.

template <class T>
concept AtomicInteger = std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>;

template <AtomicInteger T>
T atomicAdd(T* p, std::type_identity_t<T> value);
template <AtomicInteger T>
T atomicMax(T* p, std::type_identity_t<T> value);
template <AtomicInteger T>
T atomicMin(T* p, std::type_identity_t<T> value);
template <AtomicInteger T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value);

// ---- Arithmetic beyond <math.h>.

template <class T>
  requires std::is_arithmetic_v<T>
T min(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    return fmin(a, b);  // ignores NaN, like CUDA's
  else
    return b < a ? b : a;
}
template <class T>
  requires std::is_arithmetic_v<T>
T max(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    return fmax(a, b);
  else
    return a < b ? b : a;
}

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline double __dmul_rn(double x, double y) { return x * y; }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(unsigned(x)) + 1; }
inline unsigned __umulhi(unsigned x, unsigned y) { return uint64_t(x) * y >> 32; }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
template <class T>
T __ldg(const T* p) {
  return *p;
}

// ---- Launch.

namespace executor {

/// The first one of a macro's arguments: "scale<float, 4>" of "scale<float, 4>, dim3(8), ...".
std::string first_argument(const char* text);

}  // namespace executor

/// The launch() of device.cuh, with the text of its arguments, which has the kernel's name.
template <class... Parameters, class... Arguments>
void launch_named(const char* text, executor::Place place, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                  size_t smem, void* /*stream*/, Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "kernels take pointers and plain structs");
  const auto call = [&] { kernel(static_cast<Parameters>(arguments)...); };
  executor::run({executor::first_argument(text), reinterpret_cast<uintptr_t>(kernel), place, grid, block, smem,
                 [](const void* call_) { (*static_cast<const decltype(call)*>(call_))(); }, &call});
}

}  // namespace dlk::simt

#define launch(...) launch_named(#__VA_ARGS__, std::source_location::current(), __VA_ARGS__)
