// For the one unit of a test program that counts allocations: operator new replaced, and Eigen's allocator made to ask.
// Include it before anything of attn or Eigen.
#pragma once

#include <atomic>
#include <cstdlib>
#include <new>
#include <stdexcept>

#define EIGEN_RUNTIME_NO_MALLOC  // Eigen's own allocations ask is_malloc_allowed() through eigen_assert
#undef eigen_assert
#define eigen_assert(condition)                                            \
  do {                                                                     \
    if (!(condition)) throw std::logic_error("eigen_assert: " #condition); \
  } while (false)

#include "module_support.hpp"

namespace {
std::atomic<bool> counting{false};
std::atomic<int> allocations{0};
std::atomic<int> failing{0};  // which allocation from now on fails; 0: none

void* allocate(std::size_t bytes, std::size_t alignment) {
  if (counting) ++allocations;
  if (failing > 0 && --failing == 0) throw std::bad_alloc();
  void* memory = std::aligned_alloc(alignment, (bytes + alignment) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace

// The forms with std::nothrow would call these, but not with a sanitizer's, so they are said. Not inlined: g++ would see
// free() meet operator new and warn of a mismatch.
void* operator new(std::size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new[](std::size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  try {
    return operator new(bytes);
  } catch (...) {
    return nullptr;
  }
}
void* operator new[](std::size_t bytes, const std::nothrow_t& none) noexcept { return operator new(bytes, none); }
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
