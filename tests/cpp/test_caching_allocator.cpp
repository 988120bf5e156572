// The caching allocator: sizes, reuse, the limit, refusal by the system, idle pages, threads, fork, cgroups.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "csrc/memory/caching_allocator.h"
#include "csrc/memory/system.h"
#include "tests/cpp/check.h"

namespace {

using dlk::memory::CachingAllocator;
using dlk::memory::Statistics;

constexpr size_t kMiB = 1 << 20;
constexpr size_t kNoLimit = SIZE_MAX;

void expect(bool ok, const char* what) {
  if (!ok) test::fail(what);
}

bool mapped(void* data) { return msync(data, 1, MS_ASYNC) == 0; }

/// Exit status of f() in a child process; 1000 and the signal if one ended it, the alarm after `seconds` for one.
template <class F>
int status_of_child(F f, int seconds = 20) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    alarm(seconds);
    _exit(f());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/// Bytes of addresses that this process has mapped.
size_t address_space() {
  size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

void sizes_and_alignment() {
  const size_t before = address_space();
  CachingAllocator cache(kNoLimit);
  const size_t huge = dlk::memory::huge_page_bytes();
  for (size_t bytes = CachingAllocator::kSmallest; bytes < 80 * kMiB; bytes += bytes / 29 + 1) {
    for (const size_t asked : {bytes, std::bit_ceil(bytes), std::bit_ceil(bytes) + 1}) {
      void* data = cache.allocate(asked);
      const size_t got = cache.statistics().allocated;
      expect(got >= asked && got - asked <= asked / 8, "a block is larger than asked for, by 12.5 % at most");
      const size_t align = huge && got >= huge ? huge : 4096;
      expect(reinterpret_cast<uintptr_t>(data) % align == 0, "alignment");
      std::memset(data, 1, asked);
      cache.deallocate(data);
    }
  }
  cache.empty();
  expect(address_space() < before + 8 * kMiB, "all addresses are given back");
  expect(cache.allocate(SIZE_MAX) == nullptr && cache.allocate(SIZE_MAX / 4) == nullptr, "absurd sizes");
}

void latest_block_is_reused() {
  CachingAllocator cache(kNoLimit);
  void *first = cache.allocate(kMiB), *second = cache.allocate(kMiB);
  expect(cache.owns(first) && !cache.owns(&cache), "owns a block in use, not what is no block");
  cache.deallocate(first);
  cache.deallocate(second);
  expect(!cache.owns(first), "does not own an idle block");
  expect(cache.allocate(2 * kMiB) != second, "another size is another block");
  expect(cache.allocate(kMiB - 100) == second, "the block freed last comes first");
  const Statistics s = cache.statistics();
  expect(s.hits == 1 && s.misses == 3 && s.released == 0, "hits and misses");
  expect(s.allocated == 3 * kMiB && s.cached == kMiB && s.peak == 3 * kMiB, "bytes");
}

void longest_idle_goes_first() {
  CachingAllocator cache(8 * kMiB);
  void *a = cache.allocate(3 * kMiB), *b = cache.allocate(4 * kMiB), *c = cache.allocate(3 * kMiB);
  void *large = cache.allocate(9 * kMiB), *d = cache.allocate(2 * kMiB);
  cache.deallocate(a);
  cache.deallocate(b);
  cache.deallocate(large);
  expect(!mapped(large) && mapped(a) && mapped(b), "a block above the limit drives no other out");
  cache.deallocate(c);
  expect(!mapped(a) && mapped(b) && mapped(c), "the longest idle goes");
  cache.deallocate(d);
  expect(!mapped(b) && mapped(c) && mapped(d), "whatever its size");
  expect(cache.statistics().cached == 5 * kMiB && cache.statistics().released == 3, "statistics");
  cache.set_limit(4 * kMiB);
  expect(!mapped(c) && mapped(d), "a lower limit takes effect at once");
  cache.empty();
  expect(!mapped(d) && cache.statistics().cached == 0, "empty");
}

/// Where the system refuses memory as long as idle blocks take it.
void refusal_empties_the_cache() {
  const auto in_child = [] {
    CachingAllocator cache(kNoLimit);
    void* idle = cache.allocate(256 * kMiB);
    const size_t most = address_space() + 64 * kMiB;
    const rlimit limit{most, most};
    setrlimit(RLIMIT_AS, &limit);
    if (cache.allocate(192 * kMiB) != nullptr) return 1;
    cache.deallocate(idle);
    void* data = cache.allocate(192 * kMiB);
    if (data == nullptr || cache.statistics().cached != 0) return 2;
    return 0;
  };
  expect(status_of_child(in_child) == 0, "the cache is emptied when the system refuses memory, and null is returned");
}

/// kB of the mapping of `data` that the system may take.
size_t lazily_free(void* data) {
  std::ifstream smaps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    size_t begin = 0, end = 0, bytes = 0;
    if (std::sscanf(line.c_str(), "%zx-%zx ", &begin, &end) == 2)
      inside = reinterpret_cast<size_t>(data) >= begin && reinterpret_cast<size_t>(data) < end;
    if (inside && std::sscanf(line.c_str(), "LazyFree: %zu", &bytes) == 1) return bytes;
  }
  return 0;
}

void idle_pages_are_offered() {
  const size_t huge = dlk::memory::huge_page_bytes();
  if (huge == 0) return;
  CachingAllocator cache(kNoLimit);
  const size_t bytes = std::max(2 * huge, 16 * kMiB);
  auto* data = static_cast<char*>(cache.allocate(bytes));
  std::memset(data, 1, bytes);
  expect(lazily_free(data) == 0, "a block in use is nobody's");
  cache.deallocate(data);
  expect(lazily_free(data) == bytes / 1024, "an idle block is the system's to take");
  cache.allocate(bytes);
  std::memset(data, 2, bytes);
  expect(lazily_free(data) == 0, "what is written is kept");
}

/// Blocks that other threads free, and memory that is never two threads' at once.
void threads() {
  CachingAllocator cache(16 * kMiB);
  std::atomic<void*> handed{nullptr};
  const auto work = [&](int id) {
    for (int i = 0; i < 500; ++i) {
      const size_t bytes = CachingAllocator::kSmallest * (1 + (i * 7 + id) % 5);
      auto* data = static_cast<int*>(cache.allocate(bytes));
      data[0] = data[bytes / sizeof(int) - 1] = id;
      std::this_thread::yield();
      expect(data[0] == id && data[bytes / sizeof(int) - 1] == id, "a block belongs to one thread");
      if (void* others = handed.exchange(data)) cache.deallocate(others);
    }
  };
  std::vector<std::thread> team;
  for (int id = 0; id < 4; ++id) team.emplace_back(work, id);
  for (std::thread& thread : team) thread.join();
  cache.deallocate(handed);
  const Statistics s = cache.statistics();
  expect(s.allocated == 0 && s.hits + s.misses == 2000, "every block came back");
  expect(s.cached <= 16 * kMiB, "limit");
}

void fork_while_others_allocate() {
  CachingAllocator& cache = dlk::memory::caching_allocator();
  std::atomic<bool> stop = false;
  std::vector<std::thread> team;
  for (size_t id = 1; id <= 3; ++id)
    team.emplace_back([&, id] {
      while (!stop) cache.deallocate(cache.allocate(id * kMiB));
    });
  auto* inherited = static_cast<char*>(cache.allocate(5 * kMiB));
  inherited[0] = 7;
  const auto in_child = [&] {
    if (cache.statistics().cached != 0) return 1;
    for (size_t i = 1; i < 5; ++i) {
      auto* data = static_cast<char*>(cache.allocate(i * kMiB));
      data[0] = 1;
      cache.deallocate(data);
    }
    if (inherited[0] != 7) return 2;
    inherited[0] = 8;
    cache.deallocate(inherited);
    return 0;
  };
  for (int i = 0; i < 100; ++i) {
    const int status = status_of_child(in_child);
    expect(status == 0, "a child has a cache that works, and is empty");
    if (status != 0) break;
  }
  stop = true;
  for (std::thread& thread : team) thread.join();
  expect(inherited[0] == 7, "a parent's block stays its own");
  cache.deallocate(inherited);
}

void wrong_accesses_are_found() {
#ifdef __SANITIZE_ADDRESS__
  CachingAllocator cache(kNoLimit);
  constexpr size_t kBytes = kMiB + 8;
  auto* data = static_cast<char*>(cache.allocate(kBytes));
  expect(!__asan_region_is_poisoned(data, kBytes), "a block in use");
  expect(__asan_address_is_poisoned(data + kBytes), "what rounding added");
  cache.deallocate(data);
  expect(__asan_address_is_poisoned(data) && __asan_address_is_poisoned(data + kBytes - 1), "an idle block");
  const auto use_after_free = [&] {
    dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
    static_cast<volatile char*>(data)[100] = 1;
    return 0;
  };
  expect(status_of_child(use_after_free) != 0, "use after free ends the program");
  cache.empty();
  expect(!__asan_region_is_poisoned(data, kBytes), "addresses given back to the system");
#endif
}

void memory_of_cgroups() {
  const std::filesystem::path root = std::filesystem::temp_directory_path() / ("cgroups." + std::to_string(getpid()));
  const auto write = [&](const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text << "\n";
  };
  const auto memory = [&] { return dlk::memory::available_memory(root); };
  const size_t physical = memory();
  expect(physical >= 64 * kMiB && physical == dlk::memory::available_memory("/no such folder"), "physical memory");
  write("proc/self/cgroup", "0::/a/b");
  write("sys/fs/cgroup/a/b/memory.max", "max");
  expect(memory() == physical, "no limit");
  write("sys/fs/cgroup/a/memory.max", "5242880");
  expect(memory() == 5 * kMiB, "the limit of a group above, version 2");
  write("sys/fs/cgroup/memory.max", "4194304");
  expect(memory() == 4 * kMiB, "the limit of the root, which is a container's own group");
  write("proc/self/cgroup", "5:cpu:/a\n4:memory:/a/b\n");
  write("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712");
  expect(memory() == physical, "no limit, version 1");
  write("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "3145728");
  expect(memory() == 3 * kMiB, "version 1");
  std::filesystem::remove_all(root);
}

}  // namespace

int main() {
  sizes_and_alignment();
  latest_block_is_reused();
  longest_idle_goes_first();
  refusal_empties_the_cache();
  idle_pages_are_offered();
  threads();
  fork_while_others_allocate();
  wrong_accesses_are_found();
  memory_of_cgroups();
  std::printf("%d failures\n", test::failures);
  return test::failures != 0;
}
