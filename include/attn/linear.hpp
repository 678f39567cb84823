// Floor 4. The linear layer y = x WT + b.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>

#include "kernel/linear_forward.hpp"
#include "kernel/isa/targets.hpp"
#include "math.hpp"
#include "memory.hpp"
#include "parallel.hpp"
#include "philox.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// A linear layer, with PyTorch's conventions: weight [out,in], optional bias [out], both drawn at construction from
/// the uniform distribution on (-1/sqrt(in), 1/sqrt(in)).
///
/// The weight is held once, in the layout that the kernel reads; weight() and set_weight() translate. A copy is
/// independent; `share` lets two layers hold the same parameters, so that a change shows in both. A layer that was moved
/// from has 0 features in and out and refuses to run.
template <Scalar T>
class Linear {
 public:
  /// seed: of the initial parameters; where not set, one that no other layer has, as in PyTorch.
  /// Errors: sizes below 1, or that memory cannot hold.
  /// Source: He et al., "Delving deep into rectifiers", 2015, with a = sqrt(5), which is PyTorch's default.
  Linear(Index in_features, Index out_features, bool bias = true, std::optional<std::uint64_t> seed = {}) {
    detail::require(in_features >= 1 && out_features >= 1, "Linear", "features, expected at least 1 in and out, got ",
                    in_features, " in and ", out_features, " out");
    parameters_ = std::make_shared<Parameters>(in_features, out_features, bias);
    const double bound = 1.0 / std::sqrt(static_cast<double>(in_features));
    const auto key = philox_key(seed ? *seed : fresh_seed());
    const auto fill = [&](Index count, Index row, std::uint32_t plane, T* to, Index stride) {
      for (Index i = 0; i < count; i += 4) {
        const auto words =
            philox4x32({static_cast<std::uint32_t>(i / 4), static_cast<std::uint32_t>(row), plane, 0}, key);
        for (Index j = i; j < std::min(i + 4, count); ++j)
          to[j * stride] = static_cast<T>(bound * (words[static_cast<std::size_t>(j - i)] * 0x1p-31 - 1.0));
      }
    };
    for (Index o = 0; o < out_features; ++o) fill(in_features, o, 0, &parameters_->at(o, 0), Parameters::width);
    if (bias) fill(out_features, 0, 1, parameters_->bias.data(), 1);
  }
  /// A layer with this weight [out,in], and bias [out] where given. Errors: shapes that do not fit.
  explicit Linear(View<const T, 2> weight, std::optional<View<const T, 1>> bias = {}) {
    detail::require(weight.dimension(0) >= 1 && weight.dimension(1) >= 1, "Linear",
                    "weight [out,in], expected at least 1 in and out, got ", detail::as_shape(weight.shape()));
    parameters_ = std::make_shared<Parameters>(weight.dimension(1), weight.dimension(0), bias.has_value());
    set_weight(weight);
    if (bias) set_bias(*bias);
  }
  Linear(const Linear& other)
      : parameters_(other.parameters_ ? std::make_shared<Parameters>(*other.parameters_) : nullptr) {}
  Linear(Linear&&) noexcept = default;
  Linear& operator=(const Linear& other) { return *this = Linear(other); }
  Linear& operator=(Linear&&) noexcept = default;
  ~Linear() = default;

  [[nodiscard]] Index in_features() const { return parameters_ ? parameters_->in : 0; }
  [[nodiscard]] Index out_features() const { return parameters_ ? parameters_->out : 0; }
  [[nodiscard]] bool has_bias() const { return parameters_ && !parameters_->bias.empty(); }

  /// The weight, [out,in].
  [[nodiscard]] Tensor<T, 2> weight() const {
    Tensor<T, 2> result(out_features(), in_features());
    for (Index o = 0; o < out_features(); ++o)
      for (Index i = 0; i < in_features(); ++i) result(o, i) = parameters_->at(o, i);
    return result;
  }
  /// One row of the weight: output `o` of all inputs, into a tensor [in] of the caller's. It serves embeddings that share
  /// their table with the output layer. Errors: a row that does not exist, another shape, a stride of 0.
  void weight_row(Index o, View<T, 1> row) const {
    detail::require(o >= 0 && o < out_features(), "Linear::weight_row", "row, expected one of ", out_features(),
                    ", got ", o);
    detail::require_shape("Linear::weight_row", "row [in]", row, {in_features()});
    detail::require_distinct("Linear::weight_row", detail::layout_of("row", row));
    for (Index i = 0; i < in_features(); ++i) row(i) = parameters_->at(o, i);
  }
  /// Replaces the weight. Errors: any shape but [out,in].
  void set_weight(View<const T, 2> weight) {
    detail::require_shape("Linear::set_weight", "weight [out,in]", weight, {out_features(), in_features()});
    for (Index o = 0; o < out_features(); ++o)
      for (Index i = 0; i < in_features(); ++i) parameters_->at(o, i) = weight(o, i);
  }

  /// The bias, [out], or an empty tensor.
  [[nodiscard]] Tensor<T, 1> bias() const {
    Tensor<T, 1> result(has_bias() ? out_features() : 0);
    std::copy_n(has_bias() ? parameters_->bias.data() : nullptr, result.size(), result.data());
    return result;
  }
  /// Replaces the bias. Errors: any shape but [out]; a layer without bias.
  void set_bias(View<const T, 1> bias) {
    detail::require(has_bias(), "Linear::set_bias", "this layer has no bias, expected one made with bias = true, got ",
                    detail::as_shape(bias.shape()));
    detail::require_shape("Linear::set_bias", "bias [out]", bias, {out_features()});
    for (Index o = 0; o < out_features(); ++o) parameters_->bias[static_cast<std::size_t>(o)] = bias(o);
  }

  /// From now on this layer holds the other's parameters: what is set in one shows in both.
  /// Errors: another shape.
  void share(const Linear& other) {
    detail::require(in_features() == other.in_features() && out_features() == other.out_features(), "Linear::share",
                    "features, expected ", in_features(), " in and ", out_features(), " out, got ", other.in_features(),
                    " in and ", other.out_features(), " out");
    parameters_ = other.parameters_;
  }
  [[nodiscard]] bool shares_with(const Linear& other) const { return parameters_ && parameters_ == other.parameters_; }

  /// Shapes: x [..., in] of rank 1 to 4 -> [..., out]. Types: sums in float, for double in double.
  /// Errors: another last dimension.
  template <detail::TensorOfElement<T> X>
  [[nodiscard]] Tensor<T, X::NumDimensions> forward(const X& x) const {
    auto shape = detail::shape_of(x);
    check_input(x);
    shape.back() = out_features();
    auto y = detail::make_tensor<T, X::NumDimensions>(shape);
    forward_into(y, x);
    return y;
  }

  /// The same, written into a tensor [..., out] of the caller's, whose rows may alternate with those of x in one buffer.
  /// Errors: another last dimension or output shape; views whose rows do not lie equally far apart; an output that
  /// shares memory with x.
  template <class Y, detail::TensorOfElement<T> X>
  void forward_into(Y&& to, const X& from) const {
    constexpr int rank = X::NumDimensions;
    const View<const T, rank> x(from);
    const View<T, rank> y(to);
    check(y, x);
    run(x.data(), detail::row_distance(x), x.size() / in_features(), y.data(), detail::row_distance(y));
  }
  /// Throws what `forward_into` would, and does nothing else.
  template <class Y, detail::TensorOfElement<T> X>
  void check(Y&& to, const X& from) const {
    constexpr int rank = X::NumDimensions;
    static_assert(rank >= 1 && rank <= 4, "attn: Linear takes tensors of rank 1 to 4");
    const View<const T, rank> x(from);
    const View<T, rank> y(to);
    check_input(x);
    auto expected = x.shape();
    expected.back() = out_features();
    detail::require_shape("Linear::forward", "output", y, expected);
    detail::require(detail::row_distance(x) >= 0 && detail::row_distance(y) >= 0, "Linear::forward",
                    "views, expected packed ones, or rows that lie equally far apart");
    detail::require_apart("Linear::forward", detail::layout_of("output", y), detail::layout_of("input", x));
  }

  template <detail::TensorLike X>
  [[nodiscard]] auto operator()(const X& x) const {
    return forward(x);
  }

 private:
  struct Parameters {
    static constexpr Index width = kernel::panel_width<T>;
    Index in, out;
    AlignedVector<T> weight;  // [ceil(out / width)][in][width], zeros where a panel goes past the last output
    AlignedVector<T> bias;

    Parameters(Index in_, Index out_, bool has_bias)
        : in(in_),
          out(out_),
          weight(static_cast<std::size_t>(padded_size(out_, in_)), T(0)),
          bias(has_bias ? static_cast<std::size_t>(out_) : 0, T(0)) {}
    static Index padded_size(Index out, Index in) {
      const auto checked = [&](Index rows) {
        return detail::checked_size<T>("Linear", "weight [out,in]", detail::as_shape(std::array<Index, 2>{rows, in}));
      };
      checked(out);  // rounding up does not overflow then
      return checked(detail::round_up(out, width));
    }
    T& at(Index o, Index i) { return weight[static_cast<std::size_t>((o / width * in + i) * width + o % width)]; }
  };

  void run(const T* x, Index x_row, Index rows, T* y, Index y_row) const {
    using Stored = kernel::Stored<T>;
    const auto* bias = has_bias() ? kernel::stored(parameters_->bias.data()) : nullptr;
    const kernel::LinearProblem<Stored, Stored> problem{.x = kernel::stored(x),
                                                        .weight = kernel::stored(parameters_->weight.data()),
                                                        .bias = bias,
                                                        .y = kernel::stored(y),
                                                        .rows = rows,
                                                        .in = in_features(),
                                                        .out = out_features(),
                                                        .x_row = x_row,
                                                        .y_row = y_row};
    if (rows == 0) return;
    const Isa isa = active_isa();
    const kernel::LinearKernels<Stored, Stored> kernels{.arithmetic = kernel::arithmetic_of<Accumulator<T>>(isa),
                                                        .inputs = kernel::codec_of<Stored>(isa),
                                                        .weights = kernel::codec_of<Stored>(isa)};
    detail::run_tasks(kernel::LinearTasks<Stored, Stored>(problem, kernels, Index{current_executor().concurrency()}));
  }

  template <class X>
  void check_input(const X& x) const {
    const auto shape = detail::shape_of(x);
    detail::require(parameters_ != nullptr, "Linear::forward",
                    "layer, expected one with parameters, got one moved from");
    detail::require(shape.back() == in_features(), "Linear::forward", "input, expected a last dimension of ",
                    in_features(), ", got ", detail::as_shape(shape));
  }

  std::shared_ptr<Parameters> parameters_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
