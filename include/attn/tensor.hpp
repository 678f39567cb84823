// Floor 3. Tensors: Eigen's, row-major, and the strided view in which every attn function takes them.
#pragma once

#include <Eigen/Core>
#include <unsupported/Eigen/CXX11/Tensor>

#include <array>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include "error.hpp"
#include "kernel/problem.hpp"
#include "mask.hpp"
#include "math.hpp"
#include "overlap.hpp"

// Eigen's tensors change allocator with the widest alignment that -m flags allow, so tensors must not cross between
// translation units that differ in it. Everything that holds a tensor lives in an inline namespace named after the
// alignment: such a mix does not link, and the missing symbol says why.
#if EIGEN_DEFAULT_ALIGN_BYTES >= 64
#define ATTN_EIGEN_ABI eigen_default_align_bytes_64
#elif EIGEN_DEFAULT_ALIGN_BYTES >= 32
#define ATTN_EIGEN_ABI eigen_default_align_bytes_32
#elif EIGEN_DEFAULT_ALIGN_BYTES >= 16
#define ATTN_EIGEN_ABI eigen_default_align_bytes_16
#else
#define ATTN_EIGEN_ABI eigen_default_align_bytes_0
#endif

namespace attn::inline ATTN_EIGEN_ABI {

/// A row-major Eigen tensor: the last axis is contiguous, as in NumPy, PyTorch and C arrays.
template <class T, int Rank>
using Tensor = Eigen::Tensor<T, Rank, Eigen::RowMajor>;

/// A tensor over memory that somebody else owns: TensorMap<float, 3>(pointer, B, S, E).
template <class T, int Rank>
using TensorMap = Eigen::TensorMap<std::conditional_t<std::is_const_v<T>, const Tensor<std::remove_const_t<T>, Rank>,
                                                      Tensor<std::remove_const_t<T>, Rank>>>;

/// The element types of attn. Half and bfloat16 are stored low and computed in float.
template <class T>
concept Scalar = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, Eigen::half> ||
    std::same_as<T, Eigen::bfloat16>;

/// The type in which sums, scores and softmax are computed: double for double, float for all others.
template <Scalar T>
using Accumulator = std::conditional_t<std::same_as<T, double>, double, float>;

template <class T, int Rank>
class View;

}  // namespace attn::inline ATTN_EIGEN_ABI

namespace attn::detail {

template <class X>
inline constexpr bool is_view = false;
template <class T, int Rank>
inline constexpr bool is_view<View<T, Rank>> = true;

template <class X, class T, int Rank>
concept ConvertsToView = TensorLike<std::remove_cvref_t<X>> &&
                         (!is_view<std::remove_cvref_t<X>>)&&(std::remove_cvref_t<X>::NumDimensions == Rank) &&
                         std::convertible_to<decltype(std::declval<X&>().data()), T*>&& std::same_as<
                             Element<std::remove_cvref_t<X>>, std::remove_const_t<T>>;

}  // namespace attn::detail

namespace attn::inline ATTN_EIGEN_ABI {

/// Elements of a tensor that somebody else owns: pointer, shape, strides. Every tensor and TensorMap of the right
/// element type and rank converts to it. Functions say which strides they take: most want a contiguous last axis.
/// Strides of 0 repeat an element; views that are written must not.
/// Errors: negative sizes or strides, elements beyond what memory can hold.
template <class T, int Rank>
class View {
 public:
  using Sizes = std::array<Index, static_cast<std::size_t>(Rank)>;
  static constexpr int NumDimensions = Rank;
  static constexpr int Layout = Eigen::RowMajor;

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

  template <class X>
  requires detail::ConvertsToView<X, T, Rank> View(
      X&& x)  // NOLINT: a view is what attn functions take, so tensors convert to it
      : View(x.data(), detail::shape_of(x)) {
    static_assert(Rank <= 1 || static_cast<int>(std::remove_cvref_t<X>::Layout) == Eigen::RowMajor,
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

/// A tensor, TensorMap or View of rank `Rank`.
template <class X, int Rank>
concept TensorOf = detail::TensorLike<std::remove_cvref_t<X>> &&(std::remove_cvref_t<X>::NumDimensions == Rank) &&
                   Scalar<detail::Element<std::remove_cvref_t<X>>>;

/// [B,S,H*D] seen as [B,H,S,D]: heads are split by strides alone, nothing is moved. Any strides will do.
template <class T>
[[nodiscard]] View<T, 4> split_heads(View<T, 3> x, Index heads) {
  detail::require(heads >= 1 && x.dimension(2) % heads == 0, "split_heads", "last dimension, expected a multiple of ",
                  heads, " heads, got ", detail::as_shape(x.shape()));
  const Index d = x.dimension(2) / heads;
  return {
      x.data(), {x.dimension(0), heads, x.dimension(1), d}, {x.stride(0), d * x.stride(2), x.stride(1), x.stride(2)}};
}
template <TensorOf<3> X>
[[nodiscard]] auto split_heads(X& x, Index heads) {
  return split_heads(View<std::remove_pointer_t<decltype(x.data())>, 3>(x), heads);
}

}  // namespace attn::inline ATTN_EIGEN_ABI

namespace attn::detail {

/// The view of anything tensor-like, read-only.
template <class X>
[[nodiscard]] View<const Element<X>, X::NumDimensions> read(const X& x) {
  return x;
}

/// A tensor of a given shape, its elements not set. Errors: a shape that memory cannot hold.
template <class T, int Rank>
[[nodiscard]] Tensor<T, Rank> make_tensor(const std::array<Index, static_cast<std::size_t>(Rank)>& shape) {
  checked_size<T>("Tensor", "shape", as_shape(shape));
  typename Tensor<T, Rank>::Dimensions sizes;  // in Eigen's index, which a program may have made another one
  for (std::size_t axis = 0; axis < shape.size(); ++axis)
    sizes[axis] = static_cast<typename Tensor<T, Rank>::Index>(shape[axis]);
  return Tensor<T, Rank>(sizes);
}

inline void require_shape(std::string_view function, std::string_view what, Shape got, Shape expected) {
  require(same_shape(got, expected), function, what, ", expected ", expected, ", got ", got);
}
template <class T, int Rank>
void require_shape(std::string_view function, std::string_view what, View<T, Rank> x,
                   const std::type_identity_t<std::array<Index, static_cast<std::size_t>(Rank)>>& expected) {
  require_shape(function, what, as_shape(x.shape()), as_shape(expected));
}

/// Where the elements of a view lie.
template <class T, int Rank>
[[nodiscard]] Layout layout_of(std::string_view name, const View<T, Rank>& x) {
  return make_layout(name, x.data(), sizeof(T), as_shape(x.shape()), as_shape(x.strides()));
}

/// Where tensors are read or written row after row, they must be packed: no gaps between the rows.
template <class T, int Rank>
[[nodiscard]] bool is_packed(View<T, Rank> x) {
  if (x.size() == 0) return true;
  Index stride = 1;
  for (int axis = Rank - 1; axis >= 0; --axis) {
    if (x.dimension(axis) != 1 && x.stride(axis) != stride) return false;
    stride *= x.dimension(axis);
  }
  return true;
}

/// How far the rows of x, its last axis, lie apart, where they all lie equally far; -1 where they do not, or overlap.
template <class T, int Rank>
[[nodiscard]] Index row_distance(View<T, Rank> x) {
  const Index columns = x.dimension(Rank - 1);
  if (x.size() == 0) return columns;
  if (columns > 1 && x.stride(Rank - 1) != 1) return -1;
  Index distance = columns, stride = -1;
  for (int axis = Rank - 2; axis >= 0; --axis) {
    if (x.dimension(axis) == 1) continue;
    if (stride < 0) distance = stride = x.stride(axis);
    if (x.stride(axis) != stride || distance < columns) return -1;
    stride *= x.dimension(axis);
  }
  return distance;
}

/// What modules ask of the tensors they read and write row after row: packed, and the same one or apart.
template <class T, int Rank>
void require_packed_pair(std::string_view function, View<const T, Rank> x, View<T, Rank> y,
                         const typename View<T, Rank>::Sizes& expected) {
  require_shape(function, "output", y, expected);
  require(is_packed(x) && is_packed(y), function, "views, expected packed tensors");
  if (x.data() != y.data()) require_apart(function, layout_of("output", y), layout_of("input", x));
}

}  // namespace attn::detail

namespace attn::kernel {

/// Eigen's element types as kernels store them. Kernels read and write them bytewise, so that the names may differ.
template <class T>
using Stored = std::conditional_t<std::is_same_v<T, Eigen::half>, Half,
                                  std::conditional_t<std::is_same_v<T, Eigen::bfloat16>, Bfloat16, T>>;
template <Scalar T>
[[nodiscard]] Stored<T>* stored(T* data) {
  return reinterpret_cast<Stored<T>*>(data);
}
template <Scalar T>
[[nodiscard]] const Stored<T>* stored(const T* data) {
  return reinterpret_cast<const Stored<T>*>(data);
}

}  // namespace attn::kernel
