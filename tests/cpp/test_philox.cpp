// Philox against its published known answers, and the vector form in dropout's mask against the scalar one.
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string_view>
#include <vector>

#include "csrc/core/dropout.h"
#include "csrc/core/philox.h"
#include "csrc/cpu/dispatch.h"
#include "tests/cpp/check.h"

namespace {

int failures = 0;

void expect(bool ok, const char* what) {
  if (ok) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}

void known_answers() {
  // kat_vectors of the authors' Random123 library: philox4x32, 10 rounds.
  struct Case {
    dlk::PhiloxWords counter;
    uint32_t key[2];
    uint32_t expected[4];
  };
  const Case cases[] = {
      {{{0, 0, 0, 0}}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{{~0u, ~0u, ~0u, ~0u}}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const Case& c : cases) {
    const dlk::PhiloxWords words = dlk::philox4x32(c.counter, c.key[0], c.key[1]);
    for (int i = 0; i < 4; ++i) expect(words.word[i] == c.expected[i], "known answer");
  }
}

void vectors_equal_scalars() {
  const int64_t seed = 0x0123456789abcdef;
  const dlk::DropoutDraw draw{&seed, 0x9000'8000u};
  const int64_t n = 1'000'003;  // about 15 of which have 0x9000 for upper bits: the lower decide
  std::vector<uint64_t> keep((n + 63) / 64);
  test::HeapContext context;
  dlk::cpu::kernels<dlk::DropoutMaskKernels>().draw(draw, n, keep.data(), context);
  int undecided = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t word = dlk::philox_element(seed, i);
    undecided += word >> 16 == draw.threshold >> 16;
    expect((keep[i / 64] >> (i % 64) & 1) == (word < draw.threshold), "mask bit");
  }
  expect(undecided > 3, "elements that their upper bits do not decide");
}

}  // namespace

int main() {
  if (const char* asked = std::getenv("DLKERNELS_ISA"))
    for (int isa = 0; isa < static_cast<int>(std::size(dlk::cpu::kIsaNames)); ++isa)
      if (std::string_view(asked) == dlk::cpu::kIsaNames[isa] && !dlk::cpu::isa_available(dlk::cpu::Isa(isa)))
        return 77;
  known_answers();
  vectors_equal_scalars();
  std::printf(failures ? "%d failures\n" : "ok\n", failures);
  return failures != 0;
}
