// Floor 4. Root mean square normalisation over the last axis.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <string_view>

#include "kernel/isa/targets.hpp"
#include "math.hpp"
#include "memory.hpp"
#include "parallel.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// x / sqrt(mean of x^2 + epsilon) * weight, along the last axis; the weight is one until it is set.
///
/// Shapes: x [..., size] of rank 1 to 4 -> the same shape; weight [size].
/// Types: computed in float, in double for double; half and bfloat16 are rounded once, after the weight, as PyTorch's
/// RMSNorm does. (Hugging Face's Llama rounds before the weight as well.)
/// Conventions: a row's result depends on that row alone. epsilon is 1e-5 where not given, as in Llama 2; Llama's older
/// checkpoints have 1e-6, and PyTorch takes the smallest step of the type. One that was moved from refuses to run.
/// Source: Zhang, Sennrich, "Root mean square layer normalization", 2019.
template <Scalar T>
class RmsNorm {
 public:
  /// Errors: a size below 1 or that memory cannot hold, an epsilon that is negative or not finite.
  explicit RmsNorm(Index size, double epsilon = 1e-5) : held_(Held{checked_weight(size), epsilon}) {
    detail::require(detail::is_finite(epsilon) && epsilon >= 0.0, "RmsNorm",
                    "epsilon, expected a number from 0 on, got ", epsilon);
  }

  [[nodiscard]] Index size() const { return std::ssize(held_->weight); }
  [[nodiscard]] double epsilon() const { return held_->epsilon; }

  /// The weight, [size].
  [[nodiscard]] Tensor<T, 1> weight() const {
    auto weight = detail::make_tensor<T, 1>({size()});
    std::copy(held_->weight.begin(), held_->weight.end(), weight.data());
    return weight;
  }
  /// Replaces the weight. Errors: any shape but [size].
  void set_weight(View<const T, 1> weight) {
    detail::require_shape("RmsNorm::set_weight", "weight [size]", weight, {size()});
    for (Index i = 0; i < size(); ++i) held_->weight[static_cast<std::size_t>(i)] = weight(i);
  }

  /// Errors: another last dimension.
  template <detail::TensorOfElement<T> X>
  [[nodiscard]] Tensor<T, X::NumDimensions> forward(const X& x) const {
    auto y = detail::make_tensor<T, X::NumDimensions>(detail::shape_of(x));
    forward_into(y, x);
    return y;
  }
  /// The same, written into a tensor of the same shape, which may be x itself.
  /// Errors: besides, another shape; views with gaps between their rows; an output that shares only some memory with x.
  template <class Y, detail::TensorOfElement<T> X>
  void forward_into(Y&& to, const X& from) const {
    constexpr int rank = X::NumDimensions;
    static_assert(rank >= 1 && rank <= 4, "attn: RmsNorm takes tensors of rank 1 to 4");
    const View<const T, rank> x(from);
    const View<T, rank> y(to);
    detail::require(size() > 0, fn, "module, expected one with a weight, got one moved from");
    detail::require(x.dimension(rank - 1) == size(), fn, "input, expected a last dimension of ", size(), ", got ",
                    detail::as_shape(x.shape()));
    detail::require_packed_pair(fn, detail::layout_of("output", y), detail::layout_of("input", x));
    run(x.data(), x.size() / size(), y.data());
  }
  template <detail::TensorOfElement<T> X>
  [[nodiscard]] auto operator()(const X& x) const {
    return forward(x);
  }

 private:
  using A = Accumulator<T>;
  using Codec = kernel::Codec<kernel::Stored<T>>;
  static constexpr auto fn = "RmsNorm::forward";
  static constexpr Index block = 512;  // elements converted at a time: they stay in L1

  struct Held {
    AlignedVector<T> weight;
    double epsilon = 0.0;
  };
  static AlignedVector<T> checked_weight(Index size) {
    const std::array<Index, 1> shape{size};
    detail::require(size >= 1, "RmsNorm", "size, expected at least 1, got ", size);
    return AlignedVector<T>(
        static_cast<std::size_t>(detail::checked_size<T>("RmsNorm", "weight [size]", detail::as_shape(shape))), T(1));
  }

  void run(const T* x, Index rows, T* y) const {
    const Codec& codec = kernel::codec_of<kernel::Stored<T>>(active_isa());
    const Index group = std::max<Index>(1, 4096 / size());  // rows of a task: enough to be worth a thread's while
    detail::run_tasks(detail::ceil_div(rows, group), 4.0 * static_cast<double>(rows * size()), 0,
                      [&](Index task, std::byte*) {
                        for (Index row = task * group; row < std::min(rows, (task + 1) * group); ++row)
                          normalise(codec, x + row * size(), y + row * size());
                      });
  }

  void normalise(const Codec& codec, const T* x, T* y) const {
    A values[block], weights[block];
    double squares = 0.0;
    for (Index first = 0; first < size(); first += block) {
      const Index n = std::min(block, size() - first);
      codec.load(values, n, kernel::stored(x + first), n, 1, n);
      squares += static_cast<double>(sum_of_squares(values, n));
    }
    const auto scale = static_cast<A>(1.0 / std::sqrt(squares / static_cast<double>(size()) + epsilon()));
    for (Index first = 0; first < size(); first += block) {
      const Index n = std::min(block, size() - first);
      codec.load(values, n, kernel::stored(x + first), n, 1, n);
      codec.load(weights, n, kernel::stored(held_->weight.data() + first), n, 1, n);
      for (Index i = 0; i < n; ++i) values[i] = weights[i] * (scale * values[i]);
      codec.store(kernel::stored(y + first), n, values, n, 1, n);
    }
  }
  /// In eight sums side by side, which compilers turn into vectors.
  static A sum_of_squares(const A* x, Index n) {
    constexpr Index sums = 8;
    A sum[sums] = {};
    Index i = 0;
    for (; i + sums <= n; i += sums)
      for (Index j = 0; j < sums; ++j) sum[j] += x[i + j] * x[i + j];
    for (; i < n; ++i) sum[i % sums] += x[i] * x[i];
    for (Index half = sums / 2; half > 0; half /= 2)
      for (Index j = 0; j < half; ++j) sum[j] += sum[j + half];
    return sum[0];
  }

  detail::EmptyWhenMoved<Held> held_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
