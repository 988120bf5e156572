// sum[c] = sum over n, p of x[n, c, p]: partial sums of chunks, then their sum, in a fixed order (channels.cuh).
#include "csrc/core/channel_sum.h"
#include "csrc/cuda/channels.cuh"

namespace dlk::DLK_DEVICE {
namespace {

template <class T>
struct Sum {
  using Value = Accumulate<T>;
  using Constants = None;
  const T* x;

  __device__ None constants(int64_t) const { return {}; }

  template <int n>
  __device__ void add(Value (&sums)[n], const None (&)[n], int64_t, int64_t at, int64_t count, bool aligned,
                      int) const {
    const Elements<T> v = load_elements(x + at, count, aligned);
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) sums[n == 1 ? 0 : j] += v[j];
  }
};

template <class T>
struct Store {
  T* sum;
  __device__ void operator()(int64_t c, Accumulate<T> total) const { sum[c] = convert<T>(total); }
};

template <class T>
void sum(int64_t N, int64_t C, int64_t P, const T* x, T* sum, Context& context) {
  sum_channels<T>(channel_grid<T>(N, C, P, all_aligned(x)), Sum<T>{x}, Store<T>{sum}, context);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

DLK_DEVICE_TABLE(ChannelSumKernels<float>, {sum<float>})
DLK_DEVICE_TABLE(ChannelSumKernels<double>, {sum<double>})
DLK_DEVICE_TABLE(ChannelSumKernels<f16>, {sum<f16>})
DLK_DEVICE_TABLE(ChannelSumKernels<bf16>, {sum<bf16>})
