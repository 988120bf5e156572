// One table of entry points per op and instruction set; `kernels<Table>()` is the set to call.
//
// An op's header declares a table, a struct of function pointers:
//     template <class T> struct SoftmaxKernels { void (*forward)(...); void (*backward)(...); };
// Its .cpp, compiled once per instruction set, keeps all code in an anonymous namespace (so that the linker never
// merges an AVX-512 function into the AVX2 path) and ends with
//     DLK_KERNEL_TABLE(SoftmaxKernels<float>, {forward<float>, backward<float>})
// Callers write `kernels<SoftmaxKernels<float>>().forward(...)`. A missing definition is a link error.
#pragma once

#include "csrc/cpu/isa.h"

namespace dlk::cpu {

/// The entry points of `Table` compiled for instruction set `isa`; defined by DLK_KERNEL_TABLE.
template <class Table, Isa isa>
const Table& kernel_table();

/// The entry points of `Table` for the running processor.
template <class Table>
const Table& kernels() {
#if defined(__x86_64__)
  switch (active_isa()) {
#if !defined(DLK_WITHOUT_AVX512)
    case Isa::avx512:
      return kernel_table<Table, Isa::avx512>();
#endif
    case Isa::avx2:
      return kernel_table<Table, Isa::avx2>();
    default:
      return kernel_table<Table, Isa::baseline>();
  }
#else
  return kernel_table<Table, Isa::neon>();
#endif
}

}  // namespace dlk::cpu

#define DLK_KERNEL_TABLE(Table, ...)                                               \
  template <>                                                                      \
  const dlk::Table& dlk::cpu::kernel_table<dlk::Table, dlk::cpu::Isa::DLK_ISA>() { \
    static constexpr dlk::Table table __VA_ARGS__;                                 \
    return table;                                                                  \
  }
