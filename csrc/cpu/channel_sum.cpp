// sum[c] = sum over n, p of x[n, c, p].
//
// P > 1 (NCHW): one channel per task, plane by plane. P == 1 (NHWC, rows of a matrix): vectorised across channels, one
// block of rows per task. Both add short blocks first and then the blocks, in a fixed order: accurate, and the same for
// any number of threads.
#include "csrc/core/channel_sum.h"

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/reduce.h"

namespace dlk::cpu {
namespace {

/// Terms per lane before a sum restarts: rounding errors grow with the length of a running sum.
constexpr int64_t kBlock = 64;

template <class T>
T sum_plane(const T* x, int64_t P) {
  double total = 0;
  for (int64_t p = 0; p < P; p += kBlock * kLanes<T>) {
    const int64_t n = P - p < kBlock * kLanes<T> ? P - p : kBlock * kLanes<T>;
    Vec<T> sum{};
    for_each_vec<T>(n, [&](int64_t i, auto lanes) { sum += load_n(x + p + i, lanes); });
    total += reduce_sum(sum);
  }
  return static_cast<T>(total);
}

template <class T>
void sum_planes(int64_t N, int64_t C, int64_t P, const T* x, T* sum) {
  parallel_for(C, N * P, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double total = 0;
      for (int64_t n = 0; n < N; ++n) total += sum_plane(x + (n * C + c) * P, P);
      sum[c] = static_cast<T>(total);
    }
  });
}

/// to[c] = the sum of `rows` rows of C values, in chains as accumulate_vecs has them.
template <class T>
void add_rows(const T* x, int64_t rows, int64_t C, T* to) {
  for_each_vec<T>(C, [&](int64_t c, auto lanes) {
    Vec<T> sum[kChains] = {};
    const auto add = [&](int64_t i, int k) { sum[k] += load_n(x + i * C + c, lanes); };
    int64_t i = 0;
    for (; i + kChains <= rows; i += kChains)
      for (int k = 0; k < kChains; ++k) add(i + k, k);
    for (; i < rows; ++i) add(i, 0);
    static_assert(kChains == 4);
    store_n(to + c, (sum[0] + sum[1]) + (sum[2] + sum[3]), lanes);
  });
}

template <class T>
void sum(int64_t N, int64_t C, int64_t P, const T* x, T* sum, Context& context) {
  if (P > 1) return sum_planes(N, C, P, x, sum);
  const int64_t blocks = ceil_div(N, kBlock);
  T* partial = context.array<T>(blocks * C);
  parallel_for(blocks, kBlock * C, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t row = b * kBlock;
      add_rows(x + row * C, N - row < kBlock ? N - row : kBlock, C, partial + b * C);
    }
  });
  add_rows(partial, blocks, C, sum);
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(ChannelSumKernels<float>, {sum<float>})
DLK_KERNEL_TABLE(ChannelSumKernels<double>, {sum<double>})
