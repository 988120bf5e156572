// Memory as kernels on the host see it: shared memory, and checks of accesses.
#pragma once

#include <cstddef>

namespace dlk::simt::executor {

/// The block's memory for one SHARED declaration; `site` is an address of its own.
void* declared_shared(const void* site, const char* name, size_t bytes);
void* dynamic_shared();

}  // namespace dlk::simt::executor

namespace dlk::simt {

/// Fails if p is not a multiple of `alignment`.
void check_alignment(const void* p, size_t alignment, const char* what);

}  // namespace dlk::simt
