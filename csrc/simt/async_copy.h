// cp.async on the host: data arrive as late as CUDA allows, when the thread waits for them.
//
// From its start until its end a copy's destination holds NaN, so that code that reads it without waiting, or starts a
// copy into memory that others still read, gives wrong results in every build. (The race build reports it.)
#pragma once

#include <cstddef>

namespace dlk::simt::executor {

/// Copies `bytes` bytes into shared memory, or fills with zeros, without reading `source`, if not `valid`.
void start_copy(void* shared, const void* source, size_t bytes, bool valid);
/// Makes a group of the copies that the thread has started since the last group.
void commit_copies();
/// Completes all of the thread's groups but the `pending` latest.
void wait_for_copies(int pending);
/// Forgets all copies: a new block.
void reset_copies();

}  // namespace dlk::simt::executor
