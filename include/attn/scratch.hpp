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
    return static_cast<T*>(take(n, sizeof(T)));
  }
  /// Bytes handed out so far; at least 2^62 (on 64-bit machines) where they are more than memory can hold.
  [[nodiscard]] Index size() const { return size_; }

 private:
  static constexpr Index largest = std::numeric_limits<Index>::max() / 2;

  [[gnu::noinline]] void* take(Index n, Index element) {  // compiled once: buffers are laid out in many places
    std::byte* const part = memory_ == nullptr ? nullptr : memory_ + size_;
    Index bytes = 0;
    const bool fits = !__builtin_mul_overflow(n, element, &bytes) && bytes <= largest - size_;
    size_ = fits ? size_ + round_up(bytes, cache_line) : largest;
    return part;
  }

  std::byte* memory_ = nullptr;
  Index size_ = 0;
};

/// The bytes that a layout of buffers, made as Layout(plan, scratch), takes.
template <class Layout, class Plan>
[[nodiscard]] Index scratch_size_of(const Plan& plan) {
  Scratch measured;
  Layout(plan, measured);
  return measured.size();
}

}  // namespace attn::detail
