// sum[c] = sum over n, p of x[n, c, p].
//
// P > 1 (NCHW): plane by plane, small ones with their neighbours. P == 1 (NHWC, rows of a matrix): vectorised across
// channels, one block of rows per task. Both add short blocks first and then the blocks, in a fixed order: accurate,
// and the same for any number of threads.
#include "csrc/core/channel_sum.h"

#include <algorithm>

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/moments.h"

namespace dlk::cpu {
namespace {

/// Terms of a chain before the sum restarts: rounding errors grow with the length of a running sum.
constexpr int64_t kTerms = 64;

template <class T>
double sum_plane(const T* x, int64_t P) {
  constexpr int64_t kBlock = kTerms * kChains * kLanes<T>;
  double total = 0;
  for (int64_t p = 0; p < P; p += kBlock) {
    const auto sum = sum_vecs<1, T>(std::min(kBlock, P - p),
                                    [&](int64_t i, auto lanes, auto& sums) { sums.of[0] += load_n(x + p + i, lanes); });
    total += reduce_sum(sum.of[0]);
  }
  return total;
}

template <class T>
void sum_planes(int64_t N, int64_t C, int64_t P, const T* x, T* sum) {
  parallel_for(C, N * P, [&](int64_t begin, int64_t end) {
    for_each_neighbours(P, begin, end, [&](int64_t first, int64_t last) {
      double totals[kMostNeighbours] = {};
      for (int64_t n = 0; n < N; ++n)
        for (int64_t c = first; c < last; ++c) totals[c - first] += sum_plane(x + (n * C + c) * P, P);
      std::copy_n(totals, last - first, sum + first);
    });
  });
}

/// to[c] = the sum of `rows` rows of C values.
template <class T>
void add_rows(const T* x, int64_t rows, int64_t C, T* to) {
  std::fill_n(to, C, T(0));
  sum_rows<1, T>(
      C, rows, Columns<T, 0>{}, to,
      [=](int64_t at, auto lanes, const auto&, Vec<T>* sum) { sum[0] += load_n(x + at, lanes); }, x);
}

template <class T>
void sum(int64_t N, int64_t C, int64_t P, const T* x, T* sum, Context& context) {
  if (P > 1) return sum_planes(N, C, P, x, sum);
  const int64_t rows = rows_to_sum<T>(C), blocks = ceil_div(N, rows);
  T* partial = context.array<T>(blocks * C);
  parallel_for(blocks, rows * C, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t row = b * rows;
      add_rows(x + row * C, std::min(rows, N - row), C, partial + b * C);
    }
  });
  add_rows(partial, blocks, C, sum);
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(ChannelSumKernels<float>, {sum<float>})
DLK_KERNEL_TABLE(ChannelSumKernels<double>, {sum<double>})
