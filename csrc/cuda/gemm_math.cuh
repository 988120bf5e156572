// What a block does with a tile of A and a tile of B in shared memory: its threads add the product to sums in
// registers.
//
// Three kinds, with one interface: Fma (CUDA cores, float), and Mma over a fragment type, for tensor cores: f16 and
// bf16 (m16n8k16), tf32 (m16n8k8), double (m8n8k4). Sums are float, or double for double.
//
//   kBM, kBN, kBK     the tile: kBM x kBK of A, kBN x kBK of B ("lanes" are rows of A or columns of B)
//   kStages           buffers in shared memory; kBlocks: on a multiprocessor, for which registers must suffice
//   pad(order)        elements between the rows of a tile in shared memory, so that no access has bank conflicts
//   multiply<LA, LB>  sums += A B, for tiles laid out as TileLayouts LA and LB
//   spill             the sums to shared memory, [kBM][stride]
//
// A tile in shared memory keeps the order of global memory (copies of 16 bytes; nothing is transposed in between): k is
// the faster index (Order::k) or the lane is (Order::lane). The reads of multiply() take care of either.
#pragma once

#include "csrc/cuda/device.cuh"

namespace dlk::DLK_DEVICE {

enum class Order { k, lane };

template <class T, Order kOrder_, int kLanes_, int kDepth_, int kPad>
struct TileLayout {
  static constexpr Order kOrder = kOrder_;
  static constexpr int kLanes = kLanes_, kDepth = kDepth_;
  static constexpr int kStride = (kOrder == Order::k ? kDepth : kLanes) + kPad;
  static constexpr int kSize = (kOrder == Order::k ? kLanes : kDepth) * kStride;
  static_assert(kStride * sizeof(T) % 16 == 0, "rows start at multiples of 16 bytes");
  static __device__ __forceinline__ int at(int lane, int k) {
    return kOrder == Order::k ? lane * kStride + k : k * kStride + lane;
  }
};

// ---- CUDA cores

/// A thread of a 16 x 16 block computes (kBM / 16) x (kBN / 16) sums. It reads 16 bytes at a time: four lanes at one k,
/// or four k of one lane, as the order has them.
template <int kBM_, int kBN_, int kBK_, int kStages_, int kBlocks_>
struct Fma {
  using Element = float;
  using Sum = float;
  static constexpr int kBM = kBM_, kBN = kBN_, kBK = kBK_, kStages = kStages_, kThreads = 256;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kTM = kBM / 16, kTN = kBN / 16;
  static constexpr int pad(Order) { return 4; }  // rows of 20 or 4 + 64 i words: eight of them start in all 32 banks

  Sum sums[kTM][kTN] = {};

  template <class LA, class LB>
  __device__ __forceinline__ void multiply(const float* a, const float* b) {
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll
    for (int k = 0; k < kBK; k += 4) {
      float fa[kTM][4], fb[kTN][4];
      load<LA>(a, ty, k, fa);
      load<LB>(b, tx, k, fb);
#pragma unroll
      for (int kk = 0; kk < 4; ++kk)
#pragma unroll
        for (int i = 0; i < kTM; ++i)
#pragma unroll
          for (int j = 0; j < kTN; ++j) sums[i][j] += fa[i][kk] * fb[j][kk];
    }
  }

  template <class LA, class LB>
  __device__ __forceinline__ void spill(float* tile, int stride) const {
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < kTM; ++i)
#pragma unroll
      for (int j = 0; j < kTN; ++j) tile[lane<LA>(ty, i) * stride + lane<LB>(tx, j)] = sums[i][j];
  }

 private:
  /// The lane that is number i of those of thread t of 16.
  template <class L>
  static __device__ __forceinline__ int lane(int t, int i) {
    return L::kOrder == Order::k ? i * 16 + t : (i / 4 * 16 + t) * 4 + i % 4;
  }

  template <class L, int kCount>
  static __device__ __forceinline__ void load(const float* tile, int t, int k, float (&f)[kCount][4]) {
#pragma unroll
    for (int i = 0; i < kCount; i += L::kOrder == Order::k ? 1 : 4)
#pragma unroll
      for (int j = 0; j < (L::kOrder == Order::k ? 1 : 4); ++j) {
        const Pack<float, 4> v = load_vec<4>(tile + L::at(lane<L>(t, i), k + j));
#pragma unroll
        for (int e = 0; e < 4; ++e) (L::kOrder == Order::k ? f[i][e] : f[i + e][j]) = v[e];
      }
  }
};

// ---- Tensor cores. A fragment type has the shape M x N x K of one instruction, how a warp's lanes load their part of
// A and of B (two neighbouring n-tiles at a time, which suits ldmatrix_x4), and where in the M x N result sum i of a
// lane lies. The layouts are those of csrc/cuda/ptx.cuh.

template <class T>
struct HalfFragments {
  using Element = T;
  using Sum = float;
  using A = uint32_t[4];
  using B = uint32_t[2];
  static constexpr int M = 16, N = 8, K = 16, kSums = 4;
  static constexpr int pad(Order) { return 8; }  // 4 words: the eight rows of an 8 x 8 matrix start in all 32 banks

  template <class L>
  static __device__ __forceinline__ void load_a(const T* tile, int m, int k, A& a) {
    const int lane = threadIdx.x % 32;
    if constexpr (L::kOrder == Order::k)
      ldmatrix_x4<false>(a, tile + L::at(m + lane % 16, k + lane / 16 * 8));
    else
      ldmatrix_x4<true>(a, tile + L::at(m + lane / 8 % 2 * 8, k + lane / 16 * 8 + lane % 8));
  }
  template <class L>
  static __device__ __forceinline__ void load_b(const T* tile, int n, int k, B& b0, B& b1) {
    const int lane = threadIdx.x % 32;
    uint32_t b[4];
    if constexpr (L::kOrder == Order::k)
      ldmatrix_x4<false>(b, tile + L::at(n + lane / 16 * 8 + lane % 8, k + lane / 8 % 2 * 8));
    else
      ldmatrix_x4<true>(b, tile + L::at(n + lane / 16 * 8, k + lane / 8 % 2 * 8 + lane % 8));
    b0[0] = b[0], b0[1] = b[1], b1[0] = b[2], b1[1] = b[3];
  }
  static __device__ __forceinline__ void multiply(float (&sums)[4], const A& a, const B& b) {
    mma_m16n8k16<T>(sums, a, b);
  }
  static __device__ __forceinline__ int row(int i) { return threadIdx.x % 32 / 4 + i / 2 * 8; }
  static __device__ __forceinline__ int column(int i) { return threadIdx.x % 4 * 2 + i % 2; }
};

struct Tf32Fragments {
  using Element = float;
  using Sum = float;
  using A = uint32_t[4];
  using B = uint32_t[2];
  static constexpr int M = 16, N = 8, K = 8, kSums = 4;
  // Lanes read 8 rows x 4 columns (order k: rows 4 banks apart) or 4 x 8 (rows 8 banks apart).
  static constexpr int pad(Order order) { return order == Order::k ? 4 : 8; }

  template <class L>
  static __device__ __forceinline__ void load_a(const float* tile, int m, int k, A& a) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = to_tf32(tile[L::at(m + g + i % 2 * 8, k + t + i / 2 * 4)]);
  }
  template <class L>
  static __device__ __forceinline__ void load_b(const float* tile, int n, int k, B& b0, B& b1) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      b0[i] = to_tf32(tile[L::at(n + g, k + t + i * 4)]);
      b1[i] = to_tf32(tile[L::at(n + 8 + g, k + t + i * 4)]);
    }
  }
  static __device__ __forceinline__ void multiply(float (&sums)[4], const A& a, const B& b) {
    mma_m16n8k8_tf32(sums, a, b);
  }
  static __device__ __forceinline__ int row(int i) { return HalfFragments<f16>::row(i); }
  static __device__ __forceinline__ int column(int i) { return HalfFragments<f16>::column(i); }
};

struct DoubleFragments {
  using Element = double;
  using Sum = double;
  using A = double;
  using B = double;
  static constexpr int M = 8, N = 8, K = 4, kSums = 2;
  static constexpr int pad(Order) { return 4; }  // half a warp reads 4 x 4: rows 8 banks apart

  template <class L>
  static __device__ __forceinline__ void load_a(const double* tile, int m, int k, A& a) {
    a = tile[L::at(m + threadIdx.x % 32 / 4, k + threadIdx.x % 4)];
  }
  template <class L>
  static __device__ __forceinline__ void load_b(const double* tile, int n, int k, B& b0, B& b1) {
    load_a<L>(tile, n, k, b0);
    load_a<L>(tile, n + 8, k, b1);
  }
  static __device__ __forceinline__ void multiply(double (&sums)[2], A a, B b) { mma_m8n8k4_f64(sums, a, b); }
  static __device__ __forceinline__ int row(int) { return threadIdx.x % 32 / 4; }
  static __device__ __forceinline__ int column(int i) { return threadIdx.x % 4 * 2 + i; }
};

/// Warps side by side, each with kWM x kWN of the tile.
template <class F, int kBM_, int kBN_, int kBK_, int kWM, int kWN, int kStages_, int kBlocks_>
struct Mma {
  using Element = typename F::Element;
  using Sum = typename F::Sum;
  static constexpr int kBM = kBM_, kBN = kBN_, kBK = kBK_, kStages = kStages_, kBlocks = kBlocks_;
  static constexpr int kWarpsN = kBN / kWN, kThreads = kBM / kWM * kWarpsN * 32;
  static constexpr int kTM = kWM / F::M, kTN = kWN / F::N;
  static_assert(kTN % 2 == 0 && kBK % F::K == 0);
  static constexpr int pad(Order order) { return F::pad(order); }

  Sum sums[kTM][kTN][F::kSums] = {};

  template <class LA, class LB>
  __device__ __forceinline__ void multiply(const Element* a, const Element* b) {
#pragma unroll
    for (int k = 0; k < kBK; k += F::K) {
      typename F::A fa[kTM];
      typename F::B fb[kTN];
#pragma unroll
      for (int i = 0; i < kTM; ++i) F::template load_a<LA>(a, warp_row() + i * F::M, k, fa[i]);
#pragma unroll
      for (int j = 0; j < kTN; j += 2) F::template load_b<LB>(b, warp_column() + j * F::N, k, fb[j], fb[j + 1]);
#pragma unroll
      for (int i = 0; i < kTM; ++i)
#pragma unroll
        for (int j = 0; j < kTN; ++j) F::multiply(sums[i][j], fa[i], fb[j]);
    }
  }

  template <class LA, class LB>
  __device__ __forceinline__ void spill(Sum* tile, int stride) const {
#pragma unroll
    for (int i = 0; i < kTM; ++i)
#pragma unroll
      for (int j = 0; j < kTN; ++j)
#pragma unroll
        for (int s = 0; s < F::kSums; ++s)
          tile[(warp_row() + i * F::M + F::row(s)) * stride + warp_column() + j * F::N + F::column(s)] = sums[i][j][s];
  }

 private:
  static __device__ __forceinline__ int warp_row() { return threadIdx.x / 32 / kWarpsN * kWM; }
  static __device__ __forceinline__ int warp_column() { return threadIdx.x / 32 % kWarpsN * kWN; }
};

// ---- The tiles, in one table. Large tiles reuse each element read 128 times (double: 64); small ones fill the GPU
// when the result is small, and serve operands that cannot be copied 16 bytes at a time. Three stages: one is read
// while two are in flight, which covers the latency of memory. Shared memory per block, of which stages take as much as
// the sums on their way out: 66 KiB for large tiles (two blocks on a multiprocessor of sm_80 and sm_90, one on those
// with 100 KiB), about 30 for small ones, 51 to 60 for double. The last number keeps ptxas from spilling registers to
// fit one block more.
struct LargeTile {};
struct SmallTile {};

template <class T, bool kTf32, class Size>
struct TileFor;
template <>
struct TileFor<float, false, LargeTile> : Fma<128, 128, 16, 3, 1> {};
template <>
struct TileFor<float, false, SmallTile> : Fma<64, 64, 16, 3, 2> {};
template <>
struct TileFor<float, true, LargeTile> : Mma<Tf32Fragments, 128, 128, 16, 64, 32, 3, 1> {};
template <>
struct TileFor<float, true, SmallTile> : Mma<Tf32Fragments, 64, 64, 16, 32, 16, 3, 2> {};
template <class T>
struct TileFor<T, false, LargeTile> : Mma<HalfFragments<T>, 128, 128, 32, 64, 32, 3, 1> {};
template <class T>
struct TileFor<T, false, SmallTile> : Mma<HalfFragments<T>, 64, 64, 32, 32, 16, 3, 1> {};
template <>
struct TileFor<double, false, LargeTile> : Mma<DoubleFragments, 64, 64, 16, 32, 32, 3, 2> {};
template <>
struct TileFor<double, false, SmallTile> : Mma<DoubleFragments, 64, 64, 16, 32, 16, 3, 2> {};

}  // namespace dlk::DLK_DEVICE
