// For every byte (or word) that is observed the detector remembers the last write and two reads, each with its thread
// and time, and asks at each access: is what came before ordered before this one?
//
// Time in a block is the number of __syncthreads() passed. Within a warp, __syncwarp() orders as well: lanes have
// vector clocks. Each lane counts the __syncwarp()s that it has passed, and knows, from those, up to which count it is
// ordered after each other lane. Blocks are never ordered. Two reads suffice, mostly: a write that is ordered after
// both but not after a third one is missed only if all three readers are of one warp, synchronised in part.
#ifdef DLK_SIMT_RACE

#include "csrc/simt/race.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "csrc/simt/arena.h"
#include "csrc/simt/executor.h"

namespace dlk::simt::executor::race {
namespace {

constexpr int kLanes = 32, kWarps = 32;

struct Access {
  const void* pc = nullptr;
  uint32_t block = 0;  // counted over all launches, from 1; 0: no access
  uint32_t barriers = 0;
  uint32_t clock = 0;
  uint16_t thread = 0;
  Kind kind = Kind::read;
};

struct Cell {
  Access write, read[2];
  uint32_t copied_in_block = 0;  // a copy started by write.thread has not ended
};

/// Observed memory. Most accesses are to whole words of 4 bytes, so there is one cell per word, until a part of it is
/// accessed: then each of its bytes has one.
class Region {
 public:
  Region(const void* begin, size_t bytes, bool shared)
      : begin(static_cast<const std::byte*>(begin)), end(this->begin + bytes), shared(shared) {}

  bool contains_any(const std::byte* p, size_t bytes) const { return p + bytes > begin && p < end; }

  /// Calls function(byte, cell) for all cells of the bytes.
  template <class F>
  void for_cells(const std::byte* p, size_t bytes, F function) {
    if (words_.empty()) {
      words_.resize((end - origin() + 3) / 4);
      bytes_.resize(words_.size() * 4);
      split_.resize(words_.size());
    }
    const std::byte* last = std::min(p + bytes, end);
    for (p = std::max(p, begin); p < last;) {
      const size_t offset = p - origin(), word = offset / 4;
      const bool whole = offset % 4 == 0 && last - p >= 4;
      if (!split_[word] && whole) {
        function(p, words_[word]);
        p += 4;
      } else {
        if (!split_[word]) std::fill_n(&bytes_[word * 4], 4, words_[word]);
        split_[word] = true;
        function(p++, bytes_[offset]);
      }
    }
  }
  /// To be called when nothing counts any more that was noted: words are whole again.
  void forget_parts() { std::fill(split_.begin(), split_.end(), 0); }

  const std::byte *begin, *end;
  bool shared;

 private:
  const std::byte* origin() const { return begin - reinterpret_cast<uintptr_t>(begin) % 4; }

  std::vector<Cell> words_, bytes_;
  std::vector<uint8_t> split_;
};

Region shared(arena.begin(), arena.end() - arena.begin(), true);
std::vector<Region> watched;

uint32_t block = 0, first_block = 0;  // the running one, and the launch's first
uint32_t barriers = 0;
uint32_t clocks[kWarps][kLanes][kLanes];  // [warp][lane][of lane]

uint32_t (&clock_of(unsigned thread)) [kLanes] { return clocks[thread / kLanes][thread % kLanes]; }

/// Whether `earlier` is of this launch and, in shared memory, of this block.
bool counts(const Region& region, const Access& earlier) {
  return region.shared ? earlier.block == block : earlier.block >= first_block;
}

bool ordered(const Access& earlier, const Access& now) {
  if (earlier.block != now.block) return false;
  if (earlier.thread == now.thread || earlier.barriers < now.barriers) return true;
  return earlier.thread / kLanes == now.thread / kLanes &&
         clock_of(now.thread)[earlier.thread % kLanes] > earlier.clock;
}

/// "softmax.cu:12", by addr2line if the machine has it; "reduce.cuh:7 in softmax.cu:12" where a function is inlined.
std::string source(const void* pc) {
  Dl_info module;
  if (!dladdr(pc, &module)) return "?";
  char command[1024], line[512];
  const size_t offset = static_cast<const char*>(pc) - static_cast<const char*>(module.dli_fbase) - 1;
  std::snprintf(command, sizeof command, "addr2line -i -s -e '%s' 0x%zx 2>/dev/null", module.dli_fname, offset);
  std::string result;
  if (FILE* pipe = popen(command, "r")) {
    while (std::fgets(line, sizeof line, pipe))
      result += (result.empty() ? "" : " in ") + std::string(line, std::strcspn(line, " \n"));
    pclose(pipe);
  }
  return result.empty() ? "?" : result;
}

std::string place(const Region& region, const std::byte* p) {
  if (region.shared) return arena.describe(p);
  return "a watched buffer at byte " + std::to_string(p - region.begin);
}

std::string verb(Kind kind) { return kind == Kind::read ? "reads" : kind == Kind::write ? "writes" : "updates"; }

[[noreturn]] void report(const Region& region, const std::byte* p, const Access& earlier, const Access& now) {
  const std::string who = thread_name(earlier.thread) +
                          (earlier.block != now.block
                               ? " of another block (number " + std::to_string(earlier.block - first_block) + " to run)"
                               : "");
  fail("race: " + verb(now.kind) + " " + place(region, p) + " (" + source(now.pc) + "), which " + who + " " +
       verb(earlier.kind) + " (" + source(earlier.pc) + "), with no barrier in between");
}

void check(const Region& region, const std::byte* p, Cell& cell, const Access& now) {
  if (cell.copied_in_block == block)
    fail(verb(now.kind) + " " + place(region, p) + " (" + source(now.pc) + ") while cp.async of " +
         thread_name(cell.write.thread) + " fills it: cp_wait is missing");
  if (region.shared && now.kind == Kind::read && cell.write.block != block)
    fail("uninitialised: reads " + place(region, p) + " (" + source(now.pc) + "), which no thread has written yet");

  const bool both_atomic = now.kind == Kind::atomic && cell.write.kind == Kind::atomic;
  if (counts(region, cell.write) && !both_atomic && !ordered(cell.write, now)) report(region, p, cell.write, now);
  if (now.kind == Kind::read) {
    // Replaces what is ordered before it, else a reader of whose warp there are two.
    auto& [first, second] = cell.read;
    const auto replaceable = [&](const Access& read) { return !counts(region, read) || ordered(read, now); };
    const bool same_warp = first.block == second.block && first.thread / kLanes == second.thread / kLanes;
    if (replaceable(first))
      first = now;
    else if (replaceable(second) || same_warp)
      second = now;
  } else {
    for (const Access& read : cell.read)
      if (counts(region, read) && !ordered(read, now)) report(region, p, read, now);
    cell.write = now;
  }
}

/// Calls function(region, byte, cell, access) for the observed ones of these bytes.
template <class F>
void for_cells(const void* address, size_t bytes, Kind kind, const void* pc, F function) {
  const auto* p = static_cast<const std::byte*>(address);
  const auto visit = [&](Region& region) {
    if (!region.contains_any(p, bytes) || !in_kernel()) return false;
    const uint16_t thread = this_thread();
    const Access now{pc, block, barriers, clock_of(thread)[thread % kLanes], thread, kind};
    region.for_cells(p, bytes, [&](const std::byte* byte, Cell& cell) { function(region, byte, cell, now); });
    return true;
  };
  if (visit(shared)) return;
  for (Region& region : watched) visit(region);
}

}  // namespace

void begin_launch() { first_block = block + 1; }

void begin_block() {
  ++block;
  barriers = 0;
  shared.forget_parts();
}

void barrier() { ++barriers; }

void warp_barrier(uint32_t mask) {
  auto& warp = clocks[this_thread() / kLanes];
  uint32_t latest[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane)
    if (mask >> lane & 1) {
      ++warp[lane][lane];
      for (int of = 0; of < kLanes; ++of) latest[of] = std::max(latest[of], warp[lane][of]);
    }
  for (int lane = 0; lane < kLanes; ++lane)
    if (mask >> lane & 1) std::copy(latest, latest + kLanes, warp[lane]);
}

void access(const void* p, size_t bytes, Kind kind, const void* pc) { for_cells(p, bytes, kind, pc, check); }

void begin_copy(const void* p, size_t bytes, const void* pc) {
  for_cells(p, bytes, Kind::write, pc, [](Region& region, const std::byte* byte, Cell& cell, const Access& now) {
    check(region, byte, cell, now);
    cell.copied_in_block = block;
  });
}

void end_copy(const void* p, size_t bytes, const void* pc) {
  for_cells(p, bytes, Kind::write, pc, [](Region&, const std::byte*, Cell& cell, const Access& now) {
    cell.copied_in_block = 0;
    cell.write = now;
  });
}

}  // namespace dlk::simt::executor::race

namespace dlk::simt {

void watch(const void* p, size_t bytes) { executor::race::watched.emplace_back(p, bytes, false); }
void unwatch_all() { executor::race::watched.clear(); }

}  // namespace dlk::simt

// ---- What g++ -fsanitize=thread calls.

using dlk::simt::executor::race::access;
using dlk::simt::executor::race::Kind;

#define DLK_TSAN_ACCESS(size)                                                                             \
  void __tsan_read##size(void* p) { access(p, size, Kind::read, __builtin_return_address(0)); }           \
  void __tsan_write##size(void* p) { access(p, size, Kind::write, __builtin_return_address(0)); }         \
  void __tsan_unaligned_read##size(void* p) { access(p, size, Kind::read, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##size(void* p) { access(p, size, Kind::write, __builtin_return_address(0)); }

extern "C" {
DLK_TSAN_ACCESS(1)
DLK_TSAN_ACCESS(2)
DLK_TSAN_ACCESS(4)
DLK_TSAN_ACCESS(8)
DLK_TSAN_ACCESS(16)
void __tsan_read_range(void* p, long bytes) { access(p, bytes, Kind::read, __builtin_return_address(0)); }
void __tsan_write_range(void* p, long bytes) { access(p, bytes, Kind::write, __builtin_return_address(0)); }

// Not needed: start, calls, virtual tables, and what the host's own code does with atomics (guards of statics).
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
uint8_t __tsan_atomic8_load(const volatile uint8_t* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
int __tsan_atomic32_fetch_add(volatile int* p, int n, int) { return __atomic_fetch_add(p, n, __ATOMIC_SEQ_CST); }
}

#endif
