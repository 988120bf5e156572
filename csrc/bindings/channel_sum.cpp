#include "csrc/bindings/channel_sum.h"

#include "csrc/core/channel_sum.h"

namespace dlk::bindings {
namespace {

// channel_sum(Tensor x) -> Tensor: (N, C, P) to (C)
Tensor channel_sum(const Tensor& x) {
  const auto sizes = sizes_of(x);
  TORCH_CHECK(sizes.size() == 3, "channel_sum: x must be (N, C, P), got shape ", sizes);
  const Tensor sum = allocate({sizes[1]}, x.options());
  if (x.is_meta() || sum.numel() == 0) return sum;
  if (x.numel() == 0) return sum.zero_();
  const Tensor dense = x.contiguous();
  with_kernels<ChannelSumKernels>(x, [&]<class T>(const ChannelSumKernels<T>& kernels, Context& context) {
    kernels.sum(sizes[0], sizes[1], sizes[2], const_data<T>(dense), mutable_data<T>(sum), context);
  });
  return sum;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dlkernels, m) { m.def("channel_sum(Tensor x) -> Tensor"); }
DLK_IMPL_BACKWARD(channel_sum)

Tensor channel_sum_op(const Tensor& x) { return DLK_OP(channel_sum).call(x); }

}  // namespace dlk::bindings
