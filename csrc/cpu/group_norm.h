// Group normalisation of channels_last x, (samples, inner, C = groups * channels): layer_norm.cpp's formulas, and what
// its kernels for planes share with these.
//
// Vectors run along C, or along several pixels where that is short (wide_rows.h), so a group, which may be less than a
// vector, does not matter to the inner loops: blocks of pixels are summed per channel, the channels' sums are combined
// per group, in order and in double, and what a group needs is then spread over its channels again.
#pragma once

#include <cmath>

#include "csrc/core/layer_norm.h"
#include "csrc/cpu/moments.h"
#include "csrc/cpu/parallel.h"
#include "csrc/cpu/streaming.h"

namespace dlk::cpu {
namespace {

/// dx = (g - k1 - (x - mean) k2) rstd of one row, with g = dy weight.
template <class T>
struct RowGradient {
  T k1, k2;

  /// From the sums of the row's planes.
  RowGradient(RowNormShape s, int64_t row, const GradientSums* sums, const T* weight, double rstd) {
    const double count = static_cast<double>(s.channels * s.inner);
    GradientSums total;
    for (int64_t k = 0; k < s.channels; ++k) {
      const double w = weight ? weight[row % s.groups * s.channels + k] : T(1);
      total.dy += w * sums[row * s.channels + k].dy;
      total.dy_x += w * sums[row * s.channels + k].dy_x;
    }
    k1 = static_cast<T>(total.dy / count);
    k2 = static_cast<T>(total.dy_x * rstd * rstd / count);
  }
};

/// From the sums of all planes.
template <class T>
void weight_gradients(RowNormShape s, const GradientSums* sums, const T* rstd, T* dweight, T* dbias) {
  const int64_t C = s.groups * s.channels;
  for (int64_t c = 0; c < C; ++c) {
    double sum_dy = 0, sum_dy_h = 0;
    for (int64_t plane = c; plane < s.rows * s.channels; plane += C) {
      sum_dy += sums[plane].dy;
      sum_dy_h += sums[plane].dy_x * rstd[plane / s.channels];
    }
    dweight[c] = static_cast<T>(sum_dy_h);
    dbias[c] = static_cast<T>(sum_dy);
  }
}

// ---- channels_last

/// The blocks of pixels of all samples.
template <class T>
struct PixelBlocks {
  RowNormShape s;
  int64_t C = s.groups * s.channels, samples = s.rows / s.groups, pixels = rows_to_sum<T>(C),
          per_sample = ceil_div(s.inner, pixels);
  WideRows<T> wide{s.inner, C};

  int64_t count() const { return samples * per_sample; }

  /// Repeats the channels' constants, `arrays` of each sample, over the columns of its wide rows.
  void repeat(T* constants, int64_t arrays) const {
    parallel_for(samples * arrays, wide.size(0), [=, wide = wide](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) wide.repeat(constants + i * wide.width);
    });
  }

  /// f(block, first, n) for each, over the threads: its n pixels, which are numbered through all samples.
  template <class F>
  void for_each(int64_t cost, F f) const {
    parallel_for(count(), cost * std::min(pixels, s.inner) * C, [=, this](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t sample = block / per_sample * s.inner, begin = block % per_sample * pixels;
        f(block, sample + begin, std::min(s.inner - begin, pixels));
      }
    });
  }
};

/// The moments of each group in one block; `sums` is room for 3 C numbers.
template <class T>
void block_moments(RowNormShape s, const T* x, int64_t pixels, T* sums, Moments<>* moments) {
  const int64_t C = s.groups * s.channels;
  T *shift = sums, *s1 = sums + C, *s2 = sums + 2 * C;
  const double count = static_cast<double>(pixels * s.channels);
  shifted_sums(x, C, pixels, shift, s1, [=](int64_t rows) {
    for (int64_t first = 0; first < C; first += s.channels) {
      double total = 0;
      for (int64_t k = 0; k < s.channels; ++k) total += shift[first + k];
      const T mean = static_cast<T>(total / static_cast<double>(rows * s.channels));
      std::fill(shift + first, shift + first + s.channels, mean);
    }
  });
  for (int64_t g = 0; g < s.groups; ++g) {
    double total1 = 0, total2 = 0;
    for (int64_t c = g * s.channels; c < (g + 1) * s.channels; ++c) {
      total1 += s1[c];
      total2 += s2[c];
    }
    moments[g] = Moments<>::shifted(count, shift[g * s.channels], total1, total2);
  }
}

template <class T>
void forward_channels_last(RowNormShape s, const T* x, const T* weight, const T* bias, double eps, T* y, T* mean,
                           T* rstd, Context& context) {
  const PixelBlocks<T> blocks{s};
  const int64_t C = blocks.C;
  T* sums = context.array<T>(blocks.count() * 3 * C);
  Moments<>* moments = context.array<Moments<>>(blocks.count() * s.groups);
  blocks.for_each(2, [=](int64_t block, int64_t first, int64_t pixels) {
    block_moments(s, x + first * C, pixels, sums + block * 3 * C, moments + block * s.groups);
  });

  const int64_t width = blocks.wide.width;
  T* constants = context.array<T>(blocks.samples * 3 * width);  // y = (x - mean) a + b, per sample and column
  parallel_for(s.rows, blocks.per_sample * 8 + s.channels, [=](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t sample = row / s.groups, g = row % s.groups;
      Moments<> total;
      for (int64_t k = 0; k < blocks.per_sample; ++k)
        total.add(moments[(sample * blocks.per_sample + k) * s.groups + g]);
      mean[row] = static_cast<T>(total.mean);
      rstd[row] = static_cast<T>(1 / std::sqrt(total.variance() + eps));
      T* of_sample = constants + sample * 3 * width;
      for (int64_t c = g * s.channels; c < (g + 1) * s.channels; ++c) {
        of_sample[c] = mean[row];
        of_sample[width + c] = weight ? weight[c] * rstd[row] : rstd[row];
        of_sample[2 * width + c] = bias ? bias[c] : 0;
      }
    }
  });
  blocks.repeat(constants, 3);

  with_streaming(y, blocks.wide.alignment(blocks.samples), 2 * s.rows * s.channels * s.inner, [=](auto streams) {
    for_each_wide_row<streams>(blocks.samples, blocks.wide, [=](int64_t sample, int64_t at, int64_t n) {
      const T *m = constants + sample * 3 * width, *a = m + width, *b = a + width;
      for_each_vec<T>(n, [&](int64_t c, auto lanes) {
        const Vec<T> d = read_n<kFetchIfStreams<streams>>(x + at + c, lanes) - load_n(m + c, lanes);
        write_n<streams>(y + at + c, d * load_n(a + c, lanes) + load_n(b + c, lanes), lanes);
      });
    });
  });
}

/// The gradient sums of each plane, (samples, C).
template <class T>
GradientSums* plane_sums(PixelBlocks<T> blocks, const T* dy, const T* x, const T* mean, Context& context) {
  const RowNormShape s = blocks.s;
  const int64_t C = blocks.C;
  T* partial = context.array<T>(blocks.count() * 2 * C);
  T* means = context.array<T>(blocks.samples * C);
  for (int64_t plane = 0; plane < blocks.samples * C; ++plane) means[plane] = mean[plane / s.channels];
  blocks.for_each(2, [=](int64_t block, int64_t first, int64_t pixels) {
    const Columns<T, 1> of_sample{means + block / blocks.per_sample * C};
    gradient_column_sums(dy + first * C, x + first * C, of_sample, C, pixels, partial + block * 2 * C, AsItIs{});
  });
  GradientSums* sums = context.array<GradientSums>(blocks.samples * C);
  parallel_for(blocks.samples * C, blocks.per_sample * 2, [=](int64_t first, int64_t last) {
    for (int64_t plane = first; plane < last; ++plane) {
      sums[plane] = {};
      for (int64_t k = 0; k < blocks.per_sample; ++k) {
        const T* block = partial + (plane / C * blocks.per_sample + k) * 2 * C + plane % C;
        sums[plane].dy += block[0];
        sums[plane].dy_x += block[C];
      }
    }
  });
  return sums;
}

template <class T>
void backward_channels_last(RowNormShape s, const T* dy, const T* x, const T* mean, const T* rstd, const T* weight,
                            T* dx, T* dweight, T* dbias, Context& context) {
  const PixelBlocks<T> blocks{s};
  const int64_t C = blocks.C;
  const GradientSums* sums = plane_sums(blocks, dy, x, mean, context);
  const int64_t width = blocks.wide.width;
  T* constants = context.array<T>(blocks.samples * 4 * width);  // dx = dy a - b - (x - mean) k, per sample and column
  parallel_for(s.rows, 8 * s.channels, [=](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const RowGradient<T> gradient(s, row, sums, weight, rstd[row]);
      T* of_sample = constants + row / s.groups * 4 * width;
      const int64_t begin = row % s.groups * s.channels;
      for (int64_t c = begin; c < begin + s.channels; ++c) {
        of_sample[c] = mean[row];
        of_sample[width + c] = weight ? weight[c] * rstd[row] : rstd[row];
        of_sample[2 * width + c] = gradient.k1 * rstd[row];
        of_sample[3 * width + c] = gradient.k2 * rstd[row];
      }
    }
  });
  blocks.repeat(constants, 4);
  with_streaming(dx, blocks.wide.alignment(blocks.samples), 3 * s.rows * s.channels * s.inner, [=](auto streams) {
    for_each_wide_row<streams>(blocks.samples, blocks.wide, [=](int64_t sample, int64_t at, int64_t n) {
      const T *m = constants + sample * 4 * width, *a = m + width, *b = a + width, *k = b + width;
      for_each_vec<T>(n, [&](int64_t c, auto lanes) {
        const Vec<T> d = read_n<kFetchIfStreams<streams>>(x + at + c, lanes) - load_n(m + c, lanes);
        const Vec<T> g =
            read_n<kFetchIfStreams<streams>>(dy + at + c, lanes) * load_n(a + c, lanes) - load_n(b + c, lanes);
        write_n<streams>(dx + at + c, g - d * load_n(k + c, lanes), lanes);
      });
    });
  });
  weight_gradients(s, sums, rstd, dweight, dbias);
}

}  // namespace
}  // namespace dlk::cpu
