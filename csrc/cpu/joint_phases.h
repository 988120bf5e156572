// The phases of a strided convolution's input gradient, taken together. With few channels (of a network's first layer)
// the outputs of one phase would leave most lanes of a vector empty. So the phases become channels of one correlation,
//
//   out[(phase_h, phase_w, c), i, j] = dx[c, i stride_h + phase_h, j stride_w + phase_w]
//
// whose taps are those of any phase, with zeros for weights where a phase lacks one: Inf and NaN in dy also reach the
// outputs of those phases, at most a stride further than by their own taps. The outputs are then spread over dx, by
// rows of it in parallel.
#pragma once

#include "csrc/cpu/correlation.h"

namespace dlk::cpu::DLK_ISA {

/// All phases of one gradient, in order of (phase_h, phase_w), the first of which has the most pixels. Their taps
/// follow each other in memory.
struct Phases {
  const Correlation* at;
  int64_t h, w;

  int64_t count() const { return h * w; }
  /// The first, with the taps of all.
  Correlation with_all_taps() const {
    Correlation q = *at;
    for (int64_t i = 1; i < count(); ++i) q.taps += at[i].taps;
    return q;
  }
};

/// Whether the phases together fill the lanes of a panel better than each does, and that gains more than the zeros
/// cost: at most half of the weights. Of patches that do not overlap (a transformer's first layer) each phase has the
/// one tap, so any number of them is one product. (Some phase must have taps.)
template <class T>
bool prefers_joint(const Phases& phases) {
  const Correlation q = phases.with_all_taps();
  if (phases.count() == 1 || q.groups > 1 || 2 * q.CO > kLanes<T>) return false;
  const Span span(q);
  const int64_t taps = span.height * span.width;
  return phases.count() * taps <= 2 * q.taps && (taps == 1 || phases.count() * q.CO <= Block<T>::NR);
}

template <class T>
class JointPhases {
 public:
  JointPhases(const Phases& phases, const T* w, const T* bias, Context& context)
      : phases_(phases), q_(*phases.at), span_(phases.with_all_taps()) {
    const int64_t count = phases.count(), CO = q_.CO, taps = span_.height * span_.width;
    q_.CO = count * CO, q_.OH = q_.rows, q_.OW = q_.cols;
    q_.row_step = q_.col_step = 1;
    q_.taps = taps, q_.dh = context.array<int64_t>(3 * taps), q_.dw = q_.dh + taps, q_.weight = q_.dw + taps;
    for (int64_t t = 0; t < taps; ++t) {
      q_.dh[t] = span_.top + t / span_.width;
      q_.dw[t] = span_.left + t % span_.width;
      q_.weight[t] = t;
    }
    q_.w_in = taps, q_.w_out = q_.CI * taps, q_.w_group = q_.CO * q_.w_out;
    T* const weights = context.array<T>(q_.w_group);
    zero(q_.w_group, weights);
    for (int64_t i = 0; i < count; ++i) copy_weights(phases.at[i], w, weights + i * CO * q_.w_out);
    weights_ = weights;
    if (bias) {
      T* const biases = context.array<T>(q_.CO);
      for (int64_t m = 0; m < q_.CO; ++m) biases[m] = bias[m % CO];
      bias_ = biases;
    }
    out_ = context.array<T>(q_.pixels() * q_.CO);
  }

  const Correlation& correlation() const { return q_; }
  const T* weights() const { return weights_; }
  const T* bias() const { return bias_; }
  T* out() const { return out_; }

  /// dx from out.
  void spread(T* dx) const {
    const Correlation& first = *phases_.at;
    parallel_for(q_.N * q_.rows, phases_.count() * q_.cols * first.CO, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t phase_h = 0; phase_h < phases_.h; ++phase_h) {
          const int64_t n = row / q_.rows, i = row % q_.rows, h = i * first.row_step + phase_h;
          if (h >= first.OH) break;
          first.channels_last ? spread_pixels(n, i, phase_h, dx + (n * first.OH + h) * first.OW * first.CO)
                              : spread_planes(n, i, phase_h, dx + (n * first.CO * first.OH + h) * first.OW);
        }
    });
  }

 private:
  /// The weights of a phase, whose first output is at `to`.
  void copy_weights(const Correlation& phase, const T* w, T* to) const {
    for (int64_t t = 0; t < phase.taps; ++t) {
      const int64_t tap = (phase.dh[t] - span_.top) * span_.width + phase.dw[t] - span_.left;
      for (int64_t m = 0; m < phase.CO; ++m)
        for (int64_t c = 0; c < phase.CI; ++c)
          to[m * q_.w_out + c * q_.w_in + tap] = w[m * phase.w_out + c * phase.w_in + phase.weight[t]];
    }
  }

  /// One NHWC row of dx: the outputs of a pixel are pixels that follow each other.
  void spread_pixels(int64_t n, int64_t i, int64_t phase_h, T* to) const {
    const int64_t length = phases_.at->OW * phases_.at->CO, step = phases_.w * phases_.at->CO;
    const T* from = out_ + (n * q_.rows + i) * q_.cols * q_.CO + phase_h * step;
    for (int64_t at = 0; at < length; at += step, from += q_.CO)
      for (int64_t l = 0; l < step && at + l < length; ++l) to[at + l] = from[l];
  }

  /// The same row of all NCHW planes of an image: each takes the rows of the phases in turns.
  void spread_planes(int64_t n, int64_t i, int64_t phase_h, T* to) const {
    const int64_t CO = phases_.at->CO, OW = phases_.at->OW, plane = q_.rows * q_.cols;
    for (int64_t c = 0; c < CO; ++c, to += phases_.at->OH * OW)
      for (int64_t phase_w = 0; phase_w < phases_.w; ++phase_w) {
        const int64_t m = (phase_h * phases_.w + phase_w) * CO + c;
        const T* from = out_ + (n * q_.CO + m) * plane + i * q_.cols;
        for (int64_t w = phase_w; w < OW; w += phases_.w) to[w] = *from++;
      }
  }

  Phases phases_;
  Correlation q_;
  Span span_;
  const T *weights_, *bias_ = nullptr;
  T* out_;
};

}  // namespace dlk::cpu::DLK_ISA
