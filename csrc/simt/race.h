// Race detector: reports two accesses to one byte, one of them a write, that no barrier puts in an order.
//
// It does not depend on the order that threads happen to run in. In the race build (DLK_SIMT_MODE=race) kernels are
// compiled with -fsanitize=thread, for its calls before each load and store, but without its runtime: race.cpp
// defines those calls. Other builds have neither the calls nor the detector.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dlk::simt {

#ifdef DLK_SIMT_RACE

constexpr bool kRaceDetector = true;

/// Observes a buffer in global memory, from now on until unwatch_all(). Shared memory always is observed.
void watch(const void* p, size_t bytes);
void unwatch_all();

namespace executor::race {

enum class Kind : uint8_t { read, write, atomic };

// What the executor reports.
void begin_launch();
void begin_block();
void barrier();
void warp_barrier(uint32_t mask);

/// The running thread accesses memory, in the instruction before `pc`.
void access(const void* p, size_t bytes, Kind kind, const void* pc);
/// cp.async may write at any time between these two.
void begin_copy(const void* p, size_t bytes, const void* pc);
void end_copy(const void* p, size_t bytes, const void* pc);

}  // namespace executor::race

#else

constexpr bool kRaceDetector = false;
inline void watch(const void*, size_t) {}
inline void unwatch_all() {}

namespace executor::race {

enum class Kind : uint8_t { read, write, atomic };
inline void begin_launch() {}
inline void begin_block() {}
inline void barrier() {}
inline void warp_barrier(uint32_t) {}
inline void access(const void*, size_t, Kind, const void*) {}
inline void begin_copy(const void*, size_t, const void*) {}
inline void end_copy(const void*, size_t, const void*) {}

}  // namespace executor::race

#endif

}  // namespace dlk::simt
