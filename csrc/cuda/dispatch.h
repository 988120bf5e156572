// The entry points of an op's CUDA kernels: the tables of csrc/core/<op>.h, as csrc/cpu/dispatch.h has them for the
// CPU.
//
// Each .cu of this folder is compiled by nvcc (namespace cuda) and by the host compiler (namespace simt: its kernels
// run on the CPU, by csrc/simt), and ends with DLK_DEVICE_TABLE(SoftmaxKernels<float>, {forward<float>,
// backward<float>}).
#pragma once

namespace dlk::cuda {
template <class Table>
const Table& kernels();
}  // namespace dlk::cuda

namespace dlk::simt {
template <class Table>
const Table& kernels();
}  // namespace dlk::simt

#define DLK_DEVICE_TABLE(Table, ...)                         \
  template <>                                                \
  const dlk::Table& dlk::DLK_DEVICE::kernels<dlk::Table>() { \
    static constexpr dlk::Table table __VA_ARGS__;           \
    return table;                                            \
  }
