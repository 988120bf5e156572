// Activations: y = f(x), dx = dy f'(x), over n contiguous elements.
//
// One struct per formula; `forward` and `backward` take vectors (inlined: called, gelu and tanh took 1.7 times as
// long). backward gets what the formula saves for it: the output y or the input x, as csrc/bindings/activation.cpp says
// (y costs no memory where the next layer keeps it anyway). Formulas with two slopes can save a bit per element
// instead. Streaming work: cut into ranges of whole vectors, one per thread. NaN propagates everywhere.
#include "csrc/core/activation.h"

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/parallel.h"
#include "csrc/cpu/streaming.h"
#include "csrc/cpu/vmath.h"

namespace dlk::cpu {
namespace {

/// max(x, 0). Saves y (or x: the signs agree).
template <class T>
struct Relu {
  using V = Vec<T>;
  DLK_INLINE V forward(V x) const { return max(V{}, x); }
  DLK_INLINE auto has_unit_slope(V x) const { return ~(x <= T(0)); }
  DLK_INLINE V backward(V dy, V y) const { return has_unit_slope(y) ? dy : V{}; }
};

/// x > 0 ? x : a x. Saves x, or y if a >= 0.
template <class T>
struct LeakyRelu {
  using V = Vec<T>;
  T a;
  DLK_INLINE V forward(V x) const { return x > T(0) ? x : x * a; }
  DLK_INLINE auto has_unit_slope(V x) const { return x > T(0); }
  DLK_INLINE V backward(V dy, V saved) const { return has_unit_slope(saved) ? dy : dy * a; }
};

/// x > 0 ? x : a (exp(x) - 1). Saves y if b is 1 (needs a >= 0), else x.
template <class T>
struct Elu {
  using V = Vec<T>;
  T a;
  bool saved_output;
  DLK_INLINE V forward(V x) const { return x > T(0) ? x : expm1_negative(min(V{}, x)) * a; }
  DLK_INLINE V backward(V dy, V saved) const {
    const V slope = saved_output ? saved + a : exp(min(V{}, saved)) * a;
    return saved > T(0) ? dy : dy * slope;
  }
};

/// x clipped to [a, b] (relu6: [0, 6]). Saves x or y.
template <class T>
struct Hardtanh {
  using V = Vec<T>;
  T a, b;
  DLK_INLINE V forward(V x) const { return min(splat(b), max(splat(a), x)); }
  DLK_INLINE auto has_unit_slope(V x) const { return ~((x <= a) | (x >= b)); }
  DLK_INLINE V backward(V dy, V y) const { return has_unit_slope(y) ? dy : V{}; }
};

/// 1 / (1 + exp(-x)). Saves y.
template <class T>
struct Sigmoid {
  using V = Vec<T>;
  DLK_INLINE V forward(V x) const { return sigmoid(x); }
  DLK_INLINE V backward(V dy, V y) const { return dy * (T(1) - y) * y; }
};

/// Saves y.
template <class T>
struct Tanh {
  using V = Vec<T>;
  DLK_INLINE V forward(V x) const { return tanh(x); }
  DLK_INLINE V backward(V dy, V y) const { return dy * (T(1) - y * y); }
};

/// x P(x), P the standard normal distribution function. Saves x.
template <class T>
struct Gelu {
  using V = Vec<T>;
  DLK_INLINE V forward(V x) const { return gelu(x); }
  DLK_INLINE V backward(V dy, V x) const { return dy * gelu_slope(x); }
};

/// x (1 + tanh(u)) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3). Saves x.
template <class T>
struct GeluTanh {
  using V = Vec<T>;
  DLK_INLINE V forward(V x) const { return gelu_tanh(x); }
  DLK_INLINE V backward(V dy, V x) const { return dy * gelu_tanh_slope(x); }
};

/// x sigmoid(x). Saves x.
template <class T>
struct Silu {
  using V = Vec<T>;
  DLK_INLINE V forward(V x) const { return x / one_plus_exp(-x); }
  DLK_INLINE V backward(V dy, V x) const {
    const V z = max(splat(T(-80)), x);  // below, s is as small as there, and x must not make up for it
    V complement;
    const V s = sigmoid_and_complement(z, complement);
    return dy * s * (T(1) + z * complement);
  }
};

/// log(1 + exp(a x)) / a, and x itself where a x > b. Saves x.
template <class T>
struct Softplus {
  using V = Vec<T>;
  T a, b, inverse = 1 / a;
  DLK_INLINE V forward(V x) const {
    // log(1 + e^z) = max(z, 0) + log(1 + e^-|z|)
    const V z = x * a;
    const V y = (max(V{}, z) + log1p_unit(exp(-abs(z)))) * inverse;
    return z > b ? x : y;
  }
  DLK_INLINE V backward(V dy, V x) const {
    const V z = x * a;
    return z > b ? dy : dy * sigmoid(z);
  }
};

template <class T, class F>
void map(F f, int64_t n, const T* x, T* y) {
  with_streaming(y, 0, 2 * n, [=](auto streams) {
    parallel_elements<streams>(n, [=](int64_t begin, int64_t end) {
      for_each_vec<T>(end - begin, [&](int64_t i, auto lanes) {
        write_n<streams>(y + begin + i, f.forward(read_n<kFetch<streams>>(x + begin + i, lanes)), lanes);
      });
    });
  });
}

template <class T, class F>
void map_backward(F f, int64_t n, const T* dy, const T* saved, T* dx) {
  with_streaming(dx, 0, 3 * n, [=](auto streams) {
    parallel_elements<streams>(n, [=](int64_t begin, int64_t end) {
      for_each_vec<T>(end - begin, [&](int64_t i, auto lanes) {
        const int64_t at = begin + i;
        write_n<streams>(
            dx + at, f.backward(read_n<kFetch<streams>>(dy + at, lanes), read_n<kFetch<streams>>(saved + at, lanes)),
            lanes);
      });
    });
  });
}

template <class T, class F>
void map_slopes(F f, int64_t n, const T* x, T* y, uint64_t* unit) {
  with_streaming(y, 0, 2 * n, [=](auto streams) {
    parallel_words<streams>(n, [=](int64_t word, int64_t first, int64_t count) {
      uint64_t bits = 0;
      for_each_vec<T>(count, [&](int64_t i, auto lanes) {
        const Vec<T> v = read_n<kFetch<streams>>(x + first + i, lanes);
        bits |= bits_of_lanes<T>(f.has_unit_slope(v)) << i;
        write_n<streams>(y + first + i, f.forward(v), lanes);
      });
      unit[word] = bits;
    });
  });
}

/// Calls `run` with the formula that `f` names: the table of activations.
template <class T, class Run>
void with_formula(Activation f, ActivationParams params, Run run) {
  const T a = static_cast<T>(params.a), b = static_cast<T>(params.b);
  switch (f) {
    case Activation::relu:
      return run(Relu<T>{});
    case Activation::leaky_relu:
      return run(LeakyRelu<T>{a});
    case Activation::elu:
      return run(Elu<T>{a, params.b == 1});
    case Activation::hardtanh:
      return run(Hardtanh<T>{a, b});
    case Activation::sigmoid:
      return run(Sigmoid<T>{});
    case Activation::tanh:
      return run(Tanh<T>{});
    case Activation::gelu:
      return run(Gelu<T>{});
    case Activation::gelu_tanh:
      return run(GeluTanh<T>{});
    case Activation::silu:
      return run(Silu<T>{});
    case Activation::softplus:
      return run(Softplus<T>{a, b});
  }
}

template <class T>
void forward(Activation f, ActivationParams params, int64_t n, const T* x, T* y, Context&) {
  with_formula<T>(f, params, [=](auto formula) { map(formula, n, x, y); });
}

template <class T>
void backward(Activation f, ActivationParams params, int64_t n, const T* dy, const T* saved, T* dx, Context&) {
  with_formula<T>(f, params, [=](auto formula) { map_backward(formula, n, dy, saved, dx); });
}

template <class T>
void forward_slopes(Activation f, ActivationParams params, int64_t n, const T* x, T* y, uint64_t* unit, Context&) {
  with_formula<T>(f, params, [=](auto formula) {
    if constexpr (requires { formula.has_unit_slope(Vec<T>{}); }) map_slopes(formula, n, x, y, unit);
  });
}

template <class T>
void backward_slopes(double other_slope, int64_t n, const T* dy, const uint64_t* unit, T* dx, Context&) {
  const T slope = static_cast<T>(other_slope);
  with_streaming(dx, 0, 2 * n, [=](auto streams) {
    parallel_words<streams>(n, [=](int64_t word, int64_t first, int64_t count) {
      for_each_vec_of_bits<T>(unit[word], count, [&](int64_t i, auto lanes, auto is_unit) {
        const Vec<T> d = read_n<kFetch<streams>>(dy + first + i, lanes);
        const Vec<T> other = slope == 0 ? Vec<T>{} : d * slope;  // 0 even where dy is NaN
        write_n<streams>(dx + first + i, is_unit ? d : other, lanes);
      });
    });
  });
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(ActivationKernels<float>,
                 {forward<float>, backward<float>, forward_slopes<float>, backward_slopes<float>})
DLK_KERNEL_TABLE(ActivationKernels<double>,
                 {forward<double>, backward<double>, forward_slopes<double>, backward_slopes<double>})
