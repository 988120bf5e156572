// Depthwise convolution, forward and both gradients, directly on vectors of pixels (NCHW) or of channels (NHWC).
//
// NCHW: a task is one plane (n, c), staged with its padding (patches.h), so that each tap reads contiguous pixels; a
// few rows at a time share the broadcast weight of a tap. NHWC: a task is one row of pixels; weights are transposed
// once to [tap][C]. The weight gradient is summed per image (NCHW) or per row of pixels (NHWC) in registers, then over
// these in a fixed order: the same for any number of threads.
#include "csrc/cpu/depthwise.h"

#include "csrc/cpu/patches.h"

namespace dlk::cpu::DLK_ISA {
namespace {

/// Accumulators in flight: enough to hide the latency of an FMA (4 cycles, two per cycle) together with the taps'
/// loads.
constexpr int kRows = 4;

/// Memory of one thread for planes.
template <class T>
struct PlaneBuffers {
  T* stage;
  int64_t stage_size;
  Run* runs;
  int64_t runs_size;

  PlaneBuffers(const Correlation& q, Context& context)
      : stage_size(PlanarPatches<T>::stage_elements(q, q.rows * q.cols, 1)), runs_size(q.rows + 1) {
    stage = context.array<T>(max_threads() * stage_size);
    runs = context.array<Run>(max_threads() * runs_size);
  }

  /// Channel c of image n.
  PlanarPatches<T> plane(const Correlation& q, const T* in, int64_t n, int64_t c, int64_t rank) const {
    const int64_t P = q.rows * q.cols;
    PlanarPatches<T> patches(q, {n * P, (n + 1) * P}, P, runs + rank * runs_size, stage + rank * stage_size);
    patches.stage(in, c, {0, 1});
    return patches;
  }
};

// The pixels of a grid row need not be one run (rows that are adjacent in the source merge), so rows are addressed by
// the first run's origin and the row stride, which hold for the whole plane.

template <class T, int rows>
void plane_rows(const Correlation& q, const PlanarPatches<T>& patches, const T* w, T bias, int64_t i, T* out) {
  const int64_t stride = patches.row_stride(), origin = patches.run(0).from + i * stride;
  for_each_vec<T>(q.cols, [&](int64_t j, auto lanes) {
    Vec<T> sum[rows];
    for (int r = 0; r < rows; ++r) sum[r] = splat(bias);
    for (int64_t t = 0; t < q.taps; ++t) {
      const T* from = patches.source(0, t) + origin + j;
      const Vec<T> weight = splat(w[q.weight[t]]);
      for (int r = 0; r < rows; ++r) sum[r] += load_n(from + r * stride, lanes) * weight;
    }
    for (int r = 0; r < rows; ++r) {
      T* to = out + q.output_pixel(i + r, j);
      if (q.col_step == 1)
        store_n(to, sum[r], lanes);
      else
        for (int64_t l = 0; l < lanes; ++l) to[l * q.col_step] = sum[r][l];
    }
  });
}

template <class T>
void planes(const Correlation& q, const T* in, const T* w, const T* bias, T* out, Context& context) {
  const PlaneBuffers<T> buffers(q, context);
  run_team(q.groups * q.pixels() * q.taps >= kGrainMultiplies, [&](const Team& team) {
    team.for_each(q.N * q.groups, [&](int64_t task) {
      const int64_t c = task % q.groups;
      const PlanarPatches<T> patches = buffers.plane(q, in, task / q.groups, c, team.rank);
      T* to = out + task * q.OH * q.OW;
      const T b = bias ? bias[c] : T(0);
      int64_t i = 0;
      for (; i + kRows <= q.rows; i += kRows) plane_rows<T, kRows>(q, patches, w + c * q.w_group, b, i, to);
      for (; i < q.rows; ++i) plane_rows<T, 1>(q, patches, w + c * q.w_group, b, i, to);
    });
  });
}

/// f(input pixel) for the taps t that grid pixel (i, j) of image n reads inside of its image.
template <class F>
DLK_INLINE void for_each_tap(const Correlation& q, int64_t n, int64_t i, int64_t j, F f) {
  for (int64_t t = 0; t < q.taps; ++t) {
    const int64_t h = i * q.step_h + q.dh[t], w = j * q.step_w + q.dw[t];
    if (h >= 0 && h < q.IH && w >= 0 && w < q.IW) f(t, (n * q.IH + h) * q.IW + w);
  }
}

template <class T>
void pixels(const Correlation& q, const T* in, const T* w, const T* bias, T* out, Context& context) {
  const int64_t C = q.groups;
  T* weights = context.array<T>(q.taps * C);  // [tap][C]
  for (int64_t t = 0; t < q.taps; ++t)
    for (int64_t c = 0; c < C; ++c) weights[t * C + c] = w[c * q.w_group + q.weight[t]];
  run_team(q.groups * q.pixels() * q.taps >= kGrainMultiplies, [&](const Team& team) {
    team.for_each(q.N * q.rows, [&](int64_t task) {
      const int64_t n = task / q.rows, i = task % q.rows;
      for (int64_t j = 0; j < q.cols; ++j) {
        T* to = out + (n * q.OH * q.OW + q.output_pixel(i, j)) * C;
        int64_t c = 0;
        for (; c + kRows * kLanes<T> <= C; c += kRows * kLanes<T>) {
          Vec<T> sum[kRows];
          for (int v = 0; v < kRows; ++v) sum[v] = bias ? load(bias + c + v * kLanes<T>) : Vec<T>{};
          for_each_tap(q, n, i, j, [&](int64_t t, int64_t pixel) {
            const T *x = in + pixel * C + c, *weight = weights + t * C + c;
            for (int v = 0; v < kRows; ++v) sum[v] += load(x + v * kLanes<T>) * load(weight + v * kLanes<T>);
          });
          for (int v = 0; v < kRows; ++v) store(to + c + v * kLanes<T>, sum[v]);
        }
        for_each_vec<T>(C - c, [&](int64_t k, auto lanes) {
          Vec<T> sum = bias ? load_n(bias + c + k, lanes) : Vec<T>{};
          for_each_tap(q, n, i, j, [&](int64_t t, int64_t pixel) {
            sum += load_n(in + pixel * C + c + k, lanes) * load_n(weights + t * C + c + k, lanes);
          });
          store_n(to + c + k, sum, lanes);
        });
      }
    });
  });
}

// ---- Gradient to the weight

/// The sum over one plane for taps [t, t + taps).
template <class T, int taps>
void plane_products(const Correlation& q, const PlanarPatches<T>& patches, const T* dy, int64_t t, double* dw) {
  Vec<T> sum[taps] = {};
  const T* from[taps];
  for (int k = 0; k < taps; ++k) from[k] = patches.source(0, t + k) + patches.run(0).from;
  for (int64_t i = 0; i < q.rows; ++i) {
    for_each_vec<T>(q.cols, [&](int64_t j, auto lanes) {
      const Vec<T> d = load_n(dy + i * q.cols + j, lanes);
      for (int k = 0; k < taps; ++k) sum[k] += d * load_n(from[k] + i * patches.row_stride() + j, lanes);
    });
  }
  for (int k = 0; k < taps; ++k) dw[k] += reduce_sum(sum[k]);
}

template <class T>
void planes_weight(const Correlation& q, const T* in, const T* dy, T* dw, Context& context) {
  const PlaneBuffers<T> buffers(q, context);
  double* all_sums = context.array<double>(max_threads() * q.taps);
  run_team(q.groups * q.pixels() * q.taps >= kGrainMultiplies, [&](const Team& team) {
    double* sums = all_sums + team.rank * q.taps;
    team.for_each(q.groups, [&](int64_t c) {
      for (int64_t t = 0; t < q.taps; ++t) sums[t] = 0;
      for (int64_t n = 0; n < q.N; ++n) {
        const PlanarPatches<T> patches = buffers.plane(q, in, n, c, team.rank);
        const T* d = dy + (n * q.groups + c) * q.rows * q.cols;
        int64_t t = 0;
        for (; t + kRows <= q.taps; t += kRows) plane_products<T, kRows>(q, patches, d, t, sums + t);
        for (; t < q.taps; ++t) plane_products<T, 1>(q, patches, d, t, sums + t);
      }
      for (int64_t t = 0; t < q.taps; ++t) dw[c * q.w_group + q.weight[t]] = static_cast<T>(sums[t]);
    });
  });
}

template <class T>
void pixels_weight(const Correlation& q, const T* in, const T* dy, T* dw, Context& context) {
  constexpr int64_t kMostSplits = 16;  // enough to balance a few threads
  const int64_t C = q.groups, all_rows = q.N * q.rows, splits = all_rows < kMostSplits ? all_rows : kMostSplits;
  T* partial = context.array<T>(splits * q.taps * C);  // [split][tap][C]
  run_team(q.groups * q.pixels() * q.taps >= kGrainMultiplies, [&](const Team& team) {
    team.for_each(splits, [&](int64_t split) {
      T* sums = partial + split * q.taps * C;
      for (int64_t k = 0; k < q.taps * C; ++k) sums[k] = T(0);
      for (int64_t row = all_rows * split / splits; row < all_rows * (split + 1) / splits; ++row) {
        const int64_t n = row / q.rows, i = row % q.rows;
        for (int64_t t = 0; t < q.taps; ++t) {
          const int64_t h = i * q.step_h + q.dh[t];
          if (h < 0 || h >= q.IH) continue;
          for_each_vec<T>(C, [&](int64_t c, auto lanes) {
            Vec<T> sum{};
            for (int64_t j = 0; j < q.cols; ++j) {
              const int64_t w = j * q.step_w + q.dw[t];
              if (w < 0 || w >= q.IW) continue;
              sum += load_n(dy + (row * q.cols + j) * C + c, lanes) *
                     load_n(in + ((n * q.IH + h) * q.IW + w) * C + c, lanes);
            }
            store_n(sums + t * C + c, load_n(sums + t * C + c, lanes) + sum, lanes);
          });
        }
      }
    });
    team.for_each(C, [&](int64_t c) {
      for (int64_t t = 0; t < q.taps; ++t) {
        T sum = 0;
        for (int64_t split = 0; split < splits; ++split) sum += partial[(split * q.taps + t) * C + c];
        dw[c * q.w_group + q.weight[t]] = sum;
      }
    });
  });
}

}  // namespace

template <class T>
void depthwise(const Correlation& q, const T* in, const T* w, const T* bias, T* out, Context& context) {
  q.channels_last ? pixels(q, in, w, bias, out, context) : planes(q, in, w, bias, out, context);
}

template <class T>
void depthwise_weight(const Correlation& q, const T* in, const T* dy, T* dw, Context& context) {
  q.channels_last ? pixels_weight(q, in, dy, dw, context) : planes_weight(q, in, dy, dw, context);
}

template void depthwise(const Correlation&, const float*, const float*, const float*, float*, Context&);
template void depthwise(const Correlation&, const double*, const double*, const double*, double*, Context&);
template void depthwise_weight(const Correlation&, const float*, const float*, float*, Context&);
template void depthwise_weight(const Correlation&, const double*, const double*, double*, Context&);

}  // namespace dlk::cpu::DLK_ISA
