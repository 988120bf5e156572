// Elementary functions on vectors: exp, expm1, log, log1p, tanh, sigmoid, the normal tail, gelu and its slope.
//
// float: polynomials (with AVX-512 some from tables, pieces.h), within 2 ULP (the normal tail: 8 down to 1e-7, under
// 100 below, and 0 from 13.2 on; tanh without FMA: 2.2) over the whole range, subnormal results, overflow, NaN and Inf
// included (log: from 1, without Inf). double: the C library's function per lane. float64 serves gradient checks, where
// exactness counts and speed does not. Method: Cody & Waite range reduction; coefficients of log from Cephes (Moshier),
// the others from our own relative minimax fits, with the errors stated.
#pragma once

#include <cmath>

#include "csrc/cpu/pieces.h"
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

constexpr float kLeastNormal = -87.33654f;  // ln 2^-126

/// exp(x) = (1 + expm1) 2^whole, with expm1 in [2^-0.5 - 1, 2^0.5 - 1]; `scale` is 2^whole where that is a normal
/// number.
struct ReducedExp {
  Vec<float> expm1, whole, scale;
};

/// 1 + exp(x), where 2^whole is a normal number: more exactly than by adding 1 to a rounded exp(x).
DLK_INLINE Vec<float> one_plus(ReducedExp e) { return (e.expm1 * e.scale + 1.f) + e.scale; }

/// Of x + low..., where low is tiny: what rounding took from x.
template <class... Low>
DLK_INLINE ReducedExp reduce_exp(Vec<float> x, Low... low) {
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits of the sum; with 127 added, these are the
  // exponent's bits of 2^integer.
  const Vec<float> magic = splat(12582912.f + 127);
  const Vec<float> shifted = x * 1.44269504088896341f + magic;
  const Vec<float> whole = shifted - magic;
  // ln 2 in two parts: the first has 9 significant bits, so whole * 0.693359375 is exact.
  Vec<float> r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  ((r += low), ...);
  constexpr float c[] = {0.4999999403953552f, 0.1666651964187622f, 0.041668400168418884f, 0.00836885068565607f,
                         0.0013814320554956794f};  // relative error 3.1e-9
  return {polynomial(r, c) * (r * r) + r, whole, (Vec<float>)((Vec<int32_t>)shifted << 23)};
}

#if !defined(__AVX512F__)
/// exp(x) for least <= x (at least -104) or NaN, 0 below, as pieces.h has it.
DLK_INLINE Vec<float> exp_or_zero_below(float least, Vec<float> x) {
  const ReducedExp e = reduce_exp(max(splat(least), x));
  const Vec<float> y = x < least ? Vec<float>{} : e.expm1 + 1.f;
  if (least >= kLeastNormal) return y * e.scale;
  // In two halves, so that neither overflows on the way.
  const Vec<int32_t> n = __builtin_convertvector(e.whole, Vec<int32_t>), half = n >> 1;
  return y * (Vec<float>)((half + 127) << 23) * (Vec<float>)((n - half + 127) << 23);
}
#endif

template <class V>
DLK_INLINE V exp(V x) {
  if constexpr (sizeof(Lane<V>) == 8)
    return lanewise(x, [](double v) { return std::exp(v); });
  else
    return exp_or_zero_below(-104.f, min(splat(89.f), x));  // 0 below, Inf above
}

/// exp(x) for x <= 88, in floats with 0 for what would be less than a normal number: for terms of a sum that has a 1 in
/// it, and for probabilities. Without AVX-512 in a fifth fewer instructions.
template <class V>
DLK_INLINE V exp_or_zero(V x) {
  if constexpr (sizeof(Lane<V>) == 8)
    return exp(x);
  else
    return exp_or_zero_below(kLeastNormal, x);
}

/// 1 + exp(x + low...); Inf above 88.375, where exp(x) is within a factor of 1.5 of that.
template <class V, class... Low>
DLK_INLINE V one_plus_exp(V x, Low... low) {
  if constexpr (sizeof(Lane<V>) == 8) {
    return lanewise(x, [](double v) { return 1 + std::exp(v); });
  } else {
    const ReducedExp e = reduce_exp(max(splat(-87.f), x), low...);
    return x > 88.375f ? splat(__builtin_inff()) : one_plus(e);
  }
}

/// exp(x) - 1 for x <= 0 (without cancellation near 0).
template <class V>
DLK_INLINE V expm1_negative(V x) {
  if constexpr (sizeof(Lane<V>) == 8) {
    return lanewise(x, [](double v) { return std::expm1(v); });
  } else {
    const ReducedExp e = reduce_exp(max(splat(-30.f), x));
    return e.expm1 * e.scale + (e.scale - 1.f);
  }
}

/// log((1 + r) 2^whole) for r in [sqrt(1/2) - 1, sqrt(2) - 1].
DLK_INLINE Vec<float> log_of_reduced(Vec<float> r, Vec<float> whole) {
  constexpr float c[] = {3.3333331174e-1f,  -2.4999993993e-1f, 2.0000714765e-1f,  -1.6668057665e-1f, 1.4249322787e-1f,
                         -1.2420140846e-1f, 1.1676998740e-1f,  -1.1514610310e-1f, 7.0376836292e-2f};
  const Vec<float> z = r * r;
  Vec<float> y = polynomial(r, c) * r * z;
  y = y + whole * -2.12194440e-4f;  // ln 2 in two parts, as in reduce_exp
  y = y - z * 0.5f;
  return (r + y) + whole * 0.693359375f;
}

/// log(1 + x) for 0 <= x <= 1 (or NaN).
template <class V>
DLK_INLINE V log1p_unit(V x) {
  if constexpr (sizeof(Lane<V>) == 8) {
    return lanewise(x, [](double v) { return std::log1p(v); });
  } else {
    constexpr float c[] = {-0.4999993145465851f,  0.33330467343330383f,  -0.24958088994026184f,
                           0.19692683219909668f,  -0.15347233414649963f, 0.10666312277317047f,
                           -0.05752066150307655f, 0.020126715302467346f, -0.0033009664621204138f};
    return polynomial(x, c) * (x * x) + x;  // relative error 5.3e-9
  }
}

/// log(x) for 1 <= x < Inf (or NaN).
template <class V>
DLK_INLINE V log_from_one(V x) {
  if constexpr (sizeof(Lane<V>) == 8) {
    return lanewise(x, [](double v) { return std::log(v); });
  } else {
    // x = (1 + r) 2^whole: counted from sqrt(1/2), the exponent's bits of x are those of 2^whole.
    // Unsigned, since x in lanes that nobody reads may be anything, and then the difference wraps around.
    const Vec<int32_t> bits = (Vec<int32_t>)x, whole = (Vec<int32_t>)((Vec<uint32_t>)x - 0x3f3504f3u) >> 23;
    const V y = log_of_reduced((V)(bits - (whole << 23)) - 1.f, __builtin_convertvector(whole, V));
    return x == x ? y : x;
  }
}

/// A product as it is rounded, where the compiler would contract it into a later sum.
DLK_INLINE Vec<float> rounded(Vec<float> product) {
#if defined(__x86_64__)
  asm("" : "+v"(product));
#else
  asm("" : "+w"(product));
#endif
  return product;
}

template <class V>
DLK_INLINE V tanh(V x) {
  if constexpr (sizeof(Lane<V>) == 8) {
    return lanewise(x, [](double v) { return std::tanh(v); });
  } else {
#if defined(__AVX512F__)
    return piecewise_tanh(x);
#else
    // h / (h + 1) with h = (exp(2 |x|) - 1) / 2, reduced as in reduce_exp, but downwards: |x| = whole ln(2) / 2 + r
    // with r in [0, 0.345], and h = half_expm1(r) 2^whole + (2^whole - 1) / 2, where nothing cancels.
    constexpr float c[] = {0.9999999403953552f, 0.666670024394989f,   0.3332708775997162f,
                           0.13386270403862f,   0.04220614209771156f, 0.017220253124833107f};  // relative error 3.3e-10
    const V size = min(splat(10.f), abs(x)), magic = splat(12582912.f + 127);
    const V shifted = (size - 0.17f) * 2.88539008177792681f + magic, whole = shifted - magic;
    const V r = (size - whole * 0.3466796875f) + whole * 1.06097220e-4f;
    const V half_expm1 = polynomial(r, c) * (r * r) + r, scale = (V)((Vec<int32_t>)shifted << 23);
    const V h = half_expm1 * scale + (scale * 0.5f - 0.5f);
    // The quotient y, corrected by one step of Newton's method: h - y (h + 1) = h (1 - y) - y.
    const V reciprocal = 1.f / (h + 1.f), y = rounded(h * reciprocal);
    const V corrected = (h * (1.f - y) - y) * reciprocal + y;
    return (V)((Vec<int32_t>)corrected | ((Vec<int32_t>)x & INT32_MIN));
#endif
  }
}

template <class V>
DLK_INLINE V sigmoid(V x) {
  return Lane<V>(1) / one_plus_exp(-x);
}

/// sigmoid(x) and 1 - sigmoid(x), the latter without cancellation where it is small.
template <class V>
DLK_INLINE V sigmoid_and_complement(V x, V& complement) {
  const V e = exp_or_zero(-max(splat(Lane<V>(-80)), x));  // e * s would be Inf * 0 below; sigmoid(-80) is 2e-35
  const V s = Lane<V>(1) / (e + Lane<V>(1));
  complement = e * s;
  return s;
}

/// a * b - product exactly, where product is a * b rounded.
DLK_INLINE Vec<float> product_error(Vec<float> a, Vec<float> b, Vec<float> product) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_fmsub_ps((__m512)a, (__m512)b, (__m512)product);
#elif defined(__FMA__)
  return (Vec<float>)_mm256_fmsub_ps((__m256)a, (__m256)b, (__m256)product);
#else
  // Without FMA: in halves of 12 bits, whose products are exact (Dekker 1971).
  const Vec<float> a1 = (Vec<float>)((Vec<int32_t>)a & ~0xfff), a2 = a - a1;
  const Vec<float> b1 = (Vec<float>)((Vec<int32_t>)b & ~0xfff), b2 = b - b1;
  return ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2;
#endif
}

/// P(X > x) for x >= 0 (or NaN) and a standard normal X, erfc(x / sqrt 2) / 2, with small relative error in the tail;
/// and exp(-x^2 / 2), sqrt(2 pi) times the density.
template <class V>
DLK_INLINE V normal_tail(V x, V& gaussian) {
  if constexpr (sizeof(Lane<V>) == 8) {
    gaussian = exp(x * x * -0.5);
    return lanewise(x, [](double v) { return std::erfc(v * 0.70710678118654752440) * 0.5; });
  } else {
    // With u = 1 / (x + k): exp(x^2 / 2) P(X > x) = u Q(t), Q a polynomial in t = 1 - 2 k u, relative error 3e-8 for
    // x <= 8.5; P(X > x) < 1e-17 beyond. One division, and k = 4.4 is where 7 degrees reach farthest.
    constexpr float k = 4.4f;
    constexpr float c[] = {0.7618240714073181f, -0.6344382166862488f,  0.4354933202266693f,    -0.2402685582637787f,
                           0.1007719561457634f, -0.02788713574409485f, 0.0022115360479801893f, 0.002894730307161808f};
    constexpr float kEnd = 13.2163f;  // where exp(-x^2 / 2) falls below the normal numbers: it is taken for 0
    x = min(splat(kEnd), x);
    const V u = 1.f / (x + k);  // exactly: the polynomial magnifies what an estimate would lose
    // exp(-x^2 / 2) with the rounding error of the exponent put back: that alone would be many ULP where x is large.
    const V half = x * -0.5f, exponent = half * x;
    const ReducedExp e = reduce_exp(exponent, product_error(half, x, exponent));
    gaussian = (x >= kEnd ? V{} : e.expm1 + 1.f) * e.scale;
    return gaussian * (u * polynomial(1.f - u * (2 * k), c));
  }
}

/// x P(X < x): max(x, 0) - |x| P(X > |x|), which keeps the relative precision of negative x (with AVX-512, down to what
/// pieces.h says).
template <class V>
DLK_INLINE V gelu(V x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Lane<V>) == 4) return piecewise_gelu(pieces::kGeluRest, x);
#endif
  const V size = abs(min(splat(Lane<V>(40)), x));  // Inf must not meet P(-Inf) = 0; -Inf gives NaN, as in PyTorch
  V gaussian;
  return max(V{}, x) - size * normal_tail(size, gaussian);
}

/// Its derivative, P(X < x) + x density(x).
template <class V>
DLK_INLINE V gelu_slope(V x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Lane<V>) == 4) return piecewise_gelu_slope(pieces::kGeluSlopeRest, x);
#endif
  using T = Lane<V>;
  V gaussian;
  const V tail = normal_tail(abs(x), gaussian), cdf = x > T(0) ? T(1) - tail : tail;
  return cdf + x * (gaussian * T(0.39894228040143267794));
}

/// x / (1 + exp(-2 u)), 2 u = kGeluTwoBeta (x + kGeluCubic x^3). For the tail, where that magnifies errors of u up to
/// 20 times, u takes along what rounding takes from it.
template <class V>
DLK_INLINE V gelu_tanh(V x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Lane<V>) == 4) return piecewise_gelu(pieces::kGeluTanhRest, x);
#endif
  using T = Lane<V>;
  constexpr double kTwoBetaCubic = kGeluTwoBeta * kGeluCubic;
  constexpr T a = T(kGeluTwoBeta), b = T(kTwoBetaCubic), a_low = T(kGeluTwoBeta - a), b_low = T(kTwoBetaCubic - b);
  if constexpr (sizeof(T) == 8) {
    return x / one_plus_exp(-x * (x * x * b + a));
  } else {
    const V z = max(splat(-20.f), min(splat(20.f), x));  // beyond, x or 0, and no Inf - Inf on the way
    const V square = z * z, cubic = square * b, slope = cubic + a, twice_u = z * slope;
    const V slope_low = (cubic - (slope - a)) + product_error(square, splat(b), cubic) +
                        product_error(z, z, square) * b + (square * b_low + a_low);
    return x / one_plus_exp(-twice_u, -(product_error(z, slope, twice_u) + z * slope_low));
  }
}

/// Its derivative.
template <class V>
DLK_INLINE V gelu_tanh_slope(V x) {
  using T = Lane<V>;
  constexpr T two_beta = T(kGeluTwoBeta), cubic = T(kGeluCubic);
  const V z = max(splat(T(-20)), min(splat(T(20)), x));  // beyond, 0 or 1, and no Inf * 0 on the way
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return piecewise_gelu_slope(pieces::kGeluTanhSlopeRest, z);
#endif
  V complement;
  const V s = sigmoid_and_complement((z + z * z * z * cubic) * two_beta, complement);
  const V slope = (T(1) + z * z * (3 * cubic)) * two_beta;
  return s + z * s * complement * slope;
}

}  // namespace
}  // namespace dlk::cpu
