// The shared memory of the block that runs: one area per SHARED and one for the launch's dynamic shared memory.
//
// Each block finds it filled with NaN (all bits set, so NaN in every floating-point type and -1 in every integer).
// Red zones between the areas are checked when the block ends, and under AddressSanitizer at each access.
#pragma once

#include <cstddef>
#include <string>

namespace dlk::simt::executor {

class Arena {
 public:
  static constexpr size_t kLimit = 227 << 10;       // of a block, on Hopper
  static constexpr size_t kStaticLimit = 48 << 10;  // of SHARED: ptxas refuses more

  /// Forgets the last kernel's areas; makes the dynamic one.
  void begin_launch(size_t dynamic_bytes);
  void begin_block();
  /// Fails if something was written between the areas.
  void end_block();

  /// Starts at a multiple of 128.
  void* dynamic() { return memory_ + areas_[0].offset; }
  /// The area of the SHARED declaration that `site` identifies. Starts at a multiple of 16, and no more.
  void* declared(const void* site, const char* name, size_t bytes);

  /// Whether the bytes lie within one area.
  bool contains(const void* p, size_t bytes) const;
  /// Names the area that the byte belongs to, or is closest to, and its place there.
  std::string describe(const void* p) const;

  const std::byte* begin() const { return memory_; }
  const std::byte* end() const { return memory_ + kSize; }

 private:
  static constexpr int kMaxAreas = 64;
  static constexpr size_t kRedZone = 128;
  static constexpr size_t kSize = kLimit + (kMaxAreas + 1) * 2 * kRedZone;

  struct Area {
    const void* site;
    const char* name;
    size_t offset, bytes;
  };

  void add(const Area& area);
  const Area& closest(const void* p) const;

  alignas(128) std::byte memory_[kSize];
  Area areas_[kMaxAreas];
  int count_ = 0;
  size_t used_ = 0;  // up to the end of the last red zone
};

extern Arena arena;

}  // namespace dlk::simt::executor
