// Convolution by Winograd's algorithm (winograd_transform.h), float32 only: filters of up to 7 taps along each axis or
// one of them, with any dilation, or a stride that most taps overlap.
#pragma once

#include "csrc/cpu/correlation.h"

namespace dlk::cpu::DLK_ISA {

enum class Pass { forward, backward_input, backward_weight };

/// The size class of tiles for q (with_winograd() in winograd_tiles.h: about so many outputs along each axis that has
/// several taps), or 0 where another algorithm is faster or q has other taps or strides.
int winograd_tile(const Correlation& q, Pass pass);

/// out = the correlation of `in` with w, plus bias (null: none).
void winograd(const Correlation& q, int tile, const float* in, const float* w, const float* bias, float* out,
              Context& context);

/// dw[k, c, t] = sum over pixels p of dy[k, p] times what tap t read at p in channel c; q: the forward correlation.
void winograd_weight(const Correlation& q, int tile, const float* in, const float* dy, float* dw, Context& context);

}  // namespace dlk::cpu::DLK_ISA
