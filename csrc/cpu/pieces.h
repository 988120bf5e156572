// Functions of one variable by tables looked up in registers: for AVX-512, whose permutations pick any of 16 or 32
// floats in one instruction. exp as a power of two in sixteenths times a polynomial; tanh and gelu as 32 polynomials,
// half the instructions of a formula with an exp and a division, and more exact:
//
//     f(x) = base[piece] + sum over k of c[k][piece] (x - center[piece])^k
//
// with c[0] what rounding takes from base: the sum is small beside it, so that the result is nearly rounded once.
// The compiler computes the coefficients in double, by interpolation at the Chebyshev nodes of each piece: the error is
// within a few times that of the best polynomial. Largest errors of the floats, in ULP: exp 1.0; tanh 1.0; gelu 1.7
// where it is beyond 1e-6, 45 down to 1e-13 (gelu (tanh): 1.8, 15 down to 1e-8, 225 down to 4e-12); of gelu's slopes,
// which cross 0, at most 7e-8.
#pragma once

#include "csrc/cpu/simd.h"

namespace dlk::cpu {
namespace {

/// gelu (tanh) is x (1 + tanh(u)) / 2, 2 u = kGeluTwoBeta (x + kGeluCubic x^3): 2 sqrt(2 / pi).
constexpr double kGeluTwoBeta = 2 * 0.79788456080286535588, kGeluCubic = 0.044715;

}  // namespace
}  // namespace dlk::cpu

#if defined(__AVX512F__)

namespace dlk::cpu {
namespace {
namespace pieces {

constexpr int kPieces = 32;

// ---- Functions in double, for the compiler

constexpr double exp(double x) {
  constexpr int kHalvings = 10;
  double power = 1, sum = 1;
  for (int n = 1; n <= 12; ++n) sum += power *= x / (1 << kHalvings) / n;
  for (int i = 0; i < kHalvings; ++i) sum *= sum;
  return sum;
}

constexpr double cos(double x) {
  double term = 1, sum = 1;
  for (int n = 2; n <= 40; n += 2) sum += term *= -x * x / (n * (n - 1));
  return sum;
}

constexpr double tanh(double x) { return 1 - 2 / (exp(2 * x) + 1); }

/// Of a standard normal X.
constexpr double density(double x) { return 0.39894228040143267794 * exp(-x * x / 2); }

/// P(X > x).
constexpr double normal_tail(double x) {
  if (x > 3) {
    double fraction = x;  // P(X > x) = density / (x + 1 / (x + 2 / (x + 3 / ...)))
    for (int n = 100; n > 0; --n) fraction = x + n / fraction;
    return density(x) / fraction;
  }
  double term = x, sum = x;  // P(0 < X < x) = density (x + x^3 / 3 + x^5 / (3 5) + ...)
  for (int n = 3; n < 120; n += 2) sum += term *= x * x / n;
  return 0.5 - density(x) * sum;
}

/// What gelu(x) lacks to x, and gelu(-x) to 0; and its derivative, to 1 and to 0.
constexpr double gelu_rest(double x) { return x * normal_tail(x); }
constexpr double gelu_slope_rest(double x) { return normal_tail(x) - x * density(x); }

/// (1 - tanh(u)) / 2 = 1 / (1 + exp(2 u)), which gelu (tanh) has for P(X > x).
constexpr double logistic_tail(double x) { return 1 / (1 + exp(kGeluTwoBeta * (x + kGeluCubic * x * x * x))); }

constexpr double gelu_tanh_rest(double x) { return x * logistic_tail(x); }
constexpr double gelu_tanh_slope_rest(double x) {
  const double tail = logistic_tail(x);
  return tail - x * tail * (1 - tail) * kGeluTwoBeta * (1 + 3 * kGeluCubic * x * x);
}

// ---- Tables

template <int degree>
struct Table {
  alignas(64) float center[kPieces];
  alignas(64) float base[kPieces];
  alignas(64) float c[degree + 1][kPieces];

  /// Makes `piece` the polynomial that has f's values at the Chebyshev nodes of [middle - reach, middle + reach].
  constexpr void fit(int piece, double (*f)(double), double middle, double reach) {
    constexpr double kPi = 3.14159265358979323846;
    double u[degree + 1]{}, values[degree + 1]{}, sum[degree + 1]{};
    for (int i = 0; i <= degree; ++i) {
      u[i] = cos(kPi * (2 * i + 1) / (2 * degree + 2));
      values[i] = f(middle + reach * u[i]);
    }
    for (int k = 1; k <= degree; ++k)  // Newton's divided differences, in place
      for (int i = degree; i >= k; --i) values[i] = (values[i] - values[i - 1]) / (u[i] - u[i - k]);
    for (int i = degree; i >= 0; --i) {  // sum = sum (u - u[i]) + values[i]
      for (int k = degree; k > 0; --k) sum[k] = sum[k - 1] - sum[k] * u[i];
      sum[0] = values[i] - sum[0] * u[i];
    }
    center[piece] = static_cast<float>(middle);
    double scale = 1;
    for (int k = 0; k <= degree; ++k, scale /= reach) c[k][piece] = static_cast<float>(sum[k] * scale);
    base[piece] = c[0][piece];
    c[0][piece] = static_cast<float>(sum[0] - base[piece]);
    if (f(middle) == 0) base[piece] = c[0][piece] = 0;  // it must be exact beside that
  }
};

/// The value of `piece` (its low five bits count) for each lane.
DLK_INLINE Vec<float> look_up(const float (&values)[kPieces], Vec<int32_t> piece) {
  return (Vec<float>)_mm512_permutex2var_ps((__m512)load(values), (__m512i)piece, (__m512)load(values + 16));
}

template <int degree>
DLK_INLINE Vec<float> evaluate(const Table<degree>& table, Vec<int32_t> piece, Vec<float> from_center) {
  Vec<float> y = look_up(table.c[degree], piece);
#pragma GCC unroll 8
  for (int k = degree - 1; k >= 0; --k) y = y * from_center + look_up(table.c[k], piece);
  return y + look_up(table.base, piece);
}

// ---- tanh: four pieces for each power of two, since its relative error counts

constexpr float kLeast = 0.0625f;  // the first piece begins at 0 and not here

/// Exponent and two bits of mantissa, of which five bits tell 32 pieces apart: from kLeast to 256 kLeast.
DLK_INLINE constexpr auto tanh_piece(auto bits) { return bits >> 21; }

constexpr Table<5> make_tanh() {
  Table<5> table{};
  double begin = kLeast;
  for (int i = 0; i < kPieces; ++i) {
    const double width = kLeast * (1 << i / 4) / 4, end = begin + width;
    const int piece = tanh_piece(__builtin_bit_cast(int32_t, static_cast<float>(begin))) & (kPieces - 1);
    i == 0 ? table.fit(piece, tanh, 0, end) : table.fit(piece, tanh, (begin + end) / 2, width / 2);
    begin = end;
  }
  return table;
}
constexpr Table<5> kTanh = make_tanh();

// ---- gelu and its slope, in both forms: pieces of one width

constexpr double kGeluWidth = 0.25;
constexpr float kGeluEnd = (kPieces - 1) * kGeluWidth;  // the last piece: 0, where less than 1e-12 is left

constexpr Table<6> make_gelu_rest(double (*rest)(double)) {
  Table<6> table{};
  for (int i = 0; i < kPieces - 1; ++i) table.fit(i, rest, i * kGeluWidth, kGeluWidth / 2);
  return table;
}
constexpr Table<6> kGeluRest = make_gelu_rest(gelu_rest), kGeluTanhRest = make_gelu_rest(gelu_tanh_rest);
constexpr Table<6> kGeluSlopeRest = make_gelu_rest(gelu_slope_rest);
constexpr Table<6> kGeluTanhSlopeRest = make_gelu_rest(gelu_tanh_slope_rest);

/// At size >= 0; from the end on 0, but of Inf NaN.
DLK_INLINE Vec<float> evaluate_gelu_rest(const Table<6>& rest, Vec<float> size) {
  const Vec<float> magic = splat(12582912.f);  // adding that rounds to an integer
  const Vec<float> shifted = min(splat(kGeluEnd), size) * static_cast<float>(1 / kGeluWidth) + magic;
  return evaluate(rest, (Vec<int32_t>)shifted, size - (shifted - magic) * static_cast<float>(kGeluWidth));
}

// ---- exp: 2^(i / 16)

struct Powers {
  alignas(64) float of_16th[16];
};

constexpr Powers make_powers() {
  Powers powers{};
  for (int i = 0; i < 16; ++i) powers.of_16th[i] = static_cast<float>(exp(0.69314718055994530942 * i / 16));
  return powers;
}
constexpr Powers kPowers = make_powers();

}  // namespace pieces

/// exp(x) for least <= x (at least -104) or NaN, 0 below. The 0 does not come from a product that underflows, for which
/// the processor stops for 100 cycles and more: softmax meets many, masked logits and what fills up a vector.
DLK_INLINE Vec<float> exp_or_zero_below(float least, Vec<float> x) {
  const Vec<float> z = max(splat(least), x);
  // Adding 1.5 * 2^19 rounds to sixteenths, whose last four bits then end the sum.
  const Vec<float> magic = splat(786432.f), shifted = z * 1.44269504088896341f + magic, power = shifted - magic;
  // ln 2 in two parts: the first has 9 significant bits, so power * 0.693359375 is exact.
  const Vec<float> r = (z - power * 0.693359375f) + power * 2.12194440e-4f;
  const Vec<float> expm1 = (r * r) * (r * 0.1666702777147293f + 0.5000162124633789f) + r;  // relative error 1.6e-9
  const Vec<float> of_16ths =
      (Vec<float>)_mm512_maskz_permutexvar_ps(0xFFFF, (__m512i)shifted, (__m512)load(pieces::kPowers.of_16th));
  const Vec<float> y = expm1 * of_16ths + of_16ths;
  const __mmask16 stays = _mm512_cmp_ps_mask((__m512)x, (__m512)splat(least), _CMP_NLT_UQ);
  return (Vec<float>)_mm512_maskz_scalef_ps(stays, (__m512)y, (__m512)power);  // y 2^floor(power)
}

DLK_INLINE Vec<float> piecewise_tanh(Vec<float> x) {
  const Vec<float> size = min(splat(15.9f), abs(x));  // 1 from 9.02 on
  const Vec<int32_t> bits = (Vec<int32_t>)size, least = (Vec<int32_t>)splat(pieces::kLeast);
  const Vec<int32_t> piece = pieces::tanh_piece(bits > least ? bits : least);
  const Vec<float> y = pieces::evaluate(pieces::kTanh, piece, size - pieces::look_up(pieces::kTanh.center, piece));
  return (Vec<float>)((Vec<int32_t>)y | ((Vec<int32_t>)x & INT32_MIN));
}

/// `rest`: of one form or the other.
DLK_INLINE Vec<float> piecewise_gelu(const pieces::Table<6>& rest, Vec<float> x) {
  const Vec<float> size = abs(min(splat(pieces::kGeluEnd), x));  // -Inf gives NaN, as in PyTorch
  return max(splat(0.f), x) - pieces::evaluate_gelu_rest(rest, size);
}

/// The derivative: 0.5 at 0.
DLK_INLINE Vec<float> piecewise_gelu_slope(const pieces::Table<6>& rest, Vec<float> x) {
  const Vec<float> lacks = pieces::evaluate_gelu_rest(rest, abs(x));
  return x > 0.f ? 1.f - lacks : lacks;
}

}  // namespace
}  // namespace dlk::cpu

#endif
