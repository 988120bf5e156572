// Dropout: y = x / (1 - p) where kept, x * 0 elsewhere (a dropped NaN or Inf gives NaN, as in PyTorch).
//
// Whether an element is kept depends on the seed and its logical index alone (philox_element), so the mask is the same
// as the CPU's. It is drawn as one bit per element, 64 to a word, which a warp gathers from its lanes by ballots, and
// kept for backward.
#include "csrc/core/dropout.h"
#include "csrc/core/philox.h"
#include "csrc/cuda/elementwise.cuh"

namespace dlk::DLK_DEVICE {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int64_t kWordBits = 64, kGroupWords = kPhiloxGroup / kWordBits;

__device__ __forceinline__ bool bit(const uint64_t* words, int64_t i) {
  return words[i / kWordBits] >> (i % kWordBits) & 1;
}

/// A warp draws two groups of elements: half of its lanes have the 16 counters of one, each with a bit for each quarter
/// of the group's two words.
__global__ void __launch_bounds__(kThreads) draw_kernel(DropoutDraw draw, int64_t words, uint64_t* keep) {
  const uint64_t seed = static_cast<uint64_t>(*draw.seed);
  const int side = threadIdx.x % 32 / 16, lane = threadIdx.x % 16;
  const int64_t group = (int64_t{blockIdx.x} * kWarps + threadIdx.x / 32) * 2 + side;
  const uint32_t upper = draw.threshold >> 16, lower = draw.threshold & 0xFFFFu;
  const PhiloxWords numbers = philox_words(seed, static_cast<uint64_t>(group), lane, false);
  bool undecided = false;
#pragma unroll
  for (int w = 0; w < 4; ++w)
    undecided |= upper_bits(numbers.word[w], 0) == upper || upper_bits(numbers.word[w], 1) == upper;
  PhiloxWords rest{};
  if (undecided) rest = philox_words(seed, static_cast<uint64_t>(group), lane, true);
#pragma unroll
  for (int half = 0; half < kGroupWords; ++half) {
    uint64_t bits = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const uint32_t number = upper_bits(numbers.word[w], half);
      const bool below = number < upper || (number == upper && lower_bits(rest.word[w], half) < lower);
      const uint32_t kept = __ballot_sync(0xffffffffu, below);
      bits |= static_cast<uint64_t>(kept >> (16 * side) & 0xffff) << (16 * w);
    }
    const int64_t word = group * kGroupWords + half;
    if (lane == 0 && word < words) keep[word] = bits;
  }
}

void draw(DropoutDraw draw, int64_t n, uint64_t* keep, Context& context) {
  const int64_t words = ceil_div(n, kWordBits), warps = ceil_div(words, 2 * kGroupWords);
  launch(draw_kernel, dim3(ceil_div(warps, kWarps)), dim3(kThreads), 0, context.stream(), draw, words, keep);
}

/// A warp gathers one word.
__global__ void __launch_bounds__(kThreads)
    to_channels_last_kernel(DropoutShape shape, const uint64_t* logical, uint64_t* keep) {
  const int64_t n = shape.N * shape.C * shape.P;
  const int64_t word = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  uint64_t bits = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t i = word * kWordBits + half * 32 + threadIdx.x % 32;  // in channels_last order
    const int64_t pixels = i / shape.C, c = i % shape.C;
    const int64_t index = (pixels / shape.P * shape.C + c) * shape.P + pixels % shape.P;
    const bool kept = i < n && bit(logical, index);
    bits |= static_cast<uint64_t>(__ballot_sync(0xffffffffu, kept)) << (32 * half);
  }
  if (threadIdx.x % 32 == 0 && word * kWordBits < n) keep[word] = bits;
}

void to_channels_last(DropoutShape shape, const uint64_t* logical, uint64_t* keep, Context& context) {
  const int64_t words = ceil_div(shape.N * shape.C * shape.P, kWordBits);
  launch(to_channels_last_kernel, dim3(ceil_div(words, kWarps)), dim3(kThreads), 0, context.stream(), shape, logical,
         keep);
}

/// The factors of a run of elements, by a bit for each.
template <class A>
struct KeepElements {
  const uint64_t* keep;
  A scale;

  template <class T>
  __device__ Elements<T> factors(int64_t i, int64_t) const {
    const uint64_t bits = keep[i / kWordBits] >> (i % kWordBits);  // a run lies within one word
    Elements<T> factor;
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) factor[j] = bits >> j & 1 ? scale : A(0);
    return factor;
  }
};

/// By a bit for each plane, i.e. for each channel c of an image.
template <class A>
struct KeepPlanes {
  DropoutShape shape;
  const uint64_t* keep;
  A scale;

  __device__ A factor(int64_t plane) const { return bit(keep, plane) ? scale : A(0); }

  template <class T>
  __device__ Elements<T> factors(int64_t i, int64_t n) const {
    Elements<T> factor;
    const int64_t period = shape.channels_last ? shape.C : shape.P;  // then comes the next pixel or plane
    int64_t outer = i / period, inner = i % period;
    int64_t image = shape.channels_last ? outer / shape.P : 0;
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) {
      const int64_t plane = shape.channels_last ? image * shape.C + inner : outer;
      factor[j] = i + j < n ? this->factor(plane) : A(0);
      if (++inner < period) continue;
      inner = 0;
      ++outer;
      if (shape.channels_last) image = outer / shape.P;
    }
    return factor;
  }
};

template <class T, class Keep>
__global__ void __launch_bounds__(kThreads) apply_kernel(int64_t n, bool aligned, Keep keep, const T* x, T* y) {
  for_each_run<T>(n, [&](int64_t i) {
    Elements<T> v = load_elements(x + i, n - i, aligned);
    const Elements<T> factor = keep.template factors<T>(i, n);
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) v[j] *= factor[j];
    store_elements(y + i, v, n - i, aligned);
  });
}

template <class T, class Keep>
void apply_with(int64_t n, Keep keep, const T* x, T* y, Context& context) {
  launch(apply_kernel<T, Keep>, dim3(blocks_for<T>(n)), dim3(kThreads), 0, context.stream(), n, all_aligned(x, y), keep,
         x, y);
}

template <class T>
void apply(int64_t n, const uint64_t* keep, double scale, const T* x, T* y, Context& context) {
  using A = Accumulate<T>;
  apply_with(n, KeepElements<A>{keep, static_cast<A>(scale)}, x, y, context);
}

template <class T>
void drop(DropoutDraw rule, int64_t n, double scale, const T* x, uint64_t* keep, T* y, Context& context) {
  draw(rule, n, keep, context);
  apply(n, keep, scale, x, y, context);
}

template <class T>
void apply_to_planes(DropoutShape shape, const uint64_t* keep, double scale, const T* x, T* y, Context& context) {
  using A = Accumulate<T>;
  apply_with(shape.N * shape.C * shape.P, KeepPlanes<A>{shape, keep, static_cast<A>(scale)}, x, y, context);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

DLK_DEVICE_TABLE(DropoutMaskKernels, {draw, to_channels_last})
DLK_DEVICE_TABLE(DropoutKernels<float>, {drop<float>, apply<float>, apply_to_planes<float>})
DLK_DEVICE_TABLE(DropoutKernels<double>, {drop<double>, apply<double>, apply_to_planes<double>})
DLK_DEVICE_TABLE(DropoutKernels<f16>, {drop<f16>, apply<f16>, apply_to_planes<f16>})
DLK_DEVICE_TABLE(DropoutKernels<bf16>, {drop<bf16>, apply<bf16>, apply_to_planes<bf16>})
