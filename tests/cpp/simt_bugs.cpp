// Kernels with one bug each, which the executor must find, and the same kernels without it, which must be clean.
//
//   simt_bugs NAME [fixed]     prints what was found: an error, "wrong result", or "clean"
//
// Each is tried in all orders until something is found. tests/cpp/simt.cmake says what each build is to find.
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>

#include "csrc/cuda/device.cuh"
#include "csrc/simt/race.h"
#include "tests/cpp/check.h"

namespace dlk::DLK_DEVICE {
namespace {

constexpr int kThreads = 64;

// ---- Out of bounds. The buffer y has kThreads elements, x has kThreads as well.

template <bool fixed>
__global__ void global_bounds(const float* x, float* y) {
  const int i = threadIdx.x + (fixed ? 0 : 1);
  y[i] = x[threadIdx.x];
}

template <bool fixed>
__global__ void static_shared_bounds(const float* x, float* y) {
  SHARED(float, s, [fixed ? kThreads + 1 : kThreads]);
  s[threadIdx.x + 1] = x[threadIdx.x];
  y[threadIdx.x] = s[threadIdx.x + 1];
}

template <bool fixed>
__global__ void dynamic_shared_bounds(const float* x, float* y) {  // launched with room for kThreads floats
  float* s = dynamic_smem<float>();
  const int i = threadIdx.x + (fixed ? 0 : 1);
  s[i] = x[threadIdx.x];
  y[threadIdx.x] = s[i];
}

template <bool fixed>
__global__ void shared_read_bounds(const float* x, float* y) {
  SHARED(float, s, [kThreads]);
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = x[threadIdx.x] + 0 * s[fixed ? threadIdx.x : threadIdx.x + 1];
}

template <bool fixed>
__global__ void dynamic_read_bounds(const float* x, float* y) {
  float* s = dynamic_smem<float>();
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = x[threadIdx.x] + 0 * s[fixed ? threadIdx.x : threadIdx.x + 1];
}

// ---- Misaligned.

template <bool fixed>
__global__ void misaligned_vector(const float* x, float* y) {
  if (threadIdx.x >= kThreads / 4) return;
  const float* from = x + 4 * threadIdx.x + (fixed ? 0 : 1);
  const Pack<float, 4> values = load_vec<4>(from);
  for (int i = 0; i < 4; ++i) y[4 * threadIdx.x + i] = x[4 * threadIdx.x + i] + 0 * values[i];
}

template <bool fixed>
__global__ void misaligned_cast(const float* x, float* y) {
  const auto* halves = reinterpret_cast<const char*>(x) + (fixed ? 0 : 2);
  y[threadIdx.x] = x[threadIdx.x] + (*reinterpret_cast<const int*>(halves) == -1);
}

// ---- Barriers and masks.

template <bool fixed>
__global__ void divergent_barrier(const float* x, float* y) {
  if (fixed || threadIdx.x < 32) __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}

template <bool fixed>
__global__ void barriers_of_two_places(const float* x, float* y) {
  if (fixed || threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}

template <bool fixed>
__global__ void deadlock(const float* x, float* y) {
  if (!fixed && threadIdx.x == 5) __syncwarp();
  __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}

template <bool fixed>
__global__ void lanes_missing_from_warp(const float* x, float* y) {
  float value = x[threadIdx.x];
  if (fixed || threadIdx.x % 32 < 16) value += 0 * __shfl_xor_sync(0xffffffff, value, 1);
  y[threadIdx.x] = value;
}

template <bool fixed>
__global__ void lanes_that_have_exited(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
  if (!fixed && threadIdx.x % 32 < 16) return;
  y[threadIdx.x] += 0 * __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);
}

template <bool fixed>
__global__ void lane_not_in_mask(const float* x, float* y) {
  const float value = x[threadIdx.x];
  y[threadIdx.x] = value + 0 * __shfl_xor_sync(fixed ? 0xffffffff : 0x0000ffff, value, 1);
}

template <bool fixed>
__global__ void shuffle_from_lane_not_in_mask(const float* x, float* y) {
  float value = x[threadIdx.x];
  if (threadIdx.x % 32 < 16) value += 0 * __shfl_down_sync(0x0000ffff, value, 1, fixed ? 16 : 32);
  y[threadIdx.x] = value;
}

template <bool fixed>
__global__ void lanes_disagree(const float* x, float* y) {
  const float value = x[threadIdx.x];
  if (fixed || threadIdx.x % 32 < 16)
    y[threadIdx.x] = value + 0 * __shfl_xor_sync(0xffffffff, value, 1);
  else
    y[threadIdx.x] = value + 0 * __shfl_xor_sync(0xfffffffe, value, 1);
}

// ---- Shared memory without what must stand between the accesses: y[i] = x[neighbour of i], with x[i] = i.

template <bool fixed>
__global__ void missing_barrier_before_read(const float*, float* y) {
  SHARED(float, s, [kThreads]);
  s[threadIdx.x] = threadIdx.x;
  if (fixed) __syncthreads();
  y[kThreads - 1 - threadIdx.x] = s[kThreads - 1 - threadIdx.x];
}

template <bool fixed>
__global__ void missing_barrier_before_overwrite(const float* x, float* y) {
  SHARED(float, s, [kThreads]);
  const int opposite = kThreads - 1 - threadIdx.x;
  for (int round = 0; round < 3; ++round) {
    s[threadIdx.x] = x[threadIdx.x] + round;
    __syncthreads();
    if (round == 0) y[opposite] = s[opposite];
    if (fixed) __syncthreads();  // else the next round overwrites what another thread still has to read
  }
}

template <bool fixed>
__global__ void missing_syncwarp(const float* x, float* y) {
  SHARED(float, s, [kThreads]);
  s[threadIdx.x] = x[threadIdx.x];
  if (fixed) __syncwarp();
  y[threadIdx.x ^ 1] = s[threadIdx.x ^ 1];
}

template <bool fixed>
__global__ void missing_barrier_between_vectors(const float* x, float* y) {
  SHARED(float, s, [kThreads]);
  const unsigned i = threadIdx.x * 4, opposite = kThreads - 4 - i;
  if (i < kThreads) store_vec(s + i, load_vec<4>(x + i));
  if (fixed) __syncthreads();
  if (i < kThreads) store_vec(y + opposite, load_vec<4>(s + opposite));
}

template <bool fixed>
__global__ void missing_barrier_between_bytes_and_words(const float*, float* y) {
  SHARED(uint8_t, s, [kThreads]);
  s[threadIdx.x] = threadIdx.x;  // neighbours in a word: no race
  if (fixed) __syncthreads();
  const int opposite = kThreads / 4 - 1 - threadIdx.x;
  if (opposite < 0) return;
  const Pack<uint8_t, 4> word = load_vec<4>(s + 4 * opposite);
  for (int i = 0; i < 4; ++i) y[4 * opposite + i] = word[i];
}

template <bool fixed>
__global__ void missing_syncwarp_before_ldmatrix(const float* x, float* y) {
  SHARED(uint16_t, s, [8 * 8]);
  if (threadIdx.x >= 32) return;
  for (int i = 0; i < 2; ++i) s[2 * threadIdx.x + i] = uint16_t(x[2 * threadIdx.x + i]);
  if (fixed) __syncwarp();
  uint32_t r[2];
  ldmatrix_x2<true>(r, s + threadIdx.x % 8 * 8);
  for (int i = 0; i < 2; ++i) y[8 * (threadIdx.x % 4 * 2 + i) + threadIdx.x / 4] = uint16_t(r[0] >> 16 * i);
}

template <bool fixed>
__global__ void shuffle_is_no_barrier(const float* x, float* y) {
  SHARED(float, s, [kThreads]);
  s[threadIdx.x] = x[threadIdx.x];
  const float zero = 0 * __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);  // all lanes have written: but is it seen?
  if (fixed) __syncwarp();
  y[threadIdx.x ^ 1] = s[threadIdx.x ^ 1] + zero;
}

template <bool fixed>
__global__ void syncwarp_for_two_warps(const float* x, float* y) {
  SHARED(float, s, [kThreads]);
  s[threadIdx.x] = x[threadIdx.x];
  if (fixed)
    __syncthreads();
  else
    __syncwarp();
  y[threadIdx.x ^ 32] = s[threadIdx.x ^ 32];
}

template <bool fixed>
__global__ void syncwarp_for_part_of_the_warp(const float* x, float* y) {
  SHARED(float, s, [kThreads]);
  s[threadIdx.x] = x[threadIdx.x];
  __syncwarp(threadIdx.x % 32 < 16 ? 0x0000ffff : 0xffff0000);
  const int other = threadIdx.x ^ (fixed ? 8 : 16);
  y[other] = s[other];
}

template <bool fixed>
__global__ void two_threads_write(const float* x, float* y) {
  SHARED(float, s, [1]);
  if (fixed ? threadIdx.x == 0 : threadIdx.x % 32 == 0) s[0] = 1;
  __syncthreads();
  y[threadIdx.x] = x[threadIdx.x] * s[0];
}

template <bool fixed>
__global__ void uninitialised_shared(const float* x, float* y) {
  SHARED(float, s, [kThreads]);
  if (fixed || threadIdx.x != 7) s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

// ---- cp.async.

template <bool fixed>
__global__ void missing_cp_wait(const float* x, float* y) {
  SHARED(float, s, [kThreads]);
  cp_async<4>(&s[threadIdx.x], &x[threadIdx.x], true);
  cp_commit();
  if (fixed) cp_wait<0>();
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

template <bool fixed>
__global__ void cp_wait_for_the_wrong_group(const float* x, float* y) {  // a pipeline of two stages
  SHARED(float, s, [2][kThreads / 2]);
  if (threadIdx.x >= 32) return;
  const auto load = [&](int half) {
    cp_async<4>(&s[half][threadIdx.x], &x[half * 32 + threadIdx.x], true);
    cp_commit();
  };
  load(0);
  load(1);
  cp_wait<1>();
  y[threadIdx.x] = s[0][threadIdx.x];
  cp_wait<fixed ? 0 : 1>();
  y[32 + threadIdx.x] = s[1][threadIdx.x];
}

template <bool fixed>
__global__ void missing_barrier_after_cp_wait(const float* x, float* y) {
  SHARED(float, s, [kThreads]);
  cp_async<4>(&s[threadIdx.x], &x[threadIdx.x], true);
  cp_commit();
  cp_wait<0>();
  if (fixed) __syncthreads();
  y[kThreads - 1 - threadIdx.x] = s[kThreads - 1 - threadIdx.x];
}

template <bool fixed>
__global__ void copy_from_out_of_bounds(const float* x, float* y) {
  SHARED(float, s, [kThreads]);
  const bool valid = threadIdx.x < kThreads - 1;
  cp_async<4>(&s[threadIdx.x], &x[threadIdx.x + 1], fixed ? valid : true);
  cp_commit();
  cp_wait<0>();
  y[threadIdx.x] = valid ? s[threadIdx.x] - 1 : x[threadIdx.x];
}

template <bool fixed>
__global__ void copy_into_what_others_read(const float* x, float* y) {
  SHARED(float, s, [kThreads]);
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[kThreads - 1 - threadIdx.x] = s[kThreads - 1 - threadIdx.x];
  if (fixed) __syncthreads();
  cp_async<4>(&s[threadIdx.x], x, false);
  cp_commit();
  cp_wait<0>();
}

// ---- Global memory and others.

template <bool fixed>
__global__ void atomic_and_plain_read(const float* x, float* y) {
  SHARED(int, count, [1]);
  if (threadIdx.x == 0) count[0] = 0;
  __syncthreads();
  atomicAdd(count, 1);
  if (fixed) __syncthreads();
  y[threadIdx.x] = x[threadIdx.x] + (count[0] < 0);
}

template <bool fixed>
__global__ void two_blocks_write(const float* x, float* y) {
  if (fixed ? blockIdx.x == threadIdx.x / 32 : true) y[threadIdx.x] = x[threadIdx.x];
}

template <bool fixed>
__global__ void failed_assertion(const float* x, float* y) {
  assert(fixed || threadIdx.x != 40);
  y[threadIdx.x] = x[threadIdx.x];
}

template <bool fixed>
__global__ void too_much_shared(const float* x, float* y) {
  SHARED(float, s, [fixed ? 1024 : 20000]);
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[threadIdx.x];
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

namespace {

using namespace dlk::simt;
using Kernel = void (*)(const float*, float*);

struct Bug {
  Kernel buggy, fixed;
  unsigned blocks = 1;
};

#define BUG(name, ...)                                \
  {                                                   \
    #name, { name<false>, name<true>, ##__VA_ARGS__ } \
  }
const std::map<std::string, Bug> bugs = {
    BUG(global_bounds),
    BUG(static_shared_bounds),
    BUG(dynamic_shared_bounds),
    BUG(shared_read_bounds),
    BUG(dynamic_read_bounds),
    BUG(misaligned_vector),
    BUG(misaligned_cast),
    BUG(divergent_barrier),
    BUG(barriers_of_two_places),
    BUG(deadlock),
    BUG(lanes_missing_from_warp),
    BUG(lanes_that_have_exited),
    BUG(lane_not_in_mask),
    BUG(shuffle_from_lane_not_in_mask),
    BUG(lanes_disagree),
    BUG(missing_barrier_before_read),
    BUG(missing_barrier_before_overwrite),
    BUG(missing_syncwarp),
    BUG(missing_barrier_between_vectors),
    BUG(missing_barrier_between_bytes_and_words),
    BUG(missing_syncwarp_before_ldmatrix),
    BUG(shuffle_is_no_barrier),
    BUG(syncwarp_for_two_warps),
    BUG(syncwarp_for_part_of_the_warp),
    BUG(two_threads_write),
    BUG(uninitialised_shared),
    BUG(missing_cp_wait),
    BUG(cp_wait_for_the_wrong_group),
    BUG(missing_barrier_after_cp_wait),
    BUG(copy_from_out_of_bounds),
    BUG(copy_into_what_others_read),
    BUG(two_blocks_write, 2),
    BUG(atomic_and_plain_read),
    BUG(failed_assertion),
    BUG(too_much_shared),
};

/// What is found when all threads run in one order; "" for nothing. Each kernel is to make y a copy of x.
std::string run_in_order(const std::string& order, Kernel kernel, unsigned blocks) {
  test::Buffer<float> x(kThreads), y(kThreads);
  for (int i = 0; i < kThreads; ++i) x[i] = i;
  set_order(order);
  unwatch_all();
  watch(x.data(), kThreads * sizeof(float));
  watch(y.data(), kThreads * sizeof(float));
  launch(kernel, blocks, kThreads, kThreads * sizeof(float), nullptr, x.data(), y.data());
  for (int i = 0; i < kThreads; ++i)
    if (!(y[i] == x[i])) return "wrong result: y[" + std::to_string(i) + "] is " + std::to_string(y[i]);
  y.check_guards("wrong result");
  return test::failures ? "wrong result: written out of bounds" : "";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || !bugs.contains(argv[1])) return std::puts("usage: simt_bugs NAME [fixed]"), 2;
  const Bug& bug = bugs.at(argv[1]);
  const Kernel kernel = argc > 2 ? bug.fixed : bug.buggy;
  for (const char* order : {"forward", "reverse", "random:1", "random:2", "random:3"}) {
    std::string found;
    try {
      found = run_in_order(order, kernel, bug.blocks);
    } catch (const std::runtime_error& error) {
      found = error.what();
    }
    if (!found.empty()) return std::printf("found in order %s: %s\n", order, found.c_str()), 1;
  }
  std::puts("clean");
}
