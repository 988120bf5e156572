// Elementary functions on vectors: exp, expm1, log1p, tanh, sigmoid, the normal tail.
//
// float: polynomials, within 3 ULP (the normal tail: 6) over the whole range, subnormal results, overflow, NaN and Inf
// included. double: the C library's function per lane. float64 serves gradient checks, where exactness counts and speed
// does not. Method: Cody & Waite range reduction; coefficients of exp and log from Cephes (Moshier), of the normal tail
// from our own relative minimax fit (stated there).
#pragma once

#include <cmath>

#include "csrc/cpu/simd.h"

namespace dlk::cpu {
namespace {

/// c[0] + c[1] x + c[2] x^2 + ... by Horner's rule.
template <class V, int n>
DLK_INLINE V polynomial(V x, const float (&c)[n]) {
  V y = splat(c[n - 1]);
#pragma GCC unroll 16
  for (int i = n - 2; i >= 0; --i) y = y * x + c[i];
  return y;
}

/// x = n ln 2 + r with |r| <= ln 2 / 2; returns expm1(r). x must be within the range of float's exponent.
DLK_INLINE Vec<float> reduced_expm1(Vec<float> x, Vec<int32_t>& n) {
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits of the sum.
  const Vec<float> magic = splat(12582912.f);
  const Vec<float> shifted = x * 1.44269504088896341f + magic;
  const Vec<float> whole = shifted - magic;
  n = (Vec<int32_t>)shifted - (Vec<int32_t>)magic;
  // ln 2 in two parts: the first has 9 significant bits, so whole * 0.693359375 is exact.
  const Vec<float> r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  constexpr float c[] = {5.0000001201e-1f, 1.6666665459e-1f, 4.1665795894e-2f,
                         8.3334519073e-3f, 1.3981999507e-3f, 1.9875691500e-4f};
  return polynomial(r, c) * (r * r) + r;
}

/// 2^n for n within a normal exponent.
DLK_INLINE Vec<float> exp2_int(Vec<int32_t> n) { return (Vec<float>)((n + 127) << 23); }

template <class V>
DLK_INLINE V exp(V x) {
  if constexpr (sizeof(Lane<V>) == 8) {
    return lanewise(x, [](double v) { return std::exp(v); });
  } else {
    // Below -104 the result is 0, above 89 it is Inf; in between 2^n is applied in two halves, so that neither
    // a subnormal nor the largest results overflow on the way.
    Vec<int32_t> n;
    const V em1 = reduced_expm1(min(splat(89.f), max(splat(-104.f), x)), n);
    const Vec<int32_t> half = n >> 1;
    return (em1 + 1.f) * exp2_int(half) * exp2_int(n - half);
  }
}

/// exp(x) - 1 for x <= 0 (without cancellation near 0).
template <class V>
DLK_INLINE V expm1_negative(V x) {
  if constexpr (sizeof(Lane<V>) == 8) {
    return lanewise(x, [](double v) { return std::expm1(v); });
  } else {
    Vec<int32_t> n;
    const V em1 = reduced_expm1(max(splat(-30.f), x), n);
    const V scale = exp2_int(n);
    return em1 * scale + (scale - 1.f);
  }
}

/// log(1 + x) for 0 <= x <= 1 (or NaN).
template <class V>
DLK_INLINE V log1p_unit(V x) {
  if constexpr (sizeof(Lane<V>) == 8) {
    return lanewise(x, [](double v) { return std::log1p(v); });
  } else {
    // 1 + x in [1, 2]; above sqrt 2 halve it: log(1 + x) = log((1 + x) / 2) + ln 2, and (1 + x) / 2 - 1 = (x - 1) / 2.
    const auto big = x > 0.41421356f;
    const V r = big ? x * 0.5f - 0.5f : x;
    constexpr float c[] = {3.3333331174e-1f,  -2.4999993993e-1f, 2.0000714765e-1f,  -1.6668057665e-1f, 1.4249322787e-1f,
                           -1.2420140846e-1f, 1.1676998740e-1f,  -1.1514610310e-1f, 7.0376836292e-2f};
    const V z = r * r;
    const V zero = splat(0.f);
    V y = polynomial(r, c) * r * z;
    y = y + (big ? splat(-2.12194440e-4f) : zero);
    y = y - z * 0.5f;
    return (r + y) + (big ? splat(0.693359375f) : zero);
  }
}

template <class V>
DLK_INLINE V tanh(V x) {
  if constexpr (sizeof(Lane<V>) == 8) {
    return lanewise(x, [](double v) { return std::tanh(v); });
  } else {
    // tanh |x| = -t / (t + 2) with t = exp(-2 |x|) - 1 in [-1, 0]: no cancellation, no overflow.
    const V t = expm1_negative(abs(x) * -2.f);
    return copysign(t / (t + 2.f), x);
  }
}

template <class V>
DLK_INLINE V sigmoid(V x) {
  return Lane<V>(1) / (exp(-x) + Lane<V>(1));
}

/// sigmoid(x) and 1 - sigmoid(x), the latter without cancellation where it is small.
template <class V>
DLK_INLINE V sigmoid(V x, V& complement) {
  const V e = exp(-max(splat(Lane<V>(-80)), x));  // e * s would be Inf * 0 below; sigmoid(-80) is 2e-35
  const V s = Lane<V>(1) / (e + Lane<V>(1));
  complement = e * s;
  return s;
}

/// x * x - square exactly, where square is x * x rounded.
DLK_INLINE Vec<float> square_error(Vec<float> x, Vec<float> square) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_fmsub_ps((__m512)x, (__m512)x, (__m512)square);
#elif defined(__FMA__)
  return (Vec<float>)_mm256_fmsub_ps((__m256)x, (__m256)x, (__m256)square);
#else
  // Without FMA: in halves of 12 bits, whose products are exact (Dekker 1971).
  const Vec<float> high = (Vec<float>)((Vec<int32_t>)x & ~0xfff), low = x - high;
  return ((high * high - square) + high * low * 2.f) + low * low;
#endif
}

/// P(X > x) for x >= 0 (or NaN) and a standard normal X, erfc(x / sqrt 2) / 2, with small relative error in the tail.
template <class V>
DLK_INLINE V normal_tail(V x) {
  if constexpr (sizeof(Lane<V>) == 8) {
    return lanewise(x, [](double v) { return std::erfc(v * 0.70710678118654752440) * 0.5; });
  } else {
    // exp(z^2) erfc(z) (1 + 2 z), z = x / sqrt 2, as a polynomial in t = (z - 2) / (z + 2): relative error 5.8e-9 for
    // z <= 7.2; erfc(z) < 1e-22 beyond.
    constexpr float c[] = {1.2769783735275269f,    -0.09276390820741653f,  -0.1660308688879013f,
                           0.16405385732650757f,   -0.05421120673418045f,  -0.00805391650646925f,
                           0.008660535328090191f,  0.0013151764869689941f, -0.0012683934764936566f,
                           -0.0004227604658808559f};
    x = min(splat(20.f), x);
    const V z = x * 0.70710678118654752f;
    const V t = (z - 2.f) / (z + 2.f);
    // exp(-x^2 / 2) with the rounding error of x^2 put back: that alone would be many ULP where x is large.
    const V square = x * x, half_error = square_error(x, square) * 0.5f;
    const V e = exp(square * -0.5f);
    return (e - e * half_error) * polynomial(t, c) / (z * 4.f + 2.f);
  }
}

}  // namespace
}  // namespace dlk::cpu
