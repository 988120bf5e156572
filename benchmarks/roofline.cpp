// The two ceilings of this machine, for machine.py: how fast a core multiplies and adds, and how fast it copies.
//
// Compiled with -O3 -march=native for the processor at hand and called from one Python thread per core, so it needs no
// OpenMP. `repeats` makes a call long enough to time.
#include <cstddef>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = kBytes / sizeof(float);
typedef float Vec __attribute__((vector_size(kBytes)));
typedef float Quad __attribute__((vector_size(16)));

// Two FMA units with a latency of four or five cycles need ten independent sums to stay busy; twelve fit the registers.
constexpr int kSums = 12;

Vec relu(const float* x) {
  const Vec v = *reinterpret_cast<const Vec*>(x);
  return v > 0 ? v : Vec{};
}

// Past the caches: the faster way to write what will not be read soon.
void stream(float* y, Vec v) {
#if defined(__SSE2__)
  for (int i = 0; i < kLanes; i += 4) {
    Quad quad;
    std::memcpy(&quad, reinterpret_cast<const float*>(&v) + i, sizeof quad);
    __builtin_ia32_movntps(y + i, quad);
  }
#else
  *reinterpret_cast<Vec*>(y) = v;
#endif
}

}  // namespace

extern "C" {

// Returns the floating-point operations done. The sums come from `sink` and go there, so that the compiler drops none:
// it saw that 1 * 0.999 + 0.001 rounds to 1 and kept a sum that began with 1 out of the loop, a peak 9 % too high.
long long fma_loop(long long repeats, float* sink) {
  Vec sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = Vec{} + *sink * static_cast<float>(i);
  const Vec a = Vec{} + 0.999f, b = Vec{} + 0.001f;
  for (long long r = 0; r < repeats; ++r)
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * a + b;
  for (int i = 1; i < kSums; ++i) sums[0] += sums[i];
  for (int i = 0; i < kLanes; ++i) *sink += sums[0][i];
  return repeats * kSums * kLanes * 2;
}

// y[i] = max(x[i], 0), a copy that no memcpy replaces. n: a multiple of 16; x and y aligned to 64 bytes.
void copy_relu(const float* x, float* y, std::size_t n, long long repeats) {
  for (long long r = 0; r < repeats; ++r) {
    for (std::size_t i = 0; i < n; i += kLanes) *reinterpret_cast<Vec*>(y + i) = relu(x + i);
    asm volatile("" ::: "memory");  // so that every repeat is done
  }
}

void copy_relu_nontemporal(const float* x, float* y, std::size_t n, long long repeats) {
  for (long long r = 0; r < repeats; ++r) {
    for (std::size_t i = 0; i < n; i += kLanes) stream(y + i, relu(x + i));
    asm volatile("" ::: "memory");
  }
}
}
