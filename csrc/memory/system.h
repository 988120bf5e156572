// What the caching allocator asks of the operating system: pages, and how much memory there is.
#pragma once

#include <cstddef>
#include <string>

namespace dlk::memory {

/// Bytes of a huge page; 0 where the system gives none (no transparent huge pages, or switched off: "never").
size_t huge_page_bytes();

/// `bytes` (a multiple of the page size) of zeros, from `huge_page_bytes` on in huge pages as far as they fit; null if
/// the system refuses.
void* map_pages(size_t bytes);
void unmap_pages(void* data, size_t bytes);

/// Lets the system take the huge pages of a block away when it runs short of memory; what is written later stays.
/// The contents are undefined from here on.
void offer_pages(void* data, size_t bytes);

/// Physical memory, or what the cgroups of this process (containers, systemd, Slurm) leave of it, in bytes. `root` is
/// put before the paths that are read, for tests.
size_t available_memory(const std::string& root = "");

}  // namespace dlk::memory
