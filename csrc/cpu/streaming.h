// Non-temporal stores, for outputs that will not stay in the cache: they do not fetch the lines that they overwrite, so
// a copy moves two bytes where plain stores move three. And loads that fetch ahead, for inputs from beyond L2.
//
// A kernel asks once per call, with_streaming(y, row, elements, f), and writes with write_n<streams> within
// parallel_for<streams>, which makes the stores visible before the threads meet.
#pragma once

#include <cstdint>
#include <type_traits>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/parallel.h"
#include "csrc/cpu/simd.h"

namespace dlk::cpu {
namespace {

/// As store, past the caches; p is aligned to a vector.
template <class T>
DLK_INLINE void stream(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#elif defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)v);
#else
  store(p, v);
#endif
}

/// store_n, streaming whole vectors if `streams`.
template <bool streams, class T, class Count>
DLK_INLINE void write_n(T* p, Vec<T> v, Count lanes) {
  if constexpr (streams && !std::is_same_v<Count, int>)
    stream(p, v);
  else
    store_n(p, v, lanes);
}

/// load_n for a kernel that walks once through what may not be in its core's cache: fetches what comes a page later,
/// since hardware prefetchers stop at the end of a page, after which the core would wait until they have started again.
/// Where a vector costs few instructions, one more is felt if L2 has all: there kFetchIfStreams.
template <Fetch fetch = kFetchFarAhead, class T, class Count>
DLK_INLINE Vec<T> read_n(const T* p, Count lanes, T fill = T(0)) {
  constexpr int64_t kPage = 4096 / sizeof(T);
  fetch_ahead<fetch>(p + kPage);
  return load_n(p, lanes, fill);
}

/// Streaming stores leave L1's registers for misses to the loads (relu, 26 MB: 1.18 times faster than into L2).
template <bool streams>
constexpr Fetch kFetch = streams ? Fetch::into_l1 : kFetchFarAhead;
template <bool streams>
constexpr Fetch kFetchIfStreams = streams ? Fetch::into_l1 : Fetch::nothing;

/// f(i, lanes, fetch) as for_each_vec over a row of n elements of each of `operands` matrices, in a pass that finds
/// them in L1 from the one before: memory would idle meanwhile, so fetch(p), for each matrix, fetches what comes a row
/// after p + i. Of rows of which two do not stay in the cache that it fetches into, nothing is fetched.
template <class T, int operands, class F>
DLK_INLINE void for_each_vec_and_next_row(int64_t n, F f) {
  constexpr int64_t kBytes = kFetchFarAhead == Fetch::into_l1 ? 16 * 1024 : 256 * 1024;  // half of L1, a quarter of L2
  constexpr int64_t kMost = kBytes / (2 * operands * sizeof(T));
  if (n > kMost) return for_each_vec<T>(n, [&](int64_t i, auto lanes) { f(i, lanes, [](const T*) {}); });
  for_each_vec<T>(n, [&](int64_t i, auto lanes) { f(i, lanes, [=](const T* p) { fetch_ahead(p + n + i); }); });
}

/// f(std::bool_constant<streams>), where `streams` says whether to stream an output of rows of `row` elements, which
/// are written from their beginning in whole vectors, by a kernel that reads and writes `elements` of T in all. Beyond
/// three quarters of the last cache it pays (1.3 to 1.6 times faster on Zen 3); below, the next layer finds the output
/// there.
template <class T, class F>
void with_streaming(const T* y, int64_t row, int64_t elements, F&& f) {
  const bool aligned = (reinterpret_cast<uintptr_t>(y) | static_cast<uintptr_t>(row * sizeof(T))) % kVecBytes == 0;
  const int64_t cache = last_level_cache(), bytes = elements * int64_t{sizeof(T)};
  if (aligned && cache > 0 && bytes > cache / 4 * 3) return f(std::true_type{});
  f(std::false_type{});
}

}  // namespace
}  // namespace dlk::cpu
