// Bias gradients: the sum over everything but the channels.
#pragma once

#include <cstdint>

#include "csrc/core/context.h"
#include "csrc/core/types.h"

namespace dlk {

template <class T>
struct ChannelSumKernels {
  /// sum[c] = the sum over n and p of x[n, c, p], a contiguous N x C x P array.
  void (*sum)(int64_t N, int64_t C, int64_t P, const T* x, T* sum, Context& context);
};

}  // namespace dlk
