// Elementwise losses of x and a target t, with optional weights w and p (1 where absent):
//     binary_cross_entropy_with_logits   w ((1 - t) x + (1 + (p - 1) t) softplus(-x)),
//                                        dx = w ((1 + (p - 1) t) sigmoid(x) - p t)
//     mse                                (x - t)^2,  dx = 2 (x - t)
// with softplus(-x) = max(-x, 0) + log(1 + exp(-|x|)). Streaming work: ranges of whole vectors, one per thread; sums
// over fixed blocks, without storing the losses.
#include "csrc/core/loss.h"

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/reduce.h"
#include "csrc/cpu/streaming.h"
#include "csrc/cpu/vmath.h"

namespace dlk::cpu {
namespace {

/// `lanes` elements of p from i on, or 1s if p is null.
template <class T, class Count>
DLK_INLINE Vec<T> load_or_one(const T* p, int64_t i, Count lanes) {
  return p ? load_n(p + i, lanes) : splat(T(1));
}

template <class T>
struct BinaryCrossEntropy {
  using V = Vec<T>;
  static constexpr int64_t kCost = 4;
  LossInputs<T> in;

  /// 1 + (p - 1) t
  template <class Count>
  DLK_INLINE V log_weight(int64_t i, V t, Count lanes) const {
    return in.positive_weight ? T(1) + (load_n(in.positive_weight + i, lanes) - T(1)) * t : splat(T(1));
  }

  template <class Count>
  DLK_INLINE V loss(int64_t i, Count lanes) const {
    const V x = load_n(in.x + i, lanes), t = load_n(in.target + i, lanes);
    const V softplus = max(V{}, -x) + log1p_unit(exp(-abs(x)));
    return load_or_one(in.weight, i, lanes) * ((T(1) - t) * x + log_weight(i, t, lanes) * softplus);
  }

  template <class Count>
  DLK_INLINE V slope(int64_t i, Count lanes) const {
    const V x = read_n(in.x + i, lanes), t = read_n(in.target + i, lanes);
    const V p = load_or_one(in.positive_weight, i, lanes);
    return load_or_one(in.weight, i, lanes) * (log_weight(i, t, lanes) * sigmoid(x) - p * t);
  }
};

template <class T>
struct Mse {
  using V = Vec<T>;
  static constexpr int64_t kCost = 1;
  LossInputs<T> in;

  template <class Count>
  DLK_INLINE V loss(int64_t i, Count lanes) const {
    const V d = load_n(in.x + i, lanes) - load_n(in.target + i, lanes);
    return d * d;
  }

  template <class Count>
  DLK_INLINE V slope(int64_t i, Count lanes) const {
    return (read_n(in.x + i, lanes) - read_n(in.target + i, lanes)) * T(2);
  }
};

/// Calls `run` with the formula that `loss` names.
template <class T, class Run>
auto with_formula(Loss loss, const LossInputs<T>& inputs, Run run) {
  if (loss == Loss::mse) return run(Mse<T>{inputs});
  return run(BinaryCrossEntropy<T>{inputs});
}

template <class T>
void forward(Loss loss, int64_t n, const LossInputs<T>& inputs, T* y, Context&) {
  with_formula<T>(loss, inputs, [=](auto formula) {
    parallel_elements(n, [=](int64_t begin, int64_t end) {
      for_each_vec<T>(end - begin,
                      [&](int64_t i, auto lanes) { store_n(y + begin + i, formula.loss(begin + i, lanes), lanes); });
    });
  });
}

template <class T>
void sum(Loss loss, int64_t n, const LossInputs<T>& inputs, double scale, T* y, Context& context) {
  const double total = with_formula<T>(loss, inputs, [=, &context](auto formula) {
    return sum_blocks<double>(n, formula.kCost, context, [=](int64_t begin, int64_t end) {
      const int64_t whole = begin + (end - begin) / kLanes<T> * kLanes<T>;
      const auto total = sum_vecs_restarting<1, T>(
          whole - begin, [&](int64_t i, auto lanes, auto& sums) { sums.of[0] += formula.loss(begin + i, lanes); });
      double sum = reduce_sum_in_double(total.of[0]);
      if (whole < end) {  // the lanes beyond the end hold the loss of x = t = 0, which may not be 0
        const Vec<T> tail = formula.loss(whole, static_cast<int>(end - whole));
        for (int64_t i = 0; i < end - whole; ++i) sum += tail[i];
      }
      return sum;
    });
  });
  *y = static_cast<T>(total * scale);
}

template <class T>
void backward(Loss loss, int64_t n, const LossInputs<T>& inputs, const T* dy, int64_t step, double scale, T* dx,
              Context&) {
  with_formula<T>(loss, inputs, [=](auto formula) {
    const T factor = static_cast<T>(scale) * (step == 0 && n > 0 ? dy[0] : T(1));
    with_streaming(dx, 0, (step == 0 ? 3 : 4) * n, [=](auto streams) {
      parallel_elements<streams>(n, [=](int64_t begin, int64_t end) {
        for_each_vec<T>(end - begin, [&](int64_t i, auto lanes) {
          const Vec<T> d = formula.slope(begin + i, lanes) * factor;
          write_n<streams>(dx + begin + i, step == 0 ? d : d * read_n<kFetch<streams>>(dy + begin + i, lanes), lanes);
        });
      });
    });
  });
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(LossKernels<float>, {forward<float>, sum<float>, backward<float>})
DLK_KERNEL_TABLE(LossKernels<double>, {forward<double>, sum<double>, backward<double>})
