// The Python module dlkernels._C: the entry points of ops.h, and what the build and the processor offer.
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "csrc/bindings/allocator.h"
#include "csrc/bindings/common.h"
#include "csrc/bindings/ints.h"
#include "csrc/bindings/ops.h"
#include "csrc/memory/caching_allocator.h"
#ifdef DLK_SIMT
#include "csrc/simt/executor.h"
#endif

namespace py = pybind11;

namespace dlk::bindings {
namespace {

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const cpu::Isa isa : {cpu::Isa::baseline, cpu::Isa::avx2, cpu::Isa::avx512, cpu::Isa::neon})
    if (cpu::isa_available(isa)) names.emplace_back(cpu::kIsaNames[static_cast<int>(isa)]);
  return names;
}

/// TORCH_CHECK's errors as the Python exceptions that torch's own functions raise, and exceptions of Python code that
/// our ops called into (hooks of saved tensors: torch.utils.checkpoint) as they are. torch registers the same for its
/// modules, but shares it only with extensions built with its very version of pybind11.
void translate_torch_errors(std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (const c10::Error&) {
    torch::translate_exception_to_python(std::current_exception());
  } catch (const python_error&) {
    torch::translate_exception_to_python(std::current_exception());
  }
}

py::dict counts_as_dict() {
  py::dict result;
  for (const auto& [op, count] : counts()) {
    py::dict entry;
    entry["kernel"] = count.kernel;
    entry["fallback"] = count.fallback;
    result[py::str(op)] = entry;
  }
  return result;
}

py::dict memory_stats() {
  const memory::Statistics statistics = memory::caching_allocator().statistics();
  py::dict result;
  result["allocated"] = statistics.allocated;
  result["cached"] = statistics.cached;
  result["peak"] = statistics.peak;
  result["limit"] = memory::caching_allocator().limit();
  result["hits"] = statistics.hits;
  result["misses"] = statistics.misses;
  result["released"] = statistics.released;
  return result;
}

}  // namespace
}  // namespace dlk::bindings

PYBIND11_MODULE(_C, m) {
  using namespace dlk::bindings;
  // Kernels and PyTorch's ops need no Python: other Python threads run meanwhile.
  const auto nogil = py::call_guard<py::gil_scoped_release>();

  py::register_local_exception_translator(&dlk::bindings::translate_torch_errors);

  m.def("isa", [] { return std::string(dlk::cpu::kIsaNames[static_cast<int>(dlk::cpu::active_isa())]); });
  m.def("available_isas", &available_isas);
  m.def("last_level_cache", &dlk::cpu::last_level_cache);
  m.def("set_last_level_cache", &dlk::cpu::set_last_level_cache);
  m.def("counts", &counts_as_dict);
  m.def("reset_counts", &reset_counts);
  m.def("use_simt", &use_simt);
#ifdef DLK_SIMT
  m.def("launched_kernels", &dlk::simt::launched_kernels);
  m.def("reset_launched_kernels", &dlk::simt::reset_launched_kernels);
#endif

  // allocator.cpp
  m.def("memory_stats", &memory_stats);
  m.def("empty_cache", [] { dlk::memory::caching_allocator().empty(); }, nogil);
  m.def("set_cache_limit", [](size_t bytes) { dlk::memory::caching_allocator().set_limit(bytes); }, nogil);
  m.def("use_caching_allocator", &use_caching_allocator);

  // matmul.cpp
  m.def("linear", &linear_entry, nogil);
  m.def("matmul", &matmul_entry, nogil);

  // conv2d.cpp
  m.def("conv1d", &conv1d_entry, nogil);
  m.def("conv2d", &conv2d_entry, nogil);
  m.def("conv_transpose2d", &conv_transpose2d_entry, nogil);

  // pool2d.cpp
  m.def("max_pool2d", &max_pool2d_entry, nogil);
  m.def("max_pool2d_with_indices", &max_pool2d_with_indices_entry, nogil);
  m.def("avg_pool2d", &avg_pool2d_entry, nogil);
  m.def("adaptive_avg_pool2d", &adaptive_avg_pool2d_entry, nogil);

  // batch_norm.cpp
  m.def("batch_norm", &batch_norm, nogil);
  m.def("instance_norm", &instance_norm, nogil);

  // layer_norm.cpp
  m.def("layer_norm", &layer_norm, nogil);
  m.def("group_norm", &group_norm, nogil);

  // dropout.cpp
  m.def("dropout", &dropout_entry, nogil);

  // softmax.cpp
  m.def("softmax", &softmax_entry, nogil);

  // cross_entropy.cpp
  m.def("cross_entropy", &cross_entropy_entry, nogil);

  // loss.cpp
  m.def("binary_cross_entropy_with_logits", &binary_cross_entropy_with_logits, nogil);
  m.def("mse_loss", &mse_loss, nogil);

  // activation.cpp
  m.def("activation", &activation_by_name, nogil);
}
