// The functions that module.cpp exposes to Python, one group per binding file. Parameters and meaning are those of the
// torch.nn.functional namesakes; dlkernels/functional.py documents them and fills in defaults.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace dlk::bindings {

// matmul.cpp

// conv2d.cpp

// pool2d.cpp
at::Tensor max_pool2d_entry(const at::Tensor& input, std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
                            std::vector<int64_t> padding, std::vector<int64_t> dilation, bool ceil_mode);
std::tuple<at::Tensor, at::Tensor> max_pool2d_with_indices_entry(const at::Tensor& input,
                                                                 std::vector<int64_t> kernel_size,
                                                                 std::vector<int64_t> stride,
                                                                 std::vector<int64_t> padding,
                                                                 std::vector<int64_t> dilation, bool ceil_mode);
at::Tensor avg_pool2d_entry(const at::Tensor& input, std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
                            std::vector<int64_t> padding, bool ceil_mode, bool count_include_pad,
                            std::optional<int64_t> divisor_override);
at::Tensor adaptive_avg_pool2d_entry(const at::Tensor& input, std::vector<int64_t> output_size);

// batch_norm.cpp

// layer_norm.cpp

// dropout.cpp
at::Tensor dropout_entry(const at::Tensor& input, double p, bool training, bool inplace, bool channels);

// softmax.cpp

// loss.cpp

// activation.cpp
at::Tensor activation_by_name(const std::string& name, const at::Tensor& input, double a, double b, bool inplace);

}  // namespace dlk::bindings
