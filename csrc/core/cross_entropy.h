// Cross-entropy: logits or log-probabilities x (N, C, inner), one loss for each of N * inner positions.
#pragma once

#include <cstdint>

namespace dlk {

struct CrossEntropyParams {
  int64_t N = 1;
  int64_t C = 1;
  int64_t inner = 1;
  /// x holds logits; false: log-probabilities, as nll_loss takes them.
  bool logits = true;
  /// Positions with this target have no loss.
  int64_t ignore_index = -100;
  double label_smoothing = 0;
};

}  // namespace dlk
