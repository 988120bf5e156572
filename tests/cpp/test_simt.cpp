// The SIMT executor, with kernels that do one thing each. tests/cpp/simt_bugs.cpp has the kernels with bugs.
#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "csrc/cuda/device.cuh"
#include "csrc/simt/race.h"
#include "tests/cpp/check.h"

namespace dlk {

struct FillKernels {
  void (*fill)(int* y, int n, int value, Stream);
};

}  // namespace dlk

namespace dlk::DLK_DEVICE {
namespace {

__global__ void number_threads(int* y) {
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  y[block * blockDim.x * blockDim.y * blockDim.z + thread] += block * 1000 + thread;
}

__global__ void note_order(int* y, int* count) {
  y[atomicAdd(count, 1)] = blockIdx.x * blockDim.x + threadIdx.x;
  __syncthreads();
  y[atomicAdd(count, 1)] = blockIdx.x * blockDim.x + threadIdx.x;
}

enum class Shuffle { idx, up, down, bfly };

template <class T>
__global__ void shuffle_all(T* y, Shuffle kind, int by, int width) {
  const T mine = T(1.5) * T(threadIdx.x + 1);
  T& result = y[threadIdx.x];
  if (kind == Shuffle::idx) result = __shfl_sync(0xffffffff, mine, by, width);
  if (kind == Shuffle::up) result = __shfl_up_sync(0xffffffff, mine, by, width);
  if (kind == Shuffle::down) result = __shfl_down_sync(0xffffffff, mine, by, width);
  if (kind == Shuffle::bfly) result = __shfl_xor_sync(0xffffffff, mine, by, width);
}

/// Eight lanes at a time, each group another number of times, before the warp meets again.
__global__ void groups_apart(int* y) {
  const int group = threadIdx.x % 32 / 8;
  const unsigned mask = 0xffu << 8 * group;
  int sum = 0;
  for (int i = 0; i <= group; ++i) sum += __shfl_sync(mask, int(threadIdx.x), 8 * group);
  __syncwarp();
  for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffff, sum, i);
  y[threadIdx.x] = sum;
}

__global__ void votes(unsigned* y) {
  const int lane = threadIdx.x;
  if (lane >= 16) return;
  y[lane] = __ballot_sync(0x0000ffff, lane % 3 == 0);
  if (lane < 8) {
    y[16 + lane] = __any_sync(0x000000ff, lane == 3) + 2 * __any_sync(0x000000ff, lane == 9) +
                   4 * __all_sync(0x000000ff, lane < 8) + 8 * __all_sync(0x000000ff, lane < 7);
  }
}

/// Sum over the block, of what each thread has in each round.
__global__ void block_sum(int* y, int rounds) {
  SHARED(int, sums, [32]);
  for (int round = 0; round < rounds; ++round) {
    int sum = threadIdx.x + round;
    for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffff, sum, i);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      int total = 0;
      for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += sums[warp];
      y[blockIdx.x * rounds + round] = total;
    }
    __syncthreads();
  }
}

template <class T>
__device__ T* shared_in_function() {
  SHARED(T, once, [3]);
  return once;
}

/// Notes where shared memory lies and what it holds, and leaves something there for the next block.
template <class T>
__global__ void shared_memory(uintptr_t* address, double* value) {
  SHARED(T, first, [5][3]);
  SHARED(T, second, );
  T* const areas[] = {&first[0][0], &second, shared_in_function<T>(), dynamic_smem<T>(), shared_in_function<T>()};
  if (threadIdx.x != 0) return;
  for (int i = 0; i < 5; ++i) {
    address[i] = reinterpret_cast<uintptr_t>(areas[i]);
    if (!kRaceDetector) value[5 * blockIdx.x + i] = *areas[i];  // which is not written yet
  }
  for (int i = 0; i < 4; ++i) *areas[i] = 1;
  first[4][2] = 1;
}

/// Two groups of copies of 4 floats; reports what the first thread sees at each step.
__global__ void late_copies(const float* x, float* y) {
  SHARED(float, s, [2][4]);
  const auto report = [&](int step) {
    if (!kRaceDetector || step == 2)
      for (int i = 0; i < 8; ++i) y[8 * step + i] = s[i / 4][i % 4];
  };
  if (threadIdx.x != 0) return;
  cp_async<16>(s[0], x, true);
  cp_commit();
  for (int i = 0; i < 3; ++i) cp_async<4>(&s[1][i], &x[4 + i], i < 2);
  cp_async<4>(&s[1][3], nullptr, false);
  report(0);
  cp_wait<0>();  // the second group is not committed
  report(1);
  cp_commit();
  cp_wait<0>();
  report(2);
}

__global__ void copy_at(float* shared_offset, const float* x, int offset) {
  SHARED(float, s, [8]);
  (void)shared_offset;
  cp_async<16>(&s[offset], x, true);
}

__global__ void load_matrix_at(int offset, bool shared) {
  SHARED(uint16_t, s, [32 * 8 + 8]);
  uint16_t local[8];
  uint32_t r[4];
  ldmatrix_x4<false>(r, shared ? &s[8 * threadIdx.x + offset] : local);
}

__global__ void load_at(const float* x, float* y, int offset, bool store) {
  alignas(16) float aligned[4] = {};
  const Pack<float, 4> values = load_vec<4>(store ? aligned : x + offset);
  store_vec(store ? y + offset : aligned, values);
}

__global__ void count_positive(const int* x, int* count, unsigned* largest, int* smallest, int* owner) {
  if (x[threadIdx.x] > 0) atomicAdd(count, 1);
  atomicMax(largest, unsigned(x[threadIdx.x]) & 0xff);
  atomicMin(smallest, x[threadIdx.x]);
  atomicCAS(owner, 0, int(threadIdx.x) + 1);
}

__global__ void arithmetic(int* y) {
  if (threadIdx.x != 0) return;
  int i = 0;
  y[i++] = __popc(0xf0f0u) == 8 && __clz(1) == 31 && __clz(0) == 32 && __ffs(0) == 0 && __ffs(8) == 4;
  y[i++] = __umulhi(0x80000000u, 6u) == 3;
  y[i++] = max(3, 4) == 4 && min(-1.0f, NAN) == -1 && max(double(NAN), 2.0) == 2;
  y[i++] = rsqrtf(4) == 0.5f && fabsf(__expf(1) - 2.7182818f) < 1e-5f && __fdividef(1, 4) == 0.25f;
  y[i++] = __float_as_uint(1) == 0x3f800000u && __uint_as_float(0x3f800000u) == 1 && __float_as_int(-0.f) < 0;
  y[i++] = warpSize == 32 && is_aligned<float, 1>(nullptr);
}

__global__ void fill_kernel(int* y, int n, int value) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = value;
}

void fill(int* y, int n, int value, Stream stream) { launch(fill_kernel, (n + 63) / 64, 64, 0, stream, y, n, value); }

__global__ void nothing(int) {}

template <int A, class T>
__global__ void fails(T) {
  assert(threadIdx.x != 1 && A == 2);
}

}  // namespace
}  // namespace dlk::DLK_DEVICE

DLK_DEVICE_TABLE(FillKernels, {fill})

namespace {

using namespace dlk;
using namespace dlk::simt;

void expect(bool condition, const std::string& what) {
  if (!condition) test::fail(what);
}

/// Fails unless an error comes whose text contains all of `parts`.
void expect_error(const std::string& what, std::initializer_list<std::string> parts, const std::function<void()>& f) {
  try {
    f();
  } catch (const std::runtime_error& error) {
    for (const std::string& part : parts)
      if (std::string(error.what()).find(part) == std::string::npos)
        test::fail(what + ": no '" + part + "' in: " + error.what());
    return;
  }
  test::fail(what + ": no error");
}

void check_launch() {
  const dim3 grid(3, 2, 4), block(4, 8, 3);
  std::vector<int> y(24 * 96);
  launch(number_threads, grid, block, 0, nullptr, y.data());
  for (int i = 0; i < int(y.size()); ++i)
    expect(y[i] == i / 96 * 1000 + i % 96, "each thread runs once, with its index");

  launch(nothing, 0, 32, 0, nullptr, 1);
  launch(nothing, dim3(1, 0, 1), 32, 0, nullptr, 1);
  launch(nothing, 1, 1024, 227 << 10, nullptr, 1);
  expect_error("block size", {"(1056,1,1)"}, [] { launch(nothing, 1, 1056, 0, nullptr, 1); });
  expect_error("block size", {"(33,1,1)", "multiples of 32"}, [] { launch(nothing, 1, 33, 0, nullptr, 1); });
  expect_error("block size", {"(0,1,1)"}, [] { launch(nothing, 1, 0, 0, nullptr, 1); });
  expect_error("grid size", {"(1,65536,1)"}, [] { launch(nothing, dim3(1, 65536), 32, 0, nullptr, 1); });
  expect_error("shared memory", {"227 KiB"}, [] { launch(nothing, 1, 32, (227 << 10) + 1, nullptr, 1); });

  std::vector<int> z(100);
  simt::kernels<FillKernels>().fill(z.data(), 99, 7, nullptr);
  expect(z[0] == 7 && z[98] == 7 && z[99] == 0, "a table's kernel");
}

void check_order() {
  const auto order_of = [](const std::string& order) {
    set_order(order);
    std::vector<int> y(256);
    int count = 0;
    launch(note_order, 2, 64, 0, nullptr, y.data(), &count);
    return y;
  };
  std::vector<int> forward(256);
  for (int i = 0; i < 256; ++i) forward[i] = i / 128 * 64 + i % 64;
  expect(order_of("forward") == forward, "forward order");
  std::vector<int> reverse = forward;
  std::reverse(reverse.begin(), reverse.end());
  expect(order_of("reverse") == reverse, "reverse order");
  const auto first = order_of("random:1"), again = order_of("random:1"), second = order_of("random:2");
  expect(first == again && first != second && first != forward, "random orders");
  const bool before_barrier = std::is_permutation(first.begin(), first.begin() + 64, forward.begin()) ||
                              std::is_permutation(first.begin(), first.begin() + 64, forward.begin() + 128);
  expect(before_barrier, "random order respects barriers and blocks");
  expect_error("order", {"sideways"}, [] { set_order("sideways"); });
}

/// Where the manual says that lane `i` reads from; the lane itself if that is out of range.
int source_lane(Shuffle kind, int i, int by, int width) {
  const int first = i / width * width, last = first + width - 1;
  switch (kind) {
    case Shuffle::idx:
      return first + (by % width + width) % width;
    case Shuffle::up:
      return i - by < first ? i : i - by;
    case Shuffle::down:
      return i + by > last ? i : i + by;
    default:
      return (i ^ by) > last ? i : i ^ by;  // lanes of earlier segments can be read
  }
}

template <class T>
void check_shuffles() {
  for (const Shuffle kind : {Shuffle::idx, Shuffle::up, Shuffle::down, Shuffle::bfly})
    for (int width = 1; width <= 32; width *= 2)
      for (int by = 0; by < 32; ++by) {
        std::vector<T> y(64);
        launch(shuffle_all<T>, 1, 64, 0, nullptr, y.data(), kind, by, width);
        for (int i = 0; i < 64; ++i)
          expect(y[i] == T(1.5) * T(i / 32 * 32 + source_lane(kind, i % 32, by, width) + 1),
                 "shuffle of kind " + std::to_string(int(kind)) + " by " + std::to_string(by));
      }
}

void check_collectives() {
  check_shuffles<int>();
  check_shuffles<unsigned>();
  check_shuffles<int64_t>();
  check_shuffles<float>();
  check_shuffles<double>();

  std::vector<int> y(64);
  launch(groups_apart, 1, 64, 0, nullptr, y.data());
  for (int i = 0; i < 64; ++i) {
    const int warp = i / 32 * 32;
    expect(y[i] == 8 * (1 * warp + 2 * (warp + 8) + 3 * (warp + 16) + 4 * (warp + 24)), "shuffles of parts of a warp");
  }

  std::vector<unsigned> vote(32);
  launch(votes, 1, 32, 0, nullptr, vote.data());
  expect(vote[0] == 0x9249 && vote[15] == 0x9249, "__ballot_sync of half a warp");
  expect(vote[16] == 1 + 4 && vote[23] == 1 + 4, "__any_sync and __all_sync");

  constexpr int kBlocks = 3, kRounds = 5;
  std::vector<int> sums(kBlocks * kRounds);
  launch(block_sum, kBlocks, 1024, 0, nullptr, sums.data(), kRounds);
  for (int i = 0; i < kBlocks * kRounds; ++i) expect(sums[i] == 1024 * 1023 / 2 + 1024 * (i % kRounds), "block sum");
}

template <class T>
void check_shared_memory() {
  std::vector<uintptr_t> address(5);
  std::vector<double> value(10, NAN);
  launch(shared_memory<T>, 2, 32, 64, nullptr, address.data(), value.data());
  expect(address[2] == address[4], "one variable per SHARED, wherever its function is called");
  expect(address[3] % 128 == 0, "alignment of dynamic shared memory");
  for (int i = 0; i < 3; ++i) expect(address[i] % 16 == 0 && address[i] % 32 != 0, "alignment of SHARED");
  for (const double x : value) expect(std::is_floating_point_v<T> ? std::isnan(x) : kRaceDetector || x == -1, "NaN");
}

void check_copies() {
  test::Buffer<float> x(8), y(24);
  for (int i = 0; i < 8; ++i) x[i] = i + 1;
  float* aligned = std::assume_aligned<16>(x.data());
  launch(late_copies, 1, 32, 0, nullptr, aligned, y.data());
  const float expected[] = {1, 2, 3, 4, 5, 6, 0, 0};
  for (int i = 0; i < 8; ++i) {
    expect(y[16 + i] == expected[i], "copies after the wait");
    if (kRaceDetector) continue;
    expect(std::isnan(y[i]), "copies before the wait");
    expect(i < 4 ? y[8 + i] == expected[i] : std::isnan(y[8 + i]), "copies of a group that is not committed");
  }
  const auto copy = [&](int offset, int source) {
    launch(copy_at, 1, 32, 0, nullptr, nullptr, x.data() + source, offset);
  };
  expect_error("destination", {"cp.async of 16 bytes", "not in shared memory"}, [&] { copy(8, 0); });
  expect_error("destination", {"not in shared memory"}, [&] { copy(6, 0); });
  expect_error("destination", {"misaligned destination, s at byte 4"}, [&] { copy(1, 0); });
  expect_error("source", {"misaligned source"}, [&] { copy(0, 1); });
}

void check_alignment_errors() {
  test::Buffer<float> x(8), y(8);
  for (const bool store : {false, true}) {
    const auto access = [&](int offset) { launch(load_at, 1, 32, 0, nullptr, x.data(), y.data(), offset, store); };
    const std::string name = store ? "store_vec" : "load_vec";
    if (!store) access(4);
    expect_error(name, {name + ": misaligned", "multiple of 16"}, [&] { access(1); });
  }
  expect_error("ldmatrix", {"ldmatrix: misaligned row", "s at byte"},
               [] { launch(load_matrix_at, 1, 32, 0, nullptr, 1, true); });
  expect_error("ldmatrix", {"not within shared memory"}, [] { launch(load_matrix_at, 1, 32, 0, nullptr, 0, false); });
  expect_error("ldmatrix", {"not within shared memory"}, [] { launch(load_matrix_at, 1, 32, 0, nullptr, 16, true); });
  expect(is_aligned<float, 4>(std::bit_cast<float*>(uintptr_t(32))) &&
             !is_aligned<float, 4>(std::bit_cast<float*>(uintptr_t(40))) &&
             is_aligned<float, 2>(std::bit_cast<float*>(uintptr_t(40))),
         "is_aligned");
  expect_error("outside of kernels", {"load_vec"}, [&] { load_vec<4>(x.data() + 1); });
}

void check_errors() {
  set_order("forward");
  for (int i = 0; i < 3; ++i) {  // the executor is usable again after each
    expect_error("assertion",
                 {"fails<2, float> (launched at", "test_simt.cpp:", "block (0,0,0), thread (1,0,0)",
                  "assertion failed: threadIdx.x != 1"},
                 [] { launch(fails<2, float>, dim3(2), 64, 0, nullptr, 1); });
    check_collectives();
  }
  expect_error("outside of kernels", {"outside of a kernel"}, [] { __syncthreads(); });
  expect_error("outside of kernels", {"outside of a kernel"}, [] { __syncwarp(); });
  expect(executor::first_argument("a<b, c>(d, e), f") == "a<b, c>(d, e)" && executor::first_argument("a") == "a",
         "first_argument");
}

void check_atomics() {
  std::vector<int> x(64);
  std::iota(x.begin(), x.end(), -10);
  int count = 0, smallest = 0, owner = 0;
  unsigned largest = 0;
  launch(count_positive, 1, 64, 0, nullptr, x.data(), &count, &largest, &smallest, &owner);
  expect(count == 53 && largest == 255 && smallest == -10 && owner >= 1 && owner <= 64, "atomics");

  int y[6] = {};
  launch(arithmetic, 1, 32, 0, nullptr, y);
  for (int i = 0; i < 6; ++i) expect(y[i], "arithmetic, case " + std::to_string(i));
}

/// The value of a format with `exponent` and `mantissa` bits.
double decode(uint16_t bits, int exponent, int mantissa) {
  const int bias = (1 << (exponent - 1)) - 1, e = bits >> mantissa & ((1 << exponent) - 1);
  const double sign = bits >> 15 ? -1 : 1, fraction = bits & ((1 << mantissa) - 1);
  if (e == (1 << exponent) - 1) return fraction ? NAN : sign * INFINITY;
  return sign *
         (e ? std::ldexp(fraction + (1 << mantissa), e - bias - mantissa) : std::ldexp(fraction, 1 - bias - mantissa));
}

template <class T>
void check_format(const std::string& name, int exponent, int mantissa) {
  const auto same = [](double a, double b) {
    return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
  };
  for (int bits = 0; bits < 1 << 16; ++bits) {
    const T x{uint16_t(bits)};
    const double value = decode(x.bits, exponent, mantissa);
    expect(same(convert<double>(x), value) && same(convert<float>(x), value), name + " to float and double");
    expect(same(decode(convert<T>(value).bits, exponent, mantissa), value), name + " from double");
    expect(same(decode(convert<T>(float(value)).bits, exponent, mantissa), value), name + " from float");
  }
  // Between neighbours: the nearer one, the even one if both are as near, also if only double sees the difference.
  const uint16_t infinity = ((1 << exponent) - 1) << mantissa;
  for (int bits = 0; bits < infinity; ++bits) {
    const double low = decode(bits, exponent, mantissa);
    const double high = bits + 1 < infinity
                            ? decode(bits + 1, exponent, mantissa)
                            : 2 * low - decode(bits - 1, exponent, mantissa);  // 2^k, rounds to infinity
    const double middle = (low + high) / 2, below = std::nextafter(middle, low), above = std::nextafter(middle, high);
    const int even = bits % 2 ? bits + 1 : bits;
    expect(convert<T>(middle).bits == even && convert<T>(-middle).bits == (even | 0x8000), name + ": ties");
    expect(convert<T>(below).bits == bits && convert<T>(above).bits == bits + 1, name + ": nearest, from double");
    if (float(middle) == middle) expect(convert<T>(float(middle)).bits == even, name + ": ties, from float");
  }
  expect(std::isinf(convert<double>(convert<T>(1e300))), name + ": overflow");
}

}  // namespace

int main() {
  // First, in the order that the environment asks for.
  check_launch();
  check_collectives();
  check_shared_memory<float>();
  check_shared_memory<double>();
  check_shared_memory<int>();
  check_copies();
  check_alignment_errors();
  check_atomics();
  check_format<f16>("f16", 5, 10);
  check_format<bf16>("bf16", 8, 7);
  // Then with orders of their own.
  check_order();
  check_errors();
  std::printf("%d failures\n", test::failures);
  return test::failures != 0;
}
