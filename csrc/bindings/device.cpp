#include "csrc/bindings/device.h"

#include <algorithm>
#include <atomic>

#include "csrc/bindings/common.h"

#ifdef DLK_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace dlk::bindings {
namespace {

std::atomic<bool> simt_in_use = false;

}  // namespace

bool use_simt([[maybe_unused]] bool use) {
#ifdef DLK_SIMT
  simt_in_use = use;
  return true;
#else
  return false;
#endif
}

Backend backend_of(at::Device device) {
  if (device.is_cuda()) return Backend::cuda;
  return simt_in_use ? Backend::simt : Backend::cpu;
}

bool has_kernels(Backend backend, at::ScalarType dtype) {
#ifndef DLK_CUDA
  if (backend == Backend::cuda) return false;
#endif
  const bool half = dtype == at::kHalf || dtype == at::kBFloat16;
  return dtype == at::kFloat || dtype == at::kDouble || (half && backend != Backend::cpu);
}

bool counts_in_32_bits(const Tensor& x) { return backend_of(x.device()) != Backend::cpu; }

bool fit_32_bits(std::initializer_list<double> counts) {
  constexpr double kMost = 0x7fffffff - 1024;  // blocks and tiles reach beyond the last
  return std::max(counts) <= kMost;
}

DeviceContext::DeviceContext(const Tensor& x) : backend_(backend_of(x.device())), device_(x.device()) {
  if (backend_ != Backend::cuda) return;
  guard_.reset_device(device_);
#ifdef DLK_CUDA
  stream_ = c10::cuda::getCurrentCUDAStream(device_.index()).stream();
#endif
}

void DeviceContext::check_launches() const {
#ifdef DLK_CUDA
  C10_CUDA_KERNEL_LAUNCH_CHECK();
#endif
}

void* DeviceContext::bytes(size_t count) {
  constexpr size_t kAlign = 64;
  // torch aligns CPU memory to 64 bytes, but only from some size on.
  const auto options = at::TensorOptions(device_).dtype(at::kByte);
  blocks_.push_back(allocate({static_cast<int64_t>(count + kAlign)}, options));
  const auto address = reinterpret_cast<uintptr_t>(blocks_.back().mutable_data_ptr());
  return reinterpret_cast<void*>((address + kAlign - 1) / kAlign * kAlign);
}

#ifdef DLK_CUDA
void require_gpu() {
  TORCH_CHECK(c10::cuda::device_count() > 0,
              "dlkernels: its CUDA kernels need an NVIDIA GPU, and none is visible (driver missing, or "
              "CUDA_VISIBLE_DEVICES hides it)");
}
#endif

}  // namespace dlk::bindings
