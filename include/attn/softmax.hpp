// Floor 4. Softmax over the last axis.
#pragma once

#include <cmath>
#include <limits>

#include "executor.hpp"
#include "tensor.hpp"

namespace attn::inline ATTN_EIGEN_ABI {

/// exp(x - max) / sum of these, along the last axis. Without state: one object serves all.
/// A row that is -inf throughout gives 0, never NaN; NaN stays in its own row.
template <Scalar T>
class Softmax {
 public:
  /// Shapes: x of rank 1 to 4 -> the same shape. Types: sums in float, for double in double.
  template <detail::TensorLike X>
    requires std::same_as<detail::Element<X>, T>
  [[nodiscard]] Tensor<T, X::NumDimensions> forward(const X& x) const {
    auto y = detail::make_tensor<T, X::NumDimensions>(detail::shape_of(x));
    forward_into(y, x);
    return y;
  }

  /// The same, written into a tensor of the same shape, which may be x itself.
  /// Errors: another shape; views with gaps between their rows.
  template <class Y, detail::TensorLike X>
    requires std::same_as<detail::Element<X>, T>
  void forward_into(Y&& to, const X& from) const {
    constexpr int rank = X::NumDimensions;
    static_assert(rank >= 1 && rank <= 4, "attn: Softmax takes tensors of rank 1 to 4");
    const View<const T, rank> x(from);
    const View<T, rank> y(to);
    detail::require_shape("Softmax::forward", "output", y, x.shape());
    detail::require(detail::is_packed(x) && detail::is_packed(y), "Softmax::forward", "views, expected packed tensors");
    const Index columns = x.dimension(rank - 1);
    if (x.size() == 0) return;
    detail::for_each_task(x.size() / columns, [&](Index row, int) { softmax_row(x.data() + row * columns, y.data() + row * columns, columns); });
  }

  template <detail::TensorLike X>
  [[nodiscard]] auto operator()(const X& x) const {
    return forward(x);
  }

 private:
  static void softmax_row(const T* x, T* y, Index n) {
    using A = Accumulator<T>;
    A largest = -std::numeric_limits<A>::infinity();
    for (Index i = 0; i < n; ++i) {
      const A value = static_cast<A>(x[i]);
      if (value > largest || std::isnan(value)) largest = value;
    }
    if (largest == -std::numeric_limits<A>::infinity()) {
      for (Index i = 0; i < n; ++i) y[i] = T(0);
      return;
    }
    A sum = 0;
    for (Index i = 0; i < n; ++i) sum += std::exp(static_cast<A>(x[i]) - largest);
    for (Index i = 0; i < n; ++i) y[i] = static_cast<T>(std::exp(static_cast<A>(x[i]) - largest) / sum);
  }
};

}  // namespace attn::inline ATTN_EIGEN_ABI
