// The CUDA kernels of every op, on the host executor: float and half precision
// against double, on aligned and misaligned arrays of exactly the size needed. Whether they are right is tested from
// Python; here they run under the sanitizers and the race detector.
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "csrc/core/activation.h"
#include "csrc/core/batch_norm.h"
#include "csrc/core/channel_sum.h"
#include "csrc/core/conv2d.h"
#include "csrc/core/cross_entropy.h"
#include "csrc/core/dropout.h"
#include "csrc/core/gemm.h"
#include "csrc/core/layer_norm.h"
#include "csrc/core/loss.h"
#include "csrc/core/pool2d.h"
#include "csrc/core/softmax.h"
#include "csrc/cuda/device.cuh"
#include "csrc/simt/race.h"

using namespace dlk;

namespace {

/// The arrays of one call of a kernel. Random ones hold small multiples of 1/8, which every type represents.
template <class T>
class Call final : public Context {
 public:
  explicit Call(int64_t offset) : offset_(offset) {}
  ~Call() { simt::unwatch_all(); }

  const T* random(int64_t n, int from = -24, int to = 24) {
    T* x = array_of<T>(n);
    std::uniform_int_distribution<int> eighths(from, to);
    for (int64_t i = 0; i < n; ++i) x[i] = simt::convert<T>(eighths(generator_) / 8.0);
    return x;
  }
  const Accumulate<T>* statistics(int64_t n, int from, int to) {
    const T* values = random(n, from, to);
    auto* x = array_of<Accumulate<T>>(n);
    for (int64_t i = 0; i < n; ++i) x[i] = simt::convert<Accumulate<T>>(values[i]);
    return x;
  }
  /// An array whose values are compared.
  template <class U = T>
  U* result(int64_t n) {
    U* x = array_of<U>(n);
    read_.push_back([=](std::vector<double>& to) {
      for (int64_t i = 0; i < n; ++i)
        if constexpr (std::is_integral_v<U>)
          to.push_back(static_cast<double>(x[i]));
        else
          to.push_back(simt::convert<double>(x[i]));
    });
    return x;
  }
  template <class U>
  U* array_of(int64_t n) {
    U* x = static_cast<U*>(allocate((n + offset_) * sizeof(U))) + offset_;
    simt::watch(x, n * sizeof(U));
    return x;
  }
  std::vector<double> results() const {
    std::vector<double> values;
    for (const auto& read : read_) read(values);
    return values;
  }

 private:
  void* bytes(size_t count) override {
    void* p = allocate(count);
    simt::watch(p, count);
    return p;
  }
  void* allocate(size_t count) {
    blocks_.emplace_back(::operator new(count, std::align_val_t(64)));
    return blocks_.back().get();
  }
  struct Delete {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
  };

  int64_t offset_;
  std::mt19937 generator_{1};
  std::vector<std::unique_ptr<void, Delete>> blocks_;
  std::vector<std::function<void(std::vector<double>&)>> read_;
};

int failures = 0;

template <class T, class F>
std::vector<double> results_of(int64_t offset, F f) {
  Call<T> call(offset);
  f(call);
  return call.results();
}

template <class T, class F>
void check(const std::string& name, const std::vector<double>& expected, double eps, F f) {
  for (const int64_t offset : {0, 1}) {
    const std::vector<double> actual = results_of<T>(offset, f);
    double scale = 1;
    for (const double x : expected)
      if (std::isfinite(x)) scale = std::max(scale, std::abs(x));
    for (size_t i = 0; i < expected.size(); ++i) {
      if (actual[i] == expected[i] || std::abs(actual[i] - expected[i]) <= eps * scale) continue;
      std::printf("FAILED %s, offset %d: result %zu is %g, expected %g\n", name.c_str(), int(offset), i, actual[i],
                  expected[i]);
      ++failures;
      break;
    }
  }
}

/// f(call) for each type, `call` being a Call<T>.
template <class F>
void check_types(const std::string& name, F f) {
  const std::vector<double> expected = results_of<double>(0, f);
  check<double>(name + " double", expected, 1e-12, f);
  check<float>(name + " float", expected, 2e-5, f);
  check<f16>(name + " f16", expected, 2e-3, f);
  check<bf16>(name + " bf16", expected, 2e-2, f);
}

void test_elementwise(int64_t n) {
  const std::string size = " " + std::to_string(n);
  for (int64_t f = 0; f <= static_cast<int64_t>(Activation::softplus); ++f)
    check_types("activation " + std::to_string(f) + size, [=]<class T>(Call<T>& call) {
      const auto& kernels = simt::kernels<ActivationKernels<T>>();
      const ActivationParams params{0.5, 2};
      kernels.forward(Activation(f), params, n, call.random(n), call.result(n), call);
      const T *dy = call.random(n), *saved = call.random(n);
      kernels.backward(Activation(f), params, n, dy, saved, call.result(n), call);
    });
  for (const Loss loss : {Loss::mse, Loss::binary_cross_entropy_with_logits})
    check_types("loss" + size, [=]<class T>(Call<T>& call) {
      const auto& kernels = simt::kernels<LossKernels<T>>();
      const T *x = call.random(n), *target = call.random(n, 0, 8), *weight = call.random(n);
      const LossInputs<T> inputs{x, target, weight, nullptr};
      kernels.forward(loss, n, inputs, call.result(n), call);
      kernels.sum(loss, n, inputs, 1.0 / n, call.result(1), call);
      const T* dy = call.random(n);
      for (const int64_t step : {0, 1}) kernels.backward(loss, n, inputs, dy, step, 0.5, call.result(n), call);
    });
}

void test_dropout(DropoutShape shape) {
  check_types("dropout", [=]<class T>(Call<T>& call) {
    const int64_t planes = shape.N * shape.C, n = planes * shape.P, words = (n + 63) / 64;
    int64_t* seed = call.template array_of<int64_t>(1);
    *seed = 42;
    auto *logical = call.template array_of<uint64_t>(words), *keep = call.template array_of<uint64_t>(words);
    const auto& mask = simt::kernels<DropoutMaskKernels>();
    mask.draw({seed, 0xB0000000u}, n, logical, call);
    mask.to_channels_last(shape, logical, keep, call);
    const T* x = call.random(n);
    const auto& kernels = simt::kernels<DropoutKernels<T>>();
    kernels.apply(n, keep, 1.5, x, call.result(n), call);
    kernels.apply_to_planes(shape, logical, 1.5, x, call.result(n), call);
  });
}

void test_lines(SoftmaxShape s) {
  const int64_t n = s.outer * s.C * s.inner, positions = s.outer * s.inner;
  const std::string size = " " + std::to_string(s.outer) + " " + std::to_string(s.C) + " " + std::to_string(s.inner);
  for (const bool log : {false, true})
    check_types("softmax" + size, [=]<class T>(Call<T>& call) {
      const auto& kernels = simt::kernels<SoftmaxKernels<T>>();
      kernels.forward(s, log, call.random(n), call.result(n), call);
      const T *dy = call.random(n), *y = call.random(n, -8, 0);
      kernels.backward(s, log, dy, y, call.result(n), call);
    });
  for (const bool indices : {false, true})
    check_types("cross_entropy" + size, [=]<class T>(Call<T>& call) {
      using A = Accumulate<T>;
      const auto& kernels = simt::kernels<CrossEntropyKernels<T>>();
      CrossEntropyParams p{s.outer, s.C, s.inner};
      p.label_smoothing = 0.25;
      int64_t* target = call.template array_of<int64_t>(positions);
      for (int64_t i = 0; i < positions; ++i) target[i] = i % 5 == 4 ? p.ignore_index : i * 7 % s.C;
      CrossEntropyTargets<T> targets{indices ? target : nullptr, nullptr, call.random(s.C, 1, 8)};
      if (!indices) targets.probability = call.random(n, 0, 8);
      const T* x = call.random(n);
      double* divisor = call.template result<double>(1);
      int64_t bad = 0;
      kernels.check(p, targets, divisor, &bad, call);
      A *maximum = call.template result<A>(positions), *log_sum = call.template result<A>(positions);
      T *losses = call.result(positions), *mean = call.result(1);
      kernels.forward(p, x, targets, maximum, log_sum, losses, divisor, mean, call);
      const T* dloss = call.random(positions);
      kernels.backward(p, x, targets, maximum, log_sum, dloss, 1, divisor, call.result(n), call);
    });
}

void test_norms(int64_t N, int64_t C, int64_t inner) {
  const int64_t n = N * C * inner;
  const std::string size = " " + std::to_string(N) + " " + std::to_string(C) + " " + std::to_string(inner);
  check_types("batch_norm" + size, [=]<class T>(Call<T>& call) {
    using A = Accumulate<T>;
    const auto& kernels = simt::kernels<BatchNormKernels<T>>();
    const BatchNormShape shape{N, C, inner};
    const T *x = call.random(n), *weight = call.random(C), *bias = call.random(C);
    A *mean = call.template result<A>(C), *var = call.template result<A>(C);
    const Clamp none, relu6{0, 6};
    kernels.forward_training(shape, x, weight, bias, 0.5, relu6, call.result(n), mean, var, call);
    const T* dy = call.random(n);
    T *dx = call.result(n), *dweight = call.result(C), *dbias = call.result(C);
    kernels.backward(shape, true, dy, x, mean, var, weight, bias, 0.5, relu6, dx, dweight, dbias, call);
    for (const Clamp clamp : {none, relu6})
      kernels.backward(shape, false, dy, x, mean, var, weight, bias, 0.5, clamp, call.result(n), nullptr, nullptr,
                       call);
  });
  for (const int64_t groups : {int64_t{1}, C})
    check_types("row norm" + size, [=]<class T>(Call<T>& call) {
      using A = Accumulate<T>;
      const auto& kernels = simt::kernels<RowNormKernels<T>>();
      const RowNormShape shape{N * groups, C / groups, inner, groups};
      const T *x = call.random(n), *weight = call.random(C), *bias = call.random(C), *dy = call.random(n);
      A *mean = call.template result<A>(shape.rows), *rstd = call.template result<A>(shape.rows);
      kernels.forward(shape, x, weight, bias, 0.5, call.result(n), mean, rstd, call);
      T *dx = call.result(n), *dweight = call.result(C), *dbias = call.result(C);
      kernels.backward(shape, dy, x, mean, rstd, weight, dx, dweight, dbias, call);
    });
  check_types("channel_sum" + size, [=]<class T>(Call<T>& call) {
    simt::kernels<ChannelSumKernels<T>>().sum(N, C, inner, call.random(n), call.result(C), call);
  });
}

void test_pools(int64_t C, bool channels_last) {
  AvgPool2d p{{2, C, 9, 7, 5, 4}};
  p.R = p.S = 3, p.stride_h = p.stride_w = 2, p.pad_h = p.pad_w = 1, p.channels_last = channels_last;
  const int64_t in = p.N * p.C * p.H * p.W, out = p.N * p.C * p.OH * p.OW;
  for (const bool narrow : {true, false})
    check_types("max_pool2d", [=]<class T>(Call<T>& call) {
      Positions positions;
      if (narrow)
        positions.narrow = call.template result<uint8_t>(out);
      else
        positions.wide = call.template result<int32_t>(out);
      const auto& kernels = simt::kernels<MaxPool2dKernels<T>>();
      kernels.forward(p, call.random(in), call.result(out), positions, call);
      kernels.backward(p, call.random(out), positions, call.result(in), call);
      simt::kernels<MaxPool2dIndexKernels>().indices(p, positions, call.template result<int64_t>(out), call);
    });
  AvgPool2d global = p;
  global.adaptive = true;
  global.H = 24, global.W = 25, global.OH = 1, global.OW = 2;
  for (const AvgPool2d& q : {p, global})
    check_types("avg_pool2d", [=]<class T>(Call<T>& call) {
      const int64_t x = q.N * q.C * q.H * q.W, y = q.N * q.C * q.OH * q.OW;
      const auto& kernels = simt::kernels<AvgPool2dKernels<T>>();
      kernels.forward(q, call.random(x), call.result(y), call);
      kernels.backward(q, call.random(y), call.result(x), call);
    });
}

/// C = A B in batches.
void test_gemm(int64_t M, int64_t N, int64_t K, int64_t batch, std::initializer_list<bool> transposed) {
  for (const bool a_transposed : transposed)
    for (const bool b_transposed : transposed)
      check_types("gemm", [=]<class T>(Call<T>& call) {
        Gemm p{.M = M, .N = N, .K = K};
        p.a_row = a_transposed ? 1 : K, p.a_col = a_transposed ? M : 1;
        p.b_row = b_transposed ? 1 : N, p.b_col = b_transposed ? K : 1;
        p.c_row = N, p.batch = batch, p.a_batch = M * K, p.b_batch = K * N, p.c_batch = M * N;
        const T *a = call.random(batch * M * K), *b = call.random(batch * K * N), *bias = call.random(N);
        simt::kernels<GemmKernels<T>>().multiply(p, a, b, bias, call.result(batch * M * N), call);
        p.allow_tf32 = true;  // small multiples of 1/8 are exact in TF32 too
        simt::kernels<GemmKernels<T>>().multiply(p, a, b, bias, call.result(batch * M * N), call);
      });
}

/// Forward and both gradients; groups == C: depthwise.
void test_conv(int64_t C, int64_t K, int64_t groups, int64_t R, int64_t stride, bool channels_last) {
  Conv2d p{};
  p.N = 2, p.C = C, p.H = 9, p.W = 8, p.K = K, p.R = R, p.S = R, p.groups = groups, p.channels_last = channels_last;
  p.stride_h = p.stride_w = stride, p.pad_h = p.pad_w = R / 2, p.dilation_h = p.dilation_w = 1;
  p.OH = (p.H + 2 * p.pad_h - R) / stride + 1, p.OW = (p.W + 2 * p.pad_w - R) / stride + 1;
  const int64_t c = C / groups, w = K * c * R * R;
  p.w_k = c * R * R, p.w_c = channels_last ? 1 : R * R, p.w_s = channels_last ? c : 1, p.w_r = R * p.w_s;
  check_types("conv2d", [=]<class T>(Call<T>& call) mutable {
    const int64_t x = p.N * C * p.H * p.W, y = p.N * K * p.OH * p.OW;
    const T *image = call.random(x), *filter = call.random(w), *dy = call.random(y);
    const T *bias = call.random(K), *bias_back = call.random(C);
    for (const bool tf32 : {false, true}) {
      p.allow_tf32 = tf32;
      const auto& kernels = simt::kernels<Conv2dKernels<T>>();
      kernels.forward(p, image, filter, bias, call.result(y), call);
      kernels.backward_input(p, dy, filter, bias_back, call.result(x), call);
      simt::kernels<Conv2dWeightKernels<T>>().backward_weight(p, image, dy, call.result(w), call);
    }
  });
}

}  // namespace

int main() {
  for (const int64_t n : {1, 8, 1031}) test_elementwise(n);
  for (const bool channels_last : {false, true}) test_dropout({2, 5, 33, channels_last});
  for (const SoftmaxShape s : {SoftmaxShape{3, 5, 1}, {2, 256, 1}, {2, 3001, 1}, {1, 20001, 1}, {2, 70, 40}})
    test_lines(s);
  test_norms(70, 24, 1);
  test_norms(300, 5, 1);
  test_norms(3, 5, 49);
  test_norms(2, 3, 8200);
  for (const bool channels_last : {false, true})
    for (const int64_t C : {8, 5}) test_pools(C, channels_last);
  test_gemm(72, 40, 48, 2, {false, true});
  test_gemm(67, 13, 31, 1, {false, true});
  test_gemm(8, 8, 640, 1, {true});      // in splits
  test_gemm(16, 16, 24, 128, {false});  // large tiles
  for (const bool channels_last : {false, true}) {
    for (const int64_t stride : {1, 2}) {
      test_conv(16, 24, 1, 3, stride, channels_last);
      test_conv(6, 4, 2, 3, stride, channels_last);
      test_conv(16, 16, 1, 1, stride, channels_last);
      test_conv(10, 20, 10, 3, stride, channels_last);
    }
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
