// Floor 1. Strided views of elements that someone else owns, and the checks that functions make of them. No Eigen.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <string_view>
#include <type_traits>
#include <utility>

#include "error.hpp"
#include "math.hpp"
#include "overlap.hpp"
#include "position.hpp"

namespace attn {

template <class T, int Rank>
class View;

namespace detail {

/// Anything shaped like a tensor: an Eigen tensor, a map of one, an attn::View.
template <class X>
concept TensorLike = requires(const X& x) {
  x.data();
  x.dimension(0);
  X::NumDimensions;
};

template <class X>
using Element = std::remove_cvref_t<decltype(*std::declval<const X&>().data())>;

/// A tensor whose elements are T.
template <class X, class T>
concept TensorOfElement = TensorLike<X> && std::same_as<Element<X>, T>;

/// Eigen's name for row-major tensors, and whether a tensor is one: of rank 1, all are.
inline constexpr int row_major = 1;
template <TensorLike X>
inline constexpr bool is_row_major = X::NumDimensions <= 1 || static_cast<int>(X::Layout) == row_major;

template <TensorLike X>
[[nodiscard]] constexpr auto shape_of(const X& x) {
  constexpr auto sizes = []<int... axis>(const X& of, std::integer_sequence<int, axis...>) {
    return std::array<Index, sizeof...(axis)>{static_cast<Index>(of.dimension(axis))...};
  };
  return sizes(x, std::make_integer_sequence<int, int{X::NumDimensions}>{});
}

template <class X>
inline constexpr bool is_view = false;
template <class T, int Rank>
inline constexpr bool is_view<View<T, Rank>> = true;

template <class X, class T, int Rank, class Plain = std::remove_cvref_t<X>>
concept ConvertsToView = TensorLike<Plain> && !is_view<Plain> && Plain::NumDimensions == Rank &&
                         std::convertible_to<decltype(std::declval<X&>().data()), T*> &&
                         std::same_as<Element<Plain>, std::remove_const_t<T>>;

}  // namespace detail

/// Elements of a tensor that someone else owns: pointer, shape, strides. Every tensor and TensorMap of the right
/// element type and rank converts to it. Functions say which strides they take: most want a contiguous last axis.
/// Strides of 0 repeat an element; views that are written must not.
/// Errors: negative sizes or strides, elements beyond what memory can hold.
template <class T, int Rank>
class View {
 public:
  using Sizes = std::array<Index, static_cast<std::size_t>(Rank)>;
  static constexpr int NumDimensions = Rank;
  static constexpr int Layout = detail::row_major;

  View() = default;
  View(T* data, const Sizes& shape) : data_(data), shape_(shape) {
    std::size_t stride = 1;  // unsigned: where a size is 0, those before it may overflow
    for (auto axis = static_cast<std::size_t>(Rank); axis-- > 0;) {
      stride_[axis] = static_cast<Index>(stride);
      stride *= static_cast<std::size_t>(shape[axis]);
    }
    detail::check_view(detail::as_shape(shape_), detail::as_shape(stride_), sizeof(T));
  }
  View(T* data, const Sizes& shape, const Sizes& stride) : data_(data), shape_(shape), stride_(stride) {
    detail::check_view(detail::as_shape(shape_), detail::as_shape(stride_), sizeof(T));
  }

  template <detail::ConvertsToView<T, Rank> X>
  View(X&& x) : View(x.data(), detail::shape_of(x)) {  // NOLINT: functions take views, so tensors convert to them
    static_assert(detail::is_row_major<std::remove_cvref_t<X>>,
                  "attn: row-major tensors only, Eigen::Tensor<T, Rank, Eigen::RowMajor>");
  }
  operator View<const T, Rank>() const {  // NOLINT
    View<const T, Rank> view;
    view.data_ = data_, view.shape_ = shape_, view.stride_ = stride_;
    return view;
  }

  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] const Sizes& shape() const { return shape_; }
  [[nodiscard]] Index dimension(int axis) const { return shape_[static_cast<std::size_t>(axis)]; }
  [[nodiscard]] Index stride(int axis) const { return stride_[static_cast<std::size_t>(axis)]; }
  [[nodiscard]] const Sizes& strides() const { return stride_; }
  [[nodiscard]] Index size() const {
    std::size_t product = 1;  // unsigned: a size of 0 may follow others whose product overflows
    for (const Index n : shape_) product *= static_cast<std::size_t>(n);
    return static_cast<Index>(product);
  }
  /// The element at these indices, one for each axis.
  [[nodiscard]] T& operator()(std::convertible_to<Index> auto... at) const {
    static_assert(sizeof...(at) == Rank);
    Index offset = 0;
    auto stride = stride_.begin();
    ((offset += static_cast<Index>(at) * *stride++), ...);
    return data_[offset];
  }

 private:
  template <class, int>
  friend class View;

  T* data_ = nullptr;
  Sizes shape_{};
  Sizes stride_{};
};

namespace detail {

/// The view of anything tensor-like, read-only.
template <class X>
[[nodiscard]] View<const Element<X>, X::NumDimensions> read(const X& x) {
  return x;
}

inline void require_shape(std::string_view function, std::string_view what, Shape got, Shape expected) {
  require(same_shape(got, expected), function, what, ", expected ", expected, ", got ", got);
}
template <class T, int Rank>
void require_shape(std::string_view function, std::string_view what, View<T, Rank> x,
                   const std::type_identity_t<std::array<Index, static_cast<std::size_t>(Rank)>>& expected) {
  require_shape(function, what, as_shape(x.shape()), as_shape(expected));
}

/// The memory that a view reaches.
template <class T, int Rank>
[[nodiscard]] Layout layout_of(std::string_view name, const View<T, Rank>& x) {
  return make_layout(name, x.data(), sizeof(T), as_shape(x.shape()), as_shape(x.strides()));
}

// Of shapes and strides alone and not inlined, so that they are compiled once for all types and ranks.

[[nodiscard, gnu::noinline]] inline bool has_elements(Shape shape) {
  for (const Index size : shape)
    if (size == 0) return false;
  return true;
}
/// Whether no gaps separate the rows, as tensors that are read or written row after row must be.
[[nodiscard, gnu::noinline]] inline bool is_packed(Shape shape, Shape strides) {
  if (!has_elements(shape)) return true;
  Index stride = 1;
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    if (shape[axis] != 1 && strides[axis] != stride) return false;
    stride *= shape[axis];
  }
  return true;
}
/// From one row, along the last axis, to the next, where this is the same for all of them; -1 where it is not, or where
/// rows overlap.
[[nodiscard, gnu::noinline]] inline Index row_distance(Shape shape, Shape strides) {
  const std::size_t last = shape.size() - 1;
  const Index columns = shape[last];
  if (!has_elements(shape)) return columns;
  if (columns > 1 && strides[last] != 1) return -1;
  Index distance = columns, stride = -1;
  for (std::size_t axis = last; axis-- > 0;) {
    if (shape[axis] == 1) continue;
    if (stride < 0) distance = stride = strides[axis];
    if (strides[axis] != stride || distance < columns) return -1;
    stride *= shape[axis];
  }
  return distance;
}
/// What modules ask of the tensors they read and write row after row: packed, and the same one or apart.
[[gnu::noinline]] inline void require_packed_pair(std::string_view function, const Layout& y, const Layout& x) {
  require_shape(function, y.name, y.shape, x.shape);
  require(is_packed(x.shape, x.stride) && is_packed(y.shape, y.stride), function, "views, expected packed tensors");
  if (x.address != y.address) require_apart(function, y, x);
}

template <class T, int Rank>
[[nodiscard]] bool is_packed(const View<T, Rank>& x) {
  return is_packed(as_shape(x.shape()), as_shape(x.strides()));
}

/// A row-major tensor of rank 1 to 4 read as [batch, heads, queries, keys], its axes aligned at the right and repeated
/// where they have size 1, as NumPy and PyTorch do.
template <class T>
class BroadcastView {
 public:
  template <TensorLike X>
  explicit BroadcastView(const X& x) : data_(x.data()), rank_(X::NumDimensions) {
    static_assert(X::NumDimensions >= 1 && X::NumDimensions <= 4, "attn: a mask or bias has rank 1 to 4");
    static_assert(is_row_major<X>, "attn: row-major tensors only, Eigen::Tensor<T, R, Eigen::RowMajor>");
    checked_size<T>("View", "mask or bias", as_shape(shape_of(x)));
    const View<const T, X::NumDimensions> view(x);
    for (std::size_t axis = 0, to = 4 - view.shape().size(); axis < view.shape().size(); ++axis, ++to) {
      shape_[to] = view.shape()[axis];
      stride_[to] = shape_[to] > 1 ? view.strides()[axis] : 0;
    }
  }

  [[nodiscard]] T operator()(Position at) const {
    return data_[at.batch * stride_[0] + at.head * stride_[1] + at.row * stride_[2] + at.key * stride_[3]];
  }
  [[nodiscard]] const std::array<Index, 4>& shape() const { return shape_; }
  void check(std::string_view function, std::string_view what, const std::array<Index, 4>& scores) const {
    for (std::size_t axis = 0; axis < 4; ++axis)
      require(shape_[axis] == 1 || shape_[axis] == scores[axis], function, what, " does not broadcast, expected ",
              as_shape(scores), " or 1 in its place, got ", as_shape(shape_).last(static_cast<std::size_t>(rank_)));
  }

 private:
  const T* data_;
  int rank_;
  std::array<Index, 4> shape_{1, 1, 1, 1};
  std::array<Index, 4> stride_{};
};

}  // namespace detail
}  // namespace attn
