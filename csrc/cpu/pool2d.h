// 2-D pooling: max_pool2d.cpp and avg_pool2d.cpp. Pointers are dense in the layout that the parameters name.
#pragma once

#include "csrc/core/pool2d.h"
#include "csrc/core/scratch.h"
#include "csrc/cpu/dispatch.h"

namespace dlk::cpu {

template <class T>
struct MaxPool2dKernels {
  /// x (N, C, H, W) -> y (N, C, OH, OW), and the positions if wanted.
  void (*forward)(const Pool2d& p, const T* x, T* y, Positions positions, Scratch& scratch);
  /// dy, positions (N, C, OH, OW) -> dx (N, C, H, W).
  void (*backward)(const Pool2d& p, const T* dy, Positions positions, T* dx);
};

struct MaxPool2dIndexKernels {
  /// positions (N, C, OH, OW) -> index ih W + iw of each output's input, -1 for windows wholly in the padding.
  void (*indices)(const Pool2d& p, Positions positions, int64_t* indices);
};

template <class T>
struct AvgPool2dKernels {
  /// x (N, C, H, W) -> y (N, C, OH, OW).
  void (*forward)(const AvgPool2d& p, const T* x, T* y, Scratch& scratch);
  /// dy (N, C, OH, OW) -> dx (N, C, H, W).
  void (*backward)(const AvgPool2d& p, const T* dy, T* dx, Scratch& scratch);
};

}  // namespace dlk::cpu
