#include "csrc/simt/async_copy.h"

#include <cstdint>
#include <cstring>
#include <deque>
#include <string>

#include "csrc/simt/arena.h"
#include "csrc/simt/executor.h"
#include "csrc/simt/race.h"

namespace dlk::simt::executor {
namespace {

struct Copy {
  void* shared;
  size_t bytes;
  unsigned char data[16];
  unsigned group;
};

struct Copies {
  std::deque<Copy> started;
  unsigned groups = 0;  // committed so far
};

Copies copies[1024];  // by thread
bool any = false;     // to be reset

}  // namespace

void start_copy(void* shared, const void* source, size_t bytes, bool valid) {
  Copies& mine = copies[this_thread()];
  const void* pc = __builtin_return_address(0);
  const std::string name = "cp.async of " + std::to_string(bytes) + " bytes: ";
  if (!arena.contains(shared, bytes)) fail(name + "the destination is not in shared memory");
  if (reinterpret_cast<uintptr_t>(shared) % bytes) fail(name + "misaligned destination, " + arena.describe(shared));
  if (valid && reinterpret_cast<uintptr_t>(source) % bytes) fail(name + "misaligned source");
  Copy copy{shared, bytes, {}, mine.groups};
  if (valid) {
    race::access(source, bytes, race::Kind::read, pc);
    std::memcpy(copy.data, source, bytes);
  }
  race::begin_copy(shared, bytes, pc);
  std::memset(shared, 0xff, bytes);
  mine.started.push_back(copy);
  any = true;
}

void commit_copies() {
  ++copies[this_thread()].groups;
  any = true;
}

void wait_for_copies(int pending) {
  Copies& mine = copies[this_thread()];
  while (!mine.started.empty() && mine.started.front().group + pending < mine.groups) {
    const Copy& copy = mine.started.front();
    std::memcpy(copy.shared, copy.data, copy.bytes);
    race::end_copy(copy.shared, copy.bytes, __builtin_return_address(0));
    mine.started.pop_front();
  }
}

void reset_copies() {
  if (!any) return;
  for (Copies& each : copies) {
    each.started.clear();
    each.groups = 0;
  }
  any = false;
}

}  // namespace dlk::simt::executor
