// Layer and group normalisation: one op, `dlkernels::row_norm`, with its backward op. groups == 0: layer normalisation
// over the last `trailing` dimensions; else group normalisation, where `trailing` is not used.
#include "csrc/core/layer_norm.h"

#include <ATen/ops/group_norm.h>
#include <ATen/ops/layer_norm.h>

#include "csrc/bindings/common.h"
#include "csrc/bindings/ops.h"

namespace dlk::bindings {
namespace {

RowNormShape shape_of(const at::DimVector& sizes, int64_t trailing, int64_t groups) {
  RowNormShape s;
  const int64_t rank = std::ssize(sizes);
  if (groups == 0) {
    for (int64_t i = 0; i < rank; ++i) (i < rank - trailing ? s.rows : s.channels) *= sizes[i];
    return s;
  }
  s.groups = groups;
  s.rows = sizes[0] * groups;
  s.channels = sizes[1] / groups;
  for (int64_t i = 2; i < rank; ++i) s.inner *= sizes[i];
  return s;
}

/// Group normalisation keeps channels_last, layer normalisation does not: as PyTorch.
at::MemoryFormat result_format(const Tensor& x, int64_t groups) {
  return groups == 0 ? at::MemoryFormat::Contiguous : x.suggest_memory_format();
}

/// The layout that the kernels get x in, which is the result's on the CPU only; s is told.
at::MemoryFormat kernel_format(const Tensor& x, int64_t groups, RowNormShape& s) {
  const at::MemoryFormat format = result_format(x, groups);
  if (x.is_meta()) return format;
  s.channels_last = format == at::MemoryFormat::ChannelsLast && backend_of(x.device()) == Backend::cpu;
  return s.channels_last ? format : at::MemoryFormat::Contiguous;
}

// row_norm(Tensor x, Tensor? weight, Tensor? bias, int trailing, int groups, float eps)
//     -> (Tensor y, Tensor mean, Tensor rstd)
std::tuple<Tensor, Tensor, Tensor> row_norm(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                                            int64_t trailing, int64_t groups, double eps) {
  const at::DimVector sizes = sizes_of(x);
  RowNormShape s = shape_of(sizes, trailing, groups);
  const at::MemoryFormat format = kernel_format(x, groups, s);
  const Tensor mean = allocate({s.rows}, accumulate_options(x)), rstd = allocate({s.rows}, accumulate_options(x));
  Tensor y = allocate(sizes, x.options(), format);
  if (x.is_meta() || y.numel() == 0) return {y, mean, rstd};
  const Tensor xs = contiguous(x, format), w = contiguous_or_undefined(weight), b = contiguous_or_undefined(bias);
  with_kernels<RowNormKernels>(x, [&]<class T>(const RowNormKernels<T>& kernels, Context& context) {
    kernels.forward(s, const_data<T>(xs), const_data<T>(w), const_data<T>(b), eps, mutable_data<T>(y),
                    mutable_data<Accumulate<T>>(mean), mutable_data<Accumulate<T>>(rstd), context);
  });
  return {contiguous(y, result_format(x, groups)), mean, rstd};
}

// row_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, int trailing, int groups)
//     -> (Tensor dx, Tensor dweight, Tensor dbias)
std::tuple<Tensor, Tensor, Tensor> row_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& mean,
                                                     const Tensor& rstd, const OptionalTensor& weight, int64_t trailing,
                                                     int64_t groups) {
  const at::DimVector sizes = sizes_of(x);
  RowNormShape s = shape_of(sizes, trailing, groups);
  const at::DimVector weights =
      groups == 0 ? at::DimVector(sizes.end() - trailing, sizes.end()) : at::DimVector{sizes[1]};
  const at::MemoryFormat format = kernel_format(x, groups, s);
  const Tensor dx = allocate(sizes, x.options(), format);
  const Tensor dweight = allocate(weights, x.options()), dbias = allocate(weights, x.options());
  if (x.is_meta()) return {dx, dweight, dbias};
  if (dx.numel() == 0) return {dx, dweight.zero_(), dbias.zero_()};
  const Tensor xs = contiguous(x, format), dys = contiguous(dy, format), w = contiguous_or_undefined(weight);
  with_kernels<RowNormKernels>(x, [&]<class T>(const RowNormKernels<T>& kernels, Context& context) {
    kernels.backward(s, const_data<T>(dys), const_data<T>(xs), const_data<Accumulate<T>>(mean),
                     const_data<Accumulate<T>>(rstd), const_data<T>(w), mutable_data<T>(dx), mutable_data<T>(dweight),
                     mutable_data<T>(dbias), context);
  });
  return {contiguous(dx, result_format(x, groups)), dweight, dbias};
}

Tensor pytorch(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, int64_t trailing,
               int64_t groups, double eps) {
  if (groups > 0) return at::group_norm(x, groups, weight, bias, eps);
  return at::layer_norm(x, x.sizes().slice(x.dim() - trailing), weight, bias, eps);
}

struct RowNormGradient {
  static std::tuple<Tensor, Tensor, Tensor> forward(Recording* call, const Tensor& x, const OptionalTensor& weight,
                                                    const OptionalTensor& bias, int64_t trailing, int64_t groups,
                                                    double eps) {
    const auto [y, mean, rstd] = DLK_OP(row_norm).call(x, weight, bias, trailing, groups, eps);
    call->save_values(trailing, groups, eps);
    // The bias has no part in the gradients, but its own gradient may be differentiated: it is a leaf of the graph.
    call->save_for_backward({x, or_undefined(weight), or_undefined(bias), mean, rstd});
    return {y, mean, rstd};
  }

  static variable_list backward(Recording* call, const Tensor& dy) {
    const variable_list saved = call->saved_tensors();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2];
    const auto [trailing, groups, eps] = call->saved_values<int64_t, int64_t, double>();
    variable_list gradients(6);
    if (create_graph()) {
      const std::vector<bool> needs = {x.requires_grad(), weight.defined() && weight.requires_grad(),
                                       bias.defined() && bias.requires_grad()};
      const variable_list found =
          differentiable_gradients({x, weight, bias}, needs, dy, [&](const variable_list& inputs) {
            return pytorch(inputs[0], optional(inputs[1]), optional(inputs[2]), trailing, groups, eps);
          });
      std::copy(found.begin(), found.end(), gradients.begin());
      return gradients;
    }
    std::tie(gradients[0], gradients[1], gradients[2]) =
        DLK_OP(row_norm_backward).call(dy, x, saved[3], saved[4], optional(weight), trailing, groups);
    if (!weight.defined()) gradients[1] = Tensor();
    if (!bias.defined()) gradients[2] = Tensor();
    return gradients;
  }
};

void check_size(const char* op, const char* name, const OptionalTensor& x, at::IntArrayRef expected) {
  if (!x.has_value()) return;
  const at::DimVector sizes = sizes_of(*x);
  TORCH_CHECK(sizes == expected, op, ": ", name, " must have the size ", at::IntArrayRef(expected), ", got ",
              at::IntArrayRef(sizes));
}

Counter layer_norm_calls("layer_norm"), group_norm_calls("group_norm");

}  // namespace

TORCH_LIBRARY_FRAGMENT(dlkernels, m) {
  m.def(
      "row_norm(Tensor x, Tensor? weight, Tensor? bias, int trailing, int groups, float eps) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "row_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, int trailing, int groups) -> "
      "(Tensor, Tensor, Tensor)");
}
DLK_IMPL(row_norm, RowNormGradient)
DLK_IMPL_BACKWARD(row_norm_backward)

Tensor layer_norm(const Tensor& input, at::IntArrayRef normalized_shape, const OptionalTensor& weight,
                  const OptionalTensor& bias, double eps) {
  if (!covered(layer_norm_calls, {input, or_undefined(weight), or_undefined(bias)}))
    return at::layer_norm(input, normalized_shape, weight, bias, eps);
  const at::DimVector sizes = sizes_of(input);
  const int64_t trailing = std::ssize(normalized_shape);
  TORCH_CHECK(trailing >= 1 && trailing <= std::ssize(sizes) &&
                  std::equal(normalized_shape.begin(), normalized_shape.end(), sizes.end() - trailing),
              "layer_norm: normalized_shape must be the last sizes of input, got ", at::IntArrayRef(normalized_shape),
              " for an input of size ", at::IntArrayRef(sizes));
  check_size("layer_norm", "weight", weight, normalized_shape);
  check_size("layer_norm", "bias", bias, normalized_shape);
  return std::get<0>(DLK_OP(row_norm).call(input, weight, bias, trailing, 0, eps));
}

Tensor group_norm(const Tensor& input, int64_t num_groups, const OptionalTensor& weight, const OptionalTensor& bias,
                  double eps) {
  if (!covered(group_norm_calls, {input, or_undefined(weight), or_undefined(bias)}))
    return at::group_norm(input, num_groups, weight, bias, eps);
  const at::DimVector sizes = sizes_of(input);
  TORCH_CHECK(num_groups > 0 && sizes[1] % num_groups == 0, "group_norm: num_groups must divide the ", sizes[1],
              " channels, got ", num_groups);
  check_size("group_norm", "weight", weight, {sizes[1]});
  check_size("group_norm", "bias", bias, {sizes[1]});
  return std::get<0>(DLK_OP(row_norm).call(input, weight, bias, 0, num_groups, eps));
}

}  // namespace dlk::bindings
