// What every binding uses: is an input ours or PyTorch's, memory, registering and calling an op, and the differentiable
// gradient for create_graph; device.h has the call of a kernel.
//
// The only layer that sees torch. An op's file here does, in this order: its ops (checks, allocation, kernel call; one
// function serves CPU, CUDA and the Meta key), its Gradient, its registration, and its entry point, which module.cpp
// exposes to Python.
#pragma once

#include <ATen/DimVector.h>
#include <ATen/ExpandUtils.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <atomic>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "csrc/bindings/device.h"

namespace dlk::bindings {

using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Calls of one op so far: how many ran on our kernels and how many went to PyTorch. One per entry point, in static
/// storage.
struct Counter {
  Counter(const char* op);  // implicit: a table of ops names its counters
  const char* const op;
  std::atomic<int64_t> kernel = 0;
  std::atomic<int64_t> fallback = 0;
};

/// True if our kernels compute an op on these inputs: dense tensors of one device and one dtype that we have kernels
/// for (CPU: float32 and float64; CUDA: also float16 and bfloat16), outside functorch transforms, forward-mode AD and
/// autocast. Otherwise the caller runs PyTorch's own op. Counts either way. Undefined tensors (absent weights, biases)
/// are skipped.
bool covered(Counter& calls, at::ArrayRef<Tensor> inputs, bool supported = true);

struct Counts {
  int64_t kernel = 0;
  int64_t fallback = 0;
};
/// The counters of the ops that were called, by name.
std::map<std::string, Counts> counts();
void reset_counts();

/// Whether gradients must themselves be differentiable here: the backward pass runs under create_graph=True.
inline bool create_graph() { return at::GradMode::is_enabled(); }

/// The gradients of `inputs` (undefined for those with needs[i] false) from PyTorch, differentiable under create_graph:
/// `reference` is PyTorch's own forward op on the inputs.
variable_list differentiable_gradients(const variable_list& inputs, const std::vector<bool>& needs, const Tensor& dy,
                                       const std::function<Tensor(const variable_list&)>& reference);

/// Raises what PyTorch raises for a tensor that must not change in place (a leaf that requires grad, some views),
/// before anything is written.
void check_inplace(const Tensor& x);
/// Likewise for a tensor made in inference mode and used outside of it.
void check_inference_tensor(const Tensor& x);

/// Sizes as plain integers; under torch.compile with dynamic shapes they become guards.
at::DimVector sizes_of(const Tensor& x);

/// The one place where outputs come from: on the CPU, the caching allocator.
Tensor allocate(at::IntArrayRef sizes, const at::TensorOptions& options,
                at::MemoryFormat format = at::MemoryFormat::Contiguous);
/// Like `x` in sizes and, as far as it is dense, strides: what PyTorch's elementwise ops return.
Tensor allocate_like(const Tensor& x);
/// `x` itself if its strides equal those of `like` (same sizes, dense), else a copy that has them.
Tensor with_strides_of(const Tensor& x, const Tensor& like);
/// channels_last only where PyTorch would propagate it; otherwise contiguous.
at::MemoryFormat format_of(const Tensor& x);

/// Options of what holds statistics of x, or sums over it: those of x, with the dtype Accumulate<T>.
at::TensorOptions accumulate_options(const Tensor& x);

/// A tensor's data as kernels take it; null for an undefined tensor.
template <class T>
const T* const_data(const Tensor& x) {
  return x.defined() ? static_cast<const T*>(x.const_data_ptr()) : nullptr;
}
template <class T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

inline OptionalTensor optional(const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; }
inline Tensor contiguous_or_undefined(const OptionalTensor& x) { return x.has_value() ? x->contiguous() : Tensor(); }
inline Tensor or_undefined(const OptionalTensor& x) { return x.has_value() ? *x : Tensor(); }

// ---- Ops and autograd

/// Keeps for backward what is no tensor, under one key: keys cost more than values.
template <class... Values>
void save_values(AutogradContext* ctx, const Values&... values) {
  c10::impl::GenericList list(c10::AnyType::get());
  list.reserve(sizeof...(values));
  (list.push_back(at::IValue(values)), ...);
  ctx->saved_data["values"] = std::move(list);
}
template <class... Values>
std::tuple<Values...> saved_values(AutogradContext* ctx) {
  const at::ArrayRef<at::IValue> list = ctx->saved_data["values"].toListRef();
  return [&]<size_t... i>(std::index_sequence<i...>) {
    return std::tuple<Values...>{list[i].to<Values>()...};
  }(std::index_sequence_for<Values...>());
}

/// Whether autograd records a call with these arguments.
template <class... Arguments>
bool recorded(const Arguments&... arguments) {
  const auto requires_grad = []<class A>(const A& argument) {
    if constexpr (std::is_same_v<A, Tensor>) return argument.requires_grad();
    if constexpr (std::is_same_v<A, OptionalTensor>) return argument.has_value() && argument->requires_grad();
    return false;
  };
  return at::GradMode::is_enabled() && (requires_grad(arguments) || ...);
}

/// The autograd node of a call, from an op's `Gradient`:
///
///     static Tensor forward(AutogradContext* ctx, arguments...);                // runs below autograd
///     static variable_list backward(AutogradContext* ctx, const Tensor& dy);    // gradients of the first arguments
///
/// forward may return a variable_list: then the first output is differentiable, the others are what backward needs.
template <class Gradient, size_t inputs>
struct Recorded : torch::autograd::Function<Recorded<Gradient, inputs>> {
  template <class... Arguments>
  static auto forward(AutogradContext* ctx, Arguments&&... arguments) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto outputs = Gradient::forward(ctx, arguments...);
    if constexpr (std::is_same_v<decltype(outputs), variable_list>)
      ctx->mark_non_differentiable({outputs.begin() + 1, outputs.end()});
    ctx->set_materialize_grads(false);  // no zeros for what has no gradient
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list gradients;
    if (grads[0].defined()) gradients = Gradient::backward(ctx, grads[0]);
    gradients.resize(inputs);
    return gradients;
  }
};

/// The autograd kernel of the op that `fn` implements. A call that is not recorded goes to the next kernel at once:
/// Function::apply makes a node even then, which costs more than a small layer.
template <auto fn, auto op, class Gradient>
struct Autograd;
template <class Result, class... Arguments, Result (*fn)(Arguments...), auto op, class Gradient>
struct Autograd<fn, op, Gradient> {
  static Result call(Arguments... arguments) {
    if (!recorded(arguments...)) {
      const at::AutoDispatchBelowAutograd below;
      return op().call(arguments...);
    }
    const auto outputs = Recorded<Gradient, sizeof...(Arguments)>::apply(arguments...);
    if constexpr (std::is_same_v<Result, Tensor>) {
      return outputs;
    } else {
      return [&]<size_t... i>(std::index_sequence<i...>) {
        return Result{outputs[i]...};
      }(std::make_index_sequence<std::tuple_size_v<Result>>());
    }
  }
};

/// Likewise for an op that changes its first argument.
template <auto fn, auto op, class Gradient>
struct InplaceAutograd;
template <class... Arguments, Tensor& (*fn)(Tensor&, Arguments...), auto op, class Gradient>
struct InplaceAutograd<fn, op, Gradient> {
  static Tensor& call(Tensor& x, Arguments... arguments) {
    check_inplace(x);
    if (!recorded(x, arguments...)) {
      const at::AutoDispatchBelowAutograd below;
      return op().call(x, arguments...);
    }
    Recorded<Gradient, 1 + sizeof...(Arguments)>::apply(x, arguments...);
    return x;
  }

  /// The kernel that follows, and in inference mode the first: it counts the change for those who have saved x. (Of a
  /// recorded call, the node counts it.)
  static Tensor& counted(Tensor& x, Arguments... arguments) {
    {
      const at::AutoDispatchBelowADInplaceOrView below;
      op().call(x, arguments...);
    }
    torch::autograd::impl::bump_version(x);
    return x;
  }
};

}  // namespace dlk::bindings

/// The registered op dlkernels::fn, typed as the function `fn` that implements it: DLK_OP(relu).call(x).
#define DLK_OP(fn)                                                                                   \
  ([]() -> const auto& {                                                                             \
    static const auto op =                                                                           \
        c10::Dispatcher::singleton().findSchemaOrThrow("dlkernels::" #fn, "").typed<decltype(fn)>(); \
    return op;                                                                                       \
  }())

#define DLK_REGISTER(key, name, ...) \
  TORCH_LIBRARY_IMPL(dlkernels, key, m) { m.impl(name, __VA_ARGS__); }

/// Registers `fn` for every device that we have kernels for.
#ifdef DLK_CUDA
#define DLK_IMPL_DEVICES(fn)           \
  DLK_REGISTER(CPU, #fn, TORCH_FN(fn)) \
  DLK_REGISTER(CUDA, #fn, &dlk::bindings::OnGpu<fn>::call)
#else
#define DLK_IMPL_DEVICES(fn) DLK_REGISTER(CPU, #fn, TORCH_FN(fn))
#endif

/// Registers `fn` with its `Gradient` (see Recorded). Since it returns after allocating when its input is a meta
/// tensor, it is also the shape function for torch.compile.
#define DLK_IMPL(fn, Gradient)          \
  DLK_IMPL_DEVICES(fn)                  \
  DLK_REGISTER(Meta, #fn, TORCH_FN(fn)) \
  DLK_REGISTER(Autograd, #fn, &dlk::bindings::Autograd<fn, [] { return DLK_OP(fn); }, Gradient>::call)

/// Likewise, for a backward op that is called only where nothing is recorded. Falling through to it at once saves the
/// boxed call that PyTorch's default for autograd makes.
#define DLK_IMPL_BACKWARD(fn)           \
  DLK_IMPL_DEVICES(fn)                  \
  DLK_REGISTER(Meta, #fn, TORCH_FN(fn)) \
  DLK_REGISTER(Autograd, #fn, torch::CppFunction::makeFallthrough())

/// Likewise, for an op that changes its first argument.
#define DLK_IMPL_INPLACE(fn, Gradient)                                                            \
  DLK_IMPL_DEVICES(fn)                                                                            \
  DLK_REGISTER(ADInplaceOrView, #fn,                                                              \
               &dlk::bindings::InplaceAutograd<fn, [] { return DLK_OP(fn); }, Gradient>::counted) \
  DLK_REGISTER(Autograd, #fn, &dlk::bindings::InplaceAutograd<fn, [] { return DLK_OP(fn); }, Gradient>::call)
