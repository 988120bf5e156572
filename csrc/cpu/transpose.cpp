// y[n, j, i] = x[n, i, j]: images from NHWC (pixels x channels) to NCHW or back.
//
// A task is a part of one matrix that L1 holds: its rows are read in the order of memory, transposed in registers a
// square of vectors at a time, and written in runs of kRows elements.
#include "csrc/core/transpose.h"

#include <algorithm>

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/gemm_kernel.h"

namespace dlk::cpu {
namespace {

constexpr int64_t kRows = 64, kColumns = 64;  // of a task: 16 KiB of float32

template <class T>
void transpose_images(int64_t N, int64_t rows, int64_t columns, const T* x, T* y) {
  const int64_t row_parts = ceil_div(rows, kRows), column_parts = ceil_div(columns, kColumns);
  const int64_t tasks = N * row_parts * column_parts, cost = std::min(rows, kRows) * std::min(columns, kColumns);
  with_streaming(y, rows, 2 * N * rows * columns, [=](auto streams) {
    parallel_for<streams>(tasks, cost, [=](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t j = task % column_parts * kColumns, i = task / column_parts % row_parts * kRows;
        const int64_t n = task / column_parts / row_parts;
        DLK_ISA::store_transposed<streams>(x + (n * rows + i) * columns + j, columns, std::min(kRows, rows - i),
                                           std::min(kColumns, columns - j), y + (n * columns + j) * rows + i, rows);
      }
    });
  });
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(TransposeKernels<float>, {transpose_images<float>})
DLK_KERNEL_TABLE(TransposeKernels<double>, {transpose_images<double>})
