// Softmax and log-softmax: one op, `dlkernels::softmax`, with its backward op; `log` chooses.
#include "csrc/core/softmax.h"

#include <ATen/ops/_log_softmax_backward_data.h>
#include <ATen/ops/_softmax_backward_data.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/softmax.h>

#include "csrc/bindings/common.h"
#include "csrc/bindings/ops.h"

namespace dlk::bindings {
namespace {

/// `sizes` around dimension `dim`, already wrapped; 0-d tensors have one element.
SoftmaxShape shape_around(const at::DimVector& sizes, int64_t dim) {
  SoftmaxShape shape;
  for (int64_t i = 0; i < std::ssize(sizes); ++i)
    (i < dim ? shape.outer : i == dim ? shape.C : shape.inner) *= sizes[i];
  return shape;
}

// softmax(Tensor x, int dim, bool log) -> Tensor, contiguous as PyTorch's
Tensor softmax(const Tensor& x, int64_t dim, bool log) {
  const at::DimVector sizes = sizes_of(x);
  const int64_t rank = std::max<int64_t>(1, std::ssize(sizes));
  TORCH_CHECK_INDEX(-rank <= dim && dim < rank, "softmax: dim must be in [", -rank, ", ", rank - 1, "], got ", dim,
                    " for an input with ", sizes.size(), " dimensions");
  const Tensor y = allocate(sizes, x.options());
  if (x.is_meta() || y.numel() == 0) return y;
  const SoftmaxShape shape = shape_around(sizes, dim < 0 ? dim + rank : dim);
  const Tensor xs = contiguous(x);
  with_kernels<SoftmaxKernels>(x, [&]<class T>(const SoftmaxKernels<T>& kernels, Context& context) {
    kernels.forward(shape, log, const_data<T>(xs), mutable_data<T>(y), context);
  });
  return y;
}

// softmax_backward(Tensor dy, Tensor y, int dim, bool log) -> Tensor
Tensor softmax_backward(const Tensor& dy, const Tensor& y, int64_t dim, bool log) {
  const at::DimVector sizes = sizes_of(y);
  const Tensor dx = allocate(sizes, y.options());
  if (y.is_meta() || dx.numel() == 0) return dx;
  const SoftmaxShape shape = shape_around(sizes, dim < 0 ? dim + std::max<int64_t>(1, std::ssize(sizes)) : dim);
  const Tensor dys = contiguous(dy), ys = contiguous(y);
  with_kernels<SoftmaxKernels>(y, [&]<class T>(const SoftmaxKernels<T>& kernels, Context& context) {
    kernels.backward(shape, log, const_data<T>(dys), const_data<T>(ys), mutable_data<T>(dx), context);
  });
  return dx;
}

struct SoftmaxGradient {
  static Tensor forward(Recording* call, const Tensor& x, int64_t dim, bool log) {
    const Tensor y = DLK_OP(softmax).call(x, dim, log);
    call->save_values(dim, log);
    call->save_for_backward({y});
    return y;
  }

  static variable_list backward(Recording* call, const Tensor& dy) {
    const Tensor y = call->saved_tensors()[0];
    const auto [dim, log] = call->saved_values<int64_t, bool>();
    if (!create_graph()) return {DLK_OP(softmax_backward).call(dy, y, dim, log)};
    const auto reference = log ? at::_log_softmax_backward_data : at::_softmax_backward_data;
    return {reference(dy, y, dim, y.scalar_type())};
  }
};

Counter softmax_calls("softmax"), log_softmax_calls("log_softmax");

}  // namespace

TORCH_LIBRARY_FRAGMENT(dlkernels, m) {
  m.def("softmax(Tensor x, int dim, bool log) -> Tensor");
  m.def("softmax_backward(Tensor dy, Tensor y, int dim, bool log) -> Tensor");
}
DLK_IMPL(softmax, SoftmaxGradient)
DLK_IMPL_BACKWARD(softmax_backward)

Tensor softmax_entry(const Tensor& input, int64_t dim, bool log) {
  if (!covered(log ? log_softmax_calls : softmax_calls, {input}))
    return log ? at::log_softmax(input, dim) : at::softmax(input, dim);
  return DLK_OP(softmax).call(input, dim, log);
}

}  // namespace dlk::bindings
