// Floor 1. Scratch memory of one worker, laid out by the code that uses it.
#pragma once

#include <cstddef>
#include <limits>

#include "error.hpp"
#include "math.hpp"

namespace attn::detail {

/// A cache line, also the widest vector, in bytes.
inline constexpr std::size_t cache_line = 64;

/// Hands out parts of a piece of memory one after another, each aligned to a cache line if the memory is. Without memory
/// it only measures: the same code that lays a buffer out then says how large it is.
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(std::byte* memory) : memory_(memory) {}

  /// Room for n elements, not set; null while measuring.
  template <class T>
  T* take(Index n) {
    std::byte* const part = memory_ == nullptr ? nullptr : memory_ + size_;
    Index bytes = 0;
    if (__builtin_mul_overflow(n, Index{sizeof(T)}, &bytes) || bytes > largest - size_)
      size_ = largest;
    else
      size_ += round_up(bytes, cache_line);
    return static_cast<T*>(static_cast<void*>(part));
  }
  /// Bytes handed out so far; at least 2^62 (on 64-bit machines) where they are more than memory can hold.
  [[nodiscard]] Index size() const { return size_; }

 private:
  static constexpr Index largest = std::numeric_limits<Index>::max() / 2;

  std::byte* memory_ = nullptr;
  Index size_ = 0;
};

}  // namespace attn::detail
