// What a kernel asks of its caller: working memory, so that one allocator serves the whole library, and on a GPU the
// stream to launch on.
#pragma once

#include <cstddef>

namespace dlk {

class Context {
 public:
  /// A 64-byte aligned, uninitialised block that lives until the kernel call returns (on a GPU: until its work is
  /// done). Not thread-safe: a kernel asks before its parallel region.
  template <class T>
  T* array(size_t count) {
    return static_cast<T*>(bytes(count * sizeof(T)));
  }

  /// The cudaStream_t; null on the CPU.
  virtual void* stream() const { return nullptr; }

 protected:
  ~Context() = default;
  virtual void* bytes(size_t count) = 0;
};

}  // namespace dlk
