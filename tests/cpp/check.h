// What the C++ tests share: random data behind guard zones, scratch memory, comparison with a float64 reference.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "csrc/core/context.h"
#include "csrc/cpu/isa.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes)
#endif

namespace test {

inline int failures = 0;

inline void fail(const std::string& what) {
  if (++failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

inline std::mt19937& generator() {
  static std::mt19937 engine(1234);
  return engine;
}

/// n elements, `offset` elements past an aligned address, between guard zones that must stay as they are, and which
/// AddressSanitizer does not let be read either.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t n, int64_t offset = 0)
      : n_(n), start_(kGuard + offset), data_(n + 2 * kGuard + offset, T(kGuardValue)) {
    forbid_guards();
  }
  Buffer(Buffer&&) = default;  // the memory stays where it is

  static Buffer random(int64_t n, int64_t offset = 0) {
    Buffer buffer(n, offset);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < n; ++i) buffer[i] = static_cast<T>(normal(generator()));
    return buffer;
  }

  T* data() { return data_.data() + start_; }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return n_; }

  /// Fails if something was written outside of the n elements.
  void check_guards(const std::string& what) {
    ASAN_UNPOISON_MEMORY_REGION(data_.data(), data_.size() * sizeof(T));
    bool written = false;
    for (int64_t i = 0; i < static_cast<int64_t>(data_.size()); ++i)
      written |= (i < start_ || i >= start_ + n_) && data_[i] != T(kGuardValue);
    forbid_guards();
    if (written) fail(what + ": wrote out of bounds");
  }

 private:
  void forbid_guards() {
    ASAN_POISON_MEMORY_REGION(data_.data(), start_ * sizeof(T));
    ASAN_POISON_MEMORY_REGION(data() + n_, (data_.size() - start_ - n_) * sizeof(T));
  }

  static constexpr int64_t kGuard = 64;
  static constexpr double kGuardValue = 12345;
  int64_t n_, start_;
  std::vector<T> data_;
};

/// Fails if any value is further from the reference than `tolerance` (absolute).
template <class T>
void check_close(const std::string& what, Buffer<T>& actual, const std::vector<double>& expected, double tolerance) {
  for (int64_t i = 0; i < actual.size(); ++i) {
    if (actual[i] == expected[i] || std::abs(actual[i] - expected[i]) <= tolerance) continue;  // equal: infinities
    return fail(what + ": element " + std::to_string(i) + " is " + std::to_string(actual[i]) + ", expected " +
                std::to_string(expected[i]));
  }
  actual.check_guards(what);
}

class HeapContext final : public dlk::Context {
  void* bytes(size_t count) override {
    blocks_.emplace_back(std::aligned_alloc(64, (count + 63) / 64 * 64 + 64), &std::free);
    return blocks_.back().get();
  }
  std::vector<std::unique_ptr<void, decltype(&std::free)>> blocks_;
};

/// Runs `tests` at the level that DLKERNELS_ISA names. Exit status 77 (skipped) where the processor lacks it.
template <class F>
int run(F tests) {
  try {
    std::printf("%s\n", dlk::cpu::kIsaNames[static_cast<int>(dlk::cpu::active_isa())]);
  } catch (const std::exception& error) {
    std::printf("skipped: %s\n", error.what());
    return 77;
  }
  tests();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace test
