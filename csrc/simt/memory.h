// Memory as kernels on the host see it: shared memory, and checks of accesses.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dlk::simt {

/// The block's memory for one SHARED declaration; `site` is an address of its own.
void* declared_shared(const void* site, const char* name, size_t bytes);
void* dynamic_shared();

/// Fails if p is not a multiple of `alignment`.
void check_alignment(const void* p, size_t alignment, const char* what);

/// For the race detector, which does not see accesses through the pointer that this returns.
void note_atomic(const void* p, size_t bytes);
template <class T>
T* atomic_access(T* p) {
  note_atomic(p, sizeof(T));
  return p;
}

}  // namespace dlk::simt
