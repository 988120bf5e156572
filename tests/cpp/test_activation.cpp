// The vector maths through the activations built on it, against the C library in float64: every length from 0 to past
// three vectors, misaligned, with special values in all lanes.
#include <functional>

#include "csrc/core/activation.h"
#include "csrc/cpu/dispatch.h"
#include "tests/cpp/check.h"

using namespace dlk;

namespace {

struct Case {
  const char* name;
  Activation formula;
  ActivationParams params;
  std::function<double(double)> function;
  double ulps;  // of float results; in double the reference rounds as much as we do, see kDoubleFactor
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double gelu_tanh(double x) { return x * sigmoid(2 * std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)); }

const Case kCases[] = {
    {"relu", Activation::relu, {}, [](double x) { return x <= 0 ? 0 : x; }, 0},
    {"elu", Activation::elu, {1, 1}, [](double x) { return x <= 0 ? std::expm1(x) : x; }, 2},
    {"sigmoid", Activation::sigmoid, {}, sigmoid, 2},
    {"tanh", Activation::tanh, {}, [](double x) { return std::tanh(x); }, 2},
    {"silu", Activation::silu, {}, [](double x) { return x * sigmoid(x); }, 2},
    {"softplus", Activation::softplus, {1, 20}, [](double x) { return x > 20 ? x : std::log1p(std::exp(x)); }, 3},
    {"gelu", Activation::gelu, {}, [](double x) { return x * std::erfc(-x / std::sqrt(2.0)) / 2; }, 8},
    {"gelu_tanh", Activation::gelu_tanh, {}, gelu_tanh, 8},
};

/// erfc magnifies the rounding of its argument, which reference and kernel compute in different ways, by x^2 (25 at
/// -5), and gelu_tanh's exp by 2 u (15 there).
constexpr double kDoubleFactor = 8;

/// Distance in units of the last place of T.
template <class T>
double ulps(T actual, double expected) {
  return std::abs(actual - expected) / std::ldexp(double(std::numeric_limits<T>::epsilon()), std::ilogb(expected));
}

template <class T>
void check_case(const Case& c, test::Buffer<T>& x, int64_t offset) {
  test::Buffer<T> y(x.size(), offset);
  test::HeapContext context;
  cpu::kernels<ActivationKernels<T>>().forward(c.formula, c.params, x.size(), x.data(), y.data(), context);
  for (int64_t i = 0; i < x.size(); ++i) {
    const double expected = c.function(x[i]);
    const bool same_special = (std::isnan(y[i]) && std::isnan(expected)) || y[i] == expected;
    // exp overflows where sigmoid and silu are this small; where gelu is, PyTorch itself has no correct digits.
    const bool has_tail = c.formula == Activation::gelu || c.formula == Activation::gelu_tanh;
    const double tiny = has_tail ? 1e-6 : 1e-36;
    const bool negligible = std::abs(expected) < tiny && std::abs(y[i]) < tiny;
    if (same_special || negligible || ulps<T>(y[i], expected) <= c.ulps * (sizeof(T) == 8 ? kDoubleFactor : 1))
      continue;
    test::fail(std::string(c.name) + " of " + std::to_string(x[i]) + " is " + std::to_string(y[i]) + ", expected " +
               std::to_string(expected));
  }
  y.check_guards(c.name);
}

template <class T>
void check_all() {
  const double inf = INFINITY, special[] = {NAN, inf, -inf, 0, -0.0, 1e-30, -1e-30, 88.5, -88.5, 104, -104, 1e30};
  for (const Case& c : kCases) {
    for (int64_t n = 0; n <= 50; ++n) {
      auto x = test::Buffer<T>::random(n, n % 5);
      check_case(c, x, n % 3);
    }
    for (const double value : special)
      for (int64_t lane = 0; lane < 20; ++lane) {
        auto x = test::Buffer<T>::random(37, 1);
        x[lane] = static_cast<T>(value);
        check_case(c, x, 1);
      }
    test::Buffer<T> sweep(200'001);
    for (int64_t i = 0; i < sweep.size(); ++i) sweep[i] = static_cast<T>(-85 + 170.0 * i / sweep.size());
    check_case(c, sweep, 0);
  }
}

}  // namespace

int main() {
  return test::run([] {
    check_all<float>();
    check_all<double>();
  });
}
