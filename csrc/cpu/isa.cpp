#include "csrc/cpu/isa.h"

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

}  // namespace

bool isa_available(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    // The features that CMakeLists.txt compiles each level with.
    case Isa::baseline:
      return __builtin_cpu_supports("sse4.2");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
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

}  // namespace dlk::cpu
