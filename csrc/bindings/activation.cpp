// Activations: one op for all formulas, `dlkernels::activation`, with its backward op and in-place form.
#include "csrc/core/activation.h"

#include <ATen/ops/elu.h>
#include <ATen/ops/elu_backward.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/hardtanh.h>
#include <ATen/ops/hardtanh_backward.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/softplus_backward.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>

#include "csrc/bindings/common.h"
#include "csrc/bindings/ops.h"

namespace dlk::bindings {
namespace {

/// What a formula saves for backward: the same as PyTorch's, so that changing a tensor in place breaks no model that
/// trains there. Where the derivative could be told from either, PyTorch keeps the input and, in place, the output.
enum class Saves { input, output, output_if_inplace };

/// What PyTorch offers for a formula: its op, and its differentiable backward from what the formula saves.
struct Reference {
  Counter calls;
  Activation formula;
  Saves saves;
  Tensor (*forward)(const Tensor& x, double a, double b);
  Tensor (*backward)(const Tensor& dy, const Tensor& saved, double a, double b);
};

Reference kReferences[] = {
    {"relu", Activation::relu, Saves::output, [](const Tensor& x, double, double) { return at::relu(x); },
     [](const Tensor& dy, const Tensor& y, double, double) { return at::threshold_backward(dy, y, 0); }},
    {"leaky_relu", Activation::leaky_relu, Saves::output_if_inplace,
     [](const Tensor& x, double a, double) { return at::leaky_relu(x, a); },
     [](const Tensor& dy, const Tensor& saved, double a, double) {
       return at::leaky_relu_backward(dy, saved, a, /*self_is_result=*/false);
     }},
    {"elu", Activation::elu, Saves::output_if_inplace, [](const Tensor& x, double a, double) { return at::elu(x, a); },
     [](const Tensor& dy, const Tensor& saved, double a, double b) {
       return at::elu_backward(dy, a, 1, 1, /*is_result=*/b == 1, saved);
     }},
    {"hardtanh", Activation::hardtanh, Saves::output_if_inplace,
     [](const Tensor& x, double a, double b) { return at::hardtanh(x, a, b); },
     [](const Tensor& dy, const Tensor& y, double a, double b) { return at::hardtanh_backward(dy, y, a, b); }},
    {"sigmoid", Activation::sigmoid, Saves::output, [](const Tensor& x, double, double) { return at::sigmoid(x); },
     [](const Tensor& dy, const Tensor& y, double, double) { return at::sigmoid_backward(dy, y); }},
    {"tanh", Activation::tanh, Saves::output, [](const Tensor& x, double, double) { return at::tanh(x); },
     [](const Tensor& dy, const Tensor& y, double, double) { return at::tanh_backward(dy, y); }},
    {"gelu", Activation::gelu, Saves::input, [](const Tensor& x, double, double) { return at::gelu(x, "none"); },
     [](const Tensor& dy, const Tensor& x, double, double) { return at::gelu_backward(dy, x, "none"); }},
    {"gelu_tanh", Activation::gelu_tanh, Saves::input,
     [](const Tensor& x, double, double) { return at::gelu(x, "tanh"); },
     [](const Tensor& dy, const Tensor& x, double, double) { return at::gelu_backward(dy, x, "tanh"); }},
    {"silu", Activation::silu, Saves::input, [](const Tensor& x, double, double) { return at::silu(x); },
     [](const Tensor& dy, const Tensor& x, double, double) {  // at::silu_backward has no derivative
       const Tensor s = at::sigmoid(x);
       return dy * s * (1 + x * (1 - s));
     }},
    {"softplus", Activation::softplus, Saves::input,
     [](const Tensor& x, double a, double b) { return at::softplus(x, a, b); },
     [](const Tensor& dy, const Tensor& x, double a, double b) { return at::softplus_backward(dy, x, a, b); }},
};

Reference& reference(int64_t formula) {
  TORCH_CHECK_INDEX(formula >= 0 && formula < std::ssize(kReferences), "activation: no formula ", formula);
  return kReferences[formula];
}

// activation(Tensor x, int formula, float a, float b) -> Tensor
Tensor activation(const Tensor& x, int64_t formula, double a, double b) {
  const Tensor y = allocate_like(x);
  if (x.is_meta() || y.numel() == 0) return y;
  const Tensor xs = with_strides_of(x, y);
  with_kernels<ActivationKernels>(x, [&]<class T>(const ActivationKernels<T>& kernels, Context& context) {
    kernels.forward(static_cast<Activation>(formula), {a, b}, y.numel(), const_data<T>(xs), mutable_data<T>(y),
                    context);
  });
  return y;
}

// activation_(Tensor(a!) x, int formula, float a, float b) -> Tensor(a!)
Tensor& activation_(Tensor& x, int64_t formula, double a, double b) {
  check_inference_tensor(x);
  if (!x.is_non_overlapping_and_dense()) return x.copy_(activation(x, formula, a, b));
  with_kernels<ActivationKernels>(x, [&]<class T>(const ActivationKernels<T>& kernels, Context& context) {
    T* data = mutable_data<T>(x);
    kernels.forward(static_cast<Activation>(formula), {a, b}, x.numel(), data, data, context);
  });
  return x;
}

// activation_backward(Tensor dy, Tensor saved, int formula, float a, float b) -> Tensor
Tensor activation_backward(const Tensor& dy, const Tensor& saved, int64_t formula, double a, double b) {
  const Tensor dx = allocate_like(saved);
  if (dy.is_meta() || dx.numel() == 0) return dx;
  const Tensor dys = with_strides_of(dy, dx), saveds = with_strides_of(saved, dx);
  with_kernels<ActivationKernels>(dx, [&]<class T>(const ActivationKernels<T>& kernels, Context& context) {
    kernels.backward(static_cast<Activation>(formula), {a, b}, dx.numel(), const_data<T>(dys), const_data<T>(saveds),
                     mutable_data<T>(dx), context);
  });
  return dx;
}

// ---- Formulas with two slopes, which keep a bit per element for backward: whether the slope is 1, in the order of y's
// memory. PyTorch keeps the output or the input, 32 times as much.

/// Whether x is taken so. Of other strides the bits would not tell those of y.
bool keeps_slopes(const Tensor& x, Activation formula) {
  return has_two_slopes(formula) && backend_of(x.device()) == Backend::cpu && x.is_contiguous(format_of(x));
}

Tensor empty_bits(const Tensor& x) {
  if (x.is_meta()) return at::empty_symint({(x.sym_numel() + 63) / 64}, x.options().dtype(at::kLong));
  return allocate_bits(x.numel(), x.options());
}

/// y = f(x) and the bits; y may be x.
void apply_slopes(const Tensor& x, int64_t formula, ActivationParams params, const Tensor& y, const Tensor& unit) {
  if (x.numel() == 0) return;
  with_kernels<ActivationKernels>(x, [&]<class T>(const ActivationKernels<T>& kernels, Context& context) {
    kernels.forward_slopes(static_cast<Activation>(formula), params, x.numel(), const_data<T>(x), mutable_data<T>(y),
                           words(unit), context);
  });
}

// activation_slopes(Tensor x, int formula, float a, float b) -> (Tensor y, Tensor unit)
std::tuple<Tensor, Tensor> activation_slopes(const Tensor& x, int64_t formula, double a, double b) {
  const Tensor y = allocate_like(x), unit = empty_bits(x);
  if (!x.is_meta()) apply_slopes(x, formula, {a, b}, y, unit);
  return {y, unit};
}

// activation_slopes_(Tensor(a!) x, int formula, float a, float b) -> Tensor(a!)
Tensor& activation_slopes_(Tensor& x, int64_t formula, double a, double b) {
  check_inference_tensor(x);
  apply_slopes(x, formula, {a, b}, x, empty_bits(x));
  return x;
}

// activation_slopes_backward(Tensor dy, Tensor unit, float other_slope, bool channels_last) -> Tensor
Tensor activation_slopes_backward(const Tensor& dy, const Tensor& unit, double other_slope, bool channels_last) {
  if (dy.is_meta()) return at::empty_like(dy, format(channels_last));
  const Tensor dx = allocate(dy.sizes(), dy.options(), format(channels_last));
  if (dx.numel() == 0) return dx;
  const Tensor dys = contiguous(dy, format(channels_last));
  with_kernels<ActivationKernels>(dx, [&]<class T>(const ActivationKernels<T>& kernels, Context& context) {
    kernels.backward_slopes(other_slope, dx.numel(), const_data<T>(dys), words(unit), mutable_data<T>(dx), context);
  });
  return dx;
}

void save_slopes(Recording* call, const Tensor& x, const Tensor& unit, int64_t formula, ActivationParams params) {
  call->save_for_backward({unit});
  call->save_values(other_slope(static_cast<Activation>(formula), params), is_channels_last(x));
}

struct SlopesGradient {
  static std::tuple<Tensor, Tensor> forward(Recording* call, const Tensor& x, int64_t formula, double a, double b) {
    const auto outputs = DLK_OP(activation_slopes).call(x, formula, a, b);
    save_slopes(call, x, std::get<1>(outputs), formula, {a, b});
    return outputs;
  }

  static variable_list backward(Recording* call, const Tensor& dy) {
    const auto [other_slope, channels_last] = call->saved_values<double, bool>();
    return {DLK_OP(activation_slopes_backward).call(dy, call->saved_tensors()[0], other_slope, channels_last)};
  }
};

struct InplaceSlopesGradient {
  static Tensor forward(Recording* call, const Tensor& x, int64_t formula, double a, double b) {
    const Tensor unit = empty_bits(x);
    save_slopes(call, x, unit, formula, {a, b});
    apply_slopes(x, formula, {a, b}, x, unit);
    return x;
  }

  static variable_list backward(Recording* call, const Tensor& dy) { return SlopesGradient::backward(call, dy); }
};

/// The bits are constant: backward is linear in dy and its own derivative.
struct SlopesBackwardGradient {
  static Tensor forward(Recording* call, const Tensor& dy, const Tensor& unit, double other_slope, bool channels_last) {
    call->save_for_backward({unit});
    call->save_values(other_slope, channels_last);
    return DLK_OP(activation_slopes_backward).call(dy, unit, other_slope, channels_last);
  }

  static variable_list backward(Recording* call, const Tensor& dy) { return SlopesGradient::backward(call, dy); }
};

// ---- The others

/// Whether the output is saved; with a negative slope it does not tell the derivative.
bool saves_output(const Reference& ref, double a, bool inplace) {
  const bool by_slope = ref.formula == Activation::leaky_relu || ref.formula == Activation::elu;
  if (by_slope && !(a >= 0)) return false;
  return ref.saves == Saves::output || (ref.saves == Saves::output_if_inplace && inplace);
}

template <bool inplace>
struct ActivationGradient {
  static Tensor forward(Recording* call, Tensor x, int64_t formula, double a, double b) {
    const bool from_output = saves_output(reference(formula), a, inplace);
    if (static_cast<Activation>(formula) == Activation::elu) b = from_output;
    call->save_values(formula, a, b);
    Tensor input = x;
    if (inplace) {
      if (!from_output) input = x.clone();
      DLK_OP(activation_).call(x, formula, a, b);
    } else {
      x = DLK_OP(activation).call(x, formula, a, b);
    }
    call->save_for_backward({from_output ? x : input});
    return x;
  }

  static variable_list backward(Recording* call, const Tensor& dy) {
    const Tensor saved = call->saved_tensors()[0];
    const auto [formula, a, b] = call->saved_values<int64_t, double, double>();
    const Tensor dx = create_graph() ? reference(formula).backward(dy, saved, a, b)
                                     : DLK_OP(activation_backward).call(dy, saved, formula, a, b);
    return {dx};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(dlkernels, m) {
  m.def("activation(Tensor x, int formula, float a, float b) -> Tensor");
  m.def("activation_(Tensor(a!) x, int formula, float a, float b) -> Tensor(a!)");
  m.def("activation_backward(Tensor dy, Tensor saved, int formula, float a, float b) -> Tensor");
  m.def("activation_slopes(Tensor x, int formula, float a, float b) -> (Tensor, Tensor)");
  m.def("activation_slopes_(Tensor(a!) x, int formula, float a, float b) -> Tensor(a!)");
  m.def("activation_slopes_backward(Tensor dy, Tensor unit, float other_slope, bool channels_last) -> Tensor");
}
DLK_IMPL(activation, ActivationGradient<false>)
DLK_IMPL_INPLACE(activation_, ActivationGradient<true>)
DLK_IMPL_BACKWARD(activation_backward)
DLK_IMPL(activation_slopes, SlopesGradient)
DLK_IMPL_INPLACE(activation_slopes_, InplaceSlopesGradient)
DLK_IMPL(activation_slopes_backward, SlopesBackwardGradient)

Tensor activation_by_name(const std::string& name, const Tensor& input, double a, double b, bool inplace) {
  for (Reference& ref : kReferences) {
    if (name != ref.calls.op) continue;
    const int64_t formula = static_cast<int64_t>(ref.formula);
    Tensor x = input;
    // A traced in-place op would need an alias-aware functionalization that custom ops do not get: PyTorch's runs
    // there.
    const bool traced = inplace && x.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python);
    if (!covered(ref.calls, {x}, !traced)) return inplace ? x.copy_(ref.forward(x, a, b)) : ref.forward(x, a, b);
    if (recorded(x) && keeps_slopes(x, ref.formula))
      return inplace ? DLK_OP(activation_slopes_).call(x, formula, a, b)
                     : std::get<0>(DLK_OP(activation_slopes).call(x, formula, a, b));
    return inplace ? DLK_OP(activation_).call(x, formula, a, b) : DLK_OP(activation).call(x, formula, a, b);
  }
  TORCH_CHECK_VALUE(false, "activation: no formula named '", name, "'");
}

}  // namespace dlk::bindings
