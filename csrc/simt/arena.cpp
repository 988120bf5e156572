#include "csrc/simt/arena.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "csrc/simt/executor.h"
#include "csrc/simt/sanitizer.h"

namespace dlk::simt::executor {
namespace {

/// Red zones hold the 16-bit pattern 0xfff7: NaN in every floating-point type, like the areas, but told apart.
std::byte red_zone(size_t offset) { return std::byte(offset % 2 ? 0xff : 0xf7); }

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

Arena arena;

void Arena::begin_launch(size_t dynamic_bytes) {
  poison(memory_, kSize);
  count_ = 0;
  used_ = 0;
  add({nullptr, "dynamic shared memory", kRedZone, dynamic_bytes});
}

void Arena::begin_block() {
  const int count = std::exchange(count_, 0);
  used_ = 0;
  for (int i = 0; i < count; ++i) add(areas_[i]);
}

void Arena::end_block() {
  unpoison(memory_, used_);
  size_t zone = 0;
  for (int i = 0; i <= count_; ++i) {
    for (; zone < (i < count_ ? areas_[i].offset : used_); ++zone)
      if (memory_[zone] != red_zone(zone))
        fail("something was written out of bounds of shared memory: " + describe(memory_ + zone));
    if (i < count_) zone += areas_[i].bytes;
  }
}

void* Arena::declared(const void* site, const char* name, size_t bytes) {
  for (int i = 1; i < count_; ++i)
    if (areas_[i].site == site) return memory_ + areas_[i].offset;
  // 16 above a multiple of 128, so that code which needs more alignment than nvcc gives is found out.
  add({site, name, round_up(used_, 128) + 16, bytes});
  return memory_ + areas_[count_ - 1].offset;
}

void Arena::add(const Area& area) {
  size_t declared = area.site ? area.bytes : 0, total = area.bytes;
  for (int i = 0; i < count_; ++i) {
    declared += areas_[i].site ? areas_[i].bytes : 0;
    total += areas_[i].bytes;
  }
  if (declared > kStaticLimit)
    fail("SHARED declarations of " + std::to_string(declared) + " bytes in all; at most 48 KiB are possible");
  if (total > kLimit) fail("shared memory of " + std::to_string(total) + " bytes; a block can have 227 KiB");
  if (count_ == kMaxAreas) fail("more than 64 SHARED declarations");
  areas_[count_++] = area;
  const size_t zone = std::exchange(used_, area.offset + area.bytes + kRedZone);
  unpoison(memory_ + zone, used_ - zone);
  for (size_t i = zone; i < used_; ++i) memory_[i] = red_zone(i);
  std::memset(memory_ + area.offset, 0xff, area.bytes);
  poison(memory_ + zone, area.offset - zone);
  poison(memory_ + area.offset + area.bytes, kRedZone);
}

bool Arena::contains(const void* p, size_t bytes) const {
  const size_t offset = static_cast<const std::byte*>(p) - memory_;  // huge where p lies before
  for (int i = 0; i < count_; ++i)
    if (offset >= areas_[i].offset && offset + bytes <= areas_[i].offset + areas_[i].bytes) return true;
  return false;
}

const Arena::Area& Arena::closest(const void* p) const {
  const auto offset = static_cast<const std::byte*>(p) - memory_;
  const auto distance = [&](const Area& area) {
    return std::max<ptrdiff_t>({ptrdiff_t(area.offset) - offset, offset - ptrdiff_t(area.offset + area.bytes), 0});
  };
  return *std::min_element(areas_, areas_ + count_,
                           [&](const Area& a, const Area& b) { return distance(a) < distance(b); });
}

std::string Arena::describe(const void* p) const {
  const Area& area = closest(p);
  return std::string(area.name) + " at byte " +
         std::to_string(static_cast<const std::byte*>(p) - memory_ - static_cast<ptrdiff_t>(area.offset));
}

}  // namespace dlk::simt::executor
