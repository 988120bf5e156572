// Elementwise losses: one enumerator per formula in csrc/cpu/loss.cpp.
#pragma once

#include <cstdint>

namespace dlk {

enum class Loss : int64_t { binary_cross_entropy_with_logits, mse };

}  // namespace dlk
