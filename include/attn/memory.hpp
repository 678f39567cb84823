// Floor 1. Aligned memory, and the scratch memory that is kept between calls.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__MINGW32__) && defined(__GLIBCXX__)
#include <bits/gthr.h>
#endif

#include "error.hpp"
#include "scratch.hpp"

namespace attn {

namespace detail {

inline constexpr std::size_t large_page = std::size_t{1} << 21;

/// Advises the kernel to back this memory with 2 MB pages: fewer TLB misses, and neighbouring rows no longer share cache
/// sets. 26 -> 32 GB/s read by one core of a Zen 4, and a few percent of large products.
inline void prefer_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto begin = reinterpret_cast<std::uintptr_t>(memory), end = (begin + bytes) / large_page * large_page;
  const auto first = (begin + large_page - 1) / large_page * large_page;
  if (first < end) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);  // advice: it may fail
#endif
}

/// Small blocks are aligned to a cache line, those of half a large page or more fill whole large pages.
inline std::size_t alignment_of(std::size_t bytes) { return bytes < large_page / 2 ? cache_line : large_page; }
inline void* allocate(std::size_t bytes) {
  const std::size_t alignment = alignment_of(bytes);
  if (alignment == cache_line) return ::operator new (bytes, std::align_val_t{alignment});
  const std::size_t whole = (bytes + large_page - 1) / large_page * large_page;
  void* const memory = ::operator new (whole, std::align_val_t{alignment});
  prefer_large_pages(memory, whole);
  return memory;
}
inline void deallocate(void* memory, std::size_t bytes) {
  ::operator delete (memory, std::align_val_t{alignment_of(bytes)});
}

/// Aligned to a cache line; elements of trivial types are left unset.
template <class T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) {}  // NOLINT: allocators convert
  [[nodiscard]] T* allocate(std::size_t n) {
    if (n > (static_cast<std::size_t>(-1) - large_page) / sizeof(T)) throw std::bad_array_new_length();
    return static_cast<T*>(detail::allocate(n * sizeof(T)));
  }
  void deallocate(T* memory, std::size_t n) { detail::deallocate(memory, n * sizeof(T)); }
  template <class U>
  void construct(U* at) {
    ::new (static_cast<void*>(at)) U;
  }
  template <class U, class... Args>
  void construct(U* at, Args&&... args) {
    ::new (static_cast<void*>(at)) U(static_cast<Args&&>(args)...);
  }
  bool operator==(const AlignedAllocator&) const = default;
};
}  // namespace detail

namespace detail {
/// A value that is T() again once it has been moved from, and is copied as a whole or not at all. A class that keeps its
/// members in one needs no copies and moves of its own.
template <class T>
class EmptyWhenMoved {
 public:
  EmptyWhenMoved() = default;
  EmptyWhenMoved(T value) noexcept : value_(std::move(value)) {}  // NOLINT: a value is what it holds
  EmptyWhenMoved(const EmptyWhenMoved&) = default;
  EmptyWhenMoved(EmptyWhenMoved&& other) noexcept : value_(std::exchange(other.value_, T())) {}
  EmptyWhenMoved& operator=(const EmptyWhenMoved& other) { return *this = EmptyWhenMoved(other); }
  EmptyWhenMoved& operator=(EmptyWhenMoved&& other) noexcept {
    value_ = std::exchange(other.value_, T());
    return *this;
  }
  ~EmptyWhenMoved() = default;

  const T& operator*() const { return value_; }
  const T* operator->() const { return &value_; }
  T* operator->() { return &value_; }

 private:
  T value_{};
};
}  // namespace detail

template <class T>
using AlignedVector = std::vector<T, detail::AlignedAllocator<T>>;

/// Scratch memory, kept between calls so that steady state allocates nothing. Each thread that calls attn has one; it
/// grows to what the largest call needed and is freed with the thread, or by `Workspace::current().release()`. Calls from
/// destructors of thread_local and static objects find it too: it is then freed with the outermost frame.
class Workspace {
  // The header of a block; its memory follows. A linked list, since a vector of vectors adds a hundred functions to every
  // program.
  struct alignas(detail::cache_line) Block {
    Block* next;
    std::size_t size;
  };

 public:
  /// The calling thread's workspace.
  static Workspace& current();

  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  /// Frees all memory. Must not be called while an attn function of this thread runs.
  void release() {
    while (first_ != nullptr) {
      Block* const block = std::exchange(first_, first_->next);
      detail::deallocate(block, sizeof(Block) + block->size);
    }
    block_ = nullptr;
  }
  /// Bytes held.
  [[nodiscard]] std::size_t capacity() const {
    std::size_t bytes = 0;
    for (const Block* block = first_; block != nullptr; block = block->next) bytes += block->size;
    return bytes;
  }

  /// A part of a workspace that lives as long as the frame: what a function takes from it is free again when it returns.
  /// Frames end in the reverse of the order in which they began.
  class Frame {
   public:
    Frame() : home_(current()), block_(home_.block_), used_(home_.used_) {}
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;
    ~Frame() {
      home_.block_ = block_;
      home_.used_ = used_;
      if (home_.ended_ && block_ == nullptr) home_.release();
    }

    /// Room for n objects, aligned to 64 bytes (a cache line, the widest vector), not set.
    template <class T>
    [[nodiscard]] T* take(Index n) const {
      static_assert(std::is_trivially_destructible_v<T>);
      Index bytes = 0;
      if (__builtin_mul_overflow(std::max<Index>(n, 0), Index{sizeof(T)}, &bytes)) throw std::bad_array_new_length();
      return static_cast<T*>(home_.take(static_cast<std::size_t>(bytes)));
    }

   private:
    Workspace& home_;
    Block* block_;
    std::size_t used_;
  };

 private:
  // No destructor: a thread_local object that has one must not be used once it is destroyed.
  constexpr Workspace() = default;

  /// Frees what is kept between calls when the thread ends. A frame is still open if a task has called exit().
  void end() {
    ended_ = true;
    if (block_ == nullptr) release();
  }

  void* take(std::size_t bytes) {
    if (block_ == nullptr && first_ != nullptr && first_->next != nullptr) {
      const std::size_t all = capacity();  // the next call gets one block as large as the several of this one
      release();
      advance(all);
    }
    bytes = (bytes + detail::cache_line - 1) / detail::cache_line * detail::cache_line;
    while (block_ == nullptr || used_ + bytes > block_->size) advance(bytes);
    used_ += bytes;
    return reinterpret_cast<std::byte*>(block_ + 1) + (used_ - bytes);
  }
  void advance(std::size_t bytes) {  // goes on to the next block, or makes one
    Block*& next = block_ == nullptr ? first_ : block_->next;
    if (next == nullptr) {
      const std::size_t size = std::max(bytes, std::size_t{4096});
      next = ::new (detail::allocate(sizeof(Block) + size)) Block{nullptr, size};
    }
    block_ = next;
    used_ = 0;
  }

  Block* first_ = nullptr;
  Block* block_ = nullptr;  // the one in use, or null while nothing is taken
  std::size_t used_ = 0;
  bool ended_ = false;  // the thread's thread_local objects are being destroyed, or are gone
};

#if defined(__MINGW32__) && defined(__GLIBCXX__)

// MinGW's g++ frees the memory of thread_local objects before it calls their destructors. A key of the threads library
// owns its value, and the library calls its destructor again if another destructor has set a new value.
inline Workspace& Workspace::current() {
  static const __gthread_key_t key = [] {
    __gthread_key_t made;
    if (__gthread_key_create(&made, [](void* own) {
          static_cast<Workspace*>(own)->end();
          delete static_cast<Workspace*>(own);
        }) != 0)
      throw std::bad_alloc();
    return made;
  }();
  void* own = __gthread_getspecific(key);
  if (own == nullptr) {
    std::unique_ptr<Workspace> made(new Workspace);
    if (__gthread_setspecific(key, made.get()) != 0) throw std::bad_alloc();
    own = made.release();
  }
  return *static_cast<Workspace*>(own);
}

#else

inline Workspace& Workspace::current() {
  thread_local constinit Workspace workspace;
  struct End {
    ~End() { workspace.end(); }
  };
  thread_local const End end;
  return workspace;
}

#endif

}  // namespace attn
