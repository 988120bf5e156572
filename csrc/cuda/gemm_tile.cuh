// The pipeline that matrix products and convolutions share: C[m, n] = sum over k of A[m, k] B[n, k], where A and B need
// not exist as matrices: a Source says where each element lies (a strided matrix, the patches of an image, a filter),
// and a Sink where each result goes.
//
// A block computes a tile of C (gemm_math.cuh has the tiles). Tiles of A and B come to shared memory by cp.async, in
// kStages buffers: while one step of k is multiplied, the next ones are on their way. One barrier per step: it says
// both that this step's data has come and that the buffer of the previous step may be overwritten.
//
// Few tiles and a long sum: k is cut into splits, whose sums go to a workspace and are added in order by a second
// kernel. How k is cut depends on the sizes alone, so results are the same from run to run.
//
// A Source has:
//   Lane lane(int lane)            what stays the same along k, per row of A (column of B); beyond the last one too
//   const T* at(Lane, int k)       where the kWidth elements from (lane, k) on, along kOrder, lie; null: they are zeros
//   void select(int batch)         moves to the operand of that batch element
// kOrder says whether ks or lanes are neighbours in memory; kWidth is 16 bytes' worth of elements where everything is
// aligned and divisible, else 1.
#pragma once

#include "csrc/core/context.h"
#include "csrc/cuda/gemm_math.cuh"
#include "csrc/cuda/vec.cuh"

namespace dlk::DLK_DEVICE {

/// How the work is cut into blocks.
struct TileGrid {
  int M, N, K;
  int tiles_m, tiles_n, batch, splits;
  int k_per_split;  // a multiple of the tile's kBK

  struct Work {
    int m, n, batch, split, k_begin, k_end;
  };

  /// The work of a block. Blocks that run at the same time share rows of A and columns of B in L2: eight rows of tiles
  /// are walked column by column.
  __device__ __forceinline__ Work work(int64_t block, int BM, int BN) const {
    constexpr int kRows = 8;
    const int64_t tiles = static_cast<int64_t>(tiles_m) * tiles_n;
    const int layer = static_cast<int>(block / tiles), tile = static_cast<int>(block % tiles);
    const int first = tile / (kRows * tiles_n) * kRows, within = tile % (kRows * tiles_n);
    const int rows = tiles_m - first < kRows ? tiles_m - first : kRows;
    const int split = layer % splits, k = split * k_per_split;
    return {(first + within % rows) * BM,
            within / rows * BN,
            layer / splits,
            split,
            k,
            K - k < k_per_split ? K : k + k_per_split};
  }

  int64_t blocks() const { return static_cast<int64_t>(tiles_m) * tiles_n * batch * splits; }
};

/// Copies kWidth elements to shared memory, in the background where the hardware can; zeros if `from` is null.
template <int kWidth, class T>
__device__ __forceinline__ void stage(T* to, const T* from) {
  constexpr int kBytes = kWidth * sizeof(T);
  if constexpr (kBytes >= 4)
    cp_async<kBytes>(to, from, from != nullptr);
  else
    *to = from ? *from : T{};
}

/// A thread's share of bringing tiles of one operand: always the same places of the tile, hence the same lanes.
template <class Layout, int kThreads, class Source>
class Stager {
 public:
  using T = typename Source::Element;
  static constexpr int kWidth = Source::kWidth;
  static constexpr int kCopies = Layout::kLanes * Layout::kDepth / kWidth / kThreads;
  static_assert(kCopies * kThreads * kWidth == Layout::kLanes * Layout::kDepth);

  __device__ __forceinline__ Stager(const Source& source, int first_lane) : source_(source) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) lanes_[i] = source.lane(first_lane + place(i).lane);
  }

  __device__ __forceinline__ void load(T* tile, int k, int k_end) const {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const Place p = place(i);
      const T* from = k + p.k < k_end ? source_.at(lanes_[i], k + p.k) : nullptr;
      stage<kWidth>(tile + Layout::at(p.lane, p.k), from);
    }
  }

 private:
  struct Place {
    int lane, k;
  };
  /// Neighbouring threads copy what is adjacent in global memory.
  __device__ __forceinline__ Place place(int i) const {
    const int index = threadIdx.x + i * kThreads;
    constexpr int kRow = (Layout::kOrder == Order::k ? Layout::kDepth : Layout::kLanes) / kWidth;
    const int row = index / kRow, column = index % kRow * kWidth;
    return Layout::kOrder == Order::k ? Place{row, column} : Place{column, row};
  }

  const Source& source_;
  typename Source::Lane lanes_[kCopies];
};

/// Where results go: C[batch, m, n] + bias, as T. `Address` gives the offset of (batch, m, n).
template <class T, class Address>
struct Sink {
  using Sum = Accumulate<T>;
  static constexpr int kWidth = 16 / sizeof(T);

  T* c;
  const T* bias = nullptr;
  bool bias_along_m = false;  // one bias per m; else per n
  int bias_per_batch = 0;     // how far the biases of a batch element are from the previous one's
  bool vectors = false;       // kWidth results along n, from a multiple of kWidth on, are adjacent and aligned in c
  Sum* partial = nullptr;     // unless null, results are sums of splits and go here: [split][batch][M][N]
  Address address;

  /// Results (batch, m, n) to (batch, m, n + count - 1).
  __device__ __forceinline__ void finish(int batch, int m, int n, int count, const Sum (&sums)[kWidth]) const {
    Pack<T, kWidth> out;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const int64_t b = static_cast<int64_t>(batch) * bias_per_batch + (bias_along_m ? m : n + i);
      out[i] = convert<T>(bias && i < count ? sums[i] + convert<Sum>(bias[b]) : sums[i]);
    }
    if (vectors && count == kWidth) {
      store_vec(c + address(batch, m, n), out);
      return;
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
      if (i < count) c[address(batch, m, n + i)] = out[i];
  }

  __device__ __forceinline__ Sum* partial_at(const TileGrid& grid, int batch, int split, int m, int n) const {
    return partial + ((static_cast<int64_t>(split) * grid.batch + batch) * grid.M + m) * grid.N + n;
  }
};

template <class Tile, class SourceA, class SourceB>
struct TileMemory {
  using T = typename Tile::Element;
  using LayoutA = TileLayout<T, SourceA::kOrder, Tile::kBM, Tile::kBK, Tile::pad(SourceA::kOrder)>;
  using LayoutB = TileLayout<T, SourceB::kOrder, Tile::kBN, Tile::kBK, Tile::pad(SourceB::kOrder)>;
  static constexpr int kStage = LayoutA::kSize + LayoutB::kSize;
  static constexpr int kSpillStride = Tile::kBN + 4;
  static constexpr int kStagesBytes = Tile::kStages * kStage * sizeof(T);
  static constexpr int kSpillBytes = Tile::kBM * kSpillStride * sizeof(typename Tile::Sum);
  static constexpr int kBytes = kStagesBytes > kSpillBytes ? kStagesBytes : kSpillBytes;
};

/// kSharedBytes is what the launch asks for: in the kernel's name, where `make check-cuda` finds it.
template <class Tile, class SourceA, class SourceB, class Sink, int kSharedBytes>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    multiply_tile(TileGrid grid, SourceA a, SourceB b, Sink sink) {
  using Memory = TileMemory<Tile, SourceA, SourceB>;
  using LayoutA = typename Memory::LayoutA;
  using LayoutB = typename Memory::LayoutB;
  using T = typename Tile::Element;
  using Sum = typename Tile::Sum;
  constexpr int kStages = Tile::kStages, kBK = Tile::kBK;

  const TileGrid::Work work = grid.work(blockIdx.x, Tile::kBM, Tile::kBN);
  a.select(work.batch);
  b.select(work.batch);
  const Stager<LayoutA, Tile::kThreads, SourceA> load_a(a, work.m);
  const Stager<LayoutB, Tile::kThreads, SourceB> load_b(b, work.n);
  T* const stages = dynamic_smem<T>();
  const auto load = [&](int step) {
    T* const tile = stages + step % kStages * Memory::kStage;
    const int k = work.k_begin + step * kBK;
    load_a.load(tile, k, work.k_end);
    load_b.load(tile + LayoutA::kSize, k, work.k_end);
  };

  Tile product;
  const int steps = (work.k_end - work.k_begin + kBK - 1) / kBK;
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) load(step);
    cp_commit();  // also where there is nothing to load: cp_wait counts groups
  }
  for (int step = 0; step < steps; ++step) {
    cp_wait<kStages - 2>();
    __syncthreads();
    if (step + kStages - 1 < steps) load(step + kStages - 1);
    cp_commit();
    const T* const tile = stages + step % kStages * Memory::kStage;
    product.template multiply<LayoutA, LayoutB>(tile, tile + LayoutA::kSize);
  }
  cp_wait<0>();
  __syncthreads();

  // Through shared memory, so that rows of C are written whole.
  Sum* const tile = dynamic_smem<Sum>();
  product.template spill<LayoutA, LayoutB>(tile, Memory::kSpillStride);
  __syncthreads();
  constexpr int kWidth = Sink::kWidth, kColumns = Tile::kBN / kWidth;
  for (int i = threadIdx.x; i < Tile::kBM * kColumns; i += Tile::kThreads) {
    const int row = i / kColumns, column = i % kColumns * kWidth, m = work.m + row, n = work.n + column;
    if (m >= grid.M || n >= grid.N) continue;
    const int count = grid.N - n < kWidth ? grid.N - n : kWidth;
    Sum sums[kWidth];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sums[j] = tile[row * Memory::kSpillStride + column + j];
    if (sink.partial == nullptr) {
      sink.finish(work.batch, m, n, count, sums);
      continue;
    }
    Sum* const partial = sink.partial_at(grid, work.batch, work.split, m, n);
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      if (j < count) partial[j] = sums[j];
  }
}

/// Adds the splits' sums, in order.
template <class Sink>
__global__ void __launch_bounds__(256) combine_splits(TileGrid grid, Sink sink) {
  using Sum = typename Sink::Sum;
  constexpr int kWidth = Sink::kWidth;
  const int columns = (grid.N + kWidth - 1) / kWidth;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const int64_t row = index / columns;
  if (row >= static_cast<int64_t>(grid.batch) * grid.M) return;
  const int n = static_cast<int>(index % columns) * kWidth, m = static_cast<int>(row % grid.M);
  const int batch = static_cast<int>(row / grid.M), count = grid.N - n < kWidth ? grid.N - n : kWidth;
  Sum sums[kWidth] = {};
  for (int split = 0; split < grid.splits; ++split) {
    const Sum* const partial = sink.partial_at(grid, batch, split, m, n);
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      if (j < count) sums[j] += partial[j];
  }
  sink.finish(batch, m, n, count, sums);
}

// ---- Host

/// Blocks that are worth having: one for each multiprocessor of a large GPU. The same number everywhere, so that
/// results do not depend on the GPU.
constexpr int64_t kWantedBlocks = 128;

template <class Tile>
TileGrid cut(int64_t M, int64_t N, int64_t K, int64_t batch) {
  const int64_t tiles_m = ceil_div(M, Tile::kBM), tiles_n = ceil_div(N, Tile::kBN), steps = ceil_div(K, Tile::kBK);
  constexpr int64_t kLeastSteps = 8;  // a split's start and its pass through memory cost about as much as this
  int64_t splits = kWantedBlocks / (tiles_m * tiles_n * batch);
  if (splits > steps / kLeastSteps) splits = steps / kLeastSteps;
  if (splits < 1) splits = 1;
  const int64_t steps_per_split = ceil_div(steps > 0 ? steps : 1, splits);
  splits = ceil_div(steps > 0 ? steps : 1, steps_per_split);
  const auto narrow = [](int64_t n) {
    assert(n < int64_t{1} << 31);
    return static_cast<int>(n);
  };
  return {narrow(M),       narrow(N),     narrow(K),      narrow(tiles_m),
          narrow(tiles_n), narrow(batch), narrow(splits), narrow(steps_per_split * Tile::kBK)};
}

template <class Tile, class SourceA, class SourceB, class Sink>
void multiply_with(int64_t M, int64_t N, int64_t K, int64_t batch, const SourceA& a, const SourceB& b, Sink sink,
                   Context& context) {
  const TileGrid grid = cut<Tile>(M, N, K, batch);
  if (grid.splits > 1) sink.partial = context.array<typename Sink::Sum>(grid.splits * batch * M * N);
  constexpr int kSharedBytes = TileMemory<Tile, SourceA, SourceB>::kBytes;
  launch((multiply_tile<Tile, SourceA, SourceB, Sink, kSharedBytes>), dim3(static_cast<unsigned>(grid.blocks())),
         dim3(Tile::kThreads), kSharedBytes, context.stream(), grid, a, b, sink);
  if (grid.splits == 1) return;
  const int64_t chunks = batch * M * ceil_div(N, Sink::kWidth);
  launch(combine_splits<Sink>, dim3(static_cast<unsigned>(ceil_div(chunks, 256))), dim3(256), 0, context.stream(), grid,
         sink);
}

/// With the tile that suits: a large one if the caller has it (kMayBeLarge) and it gives enough blocks to fill a GPU.
template <bool kTf32, bool kMayBeLarge, class SourceA, class SourceB, class Sink>
void multiply_in(int64_t M, int64_t N, int64_t K, int64_t batch, const SourceA& a, const SourceB& b, const Sink& sink,
                 Context& context) {
  using T = typename SourceA::Element;
  using Large = TileFor<T, kTf32, LargeTile>;
  if constexpr (kMayBeLarge)
    if (ceil_div(M, Large::kBM) * ceil_div(N, Large::kBN) * batch >= kWantedBlocks)
      return multiply_with<Large>(M, N, K, batch, a, b, sink, context);
  multiply_with<TileFor<T, kTf32, SmallTile>>(M, N, K, batch, a, b, sink, context);
}

/// The product of the sources to the sink; of float, on tensor cores if TF32 is allowed.
template <bool kMayBeLarge, class SourceA, class SourceB, class Sink>
void launch_product(bool allow_tf32, int64_t M, int64_t N, int64_t K, int64_t batch, const SourceA& a, const SourceB& b,
                    const Sink& sink, Context& context) {
  if constexpr (std::is_same_v<typename SourceA::Element, float>)
    if (allow_tf32) return multiply_in<true, kMayBeLarge>(M, N, K, batch, a, b, sink, context);
  multiply_in<false, kMayBeLarge>(M, N, K, batch, a, b, sink, context);
}

/// Whether n elements from p on, and with each stride of the list, are reached by copies of 16 bytes.
template <class T>
bool copies_16_bytes(const T* p, std::initializer_list<int64_t> multiples) {
  constexpr int64_t kWidth = 16 / sizeof(T);
  if (!is_aligned<T, kWidth>(p)) return false;
  for (const int64_t n : multiples)
    if (n % kWidth != 0) return false;
  return true;
}

}  // namespace dlk::DLK_DEVICE
