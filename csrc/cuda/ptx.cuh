// Every instruction that CUDA C++ has no function for: inline PTX under nvcc, csrc/simt on the host.
//
// Matrix products D += A B of one warp; all lanes call them. Each lane holds a fragment of every matrix. With
// g = lane / 4 and t = lane % 4, and (row, column) for an element:
//
//   mma_m16n8k16<f16|bf16>   a[0] (g, 2t), (g, 2t+1)   a[1] (g+8, ..)   a[2] (g, 2t+8), (g, 2t+9)   a[3] (g+8, ..)
//                            b[0] (2t, g), (2t+1, g)   b[1] (2t+8, g), (2t+9, g)
//   mma_m16n8k8_tf32         a[0] (g, t)   a[1] (g+8, t)   a[2] (g, t+4)   a[3] (g+8, t+4)
//                            b[0] (t, g)   b[1] (t+4, g)
//   both                     d[0] (g, 2t)   d[1] (g, 2t+1)   d[2] (g+8, 2t)   d[3] (g+8, 2t+1)
//   mma_m8n8k4_f64           a (g, t)   b (t, g)   d[0] (g, 2t)   d[1] (g, 2t+1)
//
// ldmatrix_x4 loads four 8x8 matrices of 16-bit elements: lane 8 m + i passes the address of row i of matrix m, 16
// bytes of shared memory, aligned to 16; r[m] is then (g, 2t), (g, 2t+1) of matrix m. With trans, of its transpose.
// ldmatrix_x2 loads two; the addresses of lanes 16 and up are not read.
//
// cp_async<4|8|16> copies from global to shared memory (both aligned to that size) in the background; zeros if not
// valid. The copies since the last cp_commit() form a group. cp_wait<N>() waits until all of the thread's groups but
// the N latest are complete; other threads see the data after a barrier that follows.
#pragma once

#ifdef __CUDACC__

namespace dlk::cuda {

template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, f16> || std::is_same_v<T, bf16>);
  if constexpr (std::is_same_v<T, f16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_m8n8k4_f64(double (&d)[2], double a, double b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
               : "+d"(d[0]), "+d"(d[1])
               : "d"(a), "d"(b));
}

/// Rounds to the 10 bits of mantissa that mma_m16n8k8_tf32 reads (it would cut), ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

template <bool trans>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  if constexpr (trans)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

template <bool trans>
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  if constexpr (trans)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

template <int Bytes>
__device__ __forceinline__ void cp_async(void* smem, const void* gmem, bool valid) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  const int bytes = valid ? Bytes : 0;  // what is read; the rest is filled with zeros
  if constexpr (Bytes == 16)            // past L1, which 16 bytes at a time need not go through
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(smem)), "l"(gmem), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(smem)), "l"(gmem), "n"(Bytes),
                 "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N>
__device__ __forceinline__ void cp_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace dlk::cuda

#else

#include "csrc/simt/async_copy.h"
#include "csrc/simt/matrix.h"

namespace dlk::simt {

template <int Bytes>
void cp_async(void* smem, const void* gmem, bool valid) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  executor::start_copy(smem, gmem, Bytes, valid);
}
inline void cp_commit() { executor::commit_copies(); }
template <int N>
void cp_wait() {
  executor::wait_for_copies(N);
}

}  // namespace dlk::simt

#endif
