// GEMM against a triple loop in float64: sizes around vectors and register tiles, all transpositions, misaligned.
#include "csrc/core/gemm.h"
#include "csrc/cpu/dispatch.h"
#include "tests/cpp/check.h"

using namespace dlk;

namespace {

template <class T>
void check_product(int64_t M, int64_t N, int64_t K, bool a_transposed, bool b_transposed, bool with_bias,
                   int64_t offset, int64_t batch = 1) {
  Gemm p{.M = M,
         .N = N,
         .K = K,
         .a_row = a_transposed ? 1 : K,
         .a_col = a_transposed ? M : 1,
         .b_row = b_transposed ? 1 : N,
         .b_col = b_transposed ? K : 1,
         .c_row = N,
         .batch = batch,
         .a_batch = M * K,
         .b_batch = K * N,
         .c_batch = M * N};
  auto a = test::Buffer<T>::random(batch * M * K, offset), b = test::Buffer<T>::random(batch * K * N, offset);
  auto bias = test::Buffer<T>::random(N, offset);
  test::Buffer<T> c(batch * M * N, offset);
  test::HeapContext context;
  cpu::kernels<GemmKernels<T>>().multiply(p, a.data(), b.data(), with_bias ? bias.data() : nullptr, c.data(), context);

  std::vector<double> expected;
  for (int64_t n = 0; n < batch; ++n)
    for (int64_t i = 0; i < M; ++i)
      for (int64_t j = 0; j < N; ++j) {
        double sum = with_bias ? bias[j] : 0;
        for (int64_t k = 0; k < K; ++k)
          sum += double(a[n * p.a_batch + i * p.a_row + k * p.a_col]) * b[n * p.b_batch + k * p.b_row + j * p.b_col];
        expected.push_back(sum);
      }
  const double epsilon = std::numeric_limits<T>::epsilon();
  test::check_close("gemm " + std::to_string(M) + " " + std::to_string(N) + " " + std::to_string(K) + " " +
                        std::to_string(a_transposed) + std::to_string(b_transposed) + " of " +
                        std::to_string(sizeof(T)) + " bytes",
                    c, expected, 4 * epsilon * (K + 4));
}

template <class T>
void check_sizes() {
  for (const bool a_transposed : {false, true})
    for (const bool b_transposed : {false, true}) {
      // 0 to past three vectors of 16 floats along N, past MR along M.
      for (int64_t n = 0; n <= 50; ++n)
        for (const int64_t m : {1, 5, 15}) check_product<T>(m, n, 7, a_transposed, b_transposed, n % 2, n % 4);
      for (int64_t m = 0; m <= 30; ++m)
        for (const int64_t n : {3, 9})
          check_product<T>(m, n, 3 + 34 * (n == 3), a_transposed, b_transposed, m % 2, m % 4);
      for (const int64_t k : {0, 1, 127, 128, 129, 255, 256, 257, 520})
        check_product<T>(9, 37, k, a_transposed, b_transposed, true, 1);
      check_product<T>(190, 70, 600, a_transposed, b_transposed, true, 3);   // packs A
      check_product<T>(50, 1100, 60, a_transposed, b_transposed, false, 1);  // packs B, two blocks of columns
      check_product<T>(400, 24, 700, a_transposed, b_transposed, true, 1);   // fetches A's next rows
      check_product<T>(13, 21, 34, a_transposed, b_transposed, true, 1, 9);
      // Two threads' parts of C differ, and the smaller one is cut into larger blocks of rows (AVX2, AVX-512) or
      // columns.
      check_product<T>(150, 64, 1024, a_transposed, b_transposed, false, 1);
      check_product<T>(350, 64, 1024, a_transposed, b_transposed, false, 1);
      check_product<T>(180, 4128, 40, a_transposed, b_transposed, false, 1);
    }
}

}  // namespace

int main() {
  return test::run([] {
    check_sizes<float>();
    check_sizes<double>();
  });
}
