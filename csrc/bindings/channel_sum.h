// The bias gradient that linear and convolution share.
#pragma once

#include "csrc/bindings/common.h"

namespace dlk::bindings {

/// x (N, C, P) summed over N and P, through the registered op dlkernels::channel_sum. Not differentiable.
Tensor channel_sum_op(const Tensor& x);

}  // namespace dlk::bindings
