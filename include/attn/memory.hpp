// Floor 3. Aligned memory, and the scratch memory that is kept between calls.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "error.hpp"

namespace attn {

inline constexpr std::size_t cache_line = 64;  // also the widest vector

namespace detail {
/// Aligned to a cache line; elements of trivial types are left unset.
template <class T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) {}  // NOLINT: allocators convert
  [[nodiscard]] T* allocate(std::size_t n) {
    if (n > static_cast<std::size_t>(-1) / sizeof(T)) throw std::bad_array_new_length();
    return static_cast<T*>(::operator new (n * sizeof(T), std::align_val_t{cache_line}));
  }
  void deallocate(T* memory, std::size_t) { ::operator delete (memory, std::align_val_t{cache_line}); }
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

template <class T>
using AlignedVector = std::vector<T, detail::AlignedAllocator<T>>;

/// Scratch memory, kept between calls so that steady state allocates nothing. Each thread that calls attn has one; it
/// grows to what the largest call needed and is freed with the thread, or by `Workspace::current().release()`.
class Workspace {
 public:
  /// The calling thread's workspace.
  static Workspace& current() {
    thread_local Workspace workspace;
    return workspace;
  }

  /// Frees all memory. Must not be called while an attn function of this thread runs.
  void release() {
    blocks_.clear();
    blocks_.shrink_to_fit();
    block_ = used_ = 0;
  }
  /// Bytes held.
  [[nodiscard]] std::size_t capacity() const {
    std::size_t bytes = 0;
    for (const Memory& block : blocks_) bytes += block.size();
    return bytes;
  }

  /// A stretch of a workspace, given back in reverse order of taking: what a function takes from its frame is free
  /// again when the frame goes.
  class Frame {
   public:
    Frame() : home_(current()), block_(home_.block_), used_(home_.used_) {}
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;
    ~Frame() {
      home_.block_ = block_;
      home_.used_ = used_;
    }

    /// Room for n objects, aligned to 64 bytes (a cache line, the widest vector), not set.
    template <class T>
    [[nodiscard]] T* take(Index n) const {
      static_assert(std::is_trivially_destructible_v<T>);
      return static_cast<T*>(home_.take(static_cast<std::size_t>(std::max<Index>(n, 0)) * sizeof(T)));
    }

   private:
    Workspace& home_;
    std::size_t block_, used_;
  };

 private:
  using Memory = AlignedVector<std::byte>;

  void* take(std::size_t bytes) {
    if (block_ == 0 && used_ == 0) merge();
    bytes = (bytes + cache_line - 1) / cache_line * cache_line;
    while (block_ < blocks_.size() && used_ + bytes > blocks_[block_].size()) {
      ++block_;
      used_ = 0;
    }
    if (block_ == blocks_.size()) add(bytes);
    void* result = blocks_[block_].data() + used_;
    used_ += bytes;
    return result;
  }
  void add(std::size_t bytes) {
    blocks_.emplace_back(std::max(bytes, std::size_t{4096}));
    used_ = 0;
  }
  void merge() {  // several blocks of a first call become one for the next
    if (blocks_.size() <= 1) return;
    const std::size_t bytes = capacity();
    release();
    add(bytes);
  }

  std::vector<Memory> blocks_;
  std::size_t block_ = 0, used_ = 0;
};

}  // namespace attn
