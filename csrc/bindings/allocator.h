// The caching allocator of csrc/memory as PyTorch's allocators are: what our tensors on the CPU come from.
#pragma once

#include <c10/core/Allocator.h>

namespace dlk::bindings {

c10::Allocator& cpu_allocator();

/// Makes it the allocator of all of PyTorch's CPU tensors, for the rest of the process.
void use_caching_allocator();

}  // namespace dlk::bindings
