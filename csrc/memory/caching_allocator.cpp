#include "csrc/memory/caching_allocator.h"

#include <pthread.h>

#include <algorithm>
#include <bit>
#include <cassert>

#include "csrc/memory/system.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes)
#endif

namespace dlk::memory {
namespace {

constexpr size_t kSizesPerDoubling = 8;
/// Blocks whose pages are offered to the system while idle. It takes some microseconds, and the processor forgets their
/// addresses (TLB): 10 % of what relu takes on 2 MB, nothing that can be measured from 8 MB on.
constexpr size_t kSmallestOffered = 16 << 20;

size_t round_up(size_t bytes) {
  const size_t step = std::bit_ceil(bytes) / 2 / kSizesPerDoubling;
  return (bytes + step - 1) / step * step;
}

template <class Blocks>
void unmap(const Blocks& blocks) {
  for (const auto& block : blocks) {
    ASAN_UNPOISON_MEMORY_REGION(block.data, block.bytes);  // the addresses may come back as anybody's
    unmap_pages(block.data, block.bytes);
  }
}

}  // namespace

void* CachingAllocator::allocate(size_t bytes) {
  if (bytes > PTRDIFF_MAX / 2) return nullptr;
  const size_t size = round_up(std::max(bytes, kSmallest));
  void* data = reuse(size);
  if (data == nullptr) data = map(size);
  if (data == nullptr) return nullptr;
  ASAN_POISON_MEMORY_REGION(data, size);  // what rounding added
  ASAN_UNPOISON_MEMORY_REGION(data, bytes);
  return data;
}

/// The block of this size that became idle last, which a processor's cache may still hold; null if there is none.
void* CachingAllocator::reuse(size_t size) {
  const std::lock_guard lock(mutex_);
  Blocks& idle = idle_[size];
  if (idle.empty()) return nullptr;
  ++statistics_.hits;
  statistics_.cached -= size;
  return use(idle, std::prev(idle.end()));
}

void* CachingAllocator::map(size_t size) {
  void* data = map_pages(size);
  if (data == nullptr) {
    empty();
    data = map_pages(size);
  }
  if (data == nullptr) return nullptr;
  Blocks block{{data, size, 0}};
  const std::lock_guard lock(mutex_);
  ++statistics_.misses;
  return use(block, block.begin());
}

/// Moves a block to those in use. The mutex is held.
void* CachingAllocator::use(Blocks& from, Blocks::iterator block) {
  find_used_.emplace(block->data, block);
  used_.splice(used_.end(), from, block);
  statistics_.allocated += block->bytes;
  statistics_.peak = std::max(statistics_.peak, statistics_.allocated);
  return block->data;
}

bool CachingAllocator::owns(const void* data) {
  const std::lock_guard lock(mutex_);
  return find_used_.count(data) != 0;
}

void CachingAllocator::deallocate(void* data) {
  Blocks block, surplus;
  {
    const std::lock_guard lock(mutex_);
    const auto found = find_used_.find(data);
    assert(found != find_used_.end());
    block.splice(block.end(), used_, found->second);
    find_used_.erase(found);
    statistics_.allocated -= block.front().bytes;
  }
  const size_t size = block.front().bytes;
  if (size >= kSmallestOffered) offer_pages(data, size);
  ASAN_POISON_MEMORY_REGION(data, size);
  {
    const std::lock_guard lock(mutex_);
    block.front().idle_since = ++deallocations_;
    if (size > limit_) {  // before it would drive all others out
      surplus.swap(block);
      ++statistics_.released;
    } else {
      Blocks& idle = idle_.find(size)->second;
      idle.splice(idle.end(), block);
      statistics_.cached += size;
      surplus = shrink(limit_);
    }
  }
  unmap(surplus);
}

/// Takes idle blocks out, the longest idle first, until at most `limit` bytes are idle. The mutex is held.
CachingAllocator::Blocks CachingAllocator::shrink(size_t limit) {
  Blocks out;
  while (statistics_.cached > limit) {
    Blocks* oldest = nullptr;
    for (auto& [size, blocks] : idle_)
      if (!blocks.empty() && (!oldest || blocks.front().idle_since < oldest->front().idle_since)) oldest = &blocks;
    statistics_.cached -= oldest->front().bytes;
    ++statistics_.released;
    out.splice(out.end(), *oldest, oldest->begin());
  }
  return out;
}

void CachingAllocator::empty() {
  Blocks out;
  {
    const std::lock_guard lock(mutex_);
    out = shrink(0);
  }
  unmap(out);
}

void CachingAllocator::set_limit(size_t limit) {
  Blocks out;
  {
    const std::lock_guard lock(mutex_);
    limit_ = limit;
    out = shrink(limit);
  }
  unmap(out);
}

Statistics CachingAllocator::statistics() {
  const std::lock_guard lock(mutex_);
  return statistics_;
}

CachingAllocator& caching_allocator() {
  static CachingAllocator& allocator = *[] {
    // A quarter: enough for what a training step frees and takes again, if the model fits at all, and three quarters
    // stay free of idle memory even where the system cannot take it back (small pages).
    auto* const made = new CachingAllocator(available_memory() / 4);
    pthread_atfork([] { caching_allocator().before_fork(); }, [] { caching_allocator().after_fork(); },
                   [] {
                     caching_allocator().after_fork();
                     caching_allocator().empty();
                   });
    return made;
  }();
  return allocator;
}

}  // namespace dlk::memory
