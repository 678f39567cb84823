// Floor 3. Eigen's tensors, row-major: the first header to include Eigen.
#pragma once

#include <Eigen/Core>
#include <unsupported/Eigen/CXX11/Tensor>

#include <array>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include "error.hpp"
#include "kernel/problem.hpp"
#include "math.hpp"
#include "view.hpp"

// Eigen's tensors change allocator with the widest alignment that -m flags allow, so tensors must not cross between
// translation units that differ in it. Everything that holds a tensor is in an inline namespace named after the
// alignment: such a mix does not link, and the missing symbol says why. (Here and not in config.hpp, since the macro is
// Eigen's.)
#if EIGEN_DEFAULT_ALIGN_BYTES >= 64
#define ATTN_EIGEN_ABI eigen_default_align_bytes_64
#elif EIGEN_DEFAULT_ALIGN_BYTES >= 32
#define ATTN_EIGEN_ABI eigen_default_align_bytes_32
#elif EIGEN_DEFAULT_ALIGN_BYTES >= 16
#define ATTN_EIGEN_ABI eigen_default_align_bytes_16
#else
#define ATTN_EIGEN_ABI eigen_default_align_bytes_0
#endif

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// A row-major Eigen tensor: the last axis is contiguous, as in NumPy, PyTorch and C arrays.
template <class T, int Rank>
using Tensor = Eigen::Tensor<T, Rank, Eigen::RowMajor>;

/// A tensor over memory that someone else owns: TensorMap<float, 3>(pointer, B, S, E).
template <class T, int Rank>
using TensorMap = Eigen::TensorMap<std::conditional_t<std::is_const_v<T>, const Tensor<std::remove_const_t<T>, Rank>,
                                                      Tensor<std::remove_const_t<T>, Rank>>>;

/// The element types of attn. Half and bfloat16 are stored in 16 bits and computed in float.
template <class T>
concept Scalar = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, Eigen::half> ||
    std::same_as<T, Eigen::bfloat16>;

/// The type in which sums, scores and softmax are computed: double for double, float for all others.
template <Scalar T>
using Accumulator = std::conditional_t<std::same_as<T, double>, double, float>;

/// A tensor, TensorMap or View of rank `Rank`.
template <class X, int Rank>
concept TensorOf = detail::TensorLike<std::remove_cvref_t<X>> &&(std::remove_cvref_t<X>::NumDimensions == Rank) &&
                   Scalar<detail::Element<std::remove_cvref_t<X>>>;

/// Views [B,S,H*D] as [B,H,S,D]: heads are split by strides alone, and nothing is moved. Takes any strides.
/// Errors: a last dimension that is not a multiple of the heads.
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

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn

namespace attn::detail {

/// A tensor of a given shape, its elements not set. Errors: a shape that memory cannot hold.
template <class T, int Rank>
[[nodiscard]] Tensor<T, Rank> make_tensor(const std::array<Index, static_cast<std::size_t>(Rank)>& shape) {
  checked_size<T>("Tensor", "shape", as_shape(shape));
  typename Tensor<T, Rank>::Dimensions sizes;  // in Eigen's index, which a program may have made another one
  for (std::size_t axis = 0; axis < shape.size(); ++axis)
    sizes[axis] = static_cast<typename Tensor<T, Rank>::Index>(shape[axis]);
  return Tensor<T, Rank>(sizes);
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
