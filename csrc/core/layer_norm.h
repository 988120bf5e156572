// Layer and group normalisation: a contiguous x of `rows` rows, each normalised by itself.
#pragma once

#include <cstdint>

namespace dlk {

/// A row is `channels` planes of `inner` elements, each plane with one weight. Layer normalisation: inner is 1, and all
/// rows have the same weights; group normalisation: a row is a group, and each sample has `groups` of them.
struct RowNormShape {
  int64_t rows = 1;
  int64_t channels = 1;
  int64_t inner = 1;
  int64_t groups = 1;
};

}  // namespace dlk
