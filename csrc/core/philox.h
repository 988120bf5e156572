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

/// The random word of element `index` under `seed`. Elements come in groups of 64, which 16 counters with four words
/// each serve: element j of its group has word j / 16 of counter j % 16, so that vectors of counters give vectors of
/// elements.
constexpr uint32_t philox_element(uint64_t seed, uint64_t index) {
  const uint64_t counter = index / 64 * 16 + index % 16;
  const PhiloxWords words = philox4x32({{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0}},
                                       static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return words.word[index % 64 / 16];
}

}  // namespace
}  // namespace dlk
