// A CUDA kernel to read, run and break on a machine without a GPU: softmax over the rows of a matrix.
//
//   g++ -std=c++20 -O2 -I. -x c++ examples/simt/softmax.cu -x none csrc/simt/*.cpp -o softmax && ./softmax
//
// (from the repository's root). Take out one of the barriers and run it again, also with DLKERNELS_SIMT_ORDER=reverse
// or random:1, and with the race detector:
//
//   g++ -std=c++20 -O2 -g1 -I. -DDLK_SIMT_RACE -fsanitize=thread -x c++ -c examples/simt/softmax.cu -o softmax.o
//   g++ -std=c++20 -O2 -g1 -I. -DDLK_SIMT_RACE softmax.o csrc/simt/*.cpp -o softmax && ./softmax
#include <cmath>
#include <cstdio>
#include <exception>
#include <vector>

#include "csrc/cuda/device.cuh"

namespace dlk::DLK_DEVICE {
namespace {

constexpr int kThreads = 128;

/// Combines the value of all threads of the block, and gives the result to all: within each warp by shuffles, then the
/// warps' results through shared memory.
template <class F>
__device__ float reduce(float value, F combine) {
  SHARED(float, of_warp, [kThreads / 32]);
  for (int i = 16; i > 0; i /= 2) value = combine(value, __shfl_xor_sync(0xffffffff, value, i));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();  // all warps have written
  value = of_warp[0];
  for (int i = 1; i < kThreads / 32; ++i) value = combine(value, of_warp[i]);
  __syncthreads();  // all threads have read: the next reduction may write
  return value;
}

/// y = exp(x - max x) / sum of exp(x - max x), for one row per block.
__global__ void __launch_bounds__(kThreads) softmax(const float* x, float* y, int columns) {
  x += blockIdx.x * columns;
  y += blockIdx.x * columns;
  float largest = -INFINITY;
  for (int i = threadIdx.x; i < columns; i += kThreads) largest = max(largest, x[i]);
  largest = reduce(largest, [](float a, float b) { return max(a, b); });
  float sum = 0;
  for (int i = threadIdx.x; i < columns; i += kThreads) sum += expf(x[i] - largest);
  sum = reduce(sum, [](float a, float b) { return a + b; });
  for (int i = threadIdx.x; i < columns; i += kThreads) y[i] = expf(x[i] - largest) / sum;
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

int main() {
  using namespace dlk::simt;
  constexpr int kRows = 5, kColumns = 1000;
  std::vector<float> x(kRows * kColumns), y(x.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(float(i * i));
  try {
    launch(softmax, kRows, kThreads, 0, nullptr, x.data(), y.data(), kColumns);
  } catch (const std::exception& error) {
    return std::printf("%s\n", error.what()), 1;
  }

  double worst = 0;
  for (int row = 0; row < kRows; ++row) {
    double sum = 0;
    for (int i = row * kColumns; i < (row + 1) * kColumns; ++i) sum += std::exp(double(x[i]));
    for (int i = row * kColumns; i < (row + 1) * kColumns; ++i) {
      const double error = std::abs(y[i] * sum / std::exp(double(x[i])) - 1);
      if (!(error <= worst)) worst = error;  // NaN as well
    }
  }
  std::printf("largest relative error: %.1e\n", worst);
  return worst < 1e-6 ? 0 : 1;
}
