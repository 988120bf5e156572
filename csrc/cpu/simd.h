// Vec<T>: the widest vector of the instruction set a file is compiled for, on GCC/Clang vector extensions, so that + -
// * / < and ?: work lane by lane (a comparison gives an integer mask vector of the same lane width). a * b + c
// contracts to one FMA where the hardware has it.
//
// With gemm_kernel.h the only place that knows the vector width. Everything has internal linkage: see dispatch.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "csrc/cpu/isa.h"

namespace dlk::cpu {
namespace {

constexpr Isa kIsa = Isa::DLK_ISA;
constexpr int kVecBytes = kIsa == Isa::avx512 ? 64 : kIsa == Isa::avx2 ? 32 : 16;

template <class T, int bytes>
struct VecOf {
  typedef T type __attribute__((vector_size(bytes)));
};
template <class T>
using Vec = typename VecOf<T, kVecBytes>::type;

/// Vec<T> as it lies anywhere in an array of T. What is stored through it changes T's alone, as far as the compiler is
/// concerned; after a memcpy it would read pointers and sizes in memory again.
template <class T>
struct UnalignedVec {
  typedef T type __attribute__((vector_size(kVecBytes), aligned(alignof(T))));
};

/// The element type of a vector type.
template <class V>
using Lane = std::remove_cvref_t<decltype(std::declval<V>()[0])>;

/// Integers of T's width: what comparisons of Vec<T> give, and what its bits are read as.
template <class T>
using IntOf = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <class T>
inline constexpr int kLanes = kVecBytes / static_cast<int>(sizeof(T));

#ifndef DLK_INLINE  // CMakeLists.txt has another one for sanitizers
#define DLK_INLINE inline __attribute__((always_inline))
#endif

template <class T>
DLK_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};  // 0 - would turn -0.0 into 0.0
}

template <class T>
DLK_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename UnalignedVec<T>::type*>(p);
}

template <class T>
DLK_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename UnalignedVec<T>::type*>(p) = v;
}

/// Lanes begin, begin + 1, ... of x.
template <int begin, class V, int... i>
DLK_INLINE auto lanes_from(V x, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(x, x, (begin + i)...);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
/// All ones in the first n of kLanes<int32_t> lanes.
DLK_INLINE __m256i first_lanes(int64_t n) {
  alignas(64) static constexpr int32_t ones_then_zeros[] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ones_then_zeros + kLanes<int32_t> - n));
}
#endif

/// sum += a * b in place. Left to itself, GCC lets the sum move to a register of a or b that is free by then; of a
/// micro-kernel that fills all registers, it then spills a third of the sums in every step.
template <class T>
DLK_INLINE void add_product(Vec<T>& sum, Vec<T> a, Vec<T> b) {
#if defined(__FMA__)
  if constexpr (sizeof(T) == 4)
    asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  else
    asm("vfmadd231pd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  sum += a * b;
#endif
}

/// sum += a * *b. AVX-512 broadcasts within the instruction: by one of its own, which takes the time of half a product
/// on Zen 4, a tile of one vector reaches three quarters of the peak.
template <class T>
DLK_INLINE void add_product(Vec<T>& sum, Vec<T> a, const T* b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(a), "m"(*b));
  else
    asm("vfmadd231pd %2%{1to8%}, %1, %0" : "+v"(sum) : "v"(a), "m"(*b));
#else
  add_product<T>(sum, a, splat(*b));
#endif
}

#if defined(__AVX512F__)
/// The lanes whose bit is set from memory, the rest `fill`.
template <class T>
DLK_INLINE Vec<T> load_masked(const T* p, uint32_t wanted, T fill) {
  if constexpr (sizeof(T) == 4)
    return (Vec<T>)_mm512_mask_loadu_ps((__m512)splat(fill), static_cast<__mmask16>(wanted), p);
  else
    return (Vec<T>)_mm512_mask_loadu_pd((__m512d)splat(fill), static_cast<__mmask8>(wanted), p);
}
#elif defined(__AVX2__)
/// The lanes that are all ones from memory, the rest `fill`.
DLK_INLINE Vec<float> load_masked(const float* p, __m256i wanted, float fill) {
  return (Vec<float>)_mm256_blendv_ps((__m256)splat(fill), _mm256_maskload_ps(p, wanted), (__m256)wanted);
}
#endif

/// The first n lanes from memory (0 <= n <= kLanes), the rest `fill`; never reads past p + n.
template <class T>
DLK_INLINE Vec<T> load_partial(const T* p, int64_t n, T fill = T(0)) {
#if defined(__AVX512F__)
  if constexpr (std::is_floating_point_v<T>) return load_masked(p, (1u << n) - 1, fill);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) return load_masked(p, first_lanes(n), fill);
#endif
  T buffer[kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i) buffer[i] = i < n ? p[i] : fill;
  return load(buffer);
}

/// Writes the first n lanes of v, not all of them: at most one vector of each smaller power of two.
template <class T, class V>
DLK_INLINE void store_halves(T* p, V v, int64_t n) {
  constexpr int half = sizeof(V) / sizeof(T) / 2;
  if constexpr (half == 1) {
    if (n > 0) p[0] = v[0];
  } else {
    constexpr std::make_integer_sequence<int, half> lanes;
    const auto low = lanes_from<0>(v, lanes), high = lanes_from<half>(v, lanes);
    if (n < half) return store_halves(p, low, n);
    __builtin_memcpy(p, &low, sizeof(low));
    store_halves(p + half, high, n - half);
  }
}

/// Writes the first n lanes (0 <= n <= kLanes) and nothing else.
template <class T>
DLK_INLINE void store_partial(T* p, Vec<T> v, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4 && std::is_floating_point_v<T>)
    return _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
  if constexpr (sizeof(T) == 8 && std::is_floating_point_v<T>)
    return _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
#endif
  if (n == kLanes<T>) return store(p, v);
  store_halves(p, v, n);
}

/// a > b ? a : b, which is b where either is NaN: max(limit, x) keeps a NaN in x.
template <class V>
DLK_INLINE V max(V a, V b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vec<float>>) return (V)_mm512_max_ps((__m512)a, (__m512)b);
  if constexpr (std::is_same_v<V, Vec<double>>) return (V)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<V, Vec<float>>) return (V)_mm256_max_ps((__m256)a, (__m256)b);
#endif
  return a > b ? a : b;
}

/// a < b ? a : b, which is b where either is NaN.
template <class V>
DLK_INLINE V min(V a, V b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vec<float>>) return (V)_mm512_min_ps((__m512)a, (__m512)b);
  if constexpr (std::is_same_v<V, Vec<double>>) return (V)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<V, Vec<float>>) return (V)_mm256_min_ps((__m256)a, (__m256)b);
#endif
  return a < b ? a : b;
}

/// f applied to each lane: for functions that have no vector form here.
template <class V, class F>
DLK_INLINE V lanewise(V x, F f) {
  for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(x[0])); ++i) x[i] = f(x[i]);
  return x;
}

template <class V>
DLK_INLINE V sqrt(V x) {
  return lanewise(x, [](Lane<V> v) { return sizeof(v) == 4 ? __builtin_sqrtf(v) : __builtin_sqrt(v); });
}

template <class V>
DLK_INLINE V abs(V x) {
  using I = Vec<IntOf<Lane<V>>>;
  constexpr IntOf<Lane<V>> sign = IntOf<Lane<V>>(1) << (8 * sizeof(Lane<V>) - 1);
  return (V)((I)x & ~sign);
}

/// |magnitude| with the sign of `sign`.
template <class V>
DLK_INLINE V copysign(V magnitude, V sign) {
  using I = Vec<IntOf<Lane<V>>>;
  constexpr IntOf<Lane<V>> bit = IntOf<Lane<V>>(1) << (8 * sizeof(Lane<V>) - 1);
  return (V)(((I)magnitude & ~bit) | ((I)sign & bit));
}

/// Bit i: lane i of a comparison of Vec<T>.
template <class T, class Mask>
DLK_INLINE uint64_t bits_of_lanes(Mask mask) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_movepi32_mask((__m512i)mask);
  if constexpr (sizeof(T) == 8) return _mm512_movepi64_mask((__m512i)mask);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
  if constexpr (sizeof(T) == 8) return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)mask));
#elif defined(__SSE2__)
  if constexpr (sizeof(T) == 4) return static_cast<uint32_t>(_mm_movemask_ps((__m128)mask));
#endif
  uint64_t bits = 0;
  for (int i = 0; i < kLanes<T>; ++i) bits |= static_cast<uint64_t>(mask[i] & 1) << i;
  return bits;
}

/// The inverse: lane i is all ones if bit first + i of it is set.
template <class T>
DLK_INLINE auto lanes_of_bits(Vec<IntOf<T>> bits, int64_t first) {
  using I = IntOf<T>;
  Vec<I> bit_of_lane;
  for (int i = 0; i < kLanes<T>; ++i) bit_of_lane[i] = I(1) << i;
  return (bits & (bit_of_lane << static_cast<I>(first))) != 0;
}

/// kLanes<float> bytes as 32-bit integers: one instruction that GCC 12 does not find for __builtin_convertvector.
DLK_INLINE Vec<int32_t> widen_bytes(typename VecOf<uint8_t, kLanes<int32_t>>::type bytes) {
#if defined(__AVX512F__)
  return (Vec<int32_t>)_mm512_maskz_cvtepu8_epi32(0xFFFF, (__m128i)bytes);
#elif defined(__AVX2__)
  return (Vec<int32_t>)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(__builtin_bit_cast(int64_t, bytes)));
#else
  return __builtin_convertvector(bytes, Vec<int32_t>);
#endif
}

/// The low bytes of the lanes: the inverse, which GCC 12 does lane by lane.
DLK_INLINE typename VecOf<uint8_t, kLanes<int32_t>>::type narrow_to_bytes(Vec<int32_t> v) {
  using Bytes = typename VecOf<uint8_t, kLanes<int32_t>>::type;
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i low_bytes = _mm256_set1_epi32(0x0C080400);  // of each half, to its first four bytes
  const __m256i halves = _mm256_shuffle_epi8((__m256i)v, low_bytes);
  const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  return __builtin_bit_cast(Bytes, _mm_cvtsi128_si64(both));
#else
  return __builtin_convertvector(v, Bytes);
#endif
}

/// n bytes (1 <= n <= 8), the first lowest: two loads of as many as fit, which overlap.
DLK_INLINE uint64_t load_up_to_8_bytes(const uint8_t* p, int64_t n) {
  const auto both = [=](auto part) {
    decltype(part) low, high;
    __builtin_memcpy(&low, p, sizeof(part));
    __builtin_memcpy(&high, p + n - sizeof(part), sizeof(part));
    return low | static_cast<uint64_t>(high) << 8 * (n - sizeof(part));
  };
  return n >= 4 ? both(uint32_t{}) : n >= 2 ? both(uint16_t{}) : *p;
}

/// Lanes [begin, end), where they lie within a vector, for many loads of them: reads nothing else.
template <class T>
class LanesBetween {
 public:
  LanesBetween() = default;
  LanesBetween(int64_t begin, int64_t end)
      : begin_(std::clamp<int64_t>(begin, 0, kLanes<T>)), end_(std::clamp<int64_t>(end, 0, kLanes<T>)) {
#if defined(__AVX512F__)
    wanted_ = ((1u << end_) - 1) & ~((1u << begin_) - 1);
#elif defined(__AVX2__)
    wanted_ = _mm256_andnot_si256(first_lanes(begin_), first_lanes(end_));
#endif
  }

  /// The rest is `fill`.
  DLK_INLINE Vec<T> load(const T* p, T fill = T(0)) const {
#if defined(__AVX512F__)
    return load_masked(p, wanted_, fill);
#else
#if defined(__AVX2__)
    if constexpr (std::is_same_v<T, float>) return load_masked(p, wanted_, fill);
#endif
    if (begin_ == 0 && end_ == kLanes<T>) return cpu::load(p);
    Vec<T> v = splat(fill);
    for (int64_t i = begin_; i < end_; ++i) v[i] = p[i];
    return v;
#endif
  }
  /// Bytes, as integers of T's width.
  DLK_INLINE Vec<IntOf<T>> load_bytes(const uint8_t* p) const {
    constexpr int n = kLanes<T>;
    using Bytes = typename VecOf<uint8_t, n>::type;
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (n == 16) return widen_bytes((Bytes)_mm_maskz_loadu_epi8(static_cast<__mmask16>(wanted_), p));
#endif
    uint64_t bytes = 0;
    if (begin_ == 0 && end_ == n)
      __builtin_memcpy(&bytes, p, n);
    else if (begin_ < end_)
      bytes = load_up_to_8_bytes(p + begin_, end_ - begin_) << 8 * begin_;
    Bytes narrow;
    __builtin_memcpy(&narrow, &bytes, n);
    if constexpr (sizeof(T) == 4) return widen_bytes(narrow);
    return __builtin_convertvector(narrow, Vec<IntOf<T>>);
  }

 private:
  int64_t begin_ = 0, end_ = 0;
#if defined(__AVX512F__)
  uint32_t wanted_ = 0;
#elif defined(__AVX2__)
  __m256i wanted_{};
#endif
};

/// Writes the low bytes of the first n lanes and nothing else.
DLK_INLINE void store_bytes_partial(uint8_t* p, Vec<int32_t> v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_cvtepi32_storeu_epi8(p, (__mmask16)((1u << n) - 1), (__m512i)v);
#else
  const auto bytes = narrow_to_bytes(v);
  if (n == kLanes<int32_t>)
    __builtin_memcpy(p, &bytes, sizeof(bytes));
  else
    store_halves(p, bytes, n);
#endif
}

/// The 64-bit products of the low 32 bits of each 64-bit lane.
DLK_INLINE Vec<uint64_t> multiply_low_halves(Vec<uint64_t> a, Vec<uint64_t> b) {
#if defined(__AVX512F__)
  return (Vec<uint64_t>)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, (__m512i)b);  // GCC 12 warns of the plain form
#elif defined(__AVX2__)
  return (Vec<uint64_t>)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Vec<uint64_t>)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

/// Combines the lanes pairwise, halves first: always in the same order. f takes scalars and vectors of any length.
template <class V, class F>
DLK_INLINE Lane<V> reduce(V x, F f) {
  constexpr int n = sizeof(V) / sizeof(Lane<V>);
  if constexpr (n == 2) {
    return f(x[0], x[1]);
  } else {
    constexpr std::make_integer_sequence<int, n / 2> half;
    return reduce(f(lanes_from<0>(x, half), lanes_from<n / 2>(x, half)), f);
  }
}

template <class V>
DLK_INLINE Lane<V> reduce_sum(V x) {
  return reduce(x, [](auto a, auto b) { return a + b; });
}

/// The greater of scalars or lanes; NaN if either is NaN.
struct Greater {
  template <class V>
  DLK_INLINE V operator()(V a, V b) const {
    return (a > b) | (a != a) ? a : b;
  }
};

/// The greatest lane; NaN if any lane is NaN.
template <class V>
DLK_INLINE Lane<V> reduce_max(V x) {
  return reduce(x, Greater{});
}

/// Lanes a0 b0 a1 b1 ... of the lower (half = 0) or upper (half = 1) halves of a and b.
template <int half, class V, int... i>
DLK_INLINE V interleave_half(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int n = sizeof...(i);
  return __builtin_shufflevector(a, b, (half * n / 2 + i / 2 + (i % 2) * n)...);
}
template <int half, class V>
DLK_INLINE V interleave(V a, V b) {
  return interleave_half<half>(a, b, std::make_integer_sequence<int, sizeof(V) / sizeof(Lane<V>)>{});
}

/// Every second lane of a followed by b, from lane `first` (0 or 1) on.
template <int first, class V, int... i>
DLK_INLINE V every_second(V a, V b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (2 * i + first)...);
}
template <int first, class V>
DLK_INLINE V every_second(V a, V b) {
  return every_second<first>(a, b, std::make_integer_sequence<int, sizeof(V) / sizeof(Lane<V>)>{});
}

/// Lane i is lane index[i] of x (0 <= index < the lanes of x).
/// The full masks: GCC 12 warns of the plain forms.
template <class V>
DLK_INLINE V permute(V x, Vec<IntOf<Lane<V>>> index) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vec<float>>) return (V)_mm512_maskz_permutexvar_ps(0xFFFF, (__m512i)index, (__m512)x);
  if constexpr (std::is_same_v<V, Vec<double>>) return (V)_mm512_maskz_permutexvar_pd(0xFF, (__m512i)index, (__m512d)x);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<V, Vec<float>>) return (V)_mm256_permutevar8x32_ps((__m256)x, (__m256i)index);
#endif
  V y;
  for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(x[0])); ++i) y[i] = x[index[i]];
  return y;
}

/// Of the lower (half = 0) or upper halves of each 16 bytes of a and b: units of u lanes, in turns.
template <int u, int half, class V, int... i>
DLK_INLINE V interleave_units(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int n = sizeof...(i), w = 16 / sizeof(Lane<V>);
  return __builtin_shufflevector(a, b, (i / w * w + half * (w / 2) + i % w / (2 * u) * u + i % u + i / u % 2 * n)...);
}

/// Blocks of `block` lanes: those in even places of a and b (half = 0), or those in odd places, b's after a's.
template <int block, int half, class V, int... i>
DLK_INLINE V pair_blocks(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int n = sizeof...(i);
  return __builtin_shufflevector(a, b, ((i & ~block) + half * block + ((i & block) ? n : 0))...);
}

/// Replaces rows i and i + distance, for each i whose bit `distance` is not set, by f<0> and f<1> of them.
template <int distance, class V, int n, class F>
DLK_INLINE void butterfly(V (&rows)[n], F f) {
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) {
    if (i & distance) continue;
    const V a = rows[i], b = rows[i + distance];
    rows[i] = f(a, b, std::integral_constant<int, 0>{});
    rows[i + distance] = f(a, b, std::integral_constant<int, 1>{});
  }
}

/// Transposes the kLanes x kLanes matrix whose rows are rows[0..kLanes), in log2(kLanes) steps: within 16 bytes first,
/// where a step is an unpack instruction per row, then across.
template <class T>
DLK_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int n = kLanes<T>, w = 16 / sizeof(T);
  constexpr std::make_integer_sequence<int, n> lanes;
  using V = Vec<T>;
  butterfly<1>(rows, [&](V a, V b, auto half) { return interleave_units<1, half>(a, b, lanes); });
  if constexpr (w == 4) {
    butterfly<2>(rows, [&](V a, V b, auto half) { return interleave_units<2, half>(a, b, lanes); });
    for (int i = 0; i < n; i += w) std::swap(rows[i + 1], rows[i + 2]);
  }
  if constexpr (n >= 2 * w) butterfly<w>(rows, [&](V a, V b, auto half) { return pair_blocks<w, half>(a, b, lanes); });
  if constexpr (n >= 4 * w)
    butterfly<2 * w>(rows, [&](V a, V b, auto half) { return pair_blocks<2 * w, half>(a, b, lanes); });
}

/// What a kernel does about memory that it will read a while later.
enum class Fetch { nothing, into_l1, into_l2 };

/// On Zen 4 what is read now needs the few registers that L1 has for misses: with what comes later fetched into L2,
/// passes over rows and pooling are 1.05 to 1.3 times faster where L2 has not all. On Zen 3 (which has AVX2 only) into
/// L1, as measured there.
constexpr Fetch kFetchFarAhead = kIsa == Isa::avx512 ? Fetch::into_l2 : Fetch::into_l1;

template <Fetch fetch = kFetchFarAhead, class T>
DLK_INLINE void fetch_ahead(const T* p) {
  if constexpr (fetch == Fetch::into_l1) __builtin_prefetch(p, /*write=*/0, 3);
  if constexpr (fetch == Fetch::into_l2) __builtin_prefetch(p, /*write=*/0, 2);
}

/// f(offset, lanes) over [0, n) in steps of a vector; lanes < kLanes only in the last call.
template <class T, class F>
DLK_INLINE void for_each_vec(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) f(i, std::integral_constant<int, kLanes<T>>{});
  if (i < n) f(i, static_cast<int>(n - i));
}

/// The same over the n <= 64 elements that have a bit each: f(i, lanes, kept), kept being lanes of all ones where the
/// bit is set. Bits are put in all lanes first, as many as a lane holds, of which each vector picks its own.
template <class T, class F>
DLK_INLINE void for_each_vec_of_bits(uint64_t bits, int64_t n, F f) {
  using I = IntOf<T>;
  constexpr int64_t kBits = 8 * sizeof(I);
  for (int64_t first = 0; first < n; first += kBits) {
    const Vec<I> some = splat(static_cast<I>(bits >> first));
    for_each_vec<T>(n - first < kBits ? n - first : kBits,
                    [&](int64_t i, auto lanes) { f(first + i, lanes, lanes_of_bits<T>(some, i)); });
  }
}

/// load/store of `lanes` elements as for_each_vec passes them: full vectors when the count is the compile-time width.
template <class T, class Count>
DLK_INLINE Vec<T> load_n(const T* p, Count lanes, T fill = T(0)) {
  if constexpr (std::is_same_v<Count, int>)
    return load_partial(p, lanes, fill);
  else
    return load(p);
}
template <class T, class Count>
DLK_INLINE void store_n(T* p, Vec<T> v, Count lanes) {
  if constexpr (std::is_same_v<Count, int>)
    store_partial(p, v, lanes);
  else
    store(p, v);
}

}  // namespace
}  // namespace dlk::cpu
