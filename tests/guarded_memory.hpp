// Memory beside which nothing can be touched: one of its ends lies at a page that the system guards, so that a read or
// write past it ends the program at once, whatever the compiler and its options.
#pragma once

#include "support.hpp"

#if __has_include(<sys/mman.h>) && __has_include(<unistd.h>)
#define ATTN_TEST_CAN_GUARD 1

#include <sys/mman.h>
#include <unistd.h>

#include <memory>
#include <new>

namespace attn_test {

/// The end of the memory that lies at a guarded page.
enum class GuardAt { beginning, end };

/// Memory of a given size with a guarded page at one end. At the end, alignment may leave a gap before the page.
/// Errors: std::bad_alloc where the system has none left.
inline void* guarded_allocate(std::size_t bytes, std::size_t alignment, GuardAt where) {
  static const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  bytes = std::max<std::size_t>(bytes, 1);
  const std::size_t room = (bytes + page - 1) / page * page, whole = room + std::max(alignment, page) + 2 * page;
  void* const all = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) throw std::bad_alloc();
  const auto first = reinterpret_cast<std::uintptr_t>(all) + page, unit = std::max(alignment, page);
  auto* const begin = static_cast<std::byte*>(all) + page + (unit - first % unit) % unit;
  std::byte* const before = begin - page;
  ::new (static_cast<void*>(before)) std::span(static_cast<std::byte*>(all), whole);  // for guarded_free
  if (mprotect(before, page, PROT_NONE) != 0 || mprotect(begin + room, page, PROT_NONE) != 0) throw std::bad_alloc();
  return begin + (where == GuardAt::beginning ? 0 : (room - bytes) / alignment * alignment);
}
/// Gives back what guarded_allocate gave.
inline void guarded_free(void* memory) noexcept {
  static const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  if (memory == nullptr) return;
  std::byte* const before = static_cast<std::byte*>(memory) - reinterpret_cast<std::uintptr_t>(memory) % page - page;
  if (mprotect(before, page, PROT_READ) != 0) return;
  const auto all = *static_cast<const std::span<std::byte>*>(static_cast<const void*>(before));
  munmap(all.data(), all.size());
}

/// A copy of numbers in guarded memory, which it fills from the guarded page on, to the last byte.
template <class T>
class GuardedCopy {
 public:
  GuardedCopy(const T* from, Index size, GuardAt where)
      : memory_(static_cast<T*>(guarded_allocate(static_cast<std::size_t>(size) * sizeof(T), alignof(T), where))),
        size_(size) {
    std::uninitialized_copy_n(from, size, memory_.get());
  }
  [[nodiscard]] T* data() const { return memory_.get(); }
  [[nodiscard]] std::span<const T> span() const { return {data(), static_cast<std::size_t>(size_)}; }

 private:
  struct Free {
    void operator()(T* memory) const { guarded_free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
  Index size_;
};

/// A tensor's copy in guarded memory. It is packed, or has strides of its own, which may leave gaps but not overlap.
template <class T, int Rank>
class GuardedTensor {
 public:
  using Sizes = typename View<T, Rank>::Sizes;

  GuardedTensor(const Tensor<T, Rank>& x, GuardAt where)
      : memory_(x.data(), x.size(), where), view_(memory_.data(), attn::detail::shape_of(x)) {}
  GuardedTensor(const Tensor<T, Rank>& x, GuardAt where, const Sizes& strides)
      : memory_(std::vector<T>(reach(x, strides)).data(), static_cast<Index>(reach(x, strides)), where),
        view_(memory_.data(), attn::detail::shape_of(x), strides) {
    for_each_offset(x, [&](Index packed, Index strided) { memory_.data()[strided] = x.data()[packed]; });
  }
  [[nodiscard]] const View<T, Rank>& view() const { return view_; }
  /// What it holds now.
  [[nodiscard]] Tensor<T, Rank> tensor() const {
    auto x = attn::detail::make_tensor<T, Rank>(view_.shape());
    for_each_offset(x, [&](Index packed, Index strided) { x.data()[packed] = memory_.data()[strided]; });
    return x;
  }

 private:
  /// Elements from the first to the last, both included.
  static std::size_t reach(const Tensor<T, Rank>& x, const Sizes& strides) {
    Index last = 0;
    for (std::size_t axis = 0; axis < strides.size(); ++axis)
      last += (attn::detail::shape_of(x)[axis] - 1) * strides[axis];
    return static_cast<std::size_t>(x.size() == 0 ? 0 : last + 1);
  }
  /// Calls f(offset in a packed tensor, offset by strides) for every element.
  template <class F>
  void for_each_offset(const Tensor<T, Rank>& x, const F& f) const {
    for (Index i = 0; i < x.size(); ++i) {
      Index rest = i, strided = 0;
      for (int axis = Rank - 1; axis >= 0; --axis) {
        strided += rest % view_.dimension(axis) * view_.stride(axis);
        rest /= view_.dimension(axis);
      }
      f(i, strided);
    }
  }

  GuardedCopy<T> memory_;
  View<T, Rank> view_;
};

/// Calls f(where) for both ends.
template <class F>
void at_both_ends(const F& f) {
  for (const GuardAt where : {GuardAt::beginning, GuardAt::end}) {
    SCOPED_TRACE(where == GuardAt::end ? "guarded at the end" : "guarded at the beginning");
    f(where);
  }
}

}  // namespace attn_test
#endif
