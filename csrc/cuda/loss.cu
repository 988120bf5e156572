// Elementwise losses of x and a target t, with optional weights w and p (1 where absent):
//     binary_cross_entropy_with_logits   w ((1 - t) x + (1 + (p - 1) t) softplus(-x)),
//                                        dx = w ((1 + (p - 1) t) sigmoid(x) - p t)
//     mse                                (x - t)^2,  dx = 2 (x - t)
// with softplus(-x) = max(-x, 0) + log(1 + exp(-|x|)). Streaming work (elementwise.cuh); sums without storing the
// losses (reduce.cuh).
#include <cmath>

#include "csrc/core/loss.h"
#include "csrc/cuda/elementwise.cuh"
#include "csrc/cuda/reduce.cuh"

namespace dlk::DLK_DEVICE {
namespace {

/// An array that may be null: ones; or, with step 0, have one element for all.
template <class T>
struct Operand {
  const T* p;
  int64_t step = 1;
};

template <class T>
__device__ __forceinline__ Elements<T> load_operand(Operand<T> x, int64_t i, int64_t n, bool aligned) {
  if (x.p != nullptr && x.step != 0) return load_elements(x.p + i, n - i, aligned);
  const Accumulate<T> one_for_all = x.p != nullptr ? load(x.p) : Accumulate<T>(1);
  Elements<T> v;
#pragma unroll
  for (int j = 0; j < kLanes<T>; ++j) v[j] = one_for_all;
  return v;
}

template <class A>
struct BinaryCrossEntropy {
  /// 1 + (p - 1) t; 1 for no weight, whatever t is
  __device__ static A log_weight(A t, A p) { return p == 1 ? A(1) : A(1) + (p - A(1)) * t; }

  __device__ static A loss(A x, A t, A w, A p) {
    const A softplus = (x > 0 ? A(0) : -x) + std::log1p(std::exp(-std::fabs(x)));
    return w * ((A(1) - t) * x + log_weight(t, p) * softplus);
  }
  __device__ static A slope(A x, A t, A w, A p) { return w * (log_weight(t, p) / (A(1) + std::exp(-x)) - p * t); }
};

template <class A>
struct Mse {
  __device__ static A loss(A x, A t, A, A) { return (x - t) * (x - t); }
  __device__ static A slope(A x, A t, A, A) { return (x - t) * A(2); }
};

template <class Formula>
struct LossOf {
  template <class A>
  __device__ A operator()(A x, A t, A w, A p) const {
    return Formula::loss(x, t, w, p);
  }
};

template <class Formula, class A>
struct SlopeOf {
  A scale;
  __device__ A operator()(A x, A t, A w, A p, A dy) const { return Formula::slope(x, t, w, p) * (scale * dy); }
};

/// The terms of sum_all.
template <class T, class Formula>
struct SumOfLosses {
  using Value = Accumulate<T>;
  static constexpr int kStep = kLanes<T>;
  LossInputs<T> in;
  int64_t n;
  bool aligned;

  __device__ Value operator()(int64_t i) const {
    const Elements<T> x = load_operand(in.x, i, n, aligned), t = load_operand(in.target, i, n, aligned);
    const Elements<T> w = load_operand(Operand<T>{in.weight}, i, n, aligned);
    const Elements<T> p = load_operand(Operand<T>{in.positive_weight}, i, n, aligned);
    Value sum = 0;
#pragma unroll
    for (int j = 0; j < kStep; ++j) sum += i + j < n ? Formula::loss(x[j], t[j], w[j], p[j]) : Value(0);
    return sum;
  }
};

template <class T>
struct StoreScaled {
  Accumulate<T> scale;
  T* y;
  __device__ void operator()(Accumulate<T> sum) const { *y = convert<T>(sum * scale); }
};

/// Calls `run` with the formula that `loss` names.
template <class A, class Run>
void with_formula(Loss loss, Run run) {
  if (loss == Loss::mse) return run(Mse<A>{});
  run(BinaryCrossEntropy<A>{});
}

template <class T>
bool aligned(const LossInputs<T>& in) {
  return all_aligned(in.x, in.target, in.weight, in.positive_weight);
}

template <class T>
void forward(Loss loss, int64_t n, const LossInputs<T>& in, T* y, Context& context) {
  with_formula<Accumulate<T>>(loss, [&](auto formula) {
    map(n, aligned(in) && all_aligned(y), LossOf<decltype(formula)>{}, y, context.stream(), in.x, in.target,
        Operand<T>{in.weight}, Operand<T>{in.positive_weight});
  });
}

template <class T>
void sum(Loss loss, int64_t n, const LossInputs<T>& in, double scale, T* y, Context& context) {
  using A = Accumulate<T>;
  with_formula<A>(loss, [&](auto formula) {
    sum_all(n, SumOfLosses<T, decltype(formula)>{in, n, aligned(in)}, StoreScaled<T>{static_cast<A>(scale), y},
            context);
  });
}

template <class T>
void backward(Loss loss, int64_t n, const LossInputs<T>& in, const T* dy, int64_t step, double scale, T* dx,
              Context& context) {
  using A = Accumulate<T>;
  with_formula<A>(loss, [&](auto formula) {
    map(n, aligned(in) && all_aligned(dx) && (step == 0 || all_aligned(dy)),
        SlopeOf<decltype(formula), A>{static_cast<A>(scale)}, dx, context.stream(), in.x, in.target,
        Operand<T>{in.weight}, Operand<T>{in.positive_weight}, Operand<T>{dy, step});
  });
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

DLK_DEVICE_TABLE(LossKernels<float>, {forward<float>, sum<float>, backward<float>})
DLK_DEVICE_TABLE(LossKernels<double>, {forward<double>, sum<double>, backward<double>})
DLK_DEVICE_TABLE(LossKernels<f16>, {forward<f16>, sum<f16>, backward<f16>})
DLK_DEVICE_TABLE(LossKernels<bf16>, {forward<bf16>, sum<bf16>, backward<bf16>})
