#include "csrc/bindings/allocator.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include "csrc/memory/caching_allocator.h"

namespace dlk::bindings {
namespace {

/// Frees any CPU memory, also what PyTorch's allocator made: oneDNN's buffers are freed by the allocator that is
/// installed by then.
void free_memory(void* data) {
  memory::CachingAllocator& cache = memory::caching_allocator();
  if (!cache.owns(data)) return c10::GetDefaultCPUAllocator()->raw_deallocate(data);
  c10::profiledCPUMemoryReporter().Delete(data);
  cache.deallocate(data);
}

class Allocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    memory::CachingAllocator& cache = memory::caching_allocator();
    void* data = nullptr;
    if (bytes >= cache.kSmallest && cache.limit() > 0) data = cache.allocate(bytes);
    // Also where the system refuses: then this raises the error that programs know.
    if (data == nullptr) return c10::GetDefaultCPUAllocator()->allocate(bytes);
    c10::profiledCPUMemoryReporter().New(data, bytes);
    return {data, data, &free_memory, c10::Device(c10::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free_memory; }

  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

}  // namespace

c10::Allocator& cpu_allocator() {
  static auto& allocator = *new Allocator;  // never destroyed: storages may outlive everything that ends at exit
  return allocator;
}

void use_caching_allocator() {
  c10::SetCPUAllocator(&cpu_allocator(), /*priority=*/1);
  TORCH_CHECK(c10::GetCPUAllocator() == &cpu_allocator(),
              "use_caching_allocator: another library has installed a CPU allocator of higher priority");
}

}  // namespace dlk::bindings
