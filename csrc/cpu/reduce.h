// Sums over long arrays, the same for every number of threads: blocks of a fixed size, summed in T and combined in
// order in double.
#pragma once

#include <algorithm>

#include "csrc/core/context.h"
#include "csrc/cpu/parallel.h"

namespace dlk::cpu {
namespace {

constexpr int64_t kSumBlock = 1024;

/// The sum over [0, n) of what `block(begin, end)` returns for its range; `cost`: streaming work per element.
template <class T, class Block>
double sum_blocks(int64_t n, int64_t cost, Context& context, Block block) {
  const int64_t blocks = ceil_div(n, kSumBlock);
  T* partial = context.array<T>(blocks);
  parallel_for(blocks, kSumBlock * cost, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) partial[b] = block(b * kSumBlock, std::min(n, (b + 1) * kSumBlock));
  });
  double sum = 0;
  for (int64_t b = 0; b < blocks; ++b) sum += partial[b];
  return sum;
}

}  // namespace
}  // namespace dlk::cpu
