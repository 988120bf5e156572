// Working memory that a kernel asks of its caller, so that one allocator serves the whole library.
#pragma once

#include <cstddef>

namespace dlk {

/// Hands out 64-byte aligned, uninitialised blocks that live until the kernel call returns. Not thread-safe: a kernel
/// asks before its parallel region.
class Scratch {
 public:
  template <class T>
  T* array(size_t count) {
    return static_cast<T*>(bytes(count * sizeof(T)));
  }

 protected:
  ~Scratch() = default;
  virtual void* bytes(size_t count) = 0;
};

}  // namespace dlk
