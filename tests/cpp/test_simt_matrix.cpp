// ldmatrix and mma on the host, against the PTX ISA manual and against plain loops.
//
// Two things are tested apart. Layouts: the formulas of the manual ("Matrix Fragments for mma.m16n8k16" and so on),
// copied here as they stand there, say which element each lane's register i has; fragments are filled by them from
// matrices whose elements are all different. A layout wrong in ptx.cuh and in a kernel alike would still fail here.
// Values: results for random matrices, where A B has few enough bits to be exact, or to be compared with a tolerance.
#include <bit>
#include <random>

#include "csrc/cuda/device.cuh"
#include "tests/cpp/check.h"

namespace dlk::DLK_DEVICE {
namespace {

template <class T>
struct Fragments {  // of one lane
  uint32_t a[4], b[2];
  float d[4];
};

template <class T>
__global__ void half_product(Fragments<T>* fragments) {
  Fragments<T>& mine = fragments[threadIdx.x];
  mma_m16n8k16<T>(mine.d, mine.a, mine.b);
}

__global__ void tf32_product(Fragments<float>* fragments) {
  Fragments<float>& mine = fragments[threadIdx.x];
  mma_m16n8k8_tf32(mine.d, mine.a, mine.b);
}

struct DoubleFragments {
  double a, b, d[2];
};
__global__ void double_product(DoubleFragments* fragments) {
  DoubleFragments& mine = fragments[threadIdx.x];
  mma_m8n8k4_f64(mine.d, mine.a, mine.b);
}

/// Matrix m, row i, column j holds 64 m + 8 i + j; rows are 48 bytes apart.
template <bool trans>
__global__ void load_matrices(uint32_t* x4, uint32_t* x2) {
  SHARED(uint16_t, s, [32][24]);
  for (int j = 0; j < 8; ++j) s[threadIdx.x][j] = 8 * threadIdx.x + j;
  __syncwarp();
  uint32_t r4[4], r2[2];
  ldmatrix_x4<trans>(r4, s[threadIdx.x]);
  ldmatrix_x2<trans>(r2, threadIdx.x < 16 ? s[threadIdx.x] : nullptr);
  for (int m = 0; m < 4; ++m) x4[4 * threadIdx.x + m] = r4[m];
  for (int m = 0; m < 2; ++m) x2[2 * threadIdx.x + m] = r2[m];
}

__global__ void round_to_tf32(const float* x, uint32_t* y) { y[threadIdx.x] = to_tf32(x[threadIdx.x]); }

}  // namespace
}  // namespace dlk::DLK_DEVICE

namespace {

using namespace dlk;
using namespace dlk::simt;

struct Position {
  int row, column;
};

// The manual's tables. groupID = lane >> 2, threadID_in_group = lane % 4.

/// m16n8k16, .f16 and .bf16, A: elements a0 to a7.
Position half_a(int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  return {(0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8,
          i < 4 ? (in_group * 2) + (i & 0x1) : (in_group * 2) + (i & 0x1) + 8};
}
/// B: b0 to b3.
Position half_b(int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  return {i < 2 ? (in_group * 2) + (i & 0x1) : (in_group * 2) + (i & 0x1) + 8, group};
}
/// m16n8k8, .tf32, A: a0 to a3.
Position tf32_a(int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  return {i == 0 || i == 2 ? group : group + 8, i == 0 || i == 1 ? in_group : in_group + 4};
}
/// B: b0 and b1.
Position tf32_b(int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  return {i == 0 ? in_group : in_group + 4, group};
}
/// C and D of both: c0 to c3.
Position accumulator(int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  return {i < 2 ? group : group + 8, (in_group * 2) + (i & 0x1)};
}
/// m8n8k4, .f64.
Position double_a(int lane) { return {lane >> 2, lane % 4}; }
Position double_b(int lane) { return {lane % 4, lane >> 2}; }
Position double_c(int lane, int i) { return {lane >> 2, (lane % 4) * 2 + (i & 0x1)}; }

template <class T>
struct Matrix {
  int columns;
  std::vector<T> elements;
  Matrix(int rows, int columns) : columns(columns), elements(rows * columns) {}
  T& operator[](Position p) { return elements[p.row * columns + p.column]; }
};

template <class T>
Matrix<double> random(int rows, int columns) {
  Matrix<double> result(rows, columns);
  std::normal_distribution<double> normal;
  for (double& x : result.elements) x = convert<double>(convert<T>(normal(test::generator())));
  return result;
}

/// All zero but for a one at p.
Matrix<double> unit(int rows, int columns, Position p) {
  Matrix<double> result(rows, columns);
  result[p] = 1;
  return result;
}

/// All different, and exact in every type.
Matrix<double> numbered(int rows, int columns) {
  Matrix<double> result(rows, columns);
  for (size_t i = 0; i < result.elements.size(); ++i) result.elements[i] = i + 1;
  return result;
}

Matrix<double> product(Matrix<double> a, Matrix<double> b, Matrix<double> c) {
  for (int i = 0; i < int(c.elements.size()); ++i)
    for (int k = 0; k < a.columns; ++k) c.elements[i] += a[{i / c.columns, k}] * b[{k, i % c.columns}];
  return c;
}

template <class T>
uint32_t pack(double low, double high) {
  return convert<T>(low).bits | uint32_t(convert<T>(high).bits) << 16;
}

/// D = A B + C by the instruction for T.
template <class T>
Matrix<double> by_instruction(Matrix<double> a, Matrix<double> b, Matrix<double> c) {
  Matrix<double> d = c;
  if constexpr (std::is_same_v<T, double>) {
    std::vector<DoubleFragments> lanes(32);
    for (int lane = 0; lane < 32; ++lane)
      lanes[lane] = {a[double_a(lane)], b[double_b(lane)], {c[double_c(lane, 0)], c[double_c(lane, 1)]}};
    launch(double_product, 1, 32, 0, nullptr, lanes.data());
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 2; ++i) d[double_c(lane, i)] = lanes[lane].d[i];
  } else {
    std::vector<Fragments<T>> lanes(32);
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) lanes[lane].d[i] = c[accumulator(lane, i)];
      if constexpr (std::is_same_v<T, float>) {
        for (int i = 0; i < 4; ++i) lanes[lane].a[i] = std::bit_cast<uint32_t>(float(a[tf32_a(lane, i)]));
        for (int i = 0; i < 2; ++i) lanes[lane].b[i] = std::bit_cast<uint32_t>(float(b[tf32_b(lane, i)]));
      } else {
        for (int i = 0; i < 4; ++i) lanes[lane].a[i] = pack<T>(a[half_a(lane, 2 * i)], a[half_a(lane, 2 * i + 1)]);
        for (int i = 0; i < 2; ++i) lanes[lane].b[i] = pack<T>(b[half_b(lane, 2 * i)], b[half_b(lane, 2 * i + 1)]);
      }
    }
    if constexpr (std::is_same_v<T, float>)
      launch(tf32_product, 1, 32, 0, nullptr, lanes.data());
    else
      launch(half_product<T>, 1, 32, 0, nullptr, lanes.data());
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) d[accumulator(lane, i)] = lanes[lane].d[i];
  }
  return d;
}

template <class T>
void check(const std::string& what, const Matrix<double>& a, const Matrix<double>& b, const Matrix<double>& c,
           double tolerance) {
  const auto expected = product(a, b, c).elements, actual = by_instruction<T>(a, b, c).elements;
  for (size_t i = 0; i < expected.size(); ++i)
    if (!(std::abs(actual[i] - expected[i]) <= tolerance))
      return test::fail(what + ": element " + std::to_string(i) + " is " + std::to_string(actual[i]) + ", expected " +
                        std::to_string(expected[i]));
}

template <class T>
void check_instruction(const std::string& name, int M, int N, int K) {
  const Matrix<double> zero(M, N);
  // A unit matrix in the other operand picks one element at a time: exact, and different from all others.
  for (int i = 0; i < M; ++i)
    for (int k = 0; k < K; ++k) check<T>(name + " A", unit(M, K, {i, k}), numbered(K, N), zero, 0);
  for (int k = 0; k < K; ++k)
    for (int j = 0; j < N; ++j) check<T>(name + " B", numbered(M, K), unit(K, N, {k, j}), zero, 0);
  check<T>(name + " C", Matrix<double>(M, K), Matrix<double>(K, N), numbered(M, N), 0);
  using Exact = std::conditional_t<std::is_same_v<T, float>, f16, T>;  // with the 10 bits that tf32 has
  for (int i = 0; i < 10; ++i)
    check<T>(name, random<Exact>(M, K), random<Exact>(K, N), random<float>(M, N),
             std::is_same_v<T, double> ? 1e-14 : 2e-5);
}

template <bool trans>
void check_ldmatrix() {
  test::Buffer<uint32_t> x4(128), x2(64);
  launch(load_matrices<trans>, 1, 32, 0, nullptr, x4.data(), x2.data());
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < 4; ++m) {
      // The manual: lane T has elements (T / 4, 2 (T % 4)) and, in the upper half, (T / 4, 2 (T % 4) + 1).
      uint32_t expected = 0;
      for (int half = 0; half < 2; ++half) {
        const int i = lane / 4, j = 2 * (lane % 4) + half;
        expected |= uint32_t(64 * m + (trans ? 8 * j + i : 8 * i + j)) << 16 * half;
      }
      if (x4[4 * lane + m] != expected) test::fail("ldmatrix_x4, lane " + std::to_string(lane));
      if (m < 2 && x2[2 * lane + m] != expected) test::fail("ldmatrix_x2, lane " + std::to_string(lane));
    }
}

void check_tf32() {
  constexpr float kUnit = 1.0f / 1024;  // of the last place, between 1 and 2
  const std::vector<std::pair<float, float>> cases = {
      {1, 1},
      {1 + kUnit, 1 + kUnit},
      {1 + kUnit * 0.49f, 1},
      {1 + kUnit * 0.5f, 1 + kUnit},  // a tie goes away from zero
      {-1 - kUnit * 0.5f, -1 - kUnit},
      {1 + kUnit * 1.5f, 1 + kUnit * 2},
      {2 - kUnit * 0.5f, 2},
      {INFINITY, INFINITY},
      {-INFINITY, -INFINITY},
      {0, 0},
  };
  std::vector<float> x(32);
  std::vector<uint32_t> y(32);
  for (size_t i = 0; i < cases.size(); ++i) x[i] = cases[i].first;
  x[31] = NAN;
  launch(round_to_tf32, 1, 32, 0, nullptr, x.data(), y.data());
  for (size_t i = 0; i < cases.size(); ++i)
    if (std::bit_cast<float>(y[i]) != cases[i].second) test::fail("to_tf32, case " + std::to_string(i));
  if (!std::isnan(std::bit_cast<float>(y[31]))) test::fail("to_tf32 of NaN");

  // What was not rounded is cut: 1 + 0.75 units become 1.
  Matrix<double> a(16, 8), b(8, 8), c(16, 8);
  a[{3, 2}] = 1 + kUnit * 0.75;
  b[{2, 5}] = 1;
  if (by_instruction<float>(a, b, c)[{3, 5}] != 1) test::fail("tf32: unrounded operands are to be cut");
}

}  // namespace

int main() {
  check_instruction<f16>("mma_m16n8k16<f16>", 16, 8, 16);
  check_instruction<bf16>("mma_m16n8k16<bf16>", 16, 8, 16);
  check_instruction<float>("mma_m16n8k8_tf32", 16, 8, 8);
  check_instruction<double>("mma_m8n8k4_f64", 8, 8, 4);
  check_ldmatrix<false>();
  check_ldmatrix<true>();
  check_tf32();
  std::printf("%d failures\n", test::failures);
  return test::failures != 0;
}
