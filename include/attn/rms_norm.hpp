// Floor 4. Root mean square normalisation over the last axis, forward and backward.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "kernel/isa/targets.hpp"
#include "math.hpp"
#include "memory.hpp"
#include "parallel.hpp"
#include "parameter.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// What RmsNorm multiplies by.
enum class NormFactor : std::uint8_t {
  weight,           ///< the weight, which is 1 until it is set: Llama
  one_plus_weight,  ///< 1 + weight, which is 0 until it is set: Gemma
};

/// x / sqrt(mean of x^2 + epsilon) * weight, or times 1 + weight, along the last axis.
///
/// Shapes: x [..., size] of rank 1 to 4 -> the same shape; weight [size].
/// Types: computed in float, in double for double; half and bfloat16 are rounded once, after the weight, as PyTorch's
/// RMSNorm does. (Hugging Face's Llama rounds before the weight as well.)
/// Conventions: a row's result depends on that row alone. epsilon is 1e-5 where not given, as in Llama 2; Llama's older
/// checkpoints have 1e-6, and PyTorch takes the smallest step of the type. One that was moved from refuses to run.
/// Gradients belong to the module, and a copy has a copy of them.
/// Source: Zhang, Sennrich, "Root mean square layer normalization", 2019.
template <Scalar T>
class RmsNorm {
 public:
  /// Errors: a size below 1 or that memory cannot hold, an epsilon that is negative or not finite.
  explicit RmsNorm(Index size, double epsilon = 1e-5, NormFactor factor = NormFactor::weight)
      : held_(Held{checked_weight(size, factor), epsilon, factor}) {
    detail::require(detail::is_finite(epsilon) && epsilon >= 0.0, "RmsNorm",
                    "epsilon, expected a number from 0 on, got ", epsilon);
  }

  [[nodiscard]] Index size() const { return std::ssize(held_->weight); }
  [[nodiscard]] double epsilon() const { return held_->epsilon; }
  [[nodiscard]] NormFactor factor() const { return held_->factor; }

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

  /// The gradient of the input, and adds that of the weight to what it is. `x` is what forward was given.
  /// Shapes: grad_y and x of one shape -> the same. Errors: as forward.
  template <detail::TensorOfElement<T> G, detail::TensorOfElement<T> X>
  [[nodiscard]] Tensor<T, X::NumDimensions> backward(const G& grad_y, const X& x) {
    auto grad_x = detail::make_tensor<T, X::NumDimensions>(detail::shape_of(x));
    backward_into(grad_x, grad_y, x);
    return grad_x;
  }
  /// The same, written into a tensor of the same shape, which may be grad_y or x itself. Errors: as forward_into.
  template <class Out, detail::TensorOfElement<T> G, detail::TensorOfElement<T> X>
  void backward_into(Out&& to, const G& of_output, const X& input) {
    constexpr int rank = X::NumDimensions;
    static_assert(rank >= 1 && rank <= 4, "attn: RmsNorm takes tensors of rank 1 to 4");
    constexpr auto function = "RmsNorm::backward";
    const View<T, rank> grad_x(to);
    const View<const T, rank> grad_y(of_output), x(input);
    detail::require(size() > 0, function, "module, expected one with a weight, got one moved from");
    detail::require(x.dimension(rank - 1) == size(), function, "input, expected a last dimension of ", size(), ", got ",
                    detail::as_shape(x.shape()));
    detail::require_shape(function, "grad_y", detail::as_shape(grad_y.shape()), detail::as_shape(x.shape()));
    detail::require_packed_pair(function, detail::layout_of("grad_x", grad_x), detail::layout_of("input", x));
    detail::require_packed_pair(function, detail::layout_of("grad_x", grad_x), detail::layout_of("grad_y", grad_y));
    make_gradient(function);
    if (x.size() > 0) run_backward(grad_y.data(), x.data(), x.size() / size(), grad_x.data());
  }

  /// The gradient of the weight, [size]; 0 until a backward pass has added to it.
  [[nodiscard]] Tensor<Accumulator<T>, 1> weight_gradient() const {
    auto gradient = detail::make_tensor<Accumulator<T>, 1>({size()});
    gradient.setZero();
    std::copy(held_->gradient.begin(), held_->gradient.end(), gradient.data());
    return gradient;
  }
  /// Sets the gradient to 0.
  void zero_gradients() { std::fill(held_->gradient.begin(), held_->gradient.end(), A{0}); }
  /// The weight: what an optimiser changes. Errors: a module that was moved from.
  [[nodiscard]] std::vector<Parameter<T>> parameters() {
    make_gradient("RmsNorm::parameters");
    return {Parameter<T>("weight", held_->weight, held_->gradient)};
  }

 private:
  using A = Accumulator<T>;
  using Codec = kernel::Codec<kernel::Stored<T>>;
  static constexpr auto fn = "RmsNorm::forward";
  static constexpr Index block = 512;  // elements converted at a time: they stay in L1

  struct Held {
    AlignedVector<T> weight;
    double epsilon = 0.0;
    NormFactor factor = NormFactor::weight;
    AlignedVector<A> gradient{};  // of the weight; empty until it is first needed
  };
  static AlignedVector<T> checked_weight(Index size, NormFactor factor) {
    const std::array<Index, 1> shape{size};
    detail::require(size >= 1, "RmsNorm", "size, expected at least 1, got ", size);
    return AlignedVector<T>(
        static_cast<std::size_t>(detail::checked_size<T>("RmsNorm", "weight [size]", detail::as_shape(shape))),
        T(factor == NormFactor::weight ? 1 : 0));
  }
  /// Loads n factors from the one at `first` on.
  void load_factors(const Codec& codec, A* factors, Index first, Index n) const {
    codec.load(factors, n, kernel::stored(held_->weight.data() + first), n, 1, n);
    if (held_->factor == NormFactor::weight) return;
    for (Index i = 0; i < n; ++i) factors[i] += 1;
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
    A values[block], factors[block];
    double squares = 0.0;
    for (Index first = 0; first < size(); first += block) {
      const Index n = std::min(block, size() - first);
      codec.load(values, n, kernel::stored(x + first), n, 1, n);
      squares += static_cast<double>(detail::dot(values, values, n));
    }
    const auto scale = static_cast<A>(1.0 / std::sqrt(squares / static_cast<double>(size()) + epsilon()));
    for (Index first = 0; first < size(); first += block) {
      const Index n = std::min(block, size() - first);
      codec.load(values, n, kernel::stored(x + first), n, 1, n);
      load_factors(codec, factors, first, n);
      for (Index i = 0; i < n; ++i) values[i] = factors[i] * (scale * values[i]);
      codec.store(kernel::stored(y + first), n, values, n, 1, n);
    }
  }

  /// Adds the weight's gradient by blocks of rows, whose sums are added up in order: the same for any number of threads.
  void run_backward(const T* grad_y, const T* x, Index rows, T* grad_x) {
    constexpr Index block_rows = 32;
    const Index blocks = detail::ceil_div(rows, block_rows);
    const Codec& codec = kernel::codec_of<kernel::Stored<T>>(active_isa());
    const Workspace::Frame frame;
    A* const sums = frame.take<A>(blocks * size());
    const double work = 8.0 * static_cast<double>(rows * size());
    detail::run_tasks(blocks, work, 0, [&](Index task, std::byte*) {
      A* const of_block = sums + task * size();
      std::fill_n(of_block, size(), A{0});
      for (Index row = task * block_rows; row < std::min(rows, (task + 1) * block_rows); ++row)
        backward_row(codec, grad_y + row * size(), x + row * size(), of_block, grad_x + row * size());
    });
    detail::run_tasks(detail::ceil_div(size(), block), work / block_rows, 0, [&](Index task, std::byte*) {
      const Index first = task * block, n = std::min(block, size() - first);
      double total[block] = {};
      for (Index b = 0; b < blocks; ++b)
        for (Index i = 0; i < n; ++i) total[i] += static_cast<double>(sums[b * size() + first + i]);
      A* const gradient = held_->gradient.data() + first;
      for (Index i = 0; i < n; ++i) gradient[i] = static_cast<A>(static_cast<double>(gradient[i]) + total[i]);
    });
  }
  /// With r = 1 / sqrt(mean of x^2 + epsilon) and g = grad_y weight: grad_x = r g - x r^3 (mean of g x), and
  /// weight_sums += grad_y x r.
  void backward_row(const Codec& codec, const T* grad_y, const T* x, A* weight_sums, T* grad_x) const {
    A values[block], gradients[block], factors[block];
    const auto load = [&](Index first) {
      const Index n = std::min(block, size() - first);
      codec.load(values, n, kernel::stored(x + first), n, 1, n);
      codec.load(gradients, n, kernel::stored(grad_y + first), n, 1, n);
      load_factors(codec, factors, first, n);
      return n;
    };
    double squares = 0.0, products = 0.0;
    for (Index first = 0; first < size(); first += block) {
      const Index n = load(first);
      for (Index i = 0; i < n; ++i) gradients[i] *= factors[i];
      squares += static_cast<double>(detail::dot(values, values, n));
      products += static_cast<double>(detail::dot(gradients, values, n));
    }
    const double mean = squares / static_cast<double>(size()) + epsilon(), root = 1.0 / std::sqrt(mean);
    const auto scale = static_cast<A>(root),
               slope = static_cast<A>(root / mean * products / static_cast<double>(size()));
    for (Index first = 0; first < size(); first += block) {
      const Index n = load(first);
      for (Index i = 0; i < n; ++i) {
        weight_sums[first + i] += gradients[i] * (scale * values[i]);
        gradients[i] = scale * (gradients[i] * factors[i]) - slope * values[i];
      }
      codec.store(kernel::stored(grad_x + first), n, gradients, n, 1, n);
    }
  }
  /// Takes the memory of the gradient, if it has not been taken.
  void make_gradient(std::string_view function) {
    detail::require(size() > 0, function, "module, expected one with a weight, got one moved from");
    if (held_->gradient.empty()) held_->gradient = AlignedVector<A>(held_->weight.size(), A{0});
  }

  detail::EmptyWhenMoved<Held> held_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
