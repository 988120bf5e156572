// 3 x 3 convolution with stride 1 and any dilation by Winograd's algorithm (winograd_transform.h), float32 only.
#pragma once

#include "csrc/cpu/correlation.h"

namespace dlk::cpu::DLK_ISA {

enum class Pass { forward, backward_input, backward_weight };

/// The tile size for q: m x m outputs at a time, or 0 where another algorithm is faster or q is not 3 x 3 with
/// stride 1.
int winograd_tile(const Correlation& q, Pass pass);

/// out = the correlation of `in` with w, plus bias (null: none).
void winograd(const Correlation& q, int tile, const float* in, const float* w, const float* bias, float* out,
              Context& context);

/// dw[k, c, t] = sum over pixels p of dy[k, p] times what tap t read at p in channel c; q: the forward correlation.
void winograd_weight(const Correlation& q, int tile, const float* in, const float* dy, float* dw, Context& context);

/// f.template operator()<m>() for the tile size m, one of those in WinogradPoints.
template <class F>
void with_winograd_tile(int tile, F f) {
  switch (tile) {
    case 2:
      return f.template operator()<2>();
    case 3:
      return f.template operator()<3>();
    default:
      return f.template operator()<4>();
  }
}

}  // namespace dlk::cpu::DLK_ISA
