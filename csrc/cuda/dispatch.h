// One table of entry points per op and device; `kernels<Table>()` is the set to call. Plain C++: no CUDA headers.
//
// The tables are those of csrc/core/<op>.h, which csrc/cpu fills for the CPU. A .cu of this folder is compiled twice:
// by nvcc for GPUs (namespace dlk::cuda) and by the host's compiler for the executor of csrc/simt (namespace
// dlk::simt). It ends with
//     DLK_DEVICE_TABLE(SoftmaxKernels<float>, {forward<float>, backward<float>})
// Callers write `cuda::kernels<SoftmaxKernels<float>>().forward(...)`. A missing definition is a link error.
#pragma once

namespace dlk {

/// A cudaStream_t, without its header. The host executor ignores it: its launches are synchronous.
using Stream = void*;

namespace cuda {
/// The entry points of `Table` that nvcc compiled.
template <class Table>
const Table& kernels();
}  // namespace cuda

namespace simt {
/// The entry points of `Table` that run under the host executor.
template <class Table>
const Table& kernels();
}  // namespace simt

}  // namespace dlk

/// To be used at global scope, in a .cu file.
#define DLK_DEVICE_TABLE(Table, ...)          \
  namespace dlk::DLK_DEVICE {                 \
  template <>                                 \
  const Table& kernels<Table>() {             \
    static constexpr Table table __VA_ARGS__; \
    return table;                             \
  }                                           \
  }
