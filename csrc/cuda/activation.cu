// Activations: y = f(x), dx = dy f'(x), over n contiguous elements.
//
// One struct per formula, in float (double for double); backward gets what the formula saves for it, as in
// csrc/cpu/activation.cpp. Streaming work, see elementwise.cuh. NaN propagates everywhere.
#include <cmath>

#include "csrc/core/activation.h"
#include "csrc/cuda/elementwise.cuh"

namespace dlk::DLK_DEVICE {
namespace {

template <class A>
__device__ __forceinline__ A sigmoid(A x) {
  return A(1) / (std::exp(-x) + A(1));
}

/// sigmoid(x) and 1 - sigmoid(x), the latter without cancellation where it is small.
template <class A>
__device__ __forceinline__ A sigmoid(A x, A& complement) {
  const A e = std::exp(-(x < A(-80) ? A(-80) : x));  // e * s would be Inf * 0 below; sigmoid(-80) is 2e-35
  const A s = A(1) / (e + A(1));
  complement = e * s;
  return s;
}

/// max(x, 0). Saves y (or x: the signs agree).
template <class A>
struct Relu {
  __device__ A forward(A x) const { return x < 0 ? A(0) : x; }
  __device__ A backward(A dy, A y) const { return y <= 0 ? A(0) : dy; }
};

/// x > 0 ? x : a x. Saves x, or y if a >= 0.
template <class A>
struct LeakyRelu {
  A a;
  __device__ A forward(A x) const { return x > 0 ? x : x * a; }
  __device__ A backward(A dy, A saved) const { return saved > 0 ? dy : dy * a; }
};

/// x > 0 ? x : a (exp(x) - 1). Saves y if saved_output (needs a >= 0), else x.
template <class A>
struct Elu {
  A a;
  bool saved_output;
  __device__ A forward(A x) const { return x > 0 ? x : std::expm1(x) * a; }
  __device__ A backward(A dy, A saved) const {
    if (saved > 0) return dy;
    return dy * (saved_output ? saved + a : std::exp(saved) * a);
  }
};

/// x clipped to [a, b] (relu6: [0, 6]). Saves x or y.
template <class A>
struct Hardtanh {
  A a, b;
  __device__ A forward(A x) const {
    const A raised = x < a ? a : x;
    return raised > b ? b : raised;
  }
  __device__ A backward(A dy, A y) const { return y <= a || y >= b ? A(0) : dy; }
};

/// 1 / (1 + exp(-x)). Saves y.
template <class A>
struct Sigmoid {
  __device__ A forward(A x) const { return sigmoid(x); }
  __device__ A backward(A dy, A y) const { return dy * (A(1) - y) * y; }
};

/// Saves y.
template <class A>
struct Tanh {
  __device__ A forward(A x) const { return std::tanh(x); }
  __device__ A backward(A dy, A y) const { return dy * (A(1) - y * y); }
};

/// x P(x), P the standard normal distribution function, by erfc so that negative x keep their relative precision. Saves
/// x.
template <class A>
struct Gelu {
  __device__ static A normal_cdf(A x) {
    // erfc(z) falls as exp(-z^2): what rounding took from z is put back, d erfc(z) / erfc(z) = -2 z dz in the tail.
    constexpr A c = A(0.70710678118654752440), c_error = A(0.70710678118654752440 - c);
    const A z = x * -c, lost = std::fma(x, -c, -z) - x * c_error;
    const A p = A(0.5) * std::erfc(z);
    return z > 1 && z < 20 ? p - p * (2 * z * lost) : p;
  }
  __device__ A forward(A x) const { return x * normal_cdf(x); }
  __device__ A backward(A dy, A x) const {
    const A density = std::exp(x * x * A(-0.5)) * A(0.39894228040143267794);
    return dy * (normal_cdf(x) + x * density);
  }
};

/// x (1 + tanh(u)) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3). Saves x.
template <class A>
struct GeluTanh {
  static constexpr A kTwoBeta = A(2 * 0.79788456080286535588), kCubic = A(0.044715);
  __device__ A forward(A x) const { return x * sigmoid((x + x * x * x * kCubic) * kTwoBeta); }
  __device__ A backward(A dy, A x) const {
    const A z = x < A(-20) ? A(-20) : x > A(20) ? A(20) : x;  // beyond, 0 or 1, and no Inf * 0 on the way
    A complement;
    const A s = sigmoid((z + z * z * z * kCubic) * kTwoBeta, complement);
    const A slope = (A(1) + z * z * (3 * kCubic)) * kTwoBeta;
    return dy * (s + z * s * complement * slope);
  }
};

/// x sigmoid(x). Saves x.
template <class A>
struct Silu {
  __device__ A forward(A x) const { return x / (std::exp(-x) + A(1)); }
  __device__ A backward(A dy, A x) const {
    const A z = x < A(-80) ? A(-80) : x;  // below, s is as small as there, and x must not make up for it
    A complement;
    const A s = sigmoid(z, complement);
    return dy * s * (A(1) + z * complement);
  }
};

/// log(1 + exp(a x)) / a, and x itself where a x > b. Saves x.
template <class A>
struct Softplus {
  A a, b;
  __device__ A forward(A x) const {
    // log(1 + e^z) = max(z, 0) + log(1 + e^-|z|)
    const A z = x * a;
    return z > b ? x : ((z < 0 ? A(0) : z) + std::log1p(std::exp(-std::fabs(z)))) / a;
  }
  __device__ A backward(A dy, A x) const {
    const A z = x * a;
    return z > b ? dy : dy * sigmoid(z);
  }
};

template <class A, class Formula>
struct Forward {
  Formula f;
  __device__ A operator()(A x) const { return f.forward(x); }
};
template <class A, class Formula>
struct Backward {
  Formula f;
  __device__ A operator()(A dy, A saved) const { return f.backward(dy, saved); }
};

/// Calls `run` with the formula that `f` names: the table of activations.
template <class A, class Run>
void with_formula(Activation f, ActivationParams params, Run run) {
  const A a = static_cast<A>(params.a), b = static_cast<A>(params.b);
  switch (f) {
    case Activation::relu:
      return run(Relu<A>{});
    case Activation::leaky_relu:
      return run(LeakyRelu<A>{a});
    case Activation::elu:
      return run(Elu<A>{a, params.b == 1});
    case Activation::hardtanh:
      return run(Hardtanh<A>{a, b});
    case Activation::sigmoid:
      return run(Sigmoid<A>{});
    case Activation::tanh:
      return run(Tanh<A>{});
    case Activation::gelu:
      return run(Gelu<A>{});
    case Activation::gelu_tanh:
      return run(GeluTanh<A>{});
    case Activation::silu:
      return run(Silu<A>{});
    case Activation::softplus:
      return run(Softplus<A>{a, b});
  }
}

template <class T>
void forward(Activation f, ActivationParams params, int64_t n, const T* x, T* y, Context& context) {
  using A = Accumulate<T>;
  with_formula<A>(f, params, [&](auto formula) {
    map(n, all_aligned(x, y), Forward<A, decltype(formula)>{formula}, y, context.stream(), x);
  });
}

template <class T>
void backward(Activation f, ActivationParams params, int64_t n, const T* dy, const T* saved, T* dx, Context& context) {
  using A = Accumulate<T>;
  with_formula<A>(f, params, [&](auto formula) {
    map(n, all_aligned(dy, saved, dx), Backward<A, decltype(formula)>{formula}, dx, context.stream(), dy, saved);
  });
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

DLK_DEVICE_TABLE(ActivationKernels<float>, {forward<float>, backward<float>})
DLK_DEVICE_TABLE(ActivationKernels<double>, {forward<double>, backward<double>})
DLK_DEVICE_TABLE(ActivationKernels<f16>, {forward<f16>, backward<f16>})
DLK_DEVICE_TABLE(ActivationKernels<bf16>, {forward<bf16>, backward<bf16>})
