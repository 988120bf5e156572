// Dropout: y = x / (1 - p) where kept, x * 0 elsewhere (a dropped NaN or Inf gives NaN, as in PyTorch).
//
// Whether an element is kept depends on the seed and its logical index alone (philox_element), so the mask is the same
// for any number of threads and any memory format. It is drawn as one bit per element, 64 to a word, and kept for
// backward: 1/32 of a float tensor's memory, against computing Philox again, which costs more than reading dy and
// writing dx. Forward draws and applies in one pass, so that one waits for memory while the other computes; only masks
// of channels_last tensors are drawn first, in logical order, and transposed. Ranges of whole words per thread.
#include "csrc/core/dropout.h"

#include <algorithm>

#include "csrc/core/philox.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/parallel.h"
#include "csrc/cpu/simd.h"
#include "csrc/cpu/streaming.h"
#include "csrc/cpu/wide_rows.h"

namespace dlk::cpu {
namespace {

constexpr int64_t kWordBits = 64, kGroupWords = kPhiloxGroup / kWordBits;

using U16 = Vec<uint16_t>;
using U32 = Vec<uint32_t>;
using U64 = Vec<uint64_t>;

/// The key of each round in all lanes: ready in memory, since each takes two instructions to make and is used by four.
struct Keys {
  U64 round[kPhiloxRounds][2];

  explicit Keys(uint64_t seed) {
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (U64(&keys)[2] : round) {
      keys[0] = splat<uint64_t>(key0);
      keys[1] = splat<uint64_t>(key1);
      key0 += kPhiloxWeyl0;
      key1 += kPhiloxWeyl1;
    }
  }
};

/// philox_words of the counters first, first + 1, ... (a multiple of their number), one per 32-bit lane: words[w] holds
/// their w-th words. Even and odd counters go through the rounds apart, in the low halves of 64-bit lanes; what the
/// upper halves hold is never read.
DLK_INLINE void philox_vector(const Keys& keys, uint64_t first, bool lower, U32 (&words)[4]) {
  static constexpr uint64_t kEven[] = {0, 2, 4, 6, 8, 10, 12, 14};
  const U64 even = load(kEven) + first, upper = splat(first >> 32), third = splat<uint64_t>(lower), zero{};
  U64 c[4][2] = {{even, even + 1}, {upper, upper}, {third, third}, {zero, zero}};
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const U64 p0 = multiply_low_halves(c[0][i], splat<uint64_t>(kPhiloxMultiplier0));
      const U64 p1 = multiply_low_halves(c[2][i], splat<uint64_t>(kPhiloxMultiplier1));
      c[0][i] = (p1 >> 32) ^ c[1][i] ^ keys.round[round][0];
      c[1][i] = p1;
      c[2][i] = (p0 >> 32) ^ c[3][i] ^ keys.round[round][1];
      c[3][i] = p0;
    }
  }
  for (int w = 0; w < 4; ++w) words[w] = (U32)((c[w][0] & 0xFFFFFFFFu) | (c[w][1] << 32));
}

/// The keep bits of a group's elements: keep[0] from the upper halves of words, keep[1] from the lower. Not exact: from
/// the upper 16 bits of each; returns whether these decide for all.
template <bool exact>
DLK_INLINE bool draw_group(const Keys& keys, uint32_t threshold, uint64_t group, uint64_t (&keep)[kGroupWords]) {
  constexpr uint32_t kUpper = 0xFFFF0000u;
  const uint32_t flipped = threshold ^ 0x80000000u;  // see upper_bits
  const auto limit = splat(static_cast<int32_t>(exact ? flipped : flipped & kUpper));
  keep[0] = keep[1] = 0;
  U16 equal{};
  for (int part = 0; part < 16; part += kLanes<uint32_t>) {
    U32 words[4], rest[4];
    philox_vector(keys, group * 16 + part, false, words);
    if constexpr (exact) philox_vector(keys, group * 16 + part, true, rest);
    for (int w = 0; w < 4; ++w) {
      U32 numbers[kGroupWords] = {words[w], words[w] << 16};  // if not exact, what follows 16 bits changes nothing
      if constexpr (exact) {
        numbers[0] = (numbers[0] & kUpper) | rest[w] >> 16;
        numbers[1] |= rest[w] & ~kUpper;
      } else {
        equal |= (U16)((U16)words[w] == static_cast<uint16_t>(flipped >> 16));
      }
      for (int half = 0; half < kGroupWords; ++half)
        keep[half] |= bits_of_lanes<uint32_t>((Vec<int32_t>)numbers[half] < limit) << (16 * w + part);
    }
  }
  return bits_of_lanes<uint32_t>((U32)equal != 0) == 0;
}

/// f(word, first, count) for each word of keep, as parallel_words, once it is drawn; of all but the last, count is a
/// constant.
template <bool streams, class F>
void draw_and(DropoutDraw rule, int64_t n, uint64_t* keep, F f) {
  constexpr int64_t kCost = 2 * kPhiloxGroup;  // drawing costs about as much as streaming work
  constexpr std::integral_constant<int64_t, kWordBits> whole;
  const int64_t words = ceil_div(n, kWordBits);
  const Keys keys(static_cast<uint64_t>(*rule.seed));
  parallel_for<streams>(ceil_div(words, kGroupWords), kCost, [=](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      uint64_t drawn[kGroupWords];
      if (!draw_group<false>(keys, rule.threshold, group, drawn)) draw_group<true>(keys, rule.threshold, group, drawn);
      for (int64_t i = 0; i < kGroupWords; ++i) {
        const int64_t word = group * kGroupWords + i, first = word * kWordBits;
        if (word == words) return;
        keep[word] = drawn[i];
        n - first < kWordBits ? f(word, first, n - first) : f(word, first, whole);
      }
    }
  });
}

void draw(DropoutDraw rule, int64_t n, uint64_t* keep, Context&) {
  draw_and<false>(rule, n, keep, [](auto...) {});
}

bool bit(const uint64_t* words, int64_t i) { return words[i / kWordBits] >> (i % kWordBits) & 1; }

/// The `count` <= 64 bits from bit i on, of which the rest is 0.
uint64_t bits_from(const uint64_t* words, int64_t i, int64_t count) {
  const int64_t word = i / kWordBits, shift = i % kWordBits;
  uint64_t bits = words[word] >> shift;
  if (shift + count > kWordBits) bits |= words[word + 1] << (kWordBits - shift);
  return count < kWordBits ? bits & ((uint64_t{1} << count) - 1) : bits;
}

/// Sets those bits, from bit i on, in words where they are 0.
void put_bits(uint64_t* words, int64_t i, int64_t count, uint64_t bits) {
  const int64_t word = i / kWordBits, shift = i % kWordBits;
  words[word] |= bits << shift;
  if (shift + count > kWordBits) words[word + 1] |= bits >> (kWordBits - shift);
}

/// Bit j of rows[i] <-> bit i of rows[j]: exchanges the two off-diagonal squares of ever smaller ones (Warren, Hacker's
/// Delight, 7-3).
void transpose(uint64_t (&rows)[kWordBits]) {
  uint64_t mask = 0xFFFFFFFFu;
  for (int size = kWordBits / 2; size > 0; size /= 2, mask ^= mask << size)
    for (int first = 0; first < kWordBits; first += 2 * size)
      for (int i = first; i < first + size; ++i) {
        const uint64_t changed = ((rows[i] >> size) ^ rows[i + size]) & mask;
        rows[i] ^= changed << size;
        rows[i + size] ^= changed;
      }
}

/// A task is 64 pixels, whose bits are C whole words.
void to_channels_last(DropoutShape shape, const uint64_t* logical, uint64_t* keep, Context&) {
  const int64_t C = shape.C, P = shape.P, pixels = shape.N * P;
  parallel_for(ceil_div(pixels, kWordBits), kWordBits * C, [=](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * kWordBits, count = std::min(kWordBits, pixels - first);
      uint64_t* const to = keep + task * C;
      std::fill_n(to, ceil_div(count * C, kWordBits), 0);
      for (int64_t c = 0; c < C; c += kWordBits) {
        const int64_t channels = std::min(kWordBits, C - c);
        uint64_t rows[kWordBits] = {};
        for (int64_t done = 0, some; done < count; done += some) {  // the pixels of an image
          const int64_t image = (first + done) / P, pixel = (first + done) % P;
          some = std::min(count - done, P - pixel);
          for (int64_t i = 0; i < channels; ++i)
            rows[i] |= bits_from(logical, (image * C + c + i) * P + pixel, some) << done;
        }
        transpose(rows);
        for (int64_t i = 0; i < count; ++i) put_bits(to, i * C + c, channels, rows[i]);
      }
    }
  });
}

/// The elements of one word.
template <bool streams, class T>
DLK_INLINE void apply_word(uint64_t keep, int64_t count, Vec<T> factor, const T* x, T* y) {
  for_each_vec_of_bits<T>(keep, count, [&](int64_t i, auto lanes, auto kept) {
    write_n<streams>(y + i, read_n<kFetch<streams>>(x + i, lanes) * (kept ? factor : Vec<T>{}), lanes);
  });
}

template <class T>
void apply(int64_t n, const uint64_t* keep, double scale, const T* x, T* y, Context&) {
  const Vec<T> factor = splat(static_cast<T>(scale));
  with_streaming(y, 0, 2 * n, [=](auto streams) {
    parallel_words<streams>(n, [=](int64_t word, int64_t first, int64_t count) {
      apply_word<streams>(keep[word], count, factor, x + first, y + first);
    });
  });
}

template <class T>
void drop(DropoutDraw rule, int64_t n, double scale, const T* x, uint64_t* keep, T* y, Context&) {
  const Vec<T> factor = splat(static_cast<T>(scale));
  with_streaming(y, 0, 2 * n, [=](auto streams) {
    draw_and<streams>(rule, n, keep, [=](int64_t word, int64_t first, auto count) {
      apply_word<streams>(keep[word], count, factor, x + first, y + first);
    });
  });
}

template <class T>
void apply_to_planes(DropoutShape shape, const uint64_t* keep, double scale, const T* x, T* y, Context& context) {
  const int64_t planes = shape.N * shape.C;
  const auto factor = [=](int64_t plane) { return bit(keep, plane) ? static_cast<T>(scale) : T(0); };
  const int64_t elements = 2 * planes * shape.P;
  if (!shape.channels_last) {
    return with_streaming(y, shape.P, elements, [=](auto streams) {
      parallel_for<streams>(planes, shape.P, [=](int64_t begin, int64_t end) {
        for (int64_t plane = begin; plane < end; ++plane) {
          const int64_t at = plane * shape.P;
          const T of_plane = factor(plane);
          for_each_vec<T>(shape.P, [&](int64_t i, auto lanes) {
            write_n<streams>(y + at + i, read_n<kFetch<streams>>(x + at + i, lanes) * of_plane, lanes);
          });
        }
      });
    });
  }
  const WideRows<T> pixels{shape.P, shape.C};
  T* const factors = context.array<T>(shape.N * pixels.width);
  for (int64_t n = 0; n < shape.N; ++n) {
    T* const of_image = factors + n * pixels.width;
    for (int64_t c = 0; c < shape.C; ++c) of_image[c] = factor(n * shape.C + c);
    pixels.repeat(of_image);
  }
  with_streaming(y, pixels.alignment(shape.N), elements, [=](auto streams) {
    for_each_wide_row<streams>(shape.N, pixels, [=](int64_t n, int64_t at, int64_t columns) {
      const T* of_image = factors + n * pixels.width;
      for_each_vec<T>(columns, [&](int64_t c, auto lanes) {
        write_n<streams>(y + at + c, read_n<kFetch<streams>>(x + at + c, lanes) * load_n(of_image + c, lanes), lanes);
      });
    });
  });
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(DropoutMaskKernels, {draw, to_channels_last})
DLK_KERNEL_TABLE(DropoutKernels<float>, {drop<float>, apply<float>, apply_to_planes<float>})
DLK_KERNEL_TABLE(DropoutKernels<double>, {drop<double>, apply<double>, apply_to_planes<double>})
