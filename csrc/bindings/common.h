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
#include <torch/library.h>

#include <atomic>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "csrc/bindings/autograd.h"
#include "csrc/bindings/device.h"

namespace dlk::bindings {

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

/// The gradients of `inputs` (undefined for those with needs[i] false) from PyTorch, differentiable under create_graph:
/// `reference` is PyTorch's own forward op on the inputs.
variable_list differentiable_gradients(const variable_list& inputs, const std::vector<bool>& needs, const Tensor& dy,
                                       const std::function<Tensor(const variable_list&)>& reference);

/// Raises what PyTorch raises for a tensor that was made in inference mode and must not change outside of it.
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
/// x.contiguous(format); images that are contiguous in the other format are transposed by a kernel, which PyTorch's
/// copy takes several times as long for.
Tensor contiguous(const Tensor& x, at::MemoryFormat format = at::MemoryFormat::Contiguous);
inline bool is_channels_last(const Tensor& x) { return format_of(x) == at::MemoryFormat::ChannelsLast; }
inline at::MemoryFormat format(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

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

/// A bit per element, which tensors hold as int64 words.
inline Tensor allocate_bits(int64_t count, const at::TensorOptions& options) {
  return allocate({(count + 63) / 64}, options.dtype(at::kLong));
}
inline uint64_t* words(const Tensor& bits) { return reinterpret_cast<uint64_t*>(bits.mutable_data_ptr<int64_t>()); }

inline OptionalTensor optional(const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; }
inline Tensor contiguous_or_undefined(const OptionalTensor& x) { return x.has_value() ? x->contiguous() : Tensor(); }
inline Tensor or_undefined(const OptionalTensor& x) { return x.has_value() ? *x : Tensor(); }

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

/// Registers `fn` with its `Gradient` (autograd.h). Since it returns after allocating when its input is a meta
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
