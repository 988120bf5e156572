#include "csrc/cpu/isa.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace dlk::cpu {
namespace {

constexpr Isa kBestFirst[] = {Isa::avx512, Isa::avx2, Isa::neon, Isa::baseline};

const char* name(Isa isa) { return kIsaNames[static_cast<int>(isa)]; }

Isa choose() {
  const char* asked = std::getenv("DLKERNELS_ISA");
  std::string available;
  for (Isa isa : kBestFirst) {
    if (!isa_available(isa)) continue;
    if (asked == nullptr || *asked == '\0' || std::string(asked) == name(isa)) return isa;
    available += std::string(available.empty() ? "" : ", ") + name(isa);
  }
  throw std::runtime_error("DLKERNELS_ISA=" + std::string(asked ? asked : "") +
                           " is not available here; choose from: " + available);
}

/// Of the first core's caches, the last that Linux lists. (In virtual machines sysconf was seen to say 256 MiB of 32.)
int64_t read_last_level_cache() {
  int64_t bytes = 0;
  for (int index = 0;; ++index) {
    const std::string path = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size";
    std::FILE* file = std::fopen(path.c_str(), "r");
    if (file == nullptr) return bytes;
    long long kib = 0;
    if (std::fscanf(file, "%lldK", &kib) == 1) bytes = kib << 10;
    std::fclose(file);
  }
}

std::atomic<int64_t>& cache_bytes() {
  static std::atomic<int64_t> bytes = read_last_level_cache();
  return bytes;
}

}  // namespace

bool isa_available(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    // The features that CMakeLists.txt compiles each level with.
    case Isa::baseline:
      return __builtin_cpu_supports("sse4.2");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#if !defined(DLK_WITHOUT_AVX512)
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
#elif defined(__aarch64__)
    case Isa::neon:
      return true;
#endif
    default:
      return false;
  }
}

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

int64_t last_level_cache() { return cache_bytes().load(std::memory_order_relaxed); }

void set_last_level_cache(int64_t bytes) { cache_bytes() = bytes; }

}  // namespace dlk::cpu
