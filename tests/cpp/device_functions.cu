// Uses everything that device.cuh and ptx.cuh offer. The tests compile it for the host and, where nvcc is, for GPUs.
#include "csrc/cuda/device.cuh"

namespace dlk {

template <class T>
struct EverythingKernels {
  void (*forward)(const T* x, T* y, Stream);
};

}  // namespace dlk

namespace dlk::DLK_DEVICE {
namespace {

template <class T>
__device__ T of_block(T value) {
  SHARED(T, shared, );
  if (threadIdx.x == 0) shared = value;
  __syncthreads();
  return shared;
}

template <class T>
__global__ void __launch_bounds__(256) everything(const T* x, T* y, int* count) {
  constexpr int N = 16 / sizeof(T);
  SHARED(T, rows, [32][N]);
  T* dynamic = dynamic_smem<T>();
  cp_async<16>(rows[threadIdx.x % 32], x, true);
  cp_async<8>(rows[0], x, threadIdx.x < 3);
  cp_async<4>(rows[0], nullptr, false);
  cp_commit();
  cp_wait<1>();
  cp_wait<0>();
  __syncthreads();

  uint32_t a[4], b[2];
  float d[4] = {};
  double e[2] = {};
  ldmatrix_x4<false>(a, rows[threadIdx.x % 32]);
  ldmatrix_x4<true>(a, rows[threadIdx.x % 32]);
  ldmatrix_x2<false>(b, rows[threadIdx.x % 16]);
  ldmatrix_x2<true>(b, rows[threadIdx.x % 16]);
  mma_m16n8k16<f16>(d, a, b);
  mma_m16n8k16<bf16>(d, a, b);
  a[0] = to_tf32(d[0]);
  mma_m16n8k8_tf32(d, a, b);
  mma_m8n8k4_f64(e, d[0], d[1]);

  float sum = __shfl_xor_sync(0xffffffff, d[0], 1) + __shfl_sync(0xffffffff, d[1], 0, 16);
  sum += __shfl_up_sync(0xffffffff, sum, 1) + float(__shfl_down_sync(0xffffffff, e[0], 1));
  const unsigned votes = __ballot_sync(0xffffffff, sum > 0) + __any_sync(0xffffffff, sum > 1);
  atomicAdd(count, __popc(votes) + __clz(int(votes)) + __ffs(int(votes)) + __all_sync(0xffffffff, sum > 2));
  atomicMax(count, int(__umulhi(votes, 3u)));
  atomicMin(count, __float_as_int(sum));
  atomicCAS(count, 0, int(__float_as_uint(sum)));
  sum += max(min(d[2], __int_as_float(7)), rsqrtf(d[3])) + __expf(sum) + __logf(sum) + __fdividef(sum, 3);
  sum += float(rsqrt(e[1])) + __uint_as_float(votes) + __ldg(reinterpret_cast<const float*>(x));
  __syncwarp();

  assert(x != y);
  Pack<T, N> values = load_vec<N>(x + N * threadIdx.x);
  values[0] = of_block(convert<T>(sum));
  values[N - 1] = convert<T>(convert<double>(values[0]) + convert<float>(values[1]));
  values[1] = convert<T>(convert<f16>(e[0]));
  if (threadIdx.x % warpSize == 1) values[1] = convert<T>(convert<bf16>(e[1]));
  if (is_aligned<T, N>(y)) store_vec(y + N * threadIdx.x, values);
  dynamic[threadIdx.x] = values[1];
}

template <class T>
void forward(const T* x, T* y, Stream stream) {
  launch(everything<T>, dim3(2), 256, 64 << 10, stream, x, y, nullptr);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

DLK_DEVICE_TABLE(EverythingKernels<f16>, {forward<f16>})
DLK_DEVICE_TABLE(EverythingKernels<bf16>, {forward<bf16>})
DLK_DEVICE_TABLE(EverythingKernels<float>, {forward<float>})
DLK_DEVICE_TABLE(EverythingKernels<double>, {forward<double>})
