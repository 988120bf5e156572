// Threads for the kernels: plain OpenMP, which shares torch's own runtime, so torch.set_num_threads governs it.
//
// However work is cut, each element of a result is computed by one thread, and sums are cut by their size alone, never
// by the number of threads: results are bitwise the same for any thread count. A Team's threads that have done their
// share help the others, since cores are not equally fast: some are small, or shared with another program (on a virtual
// machine whose neighbour slowed one of two cores, an equal split took 1.4 times as long). Included by files compiled
// per instruction set: internal linkage.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <vector>

namespace dlk::cpu {
namespace DLK_ISA {  // since headers' classes with linkage hold it

/// Of pixels, rows, terms, ...: begin, begin + 1, ..., end - 1.
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

}  // namespace DLK_ISA
namespace {

using DLK_ISA::Range;

// A parallel region costs a few microseconds. Below this many elements of streaming work (a few bytes and operations
// each, about 10 microseconds) one thread is faster.
constexpr int64_t kGrainElements = 32768;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// The size of parts of n > 0 things, `most` at most: as few parts as can be, and those as even as can be.
constexpr int64_t even_part(int64_t n, int64_t most) { return ceil_div(n, ceil_div(n, most)); }

/// Threads that a region started here would get.
inline int max_threads() { return omp_in_parallel() ? 1 : omp_get_max_threads(); }

/// What is left of one thread's share of a Team's tasks: the number of the call, and the next task.
struct alignas(64) Share {  // a cache line each
  static constexpr int kTaskBits = 40;
  std::atomic<uint64_t> next{0};

  /// The first of the next `count` tasks of [begin, end) in call `call`, or -1. A share that nobody has touched in this
  /// call is full.
  int64_t take(uint64_t call, int64_t begin, int64_t end, int64_t count) {
    uint64_t seen = next.load(std::memory_order_relaxed);
    while (true) {
      const bool touched = seen >> kTaskBits == call;
      const int64_t task = touched ? static_cast<int64_t>(seen & ((uint64_t{1} << kTaskBits) - 1)) : begin;
      if (task >= end) return -1;
      const uint64_t after = call << kTaskBits | static_cast<uint64_t>(task + count);
      if (next.compare_exchange_weak(seen, after, std::memory_order_relaxed)) return task;
    }
  }
};

/// The threads of one parallel region, for work in several phases on shared buffers.
class Team {
 public:
  Team(const Team&) = delete;  // a copy would lose count of the calls
  Team(int64_t rank, int64_t size, Share* shares) : rank(rank), size(size), shares_(shares) {}

  const int64_t rank, size;

  /// Waits for the whole team.
  void barrier() const {
    if (size > 1) {
#pragma omp barrier
    }
  }

  /// f(i) for each i in [0, n), this thread's contiguous share first and then what others have left of theirs; then
  /// waits: all of it is done afterwards.
  template <class F>
  void for_each(int64_t n, F&& f) const {
    if (size == 1) {
      for (int64_t i = 0; i < n; ++i) f(i);
      return;
    }
    constexpr int64_t kTurns = 16;  // in which a thread takes its share: taking a small task costs as much as doing it
    const int64_t count = n / (kTurns * size) > 1 ? n / (kTurns * size) : 1;
    ++calls_;
    for (int64_t other = 0; other < size; ++other) {
      const int64_t r = (rank + other) % size, begin = n * r / size, end = n * (r + 1) / size;
      for (int64_t first; (first = shares_[r].take(calls_, begin, end, count)) >= 0;)
        for (int64_t i = first; i < end && i < first + count; ++i) f(i);
    }
    barrier();
  }

 private:
  Share* shares_;
  mutable uint64_t calls_ = 0;
};

/// Code of which there must be one copy for any number of threads: in another the compiler may contract other products
/// and sums to FMAs (seen with group norm in float64). It starts with a copy of the lambda, whose captures may then
/// stay in registers: through a pointer, stores might change them.
#define DLK_ONE_COPY __attribute__((noinline, noclone))

/// f(team) on that many threads; one is the caller alone.
template <class F>
inline void run_threads(int64_t threads, F&& of_team) {
  const auto f = [&](const Team& team) DLK_ONE_COPY {
    auto own = of_team;
    own(team);
  };
  if (threads <= 1) return f(Team(0, 1, nullptr));
  std::vector<Share> shares(threads);
#pragma omp parallel num_threads(static_cast<int>(threads))
  f(Team(omp_get_thread_num(), omp_get_num_threads(), shares.data()));
}

/// f(team) on all threads, or on the caller alone.
template <class F>
inline void run_team(bool parallel, F&& f) {
  run_threads(parallel ? max_threads() : 1, f);
}

/// Waits until other threads see what this one's non-temporal stores (streaming.h) wrote, which are not ordered.
inline void drain_streams() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

/// f(begin, end) over [0, n) in contiguous ranges, one per thread; `cost` is the elements of streaming work per item.
/// Ranges depend on the number of threads: f must treat each item on its own. `streams`: f has non-temporal stores.
template <bool streams = false, class F>
inline void parallel_for(int64_t n, int64_t cost, F&& range) {
  if (n <= 0) return;
  const auto f = [&](int64_t begin, int64_t end) DLK_ONE_COPY {
    auto own = range;
    own(begin, end);
    if constexpr (streams) drain_streams();
  };
  const int64_t work = n * (cost > 0 ? cost : 1);
  int64_t threads = work / kGrainElements;
  if (threads > max_threads()) threads = max_threads();
  if (threads > n) threads = n;
  if (threads <= 1) return f(int64_t{0}, n);
  // Memory is what such work waits for, and shorter ranges read it less evenly: a Team's took 3 % longer.
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    const int64_t rank = omp_get_thread_num(), size = omp_get_num_threads();
    const int64_t begin = n * rank / size, end = n * (rank + 1) / size;
    if (begin < end) f(begin, end);
  }
}

/// f(begin, end) over n elements of streaming work, in ranges that start at a multiple of 64: which elements fall in a
/// vector's tail does not depend on the number of threads.
template <bool streams = false, class F>
inline void parallel_elements(int64_t n, F&& f) {
  constexpr int64_t kBlock = 64;
  parallel_for<streams>(ceil_div(n, kBlock), kBlock,
                        [&](int64_t begin, int64_t end) { f(begin * kBlock, end * kBlock < n ? end * kBlock : n); });
}

/// f(word, first, count) for each word of a bit per element: its elements [first, first + count), 64 but for the last.
template <bool streams = false, class F>
inline void parallel_words(int64_t n, F&& f) {
  constexpr int64_t kWordBits = 64;
  parallel_for<streams>(ceil_div(n, kWordBits), kWordBits, [&](int64_t begin, int64_t end) {
    for (int64_t word = begin; word < end; ++word) {
      const int64_t first = word * kWordBits;
      f(word, first, n - first < kWordBits ? n - first : kWordBits);
    }
  });
}

}  // namespace
}  // namespace dlk::cpu
