// Floor 0. Memory of strided views: whether they reach an element twice, whether two of them share memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>

#include "math.hpp"

namespace attn::detail {

/// The memory that a view reaches. Refers to the view's shape and strides, both in elements.
struct Layout {
  std::string_view name;
  std::uintptr_t address;  ///< of the first element
  Index element;           ///< bytes of an element
  Index reach;  ///< bytes from the first element to the end of the last; 0 where there is no element or memory
  Shape shape, stride;
};

/// The layout of a view that check_view has passed.
[[nodiscard, gnu::noinline]] inline Layout make_layout(std::string_view name, const void* data, Index element,
                                                       Shape shape, Shape stride) {
  Index last = 0;
  bool empty = data == nullptr;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    empty = empty || shape[axis] == 0;
    if (shape[axis] > 1) last += (shape[axis] - 1) * stride[axis];
  }
  return {name, reinterpret_cast<std::uintptr_t>(data), element, empty ? 0 : (last + 1) * element, shape, stride};
}

/// Checks the shape and the strides of a view. Not inlined: views are made in many places.
/// Errors: negative sizes or strides, elements beyond what memory can hold.
[[gnu::noinline]] inline void check_view(Shape shape, Shape stride, Index element) {
  Index size = 1, end = 1, signs = 0;  // `end`: one past the last element, then past its last byte
  bool fits = true;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    Index span = 0;
    signs |= shape[axis] | stride[axis];
    fits = !__builtin_mul_overflow(size, shape[axis], &size) && fits;
    fits = !__builtin_mul_overflow(shape[axis] - 1, stride[axis], &span) && fits;
    fits = !__builtin_add_overflow(end, span, &end) && fits;
  }
  fits = !__builtin_mul_overflow(end, element, &end) && fits;
  if (signs >= 0 && fits) return;
  if (checked_size<std::byte>("View", "shape", shape) == 0) return;  // no element, so none out of reach
  require(signs >= 0, "View", "strides, expected none below 0, got ", stride);
  require(fits, "View", "shape and strides, expected elements that memory can hold, got ", shape, " and ", stride);
}

/// Whether no element is reached by two indices: each stride must reach past what all smaller ones span.
[[nodiscard, gnu::noinline]] inline bool is_distinct(const Layout& x) {
  for (std::size_t axis = 0; axis < x.shape.size() && x.reach > 0; ++axis) {
    if (x.shape[axis] == 1) continue;
    Index span = 0;
    for (std::size_t other = 0; other < x.shape.size(); ++other)
      if (x.stride[other] < x.stride[axis] || (x.stride[other] == x.stride[axis] && other < axis))
        span += (x.shape[other] - 1) * x.stride[other];
    if (x.stride[axis] <= span) return false;
  }
  return true;
}

/// The distances between elements of two views: sums of one multiple, from `low` to `high`, of each stride.
class Distances {
 public:
  /// The axes of x, counted up or down, in bytes; and the bytes of an element.
  void add(const Layout& x, Index sign) {
    for (std::size_t axis = 0; axis < x.shape.size(); ++axis)
      add(x.stride[axis] * x.element, (x.shape[axis] - 1) * sign);
    add(1, (x.element - 1) * sign);
  }
  /// Whether `distance` is one of them. False where many tries did not tell, as strides of two views that have nothing
  /// to do with each other may need.
  [[nodiscard]] bool hold(Index distance) const {
    Index least = 0, most = 0;
    for (std::size_t i = 0; i < size_; ++i) {
      least += axes_[i].low * axes_[i].stride;
      most += axes_[i].high * axes_[i].stride;
    }
    int tries = 1000;
    return search(0, distance, least, most, tries);
  }

 private:
  struct Multiples {
    Index stride, low, high;
  };

  /// Multiples from 0 to `last`, or from a negative one to 0; kept in descending order of strides.
  [[gnu::noinline]] void add(Index stride, Index last) {
    if (stride == 0 || last == 0) return;
    std::size_t at = size_;
    while (at > 0 && axes_[at - 1].stride < stride) --at;
    if (at == 0 || axes_[at - 1].stride != stride) {
      for (std::size_t i = size_; i > at; --i) axes_[i] = axes_[i - 1];
      axes_[at++] = {stride, 0, 0};
      ++size_;
    }
    (last < 0 ? axes_[at - 1].low : axes_[at - 1].high) += last;
  }
  [[nodiscard]] static Index floor_div(Index a, Index b) { return a / b - (a % b < 0 ? 1 : 0); }

  /// The axes from `axis` on reach from `least` to `most`: only multiples that leave a distance within the reach of the
  /// axes after it are tried, one or two where each stride reaches past the smaller ones.
  [[gnu::noinline]] bool search(std::size_t axis, Index distance, Index least, Index most, int& tries) const {
    if (axis == size_) return distance == 0;
    const auto [stride, low, high] = axes_[axis];
    least -= low * stride, most -= high * stride;
    const Index from = -floor_div(most - distance, stride), to = floor_div(distance - least, stride);
    for (Index n = from < low ? low : from; n <= (to < high ? to : high) && tries > 0; ++n, --tries)
      if (search(axis + 1, distance - n * stride, least, most, tries)) return true;
    return false;
  }

  Multiples axes_[16];  // more than two views of rank 4 have, with the bytes of their elements
  std::size_t size_ = 0;
};

/// Whether two views share memory for sure. Views that interleave, as slices of one buffer do, share none.
[[nodiscard, gnu::noinline]] inline bool overlap(const Layout& a, const Layout& b) {
  const Layout& first = a.address <= b.address ? a : b;
  const Layout& second = &first == &a ? b : a;
  const auto distance = second.address - first.address;
  if (a.reach == 0 || b.reach == 0 || distance >= static_cast<std::uintptr_t>(first.reach)) return false;
  constexpr Index most = std::numeric_limits<Index>::max() / 4;  // no memory is as large, and sums cannot overflow
  if (a.reach > most || b.reach > most || a.shape.size() + b.shape.size() > 14) return false;
  Distances distances;
  distances.add(first, 1);
  distances.add(second, -1);
  return distances.hold(static_cast<Index>(distance));
}

/// Refuses views to write into that reach an element twice.
[[gnu::noinline]] inline void require_distinct(std::string_view function, const Layout& x) {
  require(is_distinct(x), function, x.name, ", expected strides that reach each element once, got ", x.stride,
          " for the shape ", x.shape);
}
/// Refuses a view to write into that shares memory with another one for sure.
[[gnu::noinline]] inline void require_apart(std::string_view function, const Layout& written, const Layout& x) {
  require(!overlap(written, x), function, written.name, ", expected memory of its own, got some that is also ", x.name);
}

}  // namespace attn::detail
