// Threads for the kernels: plain OpenMP, which shares torch's own runtime, so torch.set_num_threads governs it.
//
// However work is cut, each element of a result is computed by one thread, and sums are cut by their size alone, never
// by the number of threads: results are bitwise the same for any thread count. Included by files compiled per
// instruction set: internal linkage.
#pragma once

#include <omp.h>

#include <cstdint>

namespace dlk::cpu {
namespace {

// A parallel region costs a few microseconds. Below this many elements of streaming work (a few bytes and operations
// each, about 10 microseconds) one thread is faster.
constexpr int64_t kGrainElements = 32768;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// The size of parts of n > 0 things, `most` at most: as few parts as can be, and those as even as can be.
constexpr int64_t even_part(int64_t n, int64_t most) { return ceil_div(n, ceil_div(n, most)); }

/// Threads that a region started here would get.
inline int max_threads() { return omp_in_parallel() ? 1 : omp_get_max_threads(); }

/// f(i) for each i in [0, tasks), in parallel if `parallel`; tasks are handed out one by one (uneven tasks balance).
template <class F>
inline void parallel_tasks(int64_t tasks, bool parallel, F&& f) {
  if (!parallel || tasks <= 1 || max_threads() == 1) {
    for (int64_t i = 0; i < tasks; ++i) f(i);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < tasks; ++i) f(i);
}

/// f(begin, end) over [0, n) in contiguous ranges, one per thread; `cost` is the elements of streaming work per item.
/// Ranges depend on the number of threads: f must treat each item on its own.
template <class F>
inline void parallel_for(int64_t n, int64_t cost, F&& f) {
  if (n <= 0) return;
  const int64_t work = n * (cost > 0 ? cost : 1);
  int64_t threads = work / kGrainElements;
  if (threads > max_threads()) threads = max_threads();
  if (threads > n) threads = n;
  if (threads <= 1) {
    f(int64_t{0}, n);
    return;
  }
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    const int64_t t = omp_get_thread_num(), count = omp_get_num_threads();
    const int64_t begin = n / count * t + (t < n % count ? t : n % count);
    const int64_t end = begin + n / count + (t < n % count ? 1 : 0);
    if (begin < end) f(begin, end);
  }
}

/// f(begin, end) over n elements of streaming work, in ranges that start at a multiple of 64: which elements fall in a
/// vector's tail does not depend on the number of threads.
template <class F>
inline void parallel_elements(int64_t n, F&& f) {
  constexpr int64_t kBlock = 64;
  parallel_for(ceil_div(n, kBlock), kBlock,
               [&](int64_t begin, int64_t end) { f(begin * kBlock, end * kBlock < n ? end * kBlock : n); });
}

/// f(word, first, count) for each word of a bit per element: its elements [first, first + count), 64 but for the last.
template <class F>
inline void parallel_words(int64_t n, F&& f) {
  constexpr int64_t kWordBits = 64;
  parallel_for(ceil_div(n, kWordBits), kWordBits, [&](int64_t begin, int64_t end) {
    for (int64_t word = begin; word < end; ++word) {
      const int64_t first = word * kWordBits;
      f(word, first, n - first < kWordBits ? n - first : kWordBits);
    }
  });
}

/// The threads of one parallel region, for work in several phases on shared buffers.
struct Team {
  int64_t rank, size;

  /// Waits for the whole team.
  void barrier() const {
    if (size > 1) {
#pragma omp barrier
    }
  }

  /// f(i) for this thread's contiguous share of [0, n), then waits: all of it is done afterwards.
  template <class F>
  void for_each(int64_t n, F&& f) const {
    for (int64_t i = n * rank / size; i < n * (rank + 1) / size; ++i) f(i);
    barrier();
  }
};

/// f(team) on all threads, or on the caller alone as a team of one.
template <class F>
inline void run_team(bool parallel, F&& f) {
  if (!parallel || max_threads() == 1) return f(Team{0, 1});
#pragma omp parallel
  f(Team{omp_get_thread_num(), omp_get_num_threads()});
}

}  // namespace
}  // namespace dlk::cpu
