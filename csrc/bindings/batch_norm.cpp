// Batch normalisation (`dlkernels::batch_norm_training`, `batch_norm_eval`, one backward op) and instance
// normalisation, which is batch normalisation of a (1, N C, ...) view.
//
// The training op returns the batch's statistics; the entry point updates the running ones from them: by a loop on the
// CPU, where five operations on C elements cost more than a small layer, else by PyTorch's in-place operations, which
// torch.compile can follow.
#include "csrc/core/batch_norm.h"

#include <ATen/ops/batch_norm.h>
#include <ATen/ops/hardtanh.h>
#include <ATen/ops/hardtanh_backward.h>
#include <ATen/ops/instance_norm.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/threshold_backward.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "csrc/bindings/common.h"
#include "csrc/bindings/ops.h"

namespace dlk::bindings {
namespace {

/// The kernel's view of x in memory format `format`, contiguous or one of the two channels_last.
BatchNormShape shape_of(const Tensor& x, at::MemoryFormat format) {
  BatchNormShape s{x.size(0), x.size(1), 1};
  for (int64_t i = 2; i < x.dim(); ++i) s.inner *= x.size(i);
  if (format == at::MemoryFormat::Contiguous) return s;
  return {s.N * s.inner, s.C, 1};
}

/// Running statistics have the dtype of x, kernels take them in that of sums.
Tensor as_statistics(const Tensor& statistics, const Tensor& x) {
  const at::ScalarType dtype = at::typeMetaToScalarType(accumulate_options(x).dtype());
  return (statistics.scalar_type() == dtype ? statistics : statistics.to(dtype)).contiguous();
}

// batch_norm_training(Tensor x, Tensor? weight, Tensor? bias, float eps, float low, float high)
//     -> (Tensor y, Tensor mean, Tensor var)
std::tuple<Tensor, Tensor, Tensor> batch_norm_training(const Tensor& x, const OptionalTensor& weight,
                                                       const OptionalTensor& bias, double eps, double low,
                                                       double high) {
  const at::DimVector sizes = sizes_of(x);
  const at::MemoryFormat format = x.suggest_memory_format();
  const Tensor y = allocate(sizes, x.options(), format);
  const Tensor mean = allocate({sizes[1]}, accumulate_options(x)), var = allocate({sizes[1]}, accumulate_options(x));
  if (x.is_meta()) return {y, mean, var};
  const Tensor xs = contiguous(x, format), w = contiguous_or_undefined(weight), b = contiguous_or_undefined(bias);
  with_kernels<BatchNormKernels>(x, [&]<class T>(const BatchNormKernels<T>& kernels, Context& context) {
    kernels.forward_training(shape_of(x, format), const_data<T>(xs), const_data<T>(w), const_data<T>(b), eps,
                             {low, high}, mutable_data<T>(y), mutable_data<Accumulate<T>>(mean),
                             mutable_data<Accumulate<T>>(var), context);
  });
  return {y, mean, var};
}

// batch_norm_eval(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, float low, float high)
//     -> Tensor
Tensor batch_norm_eval(const Tensor& x, const Tensor& mean, const Tensor& var, const OptionalTensor& weight,
                       const OptionalTensor& bias, double eps, double low, double high) {
  const at::MemoryFormat format = x.suggest_memory_format();
  const Tensor y = allocate(sizes_of(x), x.options(), format);
  if (x.is_meta()) return y;
  const Tensor xs = contiguous(x, format), w = contiguous_or_undefined(weight), b = contiguous_or_undefined(bias);
  const Tensor means = as_statistics(mean, x), vars = as_statistics(var, x);
  with_kernels<BatchNormKernels>(x, [&]<class T>(const BatchNormKernels<T>& kernels, Context& context) {
    kernels.forward_eval(shape_of(x, format), const_data<T>(xs), const_data<Accumulate<T>>(means),
                         const_data<Accumulate<T>>(vars), const_data<T>(w), const_data<T>(b), eps, {low, high},
                         mutable_data<T>(y), context);
  });
  return y;
}

// batch_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, bool training,
//                     float eps, float low, float high) -> (Tensor dx, Tensor dweight, Tensor dbias)
std::tuple<Tensor, Tensor, Tensor> batch_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& mean,
                                                       const Tensor& var, const OptionalTensor& weight,
                                                       const OptionalTensor& bias, bool training, double eps,
                                                       double low, double high) {
  const at::DimVector sizes = sizes_of(x);
  const at::MemoryFormat format = x.suggest_memory_format();
  const Tensor dx = allocate(sizes, x.options(), format);
  const Tensor dweight = allocate({sizes[1]}, x.options()), dbias = allocate({sizes[1]}, x.options());
  if (x.is_meta()) return {dx, dweight, dbias};
  const Tensor xs = contiguous(x, format), dys = contiguous(dy, format);
  const Tensor w = contiguous_or_undefined(weight), b = contiguous_or_undefined(bias);
  const Tensor means = as_statistics(mean, x), vars = as_statistics(var, x);
  with_kernels<BatchNormKernels>(x, [&]<class T>(const BatchNormKernels<T>& kernels, Context& context) {
    kernels.backward(shape_of(x, format), training, const_data<T>(dys), const_data<T>(xs),
                     const_data<Accumulate<T>>(means), const_data<Accumulate<T>>(vars), const_data<T>(w),
                     const_data<T>(b), eps, {low, high}, mutable_data<T>(dx), mutable_data<T>(dweight),
                     mutable_data<T>(dbias), context);
  });
  return {dx, dweight, dbias};
}

/// What PyTorch has for a clamp: without an upper bound, ReLU.
Tensor clamp_forward(const Tensor& y, Clamp clamp) {
  if (!clamp.clamps()) return y;
  return clamp.bounds_above() ? at::hardtanh(y, clamp.low, clamp.high) : at::relu(y);
}
Tensor clamp_backward(const Tensor& dy, const Tensor& y, Clamp clamp) {
  return clamp.bounds_above() ? at::hardtanh_backward(dy, y, clamp.low, clamp.high) : at::threshold_backward(dy, y, 0);
}

/// What forward clamped, as a constant: the slopes do not change with it.
Tensor unclamped(const Tensor& x, const Tensor& mean, const Tensor& var, const OptionalTensor& weight,
                 const OptionalTensor& bias, double eps) {
  const at::NoGradGuard no_grad;
  return DLK_OP(batch_norm_eval).call(x, mean, var, weight, bias, eps, Clamp().low, Clamp().high);
}

/// The gradients of x, weight and bias by PyTorch's operations, which are differentiable.
std::tuple<Tensor, Tensor, Tensor> differentiable_backward(Tensor dy, const Tensor& x, const Tensor& mean,
                                                           const Tensor& var, const OptionalTensor& weight,
                                                           const OptionalTensor& bias, bool training, double eps,
                                                           Clamp clamp) {
  const Tensor rstd = (as_statistics(var, x) + eps).rsqrt();
  at::DimVector channels(x.dim(), 1), others{0};
  channels[1] = x.size(1);
  for (int64_t i = 2; i < x.dim(); ++i) others.push_back(i);
  if (clamp.clamps()) dy = clamp_backward(dy, unclamped(x, mean, var, weight, bias, eps), clamp);
  const Tensor dbias = dy.sum(others);
  // What follows asks of PyTorch's backward only what it can do on CUDA tensors: no gradient of an absent weight, nor
  // anything for given statistics ("tensor does not have a device", 2.11).
  if (training) {
    const auto [dx, dweight, _] = at::native_batch_norm_backward(dy, x, weight, {}, {}, as_statistics(mean, x), rstd,
                                                                 training, eps, {true, weight.has_value(), false});
    return {dx, dweight, dbias};
  }
  const auto per_channel = [&](const Tensor& t) { return t.to(x.scalar_type()).view(channels); };
  const Tensor scaled = dy * per_channel(rstd);
  return {weight.has_value() ? scaled * per_channel(*weight) : scaled, (scaled * (x - per_channel(mean))).sum(others),
          dbias};
}

struct BatchNormGradient {
  // Training: mean and var are outputs beside y.
  static std::tuple<Tensor, Tensor, Tensor> forward(Recording* call, const Tensor& x, const OptionalTensor& weight,
                                                    const OptionalTensor& bias, double eps, double low, double high) {
    const auto [y, mean, var] = DLK_OP(batch_norm_training).call(x, weight, bias, eps, low, high);
    save(call, /*training=*/true, x, mean, var, weight, bias, eps, {low, high});
    return {y, mean, var};
  }

  // Evaluation: mean and var are inputs.
  static Tensor forward(Recording* call, const Tensor& x, const Tensor& mean, const Tensor& var,
                        const OptionalTensor& weight, const OptionalTensor& bias, double eps, double low, double high) {
    // Copies: training later updates the buffers, and must not make this backward raise.
    save(call, /*training=*/false, x, mean.clone(), var.clone(), weight, bias, eps, {low, high});
    return DLK_OP(batch_norm_eval).call(x, mean, var, weight, bias, eps, low, high);
  }

  /// The bias tells what was clamped, and without a clamp nothing: a copy, since PyTorch keeps none, so that changing
  /// it before backward may not raise.
  static void save(Recording* call, bool training, const Tensor& x, const Tensor& mean, const Tensor& var,
                   const OptionalTensor& weight, const OptionalTensor& bias, double eps, Clamp clamp) {
    call->save_values(training, bias.has_value(), eps, clamp);
    call->save_for_backward(
        {x, or_undefined(weight), mean, var, clamp.clamps() && bias.has_value() ? bias->detach().clone() : Tensor()});
  }

  static variable_list backward(Recording* call, const Tensor& dy) {
    const variable_list saved = call->saved_tensors();
    const Tensor &x = saved[0], &mean = saved[2], &var = saved[3];
    const OptionalTensor weight = optional(saved[1]), bias = optional(saved[4]);
    const auto [training, has_bias, eps, clamp] = call->saved_values<bool, bool, double, Clamp>();
    auto [dx, dweight, dbias] =
        create_graph()
            ? differentiable_backward(dy, x, mean, var, weight, bias, training, eps, clamp)
            : DLK_OP(batch_norm_backward).call(dy, x, mean, var, weight, bias, training, eps, clamp.low, clamp.high);
    if (!weight.has_value()) dweight = Tensor();
    if (!has_bias) dbias = Tensor();
    if (training) return {dx, dweight, dbias};
    return {dx, Tensor(), Tensor(), dweight, dbias};
  }
};

void check_size(const char* name, const Tensor& x, int64_t C) {
  if (!x.defined()) return;
  const at::DimVector sizes = sizes_of(x);
  TORCH_CHECK(sizes == at::DimVector{C}, "batch_norm: ", name, " must have one element for each of the ", C,
              " channels, got size ", at::IntArrayRef(sizes));
}

/// Whether PyTorch must see what happens to x, since torch.compile, torch.jit.trace or a dispatch mode records it.
bool watched(const Tensor& x) {
  constexpr c10::DispatchKeySet recorders({c10::DispatchKey::Python, c10::DispatchKey::Tracer});
  return (x.key_set() | c10::impl::tls_local_dispatch_key_set().included_).has_any(recorders);
}

template <class T>
void update_elements(const Tensor& running, const Tensor& batch, double momentum, double factor) {
  T* const r = mutable_data<T>(running);
  const T* const b = const_data<T>(batch);
  for (int64_t c = 0; c < running.numel(); ++c) r[c] = static_cast<T>((1 - momentum) * r[c] + momentum * factor * b[c]);
}

/// running = (1 - momentum) running + momentum factor batch.
void update(const Tensor& running, const Tensor& batch, double momentum, double factor) {
  if (!running.defined()) return;
  const at::ScalarType dtype = batch.scalar_type();  // that of arithmetic
  const bool recorded = watched(running);
  if (!recorded) torch::autograd::impl::bump_version(running);  // raises for a tensor that must not be changed here
  if (running.is_cpu() && running.is_contiguous() && running.scalar_type() == dtype && !recorded) {
    return dtype == at::kDouble ? update_elements<double>(running, batch, momentum, factor)
                                : update_elements<float>(running, batch, momentum, factor);
  }
  const at::NoGradGuard no_grad;
  const Tensor updated = running.to(dtype).mul_(1 - momentum).add_(batch, momentum * factor);
  if (!updated.is_same(running)) running.copy_(updated);
}

/// batch_norm on inputs that are covered.
Tensor batch_norm_covered(const Tensor& x, const Tensor& running_mean, const Tensor& running_var,
                          const OptionalTensor& weight, const OptionalTensor& bias, bool training, double momentum,
                          double eps, Clamp clamp) {
  const at::DimVector sizes = sizes_of(x);
  TORCH_CHECK_VALUE(running_mean.defined() == running_var.defined(),
                    "batch_norm: running_mean and running_var must be given both or neither");
  check_size("running_mean", running_mean, sizes[1]);
  check_size("running_var", running_var, sizes[1]);
  check_size("weight", or_undefined(weight), sizes[1]);
  check_size("bias", or_undefined(bias), sizes[1]);
  TORCH_CHECK(training || (running_mean.defined() && running_var.defined()),
              "batch_norm: running_mean and running_var must be given when training is False");
  if (x.sym_numel() == 0)  // nothing to normalise: PyTorch's rules for the gradients of nothing
    return clamp_forward(
        at::batch_norm(x, weight, bias, optional(running_mean), optional(running_var), training, momentum, eps, false),
        clamp);
  if (!training)
    return DLK_OP(batch_norm_eval).call(x, running_mean, running_var, weight, bias, eps, clamp.low, clamp.high);
  const auto [y, mean, var] = DLK_OP(batch_norm_training).call(x, weight, bias, eps, clamp.low, clamp.high);
  double count = 1;
  for (size_t i = 0; i < sizes.size(); ++i)
    if (i != 1) count *= static_cast<double>(sizes[i]);
  update(running_mean, mean, momentum, 1);
  update(running_var, var, momentum, count / (count - 1));  // the running variance is the unbiased one
  return y;
}

Counter batch_norm_calls("batch_norm"), instance_norm_calls("instance_norm");

}  // namespace

TORCH_LIBRARY_FRAGMENT(dlkernels, m) {
  m.def(
      "batch_norm_training(Tensor x, Tensor? weight, Tensor? bias, float eps, float low, float high) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "batch_norm_eval(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, float low, "
      "float high) -> Tensor");
  m.def(
      "batch_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, bool training, "
      "float eps, float low, float high) -> (Tensor, Tensor, Tensor)");
}
DLK_IMPL(batch_norm_training, BatchNormGradient)
DLK_IMPL(batch_norm_eval, BatchNormGradient)
DLK_IMPL_BACKWARD(batch_norm_backward)

Tensor batch_norm(const Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
                  const OptionalTensor& weight, const OptionalTensor& bias, bool training, double momentum, double eps,
                  double low, double high) {
  const Tensor mean = or_undefined(running_mean), var = or_undefined(running_var);
  const Clamp clamp{low, high};
  TORCH_CHECK_VALUE(!clamp.clamps() || clamp.low == 0, "batch_norm: low must be 0 or -inf, got ",
                    low);  // clamp_forward
  if (!covered(batch_norm_calls, {input, mean, var, or_undefined(weight), or_undefined(bias)}, input.dim() >= 2))
    return clamp_forward(at::batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, false),
                         clamp);
  return batch_norm_covered(input, mean, var, weight, bias, training, momentum, eps, clamp);
}

Tensor instance_norm(const Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
                     const OptionalTensor& weight, const OptionalTensor& bias, bool use_input_stats, double momentum,
                     double eps) {
  const Tensor mean = or_undefined(running_mean), var = or_undefined(running_var);
  if (!covered(instance_norm_calls, {input, mean, var, or_undefined(weight), or_undefined(bias)}, input.dim() >= 2))
    return at::instance_norm(input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, false);
  TORCH_CHECK(use_input_stats || (mean.defined() && var.defined()),
              "instance_norm: running_mean and running_var must be given when use_input_stats is False");
  const at::DimVector sizes = sizes_of(input);
  const int64_t N = sizes[0], C = sizes[1];
  check_size("running_mean", mean, C);
  check_size("running_var", var, C);
  check_size("weight", or_undefined(weight), C);
  check_size("bias", or_undefined(bias), C);
  if (!use_input_stats)
    return batch_norm_covered(input.contiguous(), mean, var, weight, bias, /*training=*/false, momentum, eps, {});
  at::DimVector as_channels = sizes;
  as_channels[0] = 1;
  as_channels[1] = N * C;
  const auto repeated = [&](const Tensor& t) { return t.defined() ? t.repeat({N}) : t; };
  const Tensor means = repeated(mean), vars = repeated(var);
  const Tensor y =
      batch_norm_covered(input.contiguous().view(as_channels), means, vars, optional(repeated(or_undefined(weight))),
                         optional(repeated(or_undefined(bias))), /*training=*/true, momentum, eps, {});
  if (mean.defined()) mean.copy_(means.view({N, C}).mean(0));
  if (var.defined()) var.copy_(vars.view({N, C}).mean(0));
  return y.view(sizes);
}

}  // namespace dlk::bindings
