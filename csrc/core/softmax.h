// Softmax: a tensor seen as (outer, C, inner), contiguous, with the sum over C.
#pragma once

#include <cstdint>

namespace dlk {

struct SoftmaxShape {
  int64_t outer = 1;
  int64_t C = 1;
  int64_t inner = 1;
};

}  // namespace dlk
