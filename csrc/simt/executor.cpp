#include "csrc/simt/executor.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

#include "csrc/simt/arena.h"
#include "csrc/simt/async_copy.h"
#include "csrc/simt/fiber.h"
#include "csrc/simt/race.h"

namespace dlk::simt {

Index3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

}  // namespace dlk::simt

namespace dlk::simt::executor {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;

// ---- What is known about the threads of the running block.

/// What a thread waits for.
struct Wait {
  const char* kind;
  Place place;
  uint32_t mask;  // 0: a barrier of the block
};

struct Thread {
  Index3 index;
  Fiber* fiber;  // none yet: not started
  Wait wait;     // kind is null: for nothing
  bool exited;
};

/// Lanes of a warp that have called the same collective, with the same mask.
struct Group {
  uint32_t mask, arrived;
  const char* kind;
  void* records[kWarp];
};

/// Several groups can be open at once: those of half warps, or one that lanes wait in while others are still elsewhere.
struct Warp {
  Group groups[kWarp];
  unsigned open = 0;
  uint32_t exited = 0;
};

struct Block {
  unsigned threads = 0, exited = 0;
  unsigned at_barrier = 0;
  Place barrier;  // where those wait
  Thread thread[kMaxThreads];
  Warp warp[kMaxThreads / kWarp];
};

Block block;
const Launch* launch = nullptr;       // the running one
Thread* self = nullptr;               // the running thread
std::string error;                    // of the running launch
std::set<uintptr_t> launched;         // kernels, since the last reset
std::mutex one_launch_at_a_time;      // from several host threads; also guards `launched`
thread_local bool launching = false;  // this host thread is in run()

unsigned number(const Thread& thread) { return &thread - block.thread; }

// ---- Order.

enum class Order { forward, reverse, random };
Order order = Order::forward;
std::mt19937 generator;

[[maybe_unused]] const bool order_is_set = [] {
  if (const char* name = std::getenv("DLKERNELS_SIMT_ORDER")) set_order(name);
  return true;
}();

/// Threads that can run. Each is in it at most once.
class ReadyQueue {
 public:
  void clear() { first_ = last_ = 0; }
  bool empty() const { return first_ == last_; }
  /// Adds the threads first + i for each bit i of `which`.
  void push(unsigned first, uint32_t which) {
    for (unsigned i = 0; i < kWarp; ++i) {
      const unsigned bit = order == Order::reverse ? kWarp - 1 - i : i;
      if (which >> bit & 1) ring_[last_++ % kMaxThreads] = first + bit;
    }
  }
  void push_all() {
    const unsigned warps = block.threads / kWarp;
    for (unsigned i = 0; i < warps; ++i) push((order == Order::reverse ? warps - 1 - i : i) * kWarp, ~0u);
  }
  Thread& pop() {
    if (order == Order::random) {
      const unsigned chosen = first_ + generator() % (last_ - first_);
      std::swap(ring_[first_ % kMaxThreads], ring_[chosen % kMaxThreads]);
    }
    return block.thread[ring_[first_++ % kMaxThreads]];
  }

 private:
  uint16_t ring_[kMaxThreads];
  unsigned first_ = 0, last_ = 0;
};
ReadyQueue ready;

// ---- Fibers. A fiber runs thread after thread, until one has to wait: only then does another fiber take over. So
// kernels whose threads never wait run on one fiber, as plain calls.

Fiber host;  // the stack that called launch()
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle;  // those that are in run_threads() with no thread

void run_threads();

Fiber* idle_fiber() {
  if (idle.empty()) {
    fibers.push_back(std::make_unique<Fiber>(run_threads));
    return fibers.back().get();
  }
  Fiber* fiber = idle.back();
  idle.pop_back();
  return fiber;
}

/// After an error: the waiting threads are forgotten.
void abandon_fibers() {
  idle.clear();
  for (auto& fiber : fibers) {
    fiber->restart();
    idle.push_back(fiber.get());
  }
}

std::string describe_waiting();

/// Continues with the next thread that can run; returns when its caller, on `fiber`, is to go on.
void run_next(Fiber& fiber) {
  if (ready.empty()) fail("deadlock: " + describe_waiting());
  self = &ready.pop();
  threadIdx = self->index;
  if (!self->fiber) self->fiber = idle_fiber();
  if (self->fiber != &fiber) fiber.switch_to(*self->fiber);
}

void exit_thread() {
  const unsigned n = number(*self);
  Warp& warp = block.warp[n / kWarp];
  self->exited = true;
  ++block.exited;
  warp.exited |= 1u << n % kWarp;
  if (block.at_barrier > 0)
    fail("divergent barrier: exits while " + std::to_string(block.at_barrier) + " threads wait: " + describe_waiting());
  for (unsigned i = 0; i < warp.open; ++i)
    if (warp.groups[i].mask >> n % kWarp & 1)
      fail("exits while other lanes wait for it in " + std::string(warp.groups[i].kind) + ": " + describe_waiting());
}

/// What every fiber runs.
void run_threads() {
  for (;;) {
    launch->run(launch->arguments);
    exit_thread();
    Fiber& fiber = *self->fiber;
    idle.push_back(&fiber);
    if (block.exited < block.threads)
      run_next(fiber);
    else
      fiber.switch_to(host);
  }
}

// ---- Messages.

bool same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

std::string text(Index3 i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

std::string hex(uint32_t mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

std::string text(const Wait& wait) {
  return std::string(wait.kind) + (wait.mask ? " with mask " + hex(wait.mask) : "") + " (" + wait.place.file_name() +
         ":" + std::to_string(wait.place.line()) + ")";
}

/// "threads (0,0,0) to (15,0,0): waiting in __syncthreads (softmax.cu:12), thread (16,0,0): exited".
std::string describe_waiting() {
  std::string result;
  const auto state = [](const Thread& thread) {
    return thread.exited ? "exited" : thread.wait.kind ? "waiting in " + text(thread.wait) : "";
  };
  for (unsigned i = 0, end; i < block.threads; i = end) {
    const std::string what = state(block.thread[i]);
    for (end = i + 1; end < block.threads && state(block.thread[end]) == what;) ++end;
    if (what.empty()) continue;
    const std::string who = end == i + 1
                                ? thread_name(i)
                                : "threads " + text(block.thread[i].index) + " to " + text(block.thread[end - 1].index);
    result += (result.empty() ? "" : ", ") + who + ": " + what;
  }
  return result;
}

// ---- Launch.

void check_limits(const Launch& launch) {
  const dim3 grid = launch.grid, block = launch.block;
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || threads % kWarp || block.z > 64)
    fail("a block of " + text({block.x, block.y, block.z}) + " threads; at most 1024, in multiples of 32");
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    fail("a grid of " + text({grid.x, grid.y, grid.z}) + " blocks; at most (2147483647,65535,65535)");
}

Index3 unflatten(uint64_t i, dim3 extent) {
  return {unsigned(i % extent.x), unsigned(i / extent.x % extent.y), unsigned(i / extent.x / extent.y)};
}

void run_block() {
  arena.begin_block();
  reset_copies();
  race::begin_block();
  block.exited = block.at_barrier = 0;
  for (unsigned i = 0; i < block.threads; ++i) {
    Thread& thread = block.thread[i];
    thread.fiber = nullptr;
    thread.wait.kind = nullptr;
    thread.exited = false;
  }
  for (unsigned i = 0; i < block.threads / kWarp; ++i) block.warp[i].open = block.warp[i].exited = 0;
  ready.clear();
  ready.push_all();
  run_next(host);
  self = nullptr;
  if (!error.empty()) throw std::runtime_error(error);
  arena.end_block();
}

/// Leaves the executor as it was, also after an error.
struct RunningLaunch {
  explicit RunningLaunch(const Launch& current) {
    launch = &current;
    launching = true;
  }
  ~RunningLaunch() {
    if (!error.empty()) abandon_fibers();
    error.clear();
    launch = nullptr;
    launching = false;
  }
};

}  // namespace

void run(const Launch& launch) {
  if (launching) throw std::runtime_error("a kernel launches another one");
  const std::lock_guard lock(one_launch_at_a_time);
  const RunningLaunch running(launch);
  launched.insert(launch.address);
  blockIdx = {};
  check_limits(launch);
  blockDim = launch.block;
  gridDim = launch.grid;
  block.threads = blockDim.x * blockDim.y * blockDim.z;
  for (unsigned i = 0; i < block.threads; ++i) block.thread[i].index = unflatten(i, blockDim);
  arena.begin_launch(launch.smem);
  race::begin_launch();
  const uint64_t blocks = uint64_t(gridDim.x) * gridDim.y * gridDim.z;
  std::vector<uint32_t> shuffled;
  if (order == Order::random) {
    for (uint64_t i = 0; i < blocks; ++i) shuffled.push_back(i);
    std::shuffle(shuffled.begin(), shuffled.end(), generator);
  }
  for (uint64_t i = 0; i < blocks; ++i) {
    blockIdx = unflatten(order == Order::random ? shuffled[i] : order == Order::reverse ? blocks - 1 - i : i, gridDim);
    run_block();
  }
}

bool in_kernel() { return self; }

unsigned this_thread() {
  if (!self) fail("called outside of a kernel");
  return number(*self);
}

std::string thread_name(unsigned number) { return "thread " + text(block.thread[number].index); }

std::string where() {
  if (!launch) return "";
  std::string result = launch->kernel + " (launched at " + launch->place.file_name() + ":" +
                       std::to_string(launch->place.line()) + "), block " + text(blockIdx);
  return self ? result + ", " + thread_name(number(*self)) : result;
}

void fail(const std::string& what) {
  const std::string message = launch ? where() + ": " + what : what;
  if (!self) throw std::runtime_error(message);
  error = message;
  self->fiber->switch_to(host);
  std::abort();  // not reached: run_block() does not come back here
}

void warp_collective(uint32_t mask, const char* kind, Place place, void* record,
                     void (*combine)(uint32_t mask, void* const* records)) {
  const unsigned n = this_thread(), lane = n % kWarp;
  Warp& warp = block.warp[n / kWarp];
  self->wait = {kind, place, mask};
  if (!(mask >> lane & 1)) fail("lane " + std::to_string(lane) + " is not in the mask of its " + text(self->wait));
  if (mask & warp.exited)
    fail("the mask of " + text(self->wait) + " names lanes that have exited: " + hex(mask & warp.exited));

  Group* group = nullptr;
  for (unsigned i = 0; i < warp.open && !group; ++i) {
    Group& other = warp.groups[i];
    const bool wait_for_each_other = (other.mask >> lane & 1) && (other.arrived & mask);
    if (!wait_for_each_other) continue;
    if (other.mask != mask || !same(other.kind, kind))
      fail("lanes disagree: " + text(self->wait) + ", but " + describe_waiting());
    group = &other;
  }
  if (!group) {
    group = &warp.groups[warp.open++];
    group->mask = mask;
    group->arrived = 0;
    group->kind = kind;
  }
  group->records[lane] = record;
  group->arrived |= 1u << lane;
  if (group->arrived == mask) {
    combine(mask, group->records);
    *group = warp.groups[--warp.open];
    ready.push(n / kWarp * kWarp, mask);
  }
  run_next(*self->fiber);
  self->wait.kind = nullptr;
}

void block_barrier(Place place) {
  this_thread();
  self->wait = {"__syncthreads", place, 0};
  if (block.exited > 0)
    fail("divergent barrier: " + std::to_string(block.exited) + " threads have exited before " + text(self->wait));
  if (block.at_barrier == 0) block.barrier = place;
  if (block.barrier.line() != place.line() || !same(block.barrier.file_name(), place.file_name()))
    fail("divergent barrier: " + text(self->wait) + ", while other threads wait at " +
         text(Wait{"__syncthreads", block.barrier, 0}));
  if (++block.at_barrier == block.threads) {
    block.at_barrier = 0;
    race::barrier();
    ready.push_all();
  }
  run_next(*self->fiber);
  self->wait.kind = nullptr;
}

}  // namespace dlk::simt::executor

std::vector<uintptr_t> dlk::simt::launched_kernels() {
  const std::lock_guard lock(executor::one_launch_at_a_time);
  return {executor::launched.begin(), executor::launched.end()};
}

void dlk::simt::reset_launched_kernels() {
  const std::lock_guard lock(executor::one_launch_at_a_time);
  executor::launched.clear();
}

void dlk::simt::set_order(const std::string& name) {
  using namespace executor;
  if (name == "forward") {
    order = Order::forward;
  } else if (name == "reverse") {
    order = Order::reverse;
  } else if (name.starts_with("random:")) {
    order = Order::random;
    generator.seed(std::stoul(name.substr(7)));
  } else {
    throw std::runtime_error("the order of simulated threads is forward, reverse or random:SEED, not " + name);
  }
}

#ifdef __SANITIZE_ADDRESS__
#define DLK_EXPORT __attribute__((visibility("default")))  // to be found by its runtime
extern "C" {
/// Called before AddressSanitizer reports: adds which thread it was.
DLK_EXPORT void __asan_on_error() {
  using namespace dlk::simt::executor;
  if (launch) std::fprintf(stderr, "\nIn %s:\n", where().c_str());
}
/// A thread that fails does not clean up its stack: the text of its message is lost, as are the other threads' stacks.
DLK_EXPORT const char* __asan_default_options() { return "detect_leaks=0"; }
}
#endif
