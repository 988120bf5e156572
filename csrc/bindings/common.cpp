#include "csrc/bindings/common.h"

#include <ATen/EmptyTensor.h>
#include <ATen/TensorUtils.h>
#include <ATen/autocast_mode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/SymInt.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/autograd.h>

#include "csrc/bindings/allocator.h"
#include "csrc/core/transpose.h"

namespace dlk::bindings {
namespace {

constexpr c10::DispatchKeySet kCpu(c10::DispatchKey::CPU);

/// Filled before main() and when this library is loaded, read afterwards.
std::vector<Counter*>& counters() {
  static std::vector<Counter*> all;
  return all;
}

bool plain(const Tensor& x) {
  return x.layout() == at::kStrided && !x.is_quantized() && !x.is_nested() && !x.is_conj() && !x.is_neg() &&
         !x.is_mkldnn();
}

/// Inside torch.func transforms C++ autograd Functions raise; under autocast PyTorch chooses the dtypes.
bool transformed(at::DeviceType device) {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) ||
         at::autocast::is_autocast_enabled(device);
}

bool kernels_apply(at::ArrayRef<Tensor> inputs) {
  const Tensor* first = nullptr;
  for (const Tensor& x : inputs) {
    if (!x.defined()) continue;
    if (!(x.is_cpu() || x.is_cuda()) || !plain(x)) return false;
    if (x._fw_grad(/*level=*/0).defined()) return false;  // forward-mode AD: C++ Functions have no jvp
    if (first == nullptr) {
      if (transformed(x.device().type()) || !has_kernels(x.device(), x.scalar_type())) return false;
      first = &x;
    } else if (x.scalar_type() != first->scalar_type() || x.device() != first->device()) {
      return false;
    }
  }
  return first != nullptr;
}

}  // namespace

Counter::Counter(const char* op) : op(op) { counters().push_back(this); }

bool covered(Counter& calls, at::ArrayRef<Tensor> inputs, bool supported) {
  const bool ours = supported && kernels_apply(inputs);
  (ours ? calls.kernel : calls.fallback).fetch_add(1, std::memory_order_relaxed);
  return ours;
}

std::map<std::string, Counts> counts() {
  std::map<std::string, Counts> by_op;
  for (const Counter* calls : counters())
    if (calls->kernel + calls->fallback > 0) by_op[calls->op] = {calls->kernel, calls->fallback};
  return by_op;
}

void reset_counts() {
  for (Counter* calls : counters()) calls->kernel = calls->fallback = 0;
}

variable_list differentiable_gradients(const variable_list& inputs, const std::vector<bool>& needs, const Tensor& dy,
                                       const std::function<Tensor(const variable_list&)>& reference) {
  const bool differentiable = create_graph();
  const at::AutoGradMode enable(true);
  // Aliases: the gradient of each argument apart, even where one tensor is passed twice.
  variable_list arguments, wanted, gradients(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    arguments.push_back(inputs[i].defined() ? inputs[i].view_as(inputs[i]) : inputs[i]);
    if (needs[i]) wanted.push_back(arguments.back());
  }
  const Tensor y = reference(arguments);
  const variable_list found =
      torch::autograd::grad({y}, wanted, {dy}, /*retain_graph=*/differentiable, differentiable, /*allow_unused=*/true);
  for (size_t i = 0, next = 0; i < inputs.size(); ++i)
    if (needs[i]) gradients[i] = found[next++];
  return gradients;
}

void check_inplace(const Tensor& x) {
  torch::autograd::check_inplace(x, at::GradMode::is_enabled() && x.requires_grad());
}

void check_inference_tensor(const Tensor& x) {
  TORCH_CHECK(!x.is_inference() || c10::InferenceMode::is_enabled(),
              "Inplace update to inference tensor outside InferenceMode is not allowed.");
}

at::DimVector sizes_of(const Tensor& x) {
  at::DimVector sizes;
  for (const c10::SymInt& size : x.sym_sizes()) sizes.push_back(size.guard_int(__FILE__, __LINE__));
  return sizes;
}

Tensor allocate(at::IntArrayRef sizes, const at::TensorOptions& options, at::MemoryFormat format) {
  if (!options.device().is_cpu()) return at::empty(sizes, options.memory_format(format));
  return at::detail::empty_generic(sizes, &cpu_allocator(), kCpu, at::typeMetaToScalarType(options.dtype()), format);
}

Tensor allocate_like(const Tensor& x) {
  if (!x.is_cpu()) return at::empty_like(x);
  const auto like = [&](at::IntArrayRef strides) {
    return at::detail::empty_strided_generic(x.sizes(), strides, &cpu_allocator(), kCpu, x.scalar_type());
  };
  return x.is_non_overlapping_and_dense() ? like(x.strides()) : like(at::infer_dense_strides(x.sizes(), x.strides()));
}

Tensor with_strides_of(const Tensor& x, const Tensor& like) {
  if (x.sym_strides() == like.sym_strides()) return x;
  return allocate_like(like).copy_(x);
}

at::MemoryFormat format_of(const Tensor& x) {
  const at::MemoryFormat format = x.suggest_memory_format();
  return format == at::MemoryFormat::ChannelsLast ? format : at::MemoryFormat::Contiguous;
}

Tensor contiguous(const Tensor& x, at::MemoryFormat format) {
  if (x.is_contiguous(format)) return x;
  const bool channels_last = format == at::MemoryFormat::ChannelsLast;
  const at::ScalarType dtype = x.scalar_type();
  if (!x.is_cpu() || x.dim() != 4 || (dtype != at::kFloat && dtype != at::kDouble) ||
      !x.is_contiguous(bindings::format(!channels_last)))
    return x.contiguous(format);
  const int64_t N = x.size(0), C = x.size(1), pixels = x.size(2) * x.size(3);
  const Tensor y = allocate(x.sizes(), x.options(), format);
  at::internal::lazy_init_num_threads();
  const auto transpose = [&]<class T>(T) {
    cpu::kernels<TransposeKernels<T>>().transpose(N, channels_last ? C : pixels, channels_last ? pixels : C,
                                                  const_data<T>(x), mutable_data<T>(y));
  };
  dtype == at::kFloat ? transpose(float{}) : transpose(double{});
  return y;
}

at::TensorOptions accumulate_options(const Tensor& x) {
  return x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

}  // namespace dlk::bindings
