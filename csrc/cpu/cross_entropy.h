// Cross-entropy and negative log-likelihood; the formulas are in cross_entropy.cpp.
#pragma once

#include "csrc/core/cross_entropy.h"
#include "csrc/core/scratch.h"
#include "csrc/cpu/dispatch.h"

namespace dlk::cpu {

/// Targets of a call: class indices, or else a probability per class.
template <class T>
struct CrossEntropyTargets {
  const int64_t* index;  // (N, inner), or null
  const T* probability;  // (N, C, inner), or null
  const T* weight;       // (C), or null: 1 each
};

template <class T>
struct CrossEntropyKernels {
  /// Whether every index is ignored or in [0, C); else `*bad` is one that is not. `*total` gets the sum of the weights
  /// of the classes that are not ignored.
  bool (*check)(const CrossEntropyParams& params, const CrossEntropyTargets<T>& targets, double* total, int64_t* bad);
  /// loss and what backward needs of each position, maximum and log_sum: all (N, inner). Returns the sum of losses.
  double (*forward)(const CrossEntropyParams& params, const T* x, const CrossEntropyTargets<T>& targets, T* maximum,
                    T* log_sum, T* loss, Scratch& scratch);
  /// dx from dloss[i * step] * scale as the gradient of position i.
  void (*backward)(const CrossEntropyParams& params, const T* x, const CrossEntropyTargets<T>& targets,
                   const T* maximum, const T* log_sum, const T* dloss, int64_t step, double scale, T* dx);
};

}  // namespace dlk::cpu
