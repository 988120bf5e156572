// Sums over threads and over arrays. Everything is added in an order that follows from sizes alone: no atomics, so
// results are bitwise reproducible.
//
// What is added is a float or double, or a struct with an operator+ that combines: a Tuple of sums, or the Moments of
// sets of numbers. Value{} must be its zero. Operands of + always stand in the order of threads, and each thread gets
// the same result.
#pragma once

#include <cmath>
#include <cstring>

#include "csrc/cuda/vec.cuh"

namespace dlk::DLK_DEVICE {
namespace {

/// n values that are added one by one.
template <class Value, int n>
struct Tuple {
  Value at[n];
  __device__ __forceinline__ Value& operator[](int i) { return at[i]; }
  __device__ __forceinline__ const Value& operator[](int i) const { return at[i]; }
  __device__ __forceinline__ friend Tuple operator+(const Tuple& a, const Tuple& b) {
    Tuple sum;
#pragma unroll
    for (int i = 0; i < n; ++i) sum[i] = a[i] + b[i];
    return sum;
  }
};

/// Count, mean and sum of squared deviations of a set of numbers (Welford 1962); + gives those of two sets together
/// (Chan, Golub & LeVeque 1983). The mean is kept with what rounding took from it, so that neither a mean far from zero
/// nor the length of a sum costs digits. With Inf in a set the mean is Inf or NaN, and the variance NaN.
template <class A>
struct Moments {
  A n, high, low, m2;  // the mean is high + low

  __device__ __forceinline__ A mean() const { return high + low; }
  __device__ __forceinline__ A variance() const { return m2 / n; }
  /// x - mean.
  __device__ __forceinline__ A deviation(A x) const { return (x - high) - low; }

  /// mean += delta; if that is not finite, `instead` says where to.
  __device__ __forceinline__ void move_mean(A delta, A instead) {
    const A moved = high + delta, back = moved - high;
    if (std::isfinite(moved)) {
      low += (high - (moved - back)) + (delta - back);  // Knuth's two-sum
      high = moved;
    } else {
      high = instead;
      low = 0;
    }
  }

  __device__ __forceinline__ friend Moments operator+(const Moments& a, const Moments& b) {
    Moments sum = a;
    sum.n = a.n + b.n;
    const A delta = (b.high - a.high) + (b.low - a.low), share = sum.n > 0 ? b.n / sum.n : A(0);
    sum.move_mean(delta * share, a.high + b.high);
    sum.m2 = a.m2 + b.m2 + delta * delta * (a.n * share);
    return sum;
  }

  /// Adds one number as the n-th; `share` is 1 / n.
  __device__ __forceinline__ void add(A x, A nth, A share) {
    const A delta = deviation(x);
    n = nth;
    move_mean(delta * share, high + x);
    m2 += delta * deviation(x);
  }

  /// Adds the first `count` > 0 of N elements.
  template <class T, int N>
  __device__ __forceinline__ void add(const Elements<T, N>& x, int64_t count) {
    const A added = count < N ? static_cast<A>(count) : A(N);
    A sum = 0, deviations = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sum += i < count ? x[i] : A(0);
      deviations += i < count ? deviation(x[i]) : A(0);
    }
    const A delta = count < N ? deviations / added : deviations * (A(1) / N);  // the mean of x less the mean so far
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A d = deviation(x[i]) - delta;
      squares += i < count ? d * d : A(0);
    }
    const A total = n + added, share = added / total;
    move_mean(delta * share, high + sum);
    m2 += squares + delta * delta * (n * share);
    n = total;
  }
};

/// A value of the lane whose number differs in bit `offset`. All lanes of the warp take part.
template <class Value>
__device__ __forceinline__ Value shuffle_xor(const Value& value, int offset) {
  constexpr int n = sizeof(Value) / sizeof(uint32_t);
  static_assert(n * sizeof(uint32_t) == sizeof(Value));
  uint32_t words[n];
  memcpy(words, &value, sizeof(Value));
#pragma unroll
  for (int i = 0; i < n; ++i) words[i] = __shfl_xor_sync(0xffffffffu, words[i], offset);
  Value other;
  memcpy(&other, words, sizeof(Value));
  return other;
}

/// The sum over `width` neighbouring lanes, a power of two. All lanes of the warp take part.
template <class Value>
__device__ __forceinline__ Value sum_lanes(Value value, int width) {
  for (int offset = 1; offset < width; offset *= 2) {
    const Value other = shuffle_xor(value, offset);
    value = threadIdx.x & offset ? other + value : value + other;
  }
  return value;
}

/// A block seen as `count` teams of `width` neighbouring threads; width is a power of two.
struct Team {
  int width;

  __device__ __forceinline__ int lane() const { return threadIdx.x & (width - 1); }
  __device__ __forceinline__ int index() const { return threadIdx.x / width; }
  __device__ __forceinline__ int count() const { return blockDim.x / width; }

  /// The sum over the lanes of a team. All threads of the block take part.
  template <class Value>
  __device__ __forceinline__ Value sum(Value value) const {
    value = sum_lanes(value, width < 32 ? width : 32);
    if (width <= 32) return value;
    SHARED(Value, of_warp, [32]);
    const int warp = threadIdx.x / 32, warps = width / 32;
    __syncthreads();  // an earlier sum may still be read
    if (threadIdx.x % 32 == 0) of_warp[warp] = value;
    __syncthreads();
    return sum_lanes(of_warp[(warp & ~(warps - 1)) + (threadIdx.x & (warps - 1))], warps);
  }

  /// The sum over the threads that have this lane in their teams, of kThreads in all. All threads of the block take
  /// part.
  template <class Value>
  __device__ __forceinline__ Value sum_over_teams(Value value) const {
    SHARED(Value, values, [kThreads]);
    __syncthreads();  // an earlier sum may still be read
    values[threadIdx.x] = value;
    for (int half = count() / 2; half > 0; half /= 2) {
      __syncthreads();
      if (index() < half) values[threadIdx.x] = values[threadIdx.x] + values[threadIdx.x + half * width];
    }
    __syncthreads();
    return values[lane()];
  }
};

/// The width of teams in which a lane has about `per_lane` of n items: at most `most`.
inline int team_width(int64_t n, int64_t per_lane, int most) {
  int width = 1;
  while (width < most && width * per_lane < n) width *= 2;
  return width;
}

/// Threads of the blocks that have one long row.
constexpr int kMaxRowThreads = 512;

/// The width of teams for rows of n elements, of which a lane reads kLanes at a time: parts of a warp, or a block.
template <class T>
int row_team(int64_t n) {
  const int64_t vectors = ceil_div(n, kLanes<T>);
  if (vectors <= 32 * 8) return team_width(vectors, 1, 32);
  return vectors <= kThreads * 8 ? kThreads : kMaxRowThreads;
}

// ---- Sums over arrays: blocks have one partial sum each, which one more block adds.

constexpr int64_t kMaxPartials = 1024;

/// Term: `Value operator()(int64_t i)`, the sum over elements [i, i + Term::kStep) of n.
template <class Term>
__global__ void __launch_bounds__(kThreads) partial_sums(int64_t n, Term term, typename Term::Value* partial) {
  typename Term::Value sum{};
  const int64_t step = int64_t{gridDim.x} * kThreads * Term::kStep;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * Term::kStep; i < n; i += step) sum = sum + term(i);
  sum = Team{kThreads}.sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class Value, class Finish>
__global__ void __launch_bounds__(kThreads) total_sum(int partials, const Value* partial, Finish finish) {
  Value sum{};
  for (int i = threadIdx.x; i < partials; i += kThreads) sum = sum + partial[i];
  sum = Team{kThreads}.sum(sum);
  if (threadIdx.x == 0) finish(sum);
}

/// finish(the sum of `term` over n elements), in one thread; 0 if there are none.
template <class Term, class Finish>
void sum_all(int64_t n, Term term, Finish finish, Context& context) {
  using Value = typename Term::Value;
  const int64_t blocks = ceil_div(n, int64_t{kThreads} * Term::kStep);
  const int partials = static_cast<int>(blocks < kMaxPartials ? blocks : kMaxPartials);
  Value* partial = context.array<Value>(partials);
  launch(partial_sums<Term>, dim3(partials), dim3(kThreads), 0, context.stream(), n, term, partial);
  launch(total_sum<Value, Finish>, dim3(1), dim3(kThreads), 0, context.stream(), partials, partial, finish);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE
