// Depthwise convolution: correlations with one input and one output channel per group, where GEMM has nothing to reuse.
#pragma once

#include "csrc/cpu/correlation.h"

namespace dlk::cpu::DLK_ISA {

inline bool is_depthwise(const Correlation& q) { return q.CI == 1 && q.CO == 1 && q.groups > 1; }

/// out = the correlation of `in` with w, plus bias (null: none).
template <class T>
void depthwise(const Correlation& q, const T* in, const T* w, const T* bias, T* out, Context& context);

/// dw[c, t] = sum over pixels p of dy[c, p] times what tap t read at p.
template <class T>
void depthwise_weight(const Correlation& q, const T* in, const T* dy, T* dw, Context& context);

}  // namespace dlk::cpu::DLK_ISA
