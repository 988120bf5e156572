// The functions that module.cpp exposes to Python, one group per binding file. Parameters and meaning are those of the
// torch.nn.functional namesakes; dlkernels/functional.py documents them and fills in defaults.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace dlk::bindings {

// matmul.cpp

// conv2d.cpp

// pool2d.cpp

// batch_norm.cpp
at::Tensor batch_norm(const at::Tensor& input, const std::optional<at::Tensor>& running_mean,
                      const std::optional<at::Tensor>& running_var, const std::optional<at::Tensor>& weight,
                      const std::optional<at::Tensor>& bias, bool training, double momentum, double eps);
at::Tensor instance_norm(const at::Tensor& input, const std::optional<at::Tensor>& running_mean,
                         const std::optional<at::Tensor>& running_var, const std::optional<at::Tensor>& weight,
                         const std::optional<at::Tensor>& bias, bool use_input_stats, double momentum, double eps);

// layer_norm.cpp
at::Tensor layer_norm(const at::Tensor& input, const std::vector<int64_t>& normalized_shape,
                      const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, double eps);
at::Tensor group_norm(const at::Tensor& input, int64_t num_groups, const std::optional<at::Tensor>& weight,
                      const std::optional<at::Tensor>& bias, double eps);

// dropout.cpp

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
