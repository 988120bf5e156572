// Runs CUDA kernels on the host: blocks one after another, each thread of a block on a fiber of its own.
//
// A thread runs until it must wait for others (a barrier, a shuffle), then the next one runs; so kernels are executed
// as CUDA defines them, in an order that set_order() chooses. What is wrong in every order is an error: a
// std::runtime_error out of launch() that names kernel, block and thread. See docs/simt.md for what is found, and in
// which builds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

namespace dlk::simt {  // what kernels and their callers see

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern Index3 threadIdx, blockIdx;  // of the running thread
extern dim3 blockDim, gridDim;

/// Order in which blocks and threads run: "forward", "reverse" or "random:SEED". Initially $DLKERNELS_SIMT_ORDER, or
/// forward.
void set_order(const std::string& order);

/// The kernels launched since the last reset, by address: `nm` has their names.
std::vector<uintptr_t> launched_kernels();
void reset_launched_kernels();

}  // namespace dlk::simt

namespace dlk::simt::executor {

using Place = std::source_location;  // where a kernel calls a function that waits

/// One launch. `run(arguments)` calls the kernel.
struct Launch {
  std::string kernel;  // as the source names it, for messages
  uintptr_t address;
  Place place;
  dim3 grid, block;
  size_t smem;
  void (*run)(const void* arguments);
  const void* arguments;
};
void run(const Launch& launch);

/// Ends the running launch: throws from it. Outside of launches, throws here.
[[noreturn]] void fail(const std::string& what);

/// Whether a thread of a kernel is running.
bool in_kernel();
/// The running thread: its number in the block.
unsigned this_thread();
/// Kernel, block and thread that run, or "" outside of launches.
std::string where();
/// "thread (3,0,0)", of the block that runs.
std::string thread_name(unsigned number);

/// The primitive under every warp-wide function. Waits until all lanes of `mask` have called it, with the same mask and
/// `kind`; the last one calls combine(mask, records), where records[lane] is what that lane passed. Then all go on.
void warp_collective(uint32_t mask, const char* kind, Place place, void* record,
                     void (*combine)(uint32_t mask, void* const* records));

/// Waits for all threads of the block, which must come to the same place.
void block_barrier(Place place);

}  // namespace dlk::simt::executor
