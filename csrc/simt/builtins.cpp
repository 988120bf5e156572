#include "csrc/simt/builtins.h"

#include "csrc/simt/arena.h"
#include "csrc/simt/race.h"

namespace dlk::simt {
namespace {

struct CombineSyncwarp {
  void operator()(Lanes<int> lanes) const { race::warp_barrier(lanes.mask()); }
};

struct CombineBallot {
  void operator()(Lanes<uint32_t> lanes) const {
    uint32_t votes = 0;
    for (int i = 0; i < 32; ++i)
      if (lanes.has(i) && lanes[i]) votes |= 1u << i;
    for (int i = 0; i < 32; ++i)
      if (lanes.has(i)) lanes[i] = votes;
  }
};

}  // namespace

void __syncwarp(uint32_t mask, Place place) { collective<CombineSyncwarp>(mask, "__syncwarp", place, 0); }

uint32_t __ballot_sync(uint32_t mask, int predicate, Place place) {
  return collective<CombineBallot>(mask, "a vote (__ballot_sync, __any_sync, __all_sync)", place,
                                   uint32_t(predicate != 0));
}

void* declared_shared(const void* site, const char* name, size_t bytes) {
  this_thread();
  return arena.declared(site, name, bytes);
}

void* dynamic_shared() {
  this_thread();
  return arena.dynamic();
}

void check_alignment(const void* p, size_t alignment, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % alignment == 0) return;
  const bool shared = p >= arena.begin() && p < arena.end();
  fail(std::string(what) + ": misaligned address, not a multiple of " + std::to_string(alignment) +
       (shared ? ": " + arena.describe(p) : ""));
}

void note_atomic(const void*, size_t) {}

}  // namespace dlk::simt
