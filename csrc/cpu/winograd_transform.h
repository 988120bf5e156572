// Winograd's minimal filtering F(m, r) (Lavin & Gray 2016; Toom-Cook): m outputs of a correlation with r taps from
// m + r - 1 products per channel instead of m r; along both axes of an image, F(m x m, r x r), from the square of that:
//
//   y = A^T [ (G w G^T) . (B^T x B) ] A,    dw = G^T [ (B^T x B) . (A dy A^T) ] G
//
// The matrices follow from the points at which the polynomials are evaluated: pairs +-p, the point 0 if m + r is odd,
// and infinity. Pairs share their even and odd parts, which halves the work, and let one formula serve every m and r.
//
// The points decide the rounding error. {0, +-5/8, +-3/2, inf} for 6 planes makes half the error of the textbook's
// {0, +-1, +-2, inf}, and {+-3/8, +-5/4, inf} for 5 less than half of that of {0, +-1, 2, inf}, at the same cost.
#pragma once

#include "csrc/cpu/simd.h"

namespace dlk::cpu {
namespace {

template <int planes>
struct WinogradPoints;
template <>
struct WinogradPoints<1> {
  static constexpr double p[] = {0};  // none: the point is infinity
};
template <>
struct WinogradPoints<4> {
  static constexpr double p[] = {1};
};
template <>
struct WinogradPoints<5> {
  static constexpr double p[] = {0.375, 1.25};
};
template <>
struct WinogradPoints<6> {
  static constexpr double p[] = {0.625, 1.5};
};
/// F(m, r): the five transforms along one axis. V is a vector type: lanes are channels, each its own problem. Planes
/// are in the order 0 (if it is a point), +p0, -p0, +p1, -p1, ..., infinity. F(1, 1) changes nothing.
template <int m, int r>
struct Filtering : WinogradPoints<m + r - 1> {
  static constexpr int kTile = m, kTaps = r, kAlpha = m + r - 1;
  static constexpr int kPairs = (kAlpha - 1) / 2, kZero = kAlpha % 2 == 0;  // kZero: 1 if 0 is a point
  using WinogradPoints<kAlpha>::p;

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
        v[0] = d[kAlpha - 2];
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

  /// G w: kTaps taps to kAlpha planes.
  struct Weight {
    static constexpr int kIn = kTaps, kOut = kAlpha;
    template <class V>
    DLK_INLINE static void apply(const V* w, V* u) {
      using T = Lane<V>;
      if constexpr (kZero) u[0] = w[0] * T(1 / zero_scale());
      u[kAlpha - 1] = w[kTaps - 1];
#pragma GCC unroll 4
      for (int j = 0; j < kPairs; ++j) {
        V even = T(1 / scale(j)) * w[0], odd = T(p[j] / scale(j)) * w[1];
#pragma GCC unroll 8
        for (int i = 2; i < kTaps; ++i) (i % 2 ? odd : even) += T(power(j, i) / scale(j)) * w[i];
        u[plus(j)] = even + odd;
        u[minus(j)] = even - odd;
      }
    }
  };

  /// G^T m: kAlpha planes to kTaps taps.
  struct WeightGradient {
    static constexpr int kIn = kAlpha, kOut = kTaps;
    template <class V>
    DLK_INLINE static void apply(const V* planes, V* dw) {
      using T = Lane<V>;
#pragma GCC unroll 8
      for (int i = 0; i < kTaps; ++i) {
        V sum = i == kTaps - 1 ? planes[kAlpha - 1] : V{};
        if (i == 0 && kZero) sum = planes[0] * T(1 / zero_scale());
#pragma GCC unroll 4
        for (int j = 0; j < kPairs; ++j) {
          const V both = i % 2 ? planes[plus(j)] - planes[minus(j)] : planes[plus(j)] + planes[minus(j)];
          sum += T(power(j, i) / scale(j)) * both;
        }
        dw[i] = sum;
      }
    }
  };
};

/// A transform along the rows, and one along the columns.
template <class OfRows, class OfColumns>
struct BothAxes {
  using Rows = OfRows;
  using Columns = OfColumns;
};

/// F(m x m, r x r), or with one axis only, F(1, 1) being the rows' whichever axis that is, F(1 x m, 1 x r).
template <class Rows, class Columns>
struct Winograd {
  static constexpr int kTile = Columns::kTile, kTaps = Rows::kTaps * Columns::kTaps, kRowTaps = Columns::kTaps;
  static constexpr int kAlpha = Columns::kAlpha, kPlanes = Rows::kAlpha * kAlpha;
  using Input = BothAxes<typename Rows::Input, typename Columns::Input>;
  using Output = BothAxes<typename Rows::Output, typename Columns::Output>;
  using Gradient = BothAxes<typename Rows::Gradient, typename Columns::Gradient>;
  using Weight = BothAxes<typename Rows::Weight, typename Columns::Weight>;
  using WeightGradient = BothAxes<typename Rows::WeightGradient, typename Columns::WeightGradient>;
};
template <int m, int r>
using WinogradSquare = Winograd<Filtering<m, r>, Filtering<m, r>>;
template <int m, int r>
using WinogradLine = Winograd<Filtering<1, 1>, Filtering<m, r>>;

/// `Transform`, of BothAxes: store(i, j, value) for each output from load(i, j) of each input.
template <class T, class Transform, class Load, class Store>
DLK_INLINE void transform_2d(Load load, Store store) {
  using Rows = typename Transform::Rows;
  using Columns = typename Transform::Columns;
  Vec<T> half[Rows::kOut][Columns::kIn];
#pragma GCC unroll 8
  for (int j = 0; j < Columns::kIn; ++j) {
    Vec<T> column[Rows::kIn], out[Rows::kOut];
#pragma GCC unroll 8
    for (int i = 0; i < Rows::kIn; ++i) column[i] = load(i, j);
    Rows::apply(column, out);
#pragma GCC unroll 8
    for (int i = 0; i < Rows::kOut; ++i) half[i][j] = out[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows::kOut; ++i) {
    Vec<T> out[Columns::kOut];
    Columns::apply(half[i], out);
#pragma GCC unroll 8
    for (int j = 0; j < Columns::kOut; ++j) store(i, j, out[j]);
  }
}

}  // namespace
}  // namespace dlk::cpu
