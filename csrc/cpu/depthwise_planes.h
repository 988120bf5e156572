// Depthwise convolution of NCHW images by common windows (pool_windows.h); that of one channel to one is the same.
#pragma once

#include "csrc/core/conv2d.h"
#include "csrc/cpu/isa.h"

namespace dlk::cpu::DLK_ISA {

/// Whether the kernels below can compute p, and rows fill enough of a vector for them to be the fastest.
template <class T>
bool is_depthwise_planes(const Conv2d& p);

template <class T>
void depthwise_planes(const Conv2d& p, const T* x, const T* w, const T* bias, T* y);
template <class T>
void depthwise_planes_input(const Conv2d& p, const T* dy, const T* w, T* dx);
template <class T>
void depthwise_planes_weight(const Conv2d& p, const T* x, const T* dy, T* dw, Context& context);

}  // namespace dlk::cpu::DLK_ISA
