// Cross-entropy and negative log-likelihood: one op, `dlkernels::cross_entropy`, with its backward op; `logits`
// chooses.
#include "csrc/core/cross_entropy.h"

#include <ATen/core/Reduction.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/nll_loss_nd.h>

#include "csrc/bindings/common.h"
#include "csrc/bindings/ops.h"

namespace dlk::bindings {
namespace {

bool is_index(const Tensor& target) { return !target.is_floating_point(); }

/// The kernel's view of x and its positions, after checking that target and weight fit x.
CrossEntropyParams checked_params(const Tensor& x, const Tensor& target, const Tensor& weight, bool logits,
                                  int64_t ignore_index, double label_smoothing) {
  const char* op = logits ? "cross_entropy" : "nll_loss";
  const at::DimVector sizes = sizes_of(x), targets = sizes_of(target);
  const int64_t rank = std::ssize(sizes), class_dim = rank == 1 ? 0 : 1;
  TORCH_CHECK_VALUE(rank >= 1, op, ": input must have 1 or more dimensions, got a scalar");
  TORCH_CHECK(label_smoothing <= 1, op, ": label_smoothing must be between 0 and 1, got ", label_smoothing);
  CrossEntropyParams p;
  p.logits = logits;
  p.ignore_index = ignore_index;
  p.label_smoothing = std::max(0.0, label_smoothing);
  p.C = sizes[class_dim];
  if (rank > 1) p.N = sizes[0];
  for (int64_t i = 2; i < rank; ++i) p.inner *= sizes[i];

  TORCH_CHECK(logits || (is_index(target) && p.label_smoothing == 0), op,
              ": target must hold class indices, and label_smoothing must be 0");
  if (is_index(target)) {
    at::DimVector expected = sizes;
    expected.erase(expected.begin() + class_dim);
    TORCH_CHECK_VALUE(rank == 1 || (!targets.empty() && targets[0] == p.N), op,
                      ": target must have input's batch size ", p.N, ", got a target of size ",
                      at::IntArrayRef(targets));
    // One unbatched target may be 0-d or have the size (1).
    TORCH_CHECK(targets == expected || (rank == 1 && targets == at::DimVector{1}), op,
                ": target must hold class indices of size ", at::IntArrayRef(expected), " for an input of size ",
                at::IntArrayRef(sizes), ", got ", at::IntArrayRef(targets));
  } else {
    TORCH_CHECK(targets == sizes, op, ": target must hold class probabilities of input's size ", at::IntArrayRef(sizes),
                ", got ", at::IntArrayRef(targets));
    TORCH_CHECK(ignore_index < 0, op, ": ignore_index needs class indices, got a target of class probabilities");
  }
  if (weight.defined()) {
    const at::DimVector weights = sizes_of(weight);
    TORCH_CHECK(weights == at::DimVector{p.C}, op, ": weight must have one element for each of the ", p.C,
                " classes, got size ", at::IntArrayRef(weights));
  }
  return p;
}

template <class T>
CrossEntropyTargets<T> targets_of(const Tensor& target, const Tensor& weight) {
  const bool index = is_index(target);
  return {index ? target.const_data_ptr<int64_t>() : nullptr, index ? nullptr : const_data<T>(target),
          const_data<T>(weight)};
}

/// Indices as int64, everything contiguous.
Tensor for_kernel(const Tensor& target) { return (is_index(target) ? target.to(at::kLong) : target).contiguous(); }

// cross_entropy(Tensor x, Tensor target, Tensor? weight, bool logits, int reduction, int ignore_index,
//               float label_smoothing) -> (Tensor loss, Tensor statistics, Tensor total)
// statistics (2, N, inner): the kernel's maximum and log_sum, which only logits have; total: what 'mean' divides by.
std::tuple<Tensor, Tensor, Tensor> cross_entropy(const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                                                 bool logits, int64_t reduction, int64_t ignore_index,
                                                 double label_smoothing) {
  const Tensor w = contiguous_or_undefined(weight);
  const CrossEntropyParams p = checked_params(x, target, w, logits, ignore_index, label_smoothing);
  at::DimVector positions = sizes_of(target);
  if (!is_index(target)) positions.erase(positions.begin() + (positions.size() == 1 ? 0 : 1));
  const bool reduced = reduction != at::Reduction::None;
  const Tensor statistics = allocate({2, logits ? p.N : 0, p.inner}, accumulate_options(x));
  const Tensor total = allocate({}, x.options().dtype(at::kDouble));
  const Tensor loss = allocate(reduced ? at::DimVector{} : positions, x.options());
  if (x.is_meta()) return {loss, statistics, total};

  const Tensor xs = contiguous(x), ts = for_kernel(target);
  with_kernels<CrossEntropyKernels>(x, [&]<class T>(const CrossEntropyKernels<T>& kernels, Context& context) {
    const auto targets = targets_of<T>(ts, w);
    double* const divisor = total.mutable_data_ptr<double>();
    int64_t bad = 0;
    TORCH_CHECK_INDEX(kernels.check(p, targets, divisor, &bad, context), "Target ", bad,
                      " is out of bounds: target must hold classes in [0, ", p.C, ") or ignore_index ", p.ignore_index);
    auto* const maximum = logits ? mutable_data<Accumulate<T>>(statistics) : nullptr;
    auto* const log_sum = logits ? maximum + p.N * p.inner : nullptr;
    T* const result = mutable_data<T>(loss);
    kernels.forward(p, const_data<T>(xs), targets, maximum, log_sum, reduced ? context.array<T>(p.N * p.inner) : result,
                    reduction == at::Reduction::Mean ? divisor : nullptr, reduced ? result : nullptr, context);
  });
  return {loss, statistics, total};
}

// cross_entropy_backward(Tensor dloss, Tensor x, Tensor target, Tensor? weight, Tensor statistics, Tensor total,
//                        bool logits, int reduction, int ignore_index, float label_smoothing) -> Tensor
Tensor cross_entropy_backward(const Tensor& dloss, const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                              const Tensor& statistics, const Tensor& total, bool logits, int64_t reduction,
                              int64_t ignore_index, double label_smoothing) {
  const Tensor dx = allocate(sizes_of(x), x.options());
  if (x.is_meta() || dx.numel() == 0) return dx;
  const Tensor w = contiguous_or_undefined(weight);
  const CrossEntropyParams p = checked_params(x, target, w, logits, ignore_index, label_smoothing);
  const Tensor xs = contiguous(x), ts = for_kernel(target), dlosses = dloss.contiguous();
  const double* const divisor = reduction == at::Reduction::Mean ? total.const_data_ptr<double>() : nullptr;
  with_kernels<CrossEntropyKernels>(x, [&]<class T>(const CrossEntropyKernels<T>& kernels, Context& context) {
    const auto* const maximum = logits ? const_data<Accumulate<T>>(statistics) : nullptr;
    const auto* const log_sum = logits ? maximum + p.N * p.inner : nullptr;
    kernels.backward(p, const_data<T>(xs), targets_of<T>(ts, w), maximum, log_sum, const_data<T>(dlosses),
                     /*step=*/reduction == at::Reduction::None ? 1 : 0, divisor, mutable_data<T>(dx), context);
  });
  return dx;
}

Tensor pytorch(const Tensor& x, const Tensor& target, const OptionalTensor& weight, bool logits, int64_t reduction,
               int64_t ignore_index, double label_smoothing) {
  return logits ? at::cross_entropy_loss(x, target, weight, reduction, ignore_index, label_smoothing)
                : at::nll_loss_nd(x, target, weight, reduction, ignore_index);
}

struct CrossEntropyGradient {
  static std::tuple<Tensor, Tensor, Tensor> forward(Recording* call, const Tensor& x, const Tensor& target,
                                                    const OptionalTensor& weight, bool logits, int64_t reduction,
                                                    int64_t ignore_index, double label_smoothing) {
    const auto [loss, statistics, total] =
        DLK_OP(cross_entropy).call(x, target, weight, logits, reduction, ignore_index, label_smoothing);
    call->save_values(logits, reduction, ignore_index, label_smoothing);
    call->save_for_backward({x, target, or_undefined(weight), statistics, total});
    return {loss, statistics, total};
  }

  static variable_list backward(Recording* call, const Tensor& dy) {
    const variable_list saved = call->saved_tensors();
    const Tensor &x = saved[0], &target = saved[1], &statistics = saved[3], &total = saved[4];
    const OptionalTensor weight = optional(saved[2]);
    const auto [logits, reduction, ignore_index, label_smoothing] =
        call->saved_values<bool, int64_t, int64_t, double>();
    variable_list gradients(7);
    const std::vector<bool> needs = {call->needs_gradient(0), call->needs_gradient(1)};
    if (create_graph() || needs[1]) {  // a gradient of probabilities is rare: PyTorch's
      const variable_list found = differentiable_gradients({x, target}, needs, dy, [&](const variable_list& inputs) {
        return pytorch(inputs[0], inputs[1], weight, logits, reduction, ignore_index, label_smoothing);
      });
      gradients[0] = found[0];
      gradients[1] = found[1];
      return gradients;
    }
    gradients[0] =
        DLK_OP(cross_entropy_backward)
            .call(dy, x, target, weight, statistics, total, logits, reduction, ignore_index, label_smoothing);
    return gradients;
  }
};

Counter cross_entropy_calls("cross_entropy"), nll_loss_calls("nll_loss");

}  // namespace

TORCH_LIBRARY_FRAGMENT(dlkernels, m) {
  m.def(
      "cross_entropy(Tensor x, Tensor target, Tensor? weight, bool logits, int reduction, int ignore_index, "
      "float label_smoothing) -> (Tensor, Tensor, Tensor)");
  m.def(
      "cross_entropy_backward(Tensor dloss, Tensor x, Tensor target, Tensor? weight, Tensor statistics, Tensor total, "
      "bool logits, int reduction, int ignore_index, float label_smoothing) -> Tensor");
}
DLK_IMPL(cross_entropy, CrossEntropyGradient)
DLK_IMPL_BACKWARD(cross_entropy_backward)

Tensor cross_entropy_entry(const Tensor& input, const Tensor& target, const OptionalTensor& weight, bool logits,
                           int64_t reduction, int64_t ignore_index, double label_smoothing) {
  const Tensor w = or_undefined(weight);
  const bool indices = target.scalar_type() == at::kLong || target.scalar_type() == at::kByte;
  TORCH_CHECK(indices || target.is_floating_point(), logits ? "cross_entropy" : "nll_loss",
              ": target must hold class indices of type int64 (or uint8)", logits ? " or class probabilities" : "",
              ", got ", target.scalar_type());
  const bool probabilities = logits && target.scalar_type() == input.scalar_type();
  // PyTorch differentiates by weight in part only, and says so.
  const bool supported =
      (indices || probabilities) && target.device() == input.device() && !(w.defined() && w.requires_grad());
  Counter& calls = logits ? cross_entropy_calls : nll_loss_calls;
  const bool ours = indices ? covered(calls, {input, w}, supported) : covered(calls, {input, target, w}, supported);
  if (!ours) return pytorch(input, target, weight, logits, reduction, ignore_index, label_smoothing);
  return std::get<0>(
      DLK_OP(cross_entropy).call(input, target, weight, logits, reduction, ignore_index, label_smoothing));
}

}  // namespace dlk::bindings
