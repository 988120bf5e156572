#include "csrc/simt/builtins.h"

#include "csrc/simt/arena.h"
#include "csrc/simt/race.h"

namespace dlk::simt {

using namespace executor;

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

// Threads take turns, so plain code is atomic.
template <class T, class F>
T update(T* p, const void* pc, F value_after) {
  race::access(p, sizeof(T), race::Kind::atomic, pc);
  const T before = *p;
  *p = value_after(before);
  return before;
}

}  // namespace

void __syncwarp(uint32_t mask, Place place) { collective<CombineSyncwarp>(mask, "__syncwarp", place, 0); }

uint32_t __ballot_sync(uint32_t mask, int predicate, Place place) {
  return collective<CombineBallot>(mask, "a vote (__ballot_sync, __any_sync, __all_sync)", place,
                                   uint32_t(predicate != 0));
}

void executor::assertion_failed(const char* condition, Place place) {
  fail(place.file_name() + (":" + std::to_string(place.line())) + ": assertion failed: " + condition);
}

std::string executor::first_argument(const char* text) {
  int depth = 0;
  const char* end = text;
  for (; *end && (*end != ',' || depth > 0); ++end)
    depth += (*end == '<' || *end == '(') - (*end == '>' || *end == ')');
  return std::string(text, end);
}

void* executor::declared_shared(const void* site, const char* name, size_t bytes) {
  this_thread();
  return arena.declared(site, name, bytes);
}

void* executor::dynamic_shared() {
  this_thread();
  return arena.dynamic();
}

void check_alignment(const void* p, size_t alignment, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % alignment == 0) return;
  const bool shared = p >= arena.begin() && p < arena.end();
  fail(std::string(what) + ": misaligned address, not a multiple of " + std::to_string(alignment) +
       (shared ? ": " + arena.describe(p) : ""));
}

template <AtomicInteger T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
  return update(p, __builtin_return_address(0), [&](T before) { return before + value; });
}
template <AtomicInteger T>
T atomicMax(T* p, std::type_identity_t<T> value) {
  return update(p, __builtin_return_address(0), [&](T before) { return before > value ? before : value; });
}
template <AtomicInteger T>
T atomicMin(T* p, std::type_identity_t<T> value) {
  return update(p, __builtin_return_address(0), [&](T before) { return before < value ? before : value; });
}
template <AtomicInteger T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return update(p, __builtin_return_address(0), [&](T before) { return before == expected ? value : before; });
}

#define DLK_SIMT_ATOMICS(T)                             \
  template T atomicAdd<T>(T*, std::type_identity_t<T>); \
  template T atomicMax<T>(T*, std::type_identity_t<T>); \
  template T atomicMin<T>(T*, std::type_identity_t<T>); \
  template T atomicCAS<T>(T*, std::type_identity_t<T>, std::type_identity_t<T>);
DLK_SIMT_ATOMICS(int)
DLK_SIMT_ATOMICS(unsigned)
DLK_SIMT_ATOMICS(unsigned long long)

}  // namespace dlk::simt
