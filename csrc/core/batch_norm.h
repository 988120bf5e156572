// Batch normalisation: x (N, C, inner), contiguous. channels_last tensors are (N * inner, C, 1).
#pragma once

#include <cstdint>

namespace dlk {

struct BatchNormShape {
  int64_t N = 1;
  int64_t C = 1;
  int64_t inner = 1;
};

}  // namespace dlk
