// Floor 4. Where the tokens that rotary rotates stand.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <span>
#include <string_view>

#include "error.hpp"
#include "rotary_scaling.hpp"
#include "view.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// Positions of tokens for Rotary: a start for each sequence, a position for each token, or one for each pair of a token's
/// elements. Views the numbers, which may be negative.
class RotaryPositions {
 public:
  /// No batch entries.
  RotaryPositions() = default;
  /// Row s of batch entry b stands at start[b] + s.
  template <class X>
  requires std::convertible_to<const X&, std::span<const Index>> RotaryPositions(const X& start) {  // NOLINT: converts
    const std::span<const Index> numbers = start;
    data_ = numbers.data(), shape_[0] = std::ssize(numbers), stride_[0] = 1, step_ = 1;
  }
  /// A position for each token, [B,S], or for each pair of its elements, [B,S,D/2]: then rows and columns of an image, say,
  /// rotate different pairs.
  template <detail::TensorOfElement<Index> X>
  requires(X::NumDimensions == 2 || X::NumDimensions == 3) RotaryPositions(const X& positions) {  // NOLINT: converts
    static_assert(detail::is_row_major<X>, "attn: row-major tensors only, Eigen::Tensor<T, Rank, Eigen::RowMajor>");
    const View<const Index, X::NumDimensions> view(positions);
    data_ = view.data();
    std::copy(view.shape().begin(), view.shape().end(), shape_.begin());
    std::copy(view.strides().begin(), view.strides().end(), stride_.begin());
  }

  /// Whether no position was given.
  [[nodiscard]] bool empty() const { return data_ == nullptr; }
  /// The position of a pair of a token.
  [[nodiscard]] Index at(Index b, Index s, Index pair) const {
    return data_[b * stride_[0] + s * stride_[1] + pair * stride_[2]] + s * step_;
  }
  /// How many positions a sequence of S tokens has in all: one more than the last where any of them stands.
  [[nodiscard]] Index length(Index b, Index S, Index pairs) const {
    Index last = -1;
    for (Index s = 0; s < S; ++s)
      for (Index pair = 0; pair < numbers(pairs); ++pair) last = std::max(last, at(b, s, pair));
    return last + 1;
  }
  /// How many numbers a copy for B sequences of S tokens takes, and a copy in memory for so many.
  [[nodiscard]] Index copy_size(Index B, Index S, Index pairs) const { return B * S * numbers(pairs); }
  [[nodiscard]] RotaryPositions copy(Index* to, Index B, Index S, Index pairs) const {
    const Index n = numbers(pairs);
    for (Index i = 0; i < B * S * n; ++i) to[i] = at(i / n / S, i / n % S, i % n);
    RotaryPositions result;
    result.data_ = to;
    result.shape_ = {B, S, shape_[2]};
    result.stride_ = {S * n, n, n > 1 ? 1 : 0};
    return result;
  }
  /// Throws unless there are positions for B sequences of S tokens, each within 2^53 of 0.
  void check(std::string_view fn, Index B, Index S, Index pairs) const {
    detail::require(shape_[0] == B, fn, step_ == 1 ? "start" : "positions", ", expected one for each of ", B,
                    " batch entries, got ", shape_[0]);
    detail::require(shape_[1] == same || shape_[1] == S, fn, "positions [B,S], expected one for each of ", S,
                    " tokens, got ", shape_[1]);
    detail::require(shape_[2] == same || shape_[2] == pairs, fn, "positions [B,S,D/2], expected one for each of ",
                    pairs, " pairs, got ", shape_[2]);
    constexpr Index most = detail::most_positions;
    for (Index b = 0; b < B; ++b)
      for (Index s = 0; s < (shape_[1] == same ? std::min<Index>(S, 1) : S); ++s)
        for (Index pair = 0; pair < numbers(pairs); ++pair)
          detail::require(-most <= at(b, s, pair) && at(b, s, pair) <= most - step_ * S, fn,
                          step_ == 1 ? "start" : "positions", ", expected ", S, " positions up to 2^53 from 0, got ",
                          at(b, s, pair));
  }

 private:
  static constexpr Index same = -1;  // one number for all along this axis

  /// Numbers of a token.
  [[nodiscard]] Index numbers(Index pairs) const { return shape_[2] == same ? 1 : pairs; }

  const Index* data_ = nullptr;
  std::array<Index, 3> shape_{0, same, same};
  std::array<Index, 3> stride_{};
  Index step_ = 0;  // from one token to the next
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
