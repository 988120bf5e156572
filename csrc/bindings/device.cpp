#include "csrc/bindings/device.h"

#include <ATen/Context.h>
#include <torch/version.h>

#include <algorithm>
#include <atomic>
#include <sstream>
#include <string>

#include "csrc/bindings/common.h"

#ifdef DLK_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace dlk::bindings {
namespace {

std::atomic<bool> simt_in_use = false;

#ifdef DLK_CUDA
/// Whether the CUDA kernels were built for this GPU: machine code of its generation and no later than it, or PTX.
/// DLK_CUDA_ARCHITECTURES is CMake's list, "80-real;90-real;90-virtual".
bool is_built_for(int device) {
  int major = 0, minor = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  std::istringstream list(DLK_CUDA_ARCHITECTURES);
  for (std::string entry; std::getline(list, entry, ';');) {
    const int built = std::stoi(entry), gpu = 10 * major + minor;
    const bool ptx = entry.find("virtual") != std::string::npos;
    if (built <= gpu && (ptx || built / 10 == major)) return true;
  }
  return false;
}

bool built_for(at::DeviceIndex device) {
  static const std::vector<bool> answers = [] {
    std::vector<bool> of_device;
    for (int i = 0; i < c10::cuda::device_count(); ++i) of_device.push_back(is_built_for(i));
    return of_device;
  }();
  return answers.at(device);
}
#endif

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

bool has_kernels(at::Device device, at::ScalarType dtype) {
  const Backend backend = backend_of(device);
#ifdef DLK_CUDA
  if (backend == Backend::cuda && !built_for(device.index())) return false;
#else
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

bool allow_tf32(const Tensor& x, bool convolution) {
  if (x.scalar_type() != at::kFloat) return false;
  const bool cpu = backend_of(x.device()) == Backend::cpu;
  if (cpu && !convolution) return false;  // products there are in full float32 in any case, and small ones notice
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 10  // the newer setting; it refuses to be read by the older names
  const auto op = convolution ? at::Float32Op::CONV : at::Float32Op::MATMUL;
  const auto backend = cpu ? at::Float32Backend::MKLDNN : at::Float32Backend::CUDA;
  return at::globalContext().float32Precision(backend, op) == at::Float32Precision::TF32;
#else
  if (cpu) return false;
  return convolution ? at::globalContext().allowTF32CuDNN() : at::globalContext().allowTF32CuBLAS();
#endif
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
  const size_t rounded = (count + kAlign - 1) / kAlign * kAlign;
  if (backend_ == Backend::cpu && rounded <= sizeof(small_) - small_used_) {
    small_used_ += rounded;
    return small_ + small_used_ - rounded;
  }
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
