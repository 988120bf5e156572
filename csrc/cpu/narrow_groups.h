// Convolutions with narrow groups: depthwise, and others whose groups have so few channels that GEMM has nothing to
// reuse. A lane of a vector is an output channel, a vector holds whole groups.
#pragma once

#include "csrc/cpu/correlation.h"

namespace dlk::cpu::DLK_ISA {

/// Whether the kernels below can compute q, as the weight gradient always should: a group fits into a vector.
template <class T>
bool has_narrow_groups(const Correlation& q) {
  const int64_t wider = q.CI > q.CO ? q.CI : q.CO;
  return q.groups > 1 && q.CI > 0 && q.CO > 0 && wider <= kLanes<T>;
}

/// Depthwise in NHWC, where one phase is as good as all (depthwise_pixels.cpp).
inline bool is_depthwise_pixels(const Correlation& q) {
  return q.channels_last && q.CI == 1 && q.CO == 1 && q.groups > 1;
}
template <class T>
void depthwise_pixels(const Correlation& q, const T* in, const T* w, const T* bias, T* out, Context& context);
template <class T>
void depthwise_pixels_weight(const Correlation& q, const T* in, const T* dy, T* dw, Context& context);

/// Whether correlate_narrow is the fastest: not for NCHW, whose other paths have pixels in their lanes, where a vector
/// holds one group or channels fill less than half of one.
template <class T>
bool prefers_narrow(const Correlation& q) {
  const int64_t wider = q.CI > q.CO ? q.CI : q.CO, L = kLanes<T>;
  return has_narrow_groups<T>(q) && !is_depthwise_pixels(q) &&
         (q.channels_last || (2 * wider <= L && 2 * q.groups * wider >= L));
}

/// out = the correlations of `in` with w, plus bias (null: none). The phases are the parts of one operation: they
/// differ in their grids, which together are all of `out`, and in their taps, which follow each other in memory.
template <class T>
void correlate_narrow(const Correlation* phases, int64_t count, const T* in, const T* w, const T* bias, T* out,
                      Context& context);

/// dw[k, c, t] = sum over pixels p of dy[k, p] times what tap t reads of channel c at p.
template <class T>
void narrow_weight(const Correlation& q, const T* in, const T* dy, T* dw, Context& context);

}  // namespace dlk::cpu::DLK_ISA
