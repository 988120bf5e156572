// Calling the kernels of an op on the device where a tensor is.
//
//     with_kernels<SoftmaxKernels>(x, [&]<class T>(const SoftmaxKernels<T>& kernels, Context& context) {
//       kernels.forward(shape, log, const_data<T>(x), mutable_data<T>(y), context);
//     });
//
// The tables of csrc/core/<op>.h are filled once per device: csrc/cpu for the CPU, csrc/cuda for GPUs (where CMake
// found nvcc: DLK_CUDA), and once more with the CUDA kernels run on the CPU by csrc/simt (DLK_SIMT, for tests). T is
// the C++ type of x's dtype.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include <cstddef>
#include <initializer_list>
#include <vector>

#include "csrc/core/context.h"
#include "csrc/core/types.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cuda/dispatch.h"

namespace dlk::bindings {

using at::Tensor;

enum class Backend { cpu, cuda, simt };

/// Makes tensors on the CPU use the CUDA kernels, run by csrc/simt, or ends that. For tests; false: not built with it.
bool use_simt(bool use);

/// Where the kernels for tensors on `device` run.
Backend backend_of(at::Device device);

/// Whether there are kernels for tensors of `dtype` on `device`; for a GPU: some that it can run.
bool has_kernels(at::Device device, at::ScalarType dtype);

/// Whether the kernels for x number rows, pixels and elements of products and convolutions in 32 bits, as GPUs' do.
bool counts_in_32_bits(const Tensor& x);
/// Whether all of these do fit. In floating point, since they are products of sizes that nobody has checked yet.
bool fit_32_bits(std::initializer_list<double> counts);

/// Whether PyTorch's settings let GPUs round the float32 operands of products, or of convolutions, to TF32.
bool allow_tf32(const Tensor& x, bool convolution);

/// The device of x made current for a kernel call: its stream, and workspaces that live as long as this.
class DeviceContext final : public Context {
 public:
  explicit DeviceContext(const Tensor& x);
  Backend backend() const { return backend_; }
  void* stream() const override { return stream_; }
  /// Raises if a launch failed.
  void check_launches() const;

 private:
  void* bytes(size_t count) override;

  /// Serves small workspaces on the CPU, where allocating one takes as long as a small layer.
  static constexpr size_t kAlign = 64;
  alignas(kAlign) std::byte small_[4096];
  size_t small_used_ = 0;

  Backend backend_;
  at::Device device_;
  c10::OptionalDeviceGuard guard_;
  void* stream_ = nullptr;
  std::vector<Tensor> blocks_;
};

/// f(the op's entry points on the device of x, context).
template <class Kernels, bool kOnCpu = true, class F>
void with_kernels(const Tensor& x, F&& f) {
  DeviceContext context(x);
  switch (context.backend()) {
    case Backend::cpu:
      if constexpr (kOnCpu) {
        at::internal::lazy_init_num_threads();  // this thread uses as many as torch.set_num_threads says
        return f(cpu::kernels<Kernels>(), context);
      }
      break;
#ifdef DLK_CUDA
    case Backend::cuda:
      f(cuda::kernels<Kernels>(), context);
      return context.check_launches();
#endif
#ifdef DLK_SIMT
    case Backend::simt:
      return f(simt::kernels<Kernels>(), context);
#endif
    default:
      break;
  }
  TORCH_INTERNAL_ASSERT(false, "no kernels for ", x.scalar_type(), " tensors on ", x.device());
}

/// Likewise for a table per element type: that of x. (A table for half precision exists on GPUs only.)
template <template <class> class Kernels, class F>
void with_kernels(const Tensor& x, F&& f) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return with_kernels<Kernels<float>>(x, f);
    case at::kDouble:
      return with_kernels<Kernels<double>>(x, f);
    case at::kHalf:
      return with_kernels<Kernels<f16>, /*kOnCpu=*/false>(x, f);
    case at::kBFloat16:
      return with_kernels<Kernels<bf16>, /*kOnCpu=*/false>(x, f);
    default:
      TORCH_INTERNAL_ASSERT(false, "no kernels for ", x.scalar_type());
  }
}

#ifdef DLK_CUDA
/// Raises if there is no GPU to run on.
void require_gpu();

/// The op implemented by fn, as registered for CUDA.
template <auto fn>
struct OnGpu;
template <class Result, class... Arguments, Result (*fn)(Arguments...)>
struct OnGpu<fn> {
  static Result call(Arguments... arguments) {
    require_gpu();
    return fn(std::forward<Arguments>(arguments)...);
  }
};
#endif

}  // namespace dlk::bindings
