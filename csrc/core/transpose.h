// Changing the memory layout of images.
#pragma once

#include <cstdint>

#include "csrc/core/types.h"

namespace dlk {

template <class T>
struct TransposeKernels {
  /// y[n, j, i] = x[n, i, j] for N contiguous matrices x of `rows` x `columns`.
  void (*transpose)(int64_t N, int64_t rows, int64_t columns, const T* x, T* y);
};

}  // namespace dlk
