// The processor: the instruction sets that the CPU kernels are compiled for, which one runs, and the size of the cache.
//
// Every kernel file of this folder is compiled once per level with -DDLK_ISA=<level>. `active_isa()` is chosen once, at
// the first call: the best level that the processor has, or the one that DLKERNELS_ISA names.
#pragma once

#include <cstdint>

namespace dlk::cpu {

enum class Isa { baseline, avx2, avx512, neon };

inline constexpr const char* kIsaNames[] = {"baseline", "avx2", "avx512", "neon"};

/// Whether this build has kernels for `isa` and this processor can run them.
bool isa_available(Isa isa);

/// The level that kernels run at. Throws std::runtime_error if DLKERNELS_ISA names a level that is not available.
Isa active_isa();

/// Bytes of the last level of cache that a core has a part in, as Linux tells; 0 where it does not.
int64_t last_level_cache();

/// For tests: what that returns from now on.
void set_last_level_cache(int64_t bytes);

}  // namespace dlk::cpu
