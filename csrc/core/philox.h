// Philox4x32-10, the counter-based random generator of Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy
// as 1, 2, 3" (SC 2011): ten rounds turn a 128-bit counter and a 64-bit key into four random 32-bit words. No state:
// any thread computes the words of any counter. This is the reference; csrc/cpu/dropout.cpp has the same bits in
// vectors.
#pragma once

#include <cstdint>

namespace dlk {
namespace {  // internal linkage: compiled per instruction set, see csrc/cpu/dispatch.h

// Scalars: nvcc drops the body of a kernel that reads a constant array of the host, without a word.
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;  // added to the key from round to round
constexpr int kPhiloxRounds = 10;

struct PhiloxWords {
  uint32_t word[4];
};

constexpr PhiloxWords philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  PhiloxWords c = counter;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c.word[0];
    const uint64_t p1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c.word[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.word[1] ^ key0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.word[3] ^ key1, static_cast<uint32_t>(p0)}};
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return c;
}

// An element's random word takes 16 bits of one word and 16 of another. Whether it is below a threshold shows in its
// upper 16 bits but for one time in 65,536, so kernels seldom draw the others. Elements come in groups of 128, of which
// 16 counters with four words each hold the 16 bits: element j has those of word j % 64 / 16 of counter j % 16, the
// upper half of it if j < 64, so that vectors of counters give vectors of elements.
constexpr int64_t kPhiloxGroup = 128;

/// The four words of a group's counter `lane` (of 16), for the elements' upper 16 bits or for their lower.
constexpr PhiloxWords philox_words(uint64_t seed, uint64_t group, int lane, bool lower) {
  const uint64_t counter = group * 16 + static_cast<uint64_t>(lane);
  return philox4x32({{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), lower, 0}},
                    static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

/// The lower 16 bits of an element's random word: the upper half of its counter's word, or (half = 1) the lower.
constexpr uint32_t lower_bits(uint32_t word, int half) { return half ? word & 0xFFFFu : word >> 16; }

/// The upper 16 bits, of the other counter's word likewise, with the first bit flipped: then unsigned comparisons of
/// random words are signed ones of Philox's, which take AVX2 one instruction.
constexpr uint32_t upper_bits(uint32_t word, int half) { return lower_bits(word, half) ^ 0x8000u; }

/// The random word of element `index` under `seed`.
constexpr uint32_t philox_element(uint64_t seed, uint64_t index) {
  const uint64_t group = index / kPhiloxGroup;
  const int lane = static_cast<int>(index % 16), word = static_cast<int>(index % 64 / 16);
  const int half = static_cast<int>(index / 64 % 2);
  return upper_bits(philox_words(seed, group, lane, false).word[word], half) << 16 |
         lower_bits(philox_words(seed, group, lane, true).word[word], half);
}

}  // namespace
}  // namespace dlk
