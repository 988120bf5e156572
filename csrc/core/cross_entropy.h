// Cross-entropy: logits or log-probabilities x (N, C, inner), one loss for each of N * inner positions.
#pragma once

#include <cstdint>

#include "csrc/core/context.h"
#include "csrc/core/types.h"

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

/// Targets of a call: class indices, or else a probability per class.
template <class T>
struct CrossEntropyTargets {
  const int64_t* index;  // (N, inner), or null
  const T* probability;  // (N, C, inner), or null
  const T* weight;       // (C), or null: 1 each
};

template <class T>
struct CrossEntropyKernels {
  /// Whether every index is ignored or in [0, C); else `*bad` is one that is not. `*total` gets what 'mean' divides by:
  /// the sum of the weights of the classes that are not ignored, or for probabilities the number of positions. A GPU,
  /// whose answer would have to be waited for, says true and traps at a bad index instead.
  bool (*check)(const CrossEntropyParams& params, const CrossEntropyTargets<T>& targets, double* total, int64_t* bad,
                Context& context);
  /// loss of each position, (N, inner), and for logits what backward needs of each, maximum and log_sum, likewise (else
  /// both null). If `reduced` is not null, *reduced = the sum of losses / *divisor (null: 1), and loss is scratch.
  void (*forward)(const CrossEntropyParams& params, const T* x, const CrossEntropyTargets<T>& targets,
                  Accumulate<T>* maximum, Accumulate<T>* log_sum, T* loss, const double* divisor, T* reduced,
                  Context& context);
  /// dx from dloss[i * step] / *divisor (null: 1) as the gradient of position i.
  void (*backward)(const CrossEntropyParams& params, const T* x, const CrossEntropyTargets<T>& targets,
                   const Accumulate<T>* maximum, const Accumulate<T>* log_sum, const T* dloss, int64_t step,
                   const double* divisor, T* dx, Context& context);
};

}  // namespace dlk
