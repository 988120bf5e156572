// Winograd's minimal filtering F(m x m, 3 x 3) (Lavin & Gray 2016; Toom-Cook): m x m outputs of a 3 x 3 correlation
// from (m + 2)^2 products per channel instead of 9 m^2:
//
//   y = A^T [ (G w G^T) . (B^T x B) ] A,    dw = G^T [ (B^T x B) . (A dy A^T) ] G
//
// The matrices follow from the points at which the polynomials are evaluated: pairs +-p, the point 0 if m is even, and
// infinity. Pairs share their even and odd parts, which halves the work, and let one formula serve every m.
//
// The points decide the rounding error. {0, +-5/8, +-3/2, inf} for m = 4 makes half the error of the textbook's
// {0, +-1, +-2, inf}, and {+-3/8, +-5/4, inf} for m = 3 less than half of that of {0, +-1, 2, inf}, at the same cost.
#pragma once

#include "csrc/cpu/simd.h"

namespace dlk::cpu {
namespace {

template <int m>
struct WinogradPoints;
template <>
struct WinogradPoints<2> {
  static constexpr double p[] = {1};
};
template <>
struct WinogradPoints<3> {
  static constexpr double p[] = {0.375, 1.25};
};
template <>
struct WinogradPoints<4> {
  static constexpr double p[] = {0.625, 1.5};
};

/// The five transforms, along one axis. V is a vector type: lanes are channels, each its own problem. Planes are in the
/// order 0 (if it is a point), +p0, -p0, +p1, -p1, ..., infinity.
template <int m>
struct Winograd : WinogradPoints<m> {
  static constexpr int kTile = m, kAlpha = m + 2, kPlanes = kAlpha * kAlpha;
  static constexpr int kPairs = (m + 1) / 2, kZero = m % 2 == 0;  // kZero: 1 if 0 is a point
  using WinogradPoints<m>::p;

  static constexpr int plus(int j) { return kZero + 2 * j; }
  static constexpr int minus(int j) { return kZero + 2 * j + 1; }

  /// Coefficient of x^(2 degree) in the product of (x^2 - p^2) over the pairs but `left_out`.
  static constexpr double even_polynomial(int degree, int left_out = kPairs) {
    double c[kPairs + 1] = {1};
    int n = 0;
    for (int j = 0; j < kPairs; ++j) {
      if (j == left_out) continue;
      ++n;
      for (int i = n; i > 0; --i) c[i] = c[i - 1] - p[j] * p[j] * (i < n ? c[i] : 0);
      c[0] *= -p[j] * p[j];
    }
    return c[degree];
  }
  /// The product of the differences of +p[j] and all other finite points. (For -p[j] it is the same, or without the
  /// point 0 its negative; then Input negates the plane instead.)
  static constexpr double scale(int j) {
    double product = kZero ? 2 * p[j] * p[j] : 2 * p[j];
    for (int l = 0; l < kPairs; ++l)
      if (l != j) product *= p[j] * p[j] - p[l] * p[l];
    return product;
  }
  /// Likewise for the point 0.
  static constexpr double zero_scale() { return even_polynomial(0); }
  static constexpr double power(int j, int exponent) {
    double x = 1;
    for (int i = 0; i < exponent; ++i) x *= p[j];
    return x;
  }

  /// B^T d: kAlpha inputs to kAlpha planes.
  struct Input {
    static constexpr int kIn = kAlpha, kOut = kAlpha;
    template <class V>
    DLK_INLINE static void apply(const V* d, V* v) {
      using T = Lane<V>;
      V infinity = d[kAlpha - 1];
#pragma GCC unroll 4
      for (int i = 0; i < kPairs; ++i) infinity += T(even_polynomial(i)) * d[2 * i + kZero];
      v[kAlpha - 1] = infinity;
      if constexpr (kZero) {
        v[0] = d[kTile];
#pragma GCC unroll 4
        for (int i = 0; i < kPairs; ++i) v[0] += T(even_polynomial(i)) * d[2 * i];
      }
#pragma GCC unroll 4
      for (int j = 0; j < kPairs; ++j) {
        V high = d[kAlpha - 2], low = d[kAlpha - 3];
#pragma GCC unroll 4
        for (int i = 0; i < kPairs - 1; ++i) {
          high += T(even_polynomial(i, j)) * d[2 * i + 1 + kZero];
          low += T(even_polynomial(i, j)) * d[2 * i + kZero];
        }
        v[plus(j)] = high + T(p[j]) * low;
        v[minus(j)] = kZero ? high - T(p[j]) * low : T(p[j]) * low - high;
      }
    }
  };

  /// A^T m: kAlpha planes to kTile outputs.
  struct Output {
    static constexpr int kIn = kAlpha, kOut = kTile;
    template <class V>
    DLK_INLINE static void apply(const V* planes, V* y) {
      using T = Lane<V>;
#pragma GCC unroll 8
      for (int i = 0; i < kTile; ++i) {
        V sum = i == kTile - 1 ? planes[kAlpha - 1] : V{};
        if (i == 0 && kZero) sum = planes[0];
#pragma GCC unroll 4
        for (int j = 0; j < kPairs; ++j) {
          const V both = i % 2 ? planes[plus(j)] - planes[minus(j)] : planes[plus(j)] + planes[minus(j)];
          sum += T(power(j, i)) * both;
        }
        y[i] = sum;
      }
    }
  };

  /// A dy: kTile gradients to kAlpha planes.
  struct Gradient {
    static constexpr int kIn = kTile, kOut = kAlpha;
    template <class V>
    DLK_INLINE static void apply(const V* y, V* z) {
      using T = Lane<V>;
      if constexpr (kZero) z[0] = y[0];
      z[kAlpha - 1] = y[kTile - 1];
#pragma GCC unroll 4
      for (int j = 0; j < kPairs; ++j) {
        V even = y[0], odd = T(p[j]) * y[1];
#pragma GCC unroll 4
        for (int i = 2; i < kTile; ++i) (i % 2 ? odd : even) += T(power(j, i)) * y[i];
        z[plus(j)] = even + odd;
        z[minus(j)] = even - odd;
      }
    }
  };

  /// G w: 3 taps to kAlpha planes.
  struct Weight {
    static constexpr int kIn = 3, kOut = kAlpha;
    template <class V>
    DLK_INLINE static void apply(const V* w, V* u) {
      using T = Lane<V>;
      if constexpr (kZero) u[0] = w[0] * T(1 / zero_scale());
      u[kAlpha - 1] = w[2];
#pragma GCC unroll 4
      for (int j = 0; j < kPairs; ++j) {
        const V even = T(1 / scale(j)) * w[0] + T(p[j] * p[j] / scale(j)) * w[2], odd = T(p[j] / scale(j)) * w[1];
        u[plus(j)] = even + odd;
        u[minus(j)] = even - odd;
      }
    }
  };

  /// G^T m: kAlpha planes to 3 taps.
  struct WeightGradient {
    static constexpr int kIn = kAlpha, kOut = 3;
    template <class V>
    DLK_INLINE static void apply(const V* planes, V* dw) {
      using T = Lane<V>;
      dw[0] = dw[1] = V{}, dw[2] = planes[kAlpha - 1];
      if constexpr (kZero) dw[0] = planes[0] * T(1 / zero_scale());
#pragma GCC unroll 4
      for (int j = 0; j < kPairs; ++j) {
        const V sum = planes[plus(j)] + planes[minus(j)], difference = planes[plus(j)] - planes[minus(j)];
        dw[0] += T(1 / scale(j)) * sum;
        dw[1] += T(p[j] / scale(j)) * difference;
        dw[2] += T(p[j] * p[j] / scale(j)) * sum;
      }
    }
  };
};

/// `Transform` along both axes: store(i, j, value) for each output from load(i, j) of each input.
template <class T, class Transform, class Load, class Store>
DLK_INLINE void transform_2d(Load load, Store store) {
  constexpr int kIn = Transform::kIn, kOut = Transform::kOut;
  Vec<T> half[kOut][kIn];
#pragma GCC unroll 8
  for (int j = 0; j < kIn; ++j) {
    Vec<T> column[kIn], out[kOut];
#pragma GCC unroll 8
    for (int i = 0; i < kIn; ++i) column[i] = load(i, j);
    Transform::apply(column, out);
#pragma GCC unroll 8
    for (int i = 0; i < kOut; ++i) half[i][j] = out[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < kOut; ++i) {
    Vec<T> out[kOut];
    Transform::apply(half[i], out);
#pragma GCC unroll 8
    for (int j = 0; j < kOut; ++j) store(i, j, out[j]);
  }
}

}  // namespace
}  // namespace dlk::cpu
