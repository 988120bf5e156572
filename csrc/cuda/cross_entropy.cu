// Cross-entropy over C of x (N, C, inner), contiguous; one loss per position (n, i) of (N, inner).
//
// With l_c = (x_c - m) - log sum_k exp(x_k - m), m = max_k x_k, the log-probability of class c (l_c = x_c if x holds
// log-probabilities already), e the label smoothing and w the class weights:
//     loss = -sum_c a_c l_c         a_c = w_c ((1 - e) t_c + e / C),  t_c = 1 for the target class or its probability
//     dx_c = dloss (A p_c - a_c)    A = sum_c a_c,  p_c = exp(l_c)
// For log-probabilities, which come with indices and no smoothing only, dx_c = -dloss a_c.
// The probabilities are never stored: backward recomputes them from x and two numbers per position, m and the log of
// the sum, which are kept apart because their sum would lose the digits that matter where m is large.
//
// For class indices the one term of the target is picked and the rest, needed only with label smoothing, is the
// "dense" part, which costs one more pass over the line (lines.cuh). Nobody waits for a check of the indices: a bad one
// traps.
#include "csrc/core/cross_entropy.h"
#include "csrc/cuda/lines.cuh"

namespace dlk::DLK_DEVICE {
namespace {

/// The coefficients a_c of one call, split into picked and dense: a_c = picked [c = target] + dense_c, with picked = (1
/// - e) w_c for indices, and dense_c the rest.
template <class T>
struct Coefficients {
  using A = Accumulate<T>;
  CrossEntropyTargets<T> targets;
  int64_t ignore_index;
  A sharp;    // 1 - e
  A uniform;  // e / C
  bool has_dense;

  Coefficients(const CrossEntropyParams& p, const CrossEntropyTargets<T>& targets)
      : targets(targets),
        ignore_index(p.ignore_index),
        sharp(static_cast<A>(1 - p.label_smoothing)),
        uniform(static_cast<A>(p.label_smoothing / static_cast<double>(p.C))),
        has_dense(targets.probability != nullptr || p.label_smoothing > 0) {}

  __device__ A weight(int64_t c) const { return targets.weight ? load(targets.weight + c) : A(1); }

  /// The target of position i; -1 where it is ignored, or for probabilities.
  __device__ int64_t index(int64_t i) const {
    if (targets.index == nullptr || targets.index[i] == ignore_index) return -1;
    return targets.index[i];
  }
  __device__ bool ignored(int64_t i) const { return targets.index != nullptr && index(i) < 0; }
  __device__ A picked(int64_t target) const { return target < 0 ? A(0) : sharp * weight(target); }

  /// The dense part of classes c, c + 1, ... of a line; 0 beyond its end.
  template <bool kColumns>
  __device__ auto dense(const Line<T, kColumns>& line, int64_t c) const {
    Elements<T, Line<T, kColumns>::kRun> a;
    if (targets.probability) a = line.load(targets.probability, c);
#pragma unroll
    for (int i = 0; i < line.kRun; ++i) {
      const A sum = uniform + (targets.probability ? a[i] * sharp : A(0));
      a[i] = c + i < line.C ? sum * weight(c + i) : A(0);
    }
    return a;
  }
};

// ---- check

/// The terms of sum_all.
template <class T>
struct SumOfWeights {
  using Value = double;
  static constexpr int kStep = 1;
  CrossEntropyTargets<T> targets;
  int64_t C, ignore_index;

  __device__ double operator()(int64_t i) const {
    const int64_t t = targets.index[i];
    if (t == ignore_index) return 0;
    const bool target_is_in_range = t >= 0 && t < C;
    assert(target_is_in_range);
    return targets.weight ? static_cast<double>(load(targets.weight + t)) : 1.0;
  }
};

struct StoreTotal {
  double* total;
  __device__ void operator()(double sum) const { *total = sum; }
};

/// In place of the sum over no indices.
struct StorePositions {
  double* total;
  double positions;
  __device__ void operator()(double) const { *total = positions; }
};

template <class T>
bool check(const CrossEntropyParams& p, const CrossEntropyTargets<T>& targets, double* total, int64_t*,
           Context& context) {
  const SumOfWeights<T> weights{targets, p.C, p.ignore_index};
  const int64_t positions = p.N * p.inner;
  if (targets.index)
    sum_all(positions, weights, StoreTotal{total}, context);
  else
    sum_all(0, weights, StorePositions{total, static_cast<double>(positions)}, context);
  return true;
}

// ---- forward

/// `exact`, if not null, gets the losses unrounded.
template <class T, bool kColumns>
__global__ void __launch_bounds__(kLineThreads<kColumns>, 1)
    forward_kernel(LineGrid grid, bool logits, Coefficients<T> a, const T* x, Accumulate<T>* maximum,
                   Accumulate<T>* log_sum, T* loss, Accumulate<T>* exact) {
  using A = Accumulate<T>;
  const Line<T, kColumns> line(grid);
  A m = 0, log = 0;
  if (logits) {
    const ExpSum<A> total = exp_sum(line, x);
    m = total.m;
    log = std::log(total.sum);
  }
  A sum = 0;
  if (a.has_dense) {
    for (int64_t c = line.first; c < line.C; c += line.step) {
      const auto v = line.load(x, c), dense = a.dense(line, c);
#pragma unroll
      for (int i = 0; i < line.kRun; ++i)
        if (c + i < line.C) sum += dense[i] * ((m - v[i]) + log);
    }
    sum = line.sum(sum);
  }
  if (!line.leads()) return;
  const int64_t target = a.index(line.index);
  if (target >= 0) sum += a.picked(target) * ((m - load(x + line.start + target * line.stride)) + log);
  if (a.ignored(line.index)) sum = 0;
  if (logits) {
    maximum[line.index] = m;
    log_sum[line.index] = log;
  }
  loss[line.index] = convert<T>(sum);
  if (exact) exact[line.index] = sum;
}

/// The terms of sum_all.
template <class A>
struct SumOf {
  using Value = A;
  static constexpr int kStep = 1;
  const A* x;
  __device__ A operator()(int64_t i) const { return x[i]; }
};

template <class T>
struct StoreQuotient {
  const double* divisor;
  T* y;
  __device__ void operator()(Accumulate<T> sum) const {
    *y = convert<T>(divisor ? static_cast<Accumulate<T>>(sum / *divisor) : sum);
  }
};

template <class T>
void forward(const CrossEntropyParams& p, const T* x, const CrossEntropyTargets<T>& targets, Accumulate<T>* maximum,
             Accumulate<T>* log_sum, T* loss, const double* divisor, T* reduced, Context& context) {
  using A = Accumulate<T>;
  const int64_t positions = p.N * p.inner;
  A* exact = reduced ? context.array<A>(positions) : nullptr;
  const LineGrid g = line_grid<T>({p.N, p.C, p.inner}, all_aligned(x, targets.probability));
  launch(p.inner > 1 ? forward_kernel<T, true> : forward_kernel<T, false>, g.blocks, g.threads, 0, context.stream(), g,
         p.logits, Coefficients<T>(p, targets), x, maximum, log_sum, loss, exact);
  if (reduced) sum_all(positions, SumOf<A>{exact}, StoreQuotient<T>{divisor, reduced}, context);
}

// ---- backward

template <class T, bool kColumns>
__global__ void __launch_bounds__(kLineThreads<kColumns>, 1)
    backward_kernel(LineGrid grid, bool logits, Coefficients<T> a, const T* x, const Accumulate<T>* maximum,
                    const Accumulate<T>* log_sum, const T* dloss, int64_t step, const double* divisor, T* dx) {
  using A = Accumulate<T>;
  const Line<T, kColumns> line(grid);
  int64_t target = -1;
  A m = 0, log = 0, g = 0;
  if (line.exists) {
    target = a.index(line.index);
    if (logits) {
      m = maximum[line.index];
      log = log_sum[line.index];
    }
    const A scale = static_cast<A>(divisor ? 1 / *divisor : 1.0);
    if (!a.ignored(line.index)) g = load(dloss + line.index * step) * scale;
  }
  const A picked = a.picked(target);
  A sum = 0;
  if (a.has_dense) {
    for (int64_t c = line.first; c < line.C; c += line.step) {
      const auto dense = a.dense(line, c);
#pragma unroll
      for (int i = 0; i < line.kRun; ++i) sum += dense[i];
    }
    sum = line.sum(sum);
  }
  sum += picked;
  for (int64_t c = line.first; c < line.C; c += line.step) {
    const auto v = line.load(x, c), dense = a.dense(line, c);
    Elements<T, line.kRun> d;
#pragma unroll
    for (int i = 0; i < line.kRun; ++i) {
      d[i] = logits ? (std::exp((v[i] - m) - log) * sum - dense[i]) * g : A(0);
      if (c + i == target) d[i] -= g * picked;
    }
    line.store(dx, c, d);
  }
}

template <class T>
void backward(const CrossEntropyParams& p, const T* x, const CrossEntropyTargets<T>& targets,
              const Accumulate<T>* maximum, const Accumulate<T>* log_sum, const T* dloss, int64_t step,
              const double* divisor, T* dx, Context& context) {
  const LineGrid g = line_grid<T>({p.N, p.C, p.inner}, all_aligned(x, targets.probability, dx));
  launch(p.inner > 1 ? backward_kernel<T, true> : backward_kernel<T, false>, g.blocks, g.threads, 0, context.stream(),
         g, p.logits, Coefficients<T>(p, targets), x, maximum, log_sum, dloss, step, divisor, dx);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

DLK_DEVICE_TABLE(CrossEntropyKernels<float>, {check<float>, forward<float>, backward<float>})
DLK_DEVICE_TABLE(CrossEntropyKernels<double>, {check<double>, forward<double>, backward<double>})
DLK_DEVICE_TABLE(CrossEntropyKernels<f16>, {check<f16>, forward<f16>, backward<f16>})
DLK_DEVICE_TABLE(CrossEntropyKernels<bf16>, {check<bf16>, forward<bf16>, backward<bf16>})
