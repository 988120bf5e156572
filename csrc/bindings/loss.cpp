// Elementwise losses: one op for both formulas, `dlkernels::elementwise_loss`, with its backward op.
#include "csrc/core/loss.h"

#include <ATen/ExpandUtils.h>
#include <ATen/core/Reduction.h>
#include <ATen/ops/binary_cross_entropy_with_logits.h>
#include <ATen/ops/mse_loss.h>

#include "csrc/bindings/common.h"
#include "csrc/bindings/ops.h"

namespace dlk::bindings {
namespace {

/// The arguments as the kernels want them: expanded to x and with the strides of `like`.
struct Arguments {
  Tensor x, target, weight, positive_weight;

  Arguments(const Tensor& like, const Tensor& x, const Tensor& target, const OptionalTensor& weight,
            const OptionalTensor& positive_weight)
      : x(with_strides_of(x, like)),
        target(with_strides_of(target, like)),
        weight(expanded(weight, like)),
        positive_weight(expanded(positive_weight, like)) {}

  static Tensor expanded(const OptionalTensor& w, const Tensor& like) {
    return w.has_value() ? with_strides_of(w->expand(like.sizes()), like) : Tensor();
  }

  template <class T>
  LossInputs<T> inputs() const {
    return {const_data<T>(x), const_data<T>(target), const_data<T>(weight), const_data<T>(positive_weight)};
  }
};

// elementwise_loss(Tensor x, Tensor target, Tensor? weight, Tensor? pos_weight, int loss, int reduction) -> Tensor
Tensor elementwise_loss(const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                        const OptionalTensor& pos_weight, int64_t loss, int64_t reduction) {
  // PyTorch's results have the strides of the argument that its first elementwise operation sees.
  const Tensor like = allocate_like(static_cast<Loss>(loss) == Loss::mse ? x : target);
  const Tensor y = reduction == at::Reduction::None ? like : allocate({}, x.options());
  if (x.is_meta()) return y;
  const Arguments arguments(like, x, target, weight, pos_weight);
  const int64_t n = x.numel();
  const double scale = reduction == at::Reduction::Mean ? 1 / static_cast<double>(n) : 1;
  with_kernels<LossKernels>(x, [&]<class T>(const LossKernels<T>& kernels, Context& context) {
    const Loss formula = static_cast<Loss>(loss);
    if (reduction == at::Reduction::None)
      kernels.forward(formula, n, arguments.inputs<T>(), mutable_data<T>(y), context);
    else
      kernels.sum(formula, n, arguments.inputs<T>(), scale, mutable_data<T>(y), context);
  });
  return y;
}

// elementwise_loss_backward(Tensor dy, Tensor x, Tensor target, Tensor? weight, Tensor? pos_weight, int loss,
//                           int reduction) -> Tensor
Tensor elementwise_loss_backward(const Tensor& dy, const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                                 const OptionalTensor& pos_weight, int64_t loss, int64_t reduction) {
  const Tensor dx = allocate_like(x);
  if (x.is_meta() || dx.numel() == 0) return dx;
  const Arguments arguments(dx, x, target, weight, pos_weight);
  const bool none = reduction == at::Reduction::None;
  const Tensor dys = none ? with_strides_of(dy, dx) : dy;
  const double scale = reduction == at::Reduction::Mean ? 1 / static_cast<double>(x.numel()) : 1;
  with_kernels<LossKernels>(x, [&]<class T>(const LossKernels<T>& kernels, Context& context) {
    kernels.backward(static_cast<Loss>(loss), x.numel(), arguments.inputs<T>(), const_data<T>(dys), none ? 1 : 0, scale,
                     mutable_data<T>(dx), context);
  });
  return dx;
}

Tensor pytorch(const Tensor& x, const Tensor& target, const OptionalTensor& weight, const OptionalTensor& pos_weight,
               int64_t loss, int64_t reduction) {
  if (static_cast<Loss>(loss) == Loss::mse) return at::mse_loss(x, target, reduction);
  return at::binary_cross_entropy_with_logits(x, target, weight, pos_weight, reduction);
}

struct LossGradient {
  static Tensor forward(Recording* call, const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                        const OptionalTensor& pos_weight, int64_t loss, int64_t reduction) {
    call->save_values(loss, reduction);
    call->save_for_backward({x, target, or_undefined(weight), or_undefined(pos_weight)});
    return DLK_OP(elementwise_loss).call(x, target, weight, pos_weight, loss, reduction);
  }

  static variable_list backward(Recording* call, const Tensor& dy) {
    const variable_list saved = call->saved_tensors();
    const Tensor &x = saved[0], &target = saved[1];
    const OptionalTensor weight = optional(saved[2]), pos_weight = optional(saved[3]);
    const auto [loss, reduction] = call->saved_values<int64_t, int64_t>();
    const std::vector<bool> needs = {call->needs_gradient(0), call->needs_gradient(1)};
    variable_list gradients(6);
    const bool mse = static_cast<Loss>(loss) == Loss::mse;
    if (create_graph() || (needs[1] && !mse)) {  // a gradient of probabilities is rare: PyTorch's
      const variable_list found = differentiable_gradients({x, target}, needs, dy, [&](const variable_list& inputs) {
        return pytorch(inputs[0], inputs[1], weight, pos_weight, loss, reduction);
      });
      gradients[0] = found[0];
      gradients[1] = found[1];
      return gradients;
    }
    gradients[0] = DLK_OP(elementwise_loss_backward).call(dy, x, target, weight, pos_weight, loss, reduction);
    if (needs[1]) gradients[1] = gradients[0].neg();
    return gradients;
  }
};

/// Whether w is absent, or a constant that broadcasts to x without enlarging it.
bool constant_for(const Tensor& w, const Tensor& x) {
  return !w.defined() || (!w.requires_grad() && at::is_expandable_to(sizes_of(w), sizes_of(x)));
}

Counter binary_cross_entropy_calls("binary_cross_entropy_with_logits"), mse_loss_calls("mse_loss");

}  // namespace

TORCH_LIBRARY_FRAGMENT(dlkernels, m) {
  m.def(
      "elementwise_loss(Tensor x, Tensor target, Tensor? weight, Tensor? pos_weight, int loss, int reduction) -> "
      "Tensor");
  m.def(
      "elementwise_loss_backward(Tensor dy, Tensor x, Tensor target, Tensor? weight, Tensor? pos_weight, int loss, "
      "int reduction) -> Tensor");
}
DLK_IMPL(elementwise_loss, LossGradient)
DLK_IMPL_BACKWARD(elementwise_loss_backward)

Tensor binary_cross_entropy_with_logits(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                        const OptionalTensor& pos_weight, int64_t reduction) {
  const int64_t loss = static_cast<int64_t>(Loss::binary_cross_entropy_with_logits);
  const Tensor w = or_undefined(weight), p = or_undefined(pos_weight);
  const bool supported = constant_for(w, input) && constant_for(p, input) && sizes_of(target) == sizes_of(input);
  if (!covered(binary_cross_entropy_calls, {input, target, w, p}, supported))
    return pytorch(input, target, weight, pos_weight, loss, reduction);
  return DLK_OP(elementwise_loss).call(input, target, weight, pos_weight, loss, reduction);
}

Tensor mse_loss(const Tensor& input, const Tensor& target, int64_t reduction) {
  const int64_t loss = static_cast<int64_t>(Loss::mse);
  if (!covered(mse_loss_calls, {input, target}, sizes_of(target) == sizes_of(input)))
    return at::mse_loss(input, target, reduction);
  return DLK_OP(elementwise_loss).call(input, target, std::nullopt, std::nullopt, loss, reduction);
}

}  // namespace dlk::bindings
