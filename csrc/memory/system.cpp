#include "csrc/memory/system.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>

namespace dlk::memory {
namespace {

size_t read_huge_page_bytes() {
  const std::string folder = "/sys/kernel/mm/transparent_hugepage/";
  std::string mode;
  std::getline(std::ifstream(folder + "enabled"), mode);  // "always [madvise] never"
  if (mode.find("[never]") != std::string::npos) return 0;
  size_t bytes = 0;
  std::ifstream(folder + "hpage_pmd_size") >> bytes;
  return bytes;
}

/// The least number in `file` of the cgroup at `path` and of those above it ("max", or no file: no limit).
size_t least_limit(const std::string& hierarchy, std::string path, const std::string& file) {
  size_t least = SIZE_MAX;
  for (;; path.resize(path.rfind('/'))) {
    if (path == "/") path.clear();
    size_t limit = 0;
    if (std::ifstream(hierarchy + path + "/" + file) >> limit) least = std::min(least, limit);
    if (path.empty()) return least;
  }
}

}  // namespace

size_t huge_page_bytes() {
  static const size_t bytes = read_huge_page_bytes();
  return bytes;
}

void* map_pages(size_t bytes) {
  const size_t huge = huge_page_bytes(), align = huge && bytes >= huge ? huge : 0;
  void* const mapped = mmap(nullptr, bytes + align, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  if (align == 0) return mapped;
  // A huge page starts at a multiple of its size: keep what does, give the rest back.
  char* const begin = static_cast<char*>(mapped);
  char* const data = begin + (align - reinterpret_cast<uintptr_t>(begin) % align) % align;
  if (data != begin) munmap(begin, data - begin);
  if (data != begin + align) munmap(data + bytes, begin + align - data);
  madvise(data, bytes, MADV_HUGEPAGE);
  return data;
}

void unmap_pages(void* data, size_t bytes) { munmap(data, bytes); }

void offer_pages(void* data, size_t bytes) {
  // Not the small pages: on 26 MB of them MADV_FREE and the writes that follow take 5 ms, on huge ones 10 us.
  const size_t huge = huge_page_bytes();
  if (huge && bytes >= huge) madvise(data, bytes / huge * huge, MADV_FREE);
}

size_t available_memory(const std::string& root) {
  size_t least = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::ifstream cgroups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(cgroups, line);) {  // number:controllers:/path, no controllers in version 2
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (controllers.empty()) least = std::min(least, least_limit(root + "/sys/fs/cgroup", path, "memory.max"));
    if (controllers == "memory")
      least = std::min(least, least_limit(root + "/sys/fs/cgroup/memory", path, "memory.limit_in_bytes"));
  }
  return least;
}

}  // namespace dlk::memory
