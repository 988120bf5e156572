// A bounded cache of large blocks of memory between the library and the operating system.
//
// glibc gives large blocks back to the system when they are freed, so each layer's output costs page faults when it is
// first written: a copy of 26 MB takes 17 ms into fresh pages and 2.5 into pages in use. Blocks that are freed here
// stay mapped, and serve the next allocation of their size.
//
//   sizes    Blocks of each doubling of the size come in 8 sizes: at most 12.5 % more than asked for.
//   limit    At most `limit` bytes are idle. Beyond it the blocks that have been idle longest go back to the system,
//            so sizes that are no longer in use make room. When the system refuses memory, all idle blocks do.
//   idle     The huge pages of an idle block of 16 MiB or more are the system's to take when memory runs short
//            (MADV_FREE): before it swaps or kills anything. Under AddressSanitizer an idle block is poisoned.
//   threads  Any thread frees a block of any other. One mutex, held for list operations only, never for system calls.
//   fork     A child starts with an empty cache, since it would copy each page that it writes.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <mutex>
#include <unordered_map>

namespace dlk::memory {

/// Sizes in bytes, of blocks as they are: rounded up.
struct Statistics {
  size_t allocated = 0;  // in use
  size_t cached = 0;     // idle
  size_t peak = 0;       // the most that was in use at a time
  int64_t hits = 0;      // allocations from the cache
  int64_t misses = 0;    // allocations from the system
  int64_t released = 0;  // blocks given back to the system
};

class CachingAllocator {
 public:
  /// What callers should ask for here. Below, malloc does well. Measured on the outputs and gradients of twelve relus,
  /// in each step it faulted in again none of the pages of 128 KB tensors, 3 % of 256 KB, 11 % of 1 MB, 89 % of 64 MB.
  static constexpr size_t kSmallest = 256 << 10;

  explicit CachingAllocator(size_t limit) : limit_(limit) {}
  ~CachingAllocator() { empty(); }

  /// A block of at least `bytes`, aligned to pages (to huge pages where they fit in), uninitialised; null if the system
  /// has none.
  void* allocate(size_t bytes);
  /// Whether `data` is a block in use.
  bool owns(const void* data);
  /// Takes back a block of allocate().
  void deallocate(void* data);

  /// Gives all idle blocks back to the system.
  void empty();
  size_t limit() const { return limit_; }
  void set_limit(size_t limit);
  Statistics statistics();

  /// To be called around fork().
  void before_fork() { mutex_.lock(); }
  void after_fork() { mutex_.unlock(); }

 private:
  struct Block {
    void* data;
    size_t bytes;
    int64_t idle_since;  // in deallocations
  };
  using Blocks = std::list<Block>;  // blocks change lists by splicing: freeing one allocates nothing and cannot fail

  void* reuse(size_t size);
  void* map(size_t size);
  void* use(Blocks& from, Blocks::iterator block);
  Blocks shrink(size_t limit);

  std::mutex mutex_;  // of all that follows; the limit is also read without
  Blocks used_;
  std::unordered_map<const void*, Blocks::iterator> find_used_;
  std::map<size_t, Blocks> idle_;  // by size, each from the longest idle to the latest
  Statistics statistics_;
  int64_t deallocations_ = 0;
  std::atomic<size_t> limit_;
};

/// The one that the library uses. It is never destroyed: tensors may outlive everything that ends at exit.
CachingAllocator& caching_allocator();

}  // namespace dlk::memory
