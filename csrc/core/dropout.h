// Dropout's parameters.
#pragma once

#include <cstdint>

namespace dlk {

/// A tensor as images: N x C planes of P elements, dense, plane after plane or (channels_last) pixel after pixel.
struct DropoutShape {
  int64_t N, C, P;
  bool channels_last = false;
};

/// How an element is kept: its random 32-bit word is below `threshold`, which is (1 - p) 2^32 rounded. A probability of
/// keeping that rounds to 1 becomes 1 - 2^-32.
struct DropoutDraw {
  uint64_t seed;
  uint32_t threshold;
};

}  // namespace dlk
