// Matrix products C = A B + bias in batches, with either operand transposed: csrc/core/gemm.h.
//
// The pipeline of gemm_tile.cuh over strided matrices. An operand is read in the order it has in memory, by copies of
// 16 bytes where both operands allow it, else of single elements.
#include "csrc/core/gemm.h"
#include "csrc/cuda/gemm_tile.cuh"

namespace dlk::DLK_DEVICE {
namespace {

/// Lanes are rows of A or columns of B; element (lane, k) is p[lane * lane_stride + k * k_stride].
template <class T, Order kOrder_, int kWidth_>
struct MatrixSource {
  using Element = T;
  using Lane = const T*;
  static constexpr Order kOrder = kOrder_;
  static constexpr int kWidth = kWidth_;

  const T* p;
  int64_t lane_stride, k_stride, batch_stride;
  int lanes;

  __device__ __forceinline__ void select(int batch) { p += batch * batch_stride; }
  __device__ __forceinline__ Lane lane(int i) const { return i < lanes ? p + i * lane_stride : nullptr; }
  __device__ __forceinline__ const T* at(Lane lane, int k) const { return lane ? lane + k * k_stride : nullptr; }
};

struct MatrixAddress {
  int64_t row, batch;
  __device__ __forceinline__ int64_t operator()(int b, int m, int n) const { return b * batch + m * row + n; }
};

/// One call, with what does not depend on how operands are read.
template <class T>
struct Product {
  const Gemm& p;
  const T *a, *b;
  Sink<T, MatrixAddress> sink;
  Context& context;

  template <Order kOrderA, Order kOrderB, int kWidth>
  void run() const {
    const MatrixSource<T, kOrderA, kWidth> left{a, p.a_row, p.a_col, p.a_batch, static_cast<int>(p.M)};
    const MatrixSource<T, kOrderB, kWidth> right{b, p.b_col, p.b_row, p.b_batch, static_cast<int>(p.N)};
    launch_product</*kMayBeLarge=*/(kWidth > 1)>(p.allow_tf32, p.M, p.N, p.K, p.batch, left, right, sink, context);
  }

  template <Order kOrderA, Order kOrderB>
  void run() const {
    constexpr int kWidth = 16 / sizeof(T);
    // The other stride of an operand, its length along the unit stride, and its batch stride decide about 16 bytes.
    constexpr bool kAlongA = kOrderA == Order::k, kAlongB = kOrderB == Order::k;
    const bool wide = copies_16_bytes(a, {kAlongA ? p.a_row : p.a_col, kAlongA ? p.K : p.M, p.a_batch}) &&
                      copies_16_bytes(b, {kAlongB ? p.b_col : p.b_row, kAlongB ? p.K : p.N, p.b_batch});
    wide ? run<kOrderA, kOrderB, kWidth>() : run<kOrderA, kOrderB, 1>();
  }

  void run() const {
    const bool a_k = p.a_col == 1, b_k = p.b_row == 1;
    if (a_k) return b_k ? run<Order::k, Order::k>() : run<Order::k, Order::lane>();
    return b_k ? run<Order::lane, Order::k>() : run<Order::lane, Order::lane>();
  }
};

template <class T>
void multiply(const Gemm& p, const T* a, const T* b, const T* bias, T* c, Context& context) {
  if (p.M == 0 || p.N == 0 || p.batch == 0) return;
  const Sink<T, MatrixAddress> sink{
      .c = c, .bias = bias, .vectors = copies_16_bytes(c, {p.c_row, p.c_batch}), .address = {p.c_row, p.c_batch}};
  Product<T>{p, a, b, sink, context}.run();
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

DLK_DEVICE_TABLE(GemmKernels<float>, {multiply<float>})
DLK_DEVICE_TABLE(GemmKernels<double>, {multiply<double>})
DLK_DEVICE_TABLE(GemmKernels<f16>, {multiply<f16>})
DLK_DEVICE_TABLE(GemmKernels<bf16>, {multiply<bf16>})
