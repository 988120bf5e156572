// Dropout: y = x / (1 - p) where kept, x * 0 elsewhere (a dropped NaN or Inf gives NaN, as in PyTorch).
//
// Whether an element is kept depends on the seed and its logical index alone (philox_element), so the mask is the same
// for any number of threads and any memory format. It is drawn as one bit per element, 64 to a word, and kept for
// backward: 1/32 of a float tensor's memory, against computing Philox again, which costs more than reading dy and
// writing dx. Streaming work throughout: ranges of whole words per thread.
#include "csrc/core/dropout.h"

#include "csrc/core/philox.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/parallel.h"
#include "csrc/cpu/simd.h"
#include "csrc/cpu/streaming.h"

namespace dlk::cpu {
namespace {

constexpr int64_t kWordBits = 64;

using U32 = Vec<uint32_t>;
using U64 = Vec<uint64_t>;

/// Philox on the counters first, first + 1, ..., one per 32-bit lane: words[w] holds their w-th words. Even and odd
/// counters go through the rounds apart, in the low halves of 64-bit lanes; what the upper halves hold is never read.
DLK_INLINE void philox_vector(uint64_t seed, uint64_t first, U32 (&words)[4]) {
  static constexpr uint64_t kEven[] = {0, 2, 4, 6, 8, 10, 12, 14};
  const U64 even = load(kEven) + first, odd = even + 1, zero{};
  U64 c[4][2] = {{even, odd}, {even >> 32, odd >> 32}, {zero, zero}, {zero, zero}};

  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const U64 p0 = multiply_low_halves(c[0][i], splat<uint64_t>(kPhiloxMultiplier0));
      const U64 p1 = multiply_low_halves(c[2][i], splat<uint64_t>(kPhiloxMultiplier1));
      c[0][i] = (p1 >> 32) ^ c[1][i] ^ splat<uint64_t>(key0);
      c[1][i] = p1;
      c[2][i] = (p0 >> 32) ^ c[3][i] ^ splat<uint64_t>(key1);
      c[3][i] = p0;
    }
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  for (int w = 0; w < 4; ++w) words[w] = (U32)((c[w][0] & 0xFFFFFFFFu) | (c[w][1] << 32));
}

/// The keep bits of elements [64 group, 64 group + 64).
uint64_t draw_group(uint64_t seed, uint32_t threshold, uint64_t group) {
  uint64_t bits = 0;
  for (int part = 0; part < 16; part += kLanes<uint32_t>) {
    U32 words[4];
    philox_vector(seed, group * 16 + part, words);
    for (int w = 0; w < 4; ++w) bits |= bits_of_lanes<uint32_t>(words[w] < threshold) << (16 * w + part);
  }
  return bits;
}

void draw(DropoutDraw draw, int64_t n, uint64_t* keep, Context&) {
  constexpr int64_t kCost = 64;  // a word of keep costs about as much as 64 elements of streaming work
  const uint64_t seed = static_cast<uint64_t>(*draw.seed);
  parallel_for(ceil_div(n, kWordBits), kCost, [=](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) keep[group] = draw_group(seed, draw.threshold, group);
  });
}

bool bit(const uint64_t* words, int64_t i) { return words[i / kWordBits] >> (i % kWordBits) & 1; }

void to_channels_last(DropoutShape shape, const uint64_t* logical, uint64_t* keep, Context&) {
  const int64_t n = shape.N * shape.C * shape.P;
  parallel_words(n, [=](int64_t word, int64_t first, int64_t count) {
    int64_t c = first % shape.C, pixel = first / shape.C % shape.P, image = first / shape.C / shape.P;
    int64_t index = (image * shape.C + c) * shape.P + pixel;
    uint64_t bits = 0;
    for (int64_t i = 0; i < count; ++i) {
      bits |= static_cast<uint64_t>(bit(logical, index)) << i;
      index += shape.P;
      if (++c < shape.C) continue;
      c = 0;
      if (++pixel == shape.P) pixel = 0, ++image;
      index = image * shape.C * shape.P + pixel;
    }
    keep[word] = bits;
  });
}

template <class T>
void apply(int64_t n, const uint64_t* keep, double scale, const T* x, T* y, Context&) {
  const Vec<T> factor = splat(static_cast<T>(scale));
  with_streaming(y, 0, 2 * n, [=](auto streams) {
    parallel_words<streams>(n, [=](int64_t word, int64_t first, int64_t count) {
      for_each_vec<T>(count, [&](int64_t i, auto lanes) {
        const auto kept = lanes_of_bits<T>(keep[word] >> i);
        write_n<streams>(y + first + i, load_n(x + first + i, lanes) * (kept ? factor : Vec<T>{}), lanes);
      });
    });
  });
}

template <class T>
void apply_to_planes(DropoutShape shape, const uint64_t* keep, double scale, const T* x, T* y, Context& context) {
  const int64_t planes = shape.N * shape.C;
  T* factors = context.array<T>(planes);
  for (int64_t plane = 0; plane < planes; ++plane) factors[plane] = bit(keep, plane) ? static_cast<T>(scale) : T(0);

  const int64_t elements = 2 * planes * shape.P;
  if (!shape.channels_last) {
    return with_streaming(y, shape.P, elements, [=](auto streams) {
      parallel_for<streams>(planes, shape.P, [=](int64_t begin, int64_t end) {
        for (int64_t plane = begin; plane < end; ++plane) {
          const int64_t at = plane * shape.P;
          for_each_vec<T>(shape.P, [&](int64_t i, auto lanes) {
            write_n<streams>(y + at + i, load_n(x + at + i, lanes) * factors[plane], lanes);
          });
        }
      });
    });
  }
  with_streaming(y, shape.C, elements, [=](auto streams) {
    parallel_for<streams>(shape.N * shape.P, shape.C, [=](int64_t begin, int64_t end) {
      for (int64_t pixel = begin; pixel < end; ++pixel) {
        const int64_t at = pixel * shape.C;
        const T* image_factors = factors + pixel / shape.P * shape.C;
        for_each_vec<T>(shape.C, [&](int64_t c, auto lanes) {
          write_n<streams>(y + at + c, load_n(x + at + c, lanes) * load_n(image_factors + c, lanes), lanes);
        });
      }
    });
  });
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(DropoutMaskKernels, {draw, to_channels_last})
DLK_KERNEL_TABLE(DropoutKernels<float>, {apply<float>, apply_to_planes<float>})
DLK_KERNEL_TABLE(DropoutKernels<double>, {apply<double>, apply_to_planes<double>})
