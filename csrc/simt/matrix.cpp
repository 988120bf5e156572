// Each mma gathers the fragments of all lanes into whole matrices, multiplies, and hands the result out again. Where an
// element lies in a fragment is written down once per operand, after the tables of the PTX ISA manual.
#include "csrc/simt/matrix.h"

#include <bit>

#include "csrc/simt/arena.h"
#include "csrc/simt/convert.h"

namespace dlk::simt {

using namespace executor;

namespace {

template <class D, class A, class B>
struct Fragments {
  D* d;
  A a;
  B b;
};
struct Words4 {
  uint32_t word[4];
};
struct Words2 {
  uint32_t word[2];
};
using WordFragments = Fragments<float, Words4, Words2>;

/// D += A B, of which the lanes' fragments are given by functions (lane, register) -> row, column.
template <int M, int N, int K, class Accumulator>
struct Product {
  Accumulator a[M][K], b[K][N];

  Accumulator operator()(int m, int n, Accumulator sum) const {
    for (int k = 0; k < K; ++k) sum += a[m][k] * b[k][n];
    return sum;
  }
};

// Of a 16x8 accumulator, register i of a lane is element (row, column); the same for every type of A and B.
int d_row(int lane, int i) { return lane / 4 + 8 * (i / 2); }
int d_column(int lane, int i) { return 2 * (lane % 4) + i % 2; }

template <int K>
void multiply_into(const Product<16, 8, K, float>& product, Lanes<WordFragments> lanes) {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) lanes[lane].d[i] = product(d_row(lane, i), d_column(lane, i), lanes[lane].d[i]);
}

/// f16 and bf16: two elements, neighbours along k, per 32-bit register; the first one in the lower half.
template <class T>
struct CombineHalf {
  void operator()(Lanes<WordFragments> lanes) const {
    const auto half = [](uint32_t word, int i) { return convert<float>(T{uint16_t(word >> 16 * i)}); };
    Product<16, 8, 16, float> product;
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 2; ++i) {
        const int group = lane / 4, k = 2 * (lane % 4) + i;
        const auto& [d, a, b] = lanes[lane];
        product.a[group][k] = half(a.word[0], i);
        product.a[group + 8][k] = half(a.word[1], i);
        product.a[group][k + 8] = half(a.word[2], i);
        product.a[group + 8][k + 8] = half(a.word[3], i);
        product.b[k][group] = half(b.word[0], i);
        product.b[k + 8][group] = half(b.word[1], i);
      }
    multiply_into(product, lanes);
  }
};

struct CombineTf32 {
  void operator()(Lanes<WordFragments> lanes) const {
    // The hardware reads the upper 19 bits: what to_tf32() was not applied to is cut, not rounded.
    const auto tf32 = [](uint32_t word) { return std::bit_cast<float>(word & 0xffffe000); };
    Product<16, 8, 8, float> product;
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane / 4, k = lane % 4;
      const auto& [d, a, b] = lanes[lane];
      product.a[group][k] = tf32(a.word[0]);
      product.a[group + 8][k] = tf32(a.word[1]);
      product.a[group][k + 4] = tf32(a.word[2]);
      product.a[group + 8][k + 4] = tf32(a.word[3]);
      product.b[k][group] = tf32(b.word[0]);
      product.b[k + 4][group] = tf32(b.word[1]);
    }
    multiply_into(product, lanes);
  }
};

using DoubleFragments = Fragments<double, double, double>;
struct CombineDouble {
  void operator()(Lanes<DoubleFragments> lanes) const {
    Product<8, 8, 4, double> product;
    for (int lane = 0; lane < 32; ++lane) {
      product.a[lane / 4][lane % 4] = lanes[lane].a;
      product.b[lane % 4][lane / 4] = lanes[lane].b;
    }
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 2; ++i) lanes[lane].d[i] = product(lane / 4, 2 * (lane % 4) + i, lanes[lane].d[i]);
  }
};

struct CombineRows {
  struct Record {
    const void* row;
    Rows* rows;
  };
  void operator()(Lanes<Record> lanes) const {
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 32; ++i) lanes[lane].rows->of[i] = lanes[i].row;
  }
};

WordFragments fragments(float* d, const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  return {d, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
}

}  // namespace

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place) {
  collective<CombineHalf<T>>(kFullMask, "mma_m16n8k16", place, fragments(d, a, b));
}
template void mma_m16n8k16<f16>(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2], Place);
template void mma_m16n8k16<bf16>(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2], Place);

void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place) {
  collective<CombineTf32>(kFullMask, "mma_m16n8k8_tf32", place, fragments(d, a, b));
}

void mma_m8n8k4_f64(double (&d)[2], double a, double b, Place place) {
  collective<CombineDouble>(kFullMask, "mma_m8n8k4_f64", place, DoubleFragments{d, a, b});
}

uint32_t to_tf32(float x) {
  // cvt.rna: to nearest, ties away from zero.
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const bool finite = (bits & 0x7f800000) != 0x7f800000;
  return finite ? (bits + 0x1000) & 0xffffe000 : bits;
}

Rows executor::matrix_rows(const void* row, int count, Place place) {
  if (int(this_thread() % 32) < count) {
    if (!arena.contains(row, 16)) fail("ldmatrix: the row is not within shared memory");
    if (reinterpret_cast<uintptr_t>(row) % 16)
      fail("ldmatrix: misaligned row, not a multiple of 16: " + arena.describe(row));
  }
  Rows rows;
  collective<CombineRows>(kFullMask, "ldmatrix", place, CombineRows::Record{row, &rows});
  return rows;
}

}  // namespace dlk::simt
