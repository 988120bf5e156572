// The Python module dlkernels._C: the entry points of ops.h, and what the build and the processor offer.
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "csrc/bindings/common.h"
#include "csrc/bindings/ops.h"

namespace py = pybind11;

namespace dlk::bindings {
namespace {

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const cpu::Isa isa : {cpu::Isa::baseline, cpu::Isa::avx2, cpu::Isa::avx512, cpu::Isa::neon})
    if (cpu::isa_available(isa)) names.emplace_back(cpu::kIsaNames[static_cast<int>(isa)]);
  return names;
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

}  // namespace
}  // namespace dlk::bindings

PYBIND11_MODULE(_C, m) {
  using namespace dlk::bindings;
  // Kernels and PyTorch's ops need no Python: other Python threads run meanwhile.
  const auto nogil = py::call_guard<py::gil_scoped_release>();

  // TORCH_CHECK_INDEX, TORCH_CHECK_VALUE, ... as the Python types they stand for; pybind11 alone knows RuntimeError.
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const c10::Error&) {
      torch::translate_exception_to_python(error);
    }
  });

  m.def("isa", [] { return std::string(dlk::cpu::kIsaNames[static_cast<int>(dlk::cpu::active_isa())]); });
  m.def("available_isas", &available_isas);
  m.def("counts", &counts_as_dict);
  m.def("reset_counts", &reset_counts);

  // matmul.cpp

  // conv2d.cpp

  // pool2d.cpp

  // batch_norm.cpp
  m.def("batch_norm", &batch_norm, nogil);
  m.def("instance_norm", &instance_norm, nogil);

  // layer_norm.cpp
  m.def("layer_norm", &layer_norm, nogil);
  m.def("group_norm", &group_norm, nogil);

  // dropout.cpp

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
