// Floor 4. Query and key weights reordered from one rotary layout to the other.
#pragma once

#include <algorithm>
#include <string_view>

#include "tensor.hpp"

namespace attn::detail {

/// Moves the first and second elements of pairs, rows of x, from next to each other to the two halves of a head, or back.
template <class T, int Rank>
Tensor<T, Rank> reorder_pairs(View<const T, Rank> x, Index heads, bool to_half_split, std::string_view fn) {
  const Index rows = x.dimension(0);
  require(heads >= 1 && rows % (2 * heads) == 0, fn, "first dimension, expected a multiple of twice ", heads,
          " heads, got ", as_shape(x.shape()));
  require(is_packed(x), fn, "views, expected a packed tensor");
  auto result = make_tensor<T, Rank>(x.shape());
  const Index head_size = rows / heads, width = x.size() / std::max<Index>(rows, 1);
  for (Index interleaved = 0; interleaved < rows; ++interleaved) {
    const Index head = interleaved / head_size, i = interleaved % head_size;
    const Index half_split = head * head_size + i / 2 + (i % 2) * (head_size / 2);
    const Index from = to_half_split ? interleaved : half_split, to = to_half_split ? half_split : interleaved;
    std::copy_n(x.data() + from * width, width, result.data() + to * width);
  }
  return result;
}

}  // namespace attn::detail

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// Reorders the rows of a query or key weight [heads*D, in], or a bias [heads*D], made for interleaved rotary, so that
/// half-split rotary gives the same scores.
/// Errors: a first dimension that is not a multiple of 2 * heads, a view with gaps.
template <TensorOf<2> X>
[[nodiscard]] Tensor<detail::Element<X>, 2> to_half_split(const X& weight, Index heads) {
  return detail::reorder_pairs(detail::read(weight), heads, true, "to_half_split");
}
template <TensorOf<1> X>
[[nodiscard]] Tensor<detail::Element<X>, 1> to_half_split(const X& bias, Index heads) {
  return detail::reorder_pairs(detail::read(bias), heads, true, "to_half_split");
}

/// Reorders the rows of a weight or bias made for half-split rotary, so that interleaved rotary gives the same scores.
/// Errors: as to_half_split.
template <TensorOf<2> X>
[[nodiscard]] Tensor<detail::Element<X>, 2> to_interleaved(const X& weight, Index heads) {
  return detail::reorder_pairs(detail::read(weight), heads, false, "to_interleaved");
}
template <TensorOf<1> X>
[[nodiscard]] Tensor<detail::Element<X>, 1> to_interleaved(const X& bias, Index heads) {
  return detail::reorder_pairs(detail::read(bias), heads, false, "to_interleaved");
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
