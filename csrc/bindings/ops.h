// The functions that module.cpp exposes to Python, one group per binding file. Parameters and meaning are those of the
// torch.nn.functional namesakes; dlkernels/functional.py documents them and fills in defaults.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>

namespace dlk::bindings {

/// An argument that is an int, which counts twice, or a sequence of ints.
struct Ints {
  c10::SmallVector<int64_t, 2> values;
  std::string wrong;  // what was given instead, for the message of the function that knows the argument's name
};

// matmul.cpp
at::Tensor linear_entry(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias);
at::Tensor matmul_entry(const at::Tensor& input, const at::Tensor& other);

// conv2d.cpp: padding is given for both sides, (left, right) or (top, bottom, left, right)
at::Tensor conv1d_entry(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                        int64_t stride, std::array<int64_t, 2> padding, int64_t dilation, int64_t groups);
at::Tensor conv2d_entry(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                        std::array<int64_t, 2> stride, std::array<int64_t, 4> padding, std::array<int64_t, 2> dilation,
                        int64_t groups);
at::Tensor conv_transpose2d_entry(const at::Tensor& input, const at::Tensor& weight,
                                  const std::optional<at::Tensor>& bias, std::array<int64_t, 2> stride,
                                  std::array<int64_t, 2> padding, std::array<int64_t, 2> output_padding, int64_t groups,
                                  std::array<int64_t, 2> dilation);

// pool2d.cpp; stride: kernel_size if not given
at::Tensor max_pool2d_entry(const at::Tensor& input, const Ints& kernel_size, const std::optional<Ints>& stride,
                            const Ints& padding, const Ints& dilation, bool ceil_mode);
std::tuple<at::Tensor, at::Tensor> max_pool2d_with_indices_entry(const at::Tensor& input, const Ints& kernel_size,
                                                                 const std::optional<Ints>& stride, const Ints& padding,
                                                                 const Ints& dilation, bool ceil_mode);
at::Tensor avg_pool2d_entry(const at::Tensor& input, const Ints& kernel_size, const std::optional<Ints>& stride,
                            const Ints& padding, bool ceil_mode, bool count_include_pad,
                            std::optional<int64_t> divisor_override);
at::Tensor adaptive_avg_pool2d_entry(const at::Tensor& input, const Ints& output_size);

// batch_norm.cpp
at::Tensor batch_norm(const at::Tensor& input, const std::optional<at::Tensor>& running_mean,
                      const std::optional<at::Tensor>& running_var, const std::optional<at::Tensor>& weight,
                      const std::optional<at::Tensor>& bias, bool training, double momentum, double eps, double low,
                      double high);
at::Tensor instance_norm(const at::Tensor& input, const std::optional<at::Tensor>& running_mean,
                         const std::optional<at::Tensor>& running_var, const std::optional<at::Tensor>& weight,
                         const std::optional<at::Tensor>& bias, bool use_input_stats, double momentum, double eps);

// layer_norm.cpp
at::Tensor layer_norm(const at::Tensor& input, at::IntArrayRef normalized_shape,
                      const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, double eps);
at::Tensor group_norm(const at::Tensor& input, int64_t num_groups, const std::optional<at::Tensor>& weight,
                      const std::optional<at::Tensor>& bias, double eps);

// dropout.cpp
at::Tensor dropout_entry(const at::Tensor& input, double p, bool training, bool inplace, bool channels);

// softmax.cpp
at::Tensor softmax_entry(const at::Tensor& input, int64_t dim, bool log);

// cross_entropy.cpp; `logits` false: nll_loss
at::Tensor cross_entropy_entry(const at::Tensor& input, const at::Tensor& target,
                               const std::optional<at::Tensor>& weight, bool logits, int64_t reduction,
                               int64_t ignore_index, double label_smoothing);

// loss.cpp
at::Tensor binary_cross_entropy_with_logits(const at::Tensor& input, const at::Tensor& target,
                                            const std::optional<at::Tensor>& weight,
                                            const std::optional<at::Tensor>& pos_weight, int64_t reduction);
at::Tensor mse_loss(const at::Tensor& input, const at::Tensor& target, int64_t reduction);

// activation.cpp
at::Tensor activation_by_name(const std::string& name, const at::Tensor& input, double a, double b, bool inplace);

}  // namespace dlk::bindings
