// A typed face of warp_collective(): lanes exchange records.
#pragma once

#include <cstdint>

#include "csrc/simt/executor.h"

namespace dlk::simt::executor {

constexpr uint32_t kFullMask = 0xffffffff;

/// What the lanes of a collective passed; results are put into the same records.
template <class Record>
class Lanes {
 public:
  Lanes(uint32_t mask, void* const* records) : mask_(mask), records_(records) {}
  bool has(int lane) const { return mask_ >> lane & 1; }
  uint32_t mask() const { return mask_; }
  Record& operator[](int lane) const { return *static_cast<Record*>(records_[lane]); }

 private:
  uint32_t mask_;
  void* const* records_;
};

/// Waits for all lanes of `mask`; the last one calls Combine{}(lanes). Returns the lane's record as it is then.
template <class Combine, class Record>
Record collective(uint32_t mask, const char* kind, Place place, Record record) {
  warp_collective(mask, kind, place, &record,
                  [](uint32_t mask, void* const* records) { Combine{}(Lanes<Record>(mask, records)); });
  return record;
}

}  // namespace dlk::simt::executor
