// Floor 4. The linear layer y = x WT + b, forward and backward.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "kernel/linear_forward.hpp"
#include "kernel/isa/targets.hpp"
#include "math.hpp"
#include "memory.hpp"
#include "packed_matrix.hpp"
#include "parallel.hpp"
#include "parameter.hpp"
#include "philox.hpp"
#include "stored_weight.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// A linear layer, with PyTorch's conventions: weight [out,in], optional bias [out], both drawn at construction from
/// the uniform distribution on (-1/sqrt(in), 1/sqrt(in)).
///
/// The weight is held once, in the layout that the kernel reads; weight() and set_weight() translate. store_weights() keeps
/// it in fewer bits from then on: one row then takes only the time of reading them. A copy is
/// independent; `share` lets two layers hold the same parameters, so that a change shows in both. A layer that was moved
/// from has 0 features in and out and refuses to run.
///
/// Gradients belong to the parameters: layers that share them add to the same ones, and a copy has a copy of them. Their
/// memory is taken when they are first needed. What a layer computes does not depend on the number of threads by a bit.
template <Scalar T>
class Linear {
 public:
  /// seed: of the initial parameters; where not set, one that no other layer has, as in PyTorch.
  /// Errors: sizes below 1, or that memory cannot hold.
  /// Source: He et al., "Delving deep into rectifiers", 2015, with a = sqrt(5), which is PyTorch's default.
  Linear(Index in_features, Index out_features, bool bias = true, std::optional<std::uint64_t> seed = {}) {
    detail::require(in_features >= 1 && out_features >= 1, "Linear", "features, expected at least 1 in and out, got ",
                    in_features, " in and ", out_features, " out");
    parameters_ = std::make_shared<Parameters>(out_features, in_features, bias);
    const auto key = philox_key(seed ? *seed : fresh_seed());
    const double bound = 1.0 / std::sqrt(static_cast<double>(in_features));
    for (Index o = 0; o < out_features; ++o)
      draw(in_features, {0, static_cast<std::uint32_t>(o), 0, 0}, key, bound, parameters_->weight.row(o),
           PackedMatrix<T>::width);
    if (bias) draw(out_features, {0, 0, 1, 0}, key, bound, parameters_->bias.data(), 1);
  }
  /// A layer with this weight [out,in], and bias [out] where given. Errors: shapes that do not fit.
  explicit Linear(View<const T, 2> weight, std::optional<View<const T, 1>> bias = {}) {
    detail::require(weight.dimension(0) >= 1 && weight.dimension(1) >= 1, "Linear",
                    "weight [out,in], expected at least 1 in and out, got ", detail::as_shape(weight.shape()));
    parameters_ = std::make_shared<Parameters>(weight.dimension(0), weight.dimension(1), bias.has_value());
    set_weight(weight);
    if (bias) set_bias(*bias);
  }
  Linear(const Linear& other)
      : parameters_(other.parameters_ ? std::make_shared<Parameters>(*other.parameters_) : nullptr) {}
  Linear(Linear&&) noexcept = default;
  Linear& operator=(const Linear& other) { return *this = Linear(other); }
  Linear& operator=(Linear&&) noexcept = default;
  [[gnu::noinline]] ~Linear() = default;  // g++ 12 takes an inlined one in an optional for one that is not set

  [[nodiscard]] Index in_features() const { return parameters_ ? parameters_->in : 0; }
  [[nodiscard]] Index out_features() const { return parameters_ ? parameters_->out : 0; }
  [[nodiscard]] bool has_bias() const { return parameters_ && !parameters_->bias.empty(); }

  /// The weight, [out,in]: the numbers that forward multiplies by, whatever their format.
  [[nodiscard]] Tensor<T, 2> weight() const {
    if (weight_format() == WeightFormat::native)
      return parameters_ ? parameters_->weight.get() : detail::make_tensor<T, 2>({0, 0});
    auto weight = detail::make_tensor<T, 2>({out_features(), in_features()});
    for (Index o = 0; o < out_features(); ++o)
      weight_row(o, View<T, 1>(weight.data() + o * in_features(), {in_features()}));
    return weight;
  }
  /// One row of the weight: output `o` of all inputs, into a tensor [in] of the caller's. It serves embeddings that share
  /// their table with the output layer. Errors: a row that does not exist, another shape, a stride of 0.
  void weight_row(Index o, View<T, 1> row) const {
    detail::require(o >= 0 && o < out_features(), "Linear::weight_row", "row, expected one of ", out_features(),
                    ", got ", o);
    detail::require_shape("Linear::weight_row", "row [in]", row, {in_features()});
    detail::require_distinct("Linear::weight_row", detail::layout_of("row", row));
    if (weight_format() == WeightFormat::native) {
      const T* const from = std::as_const(*parameters_).weight.row(o);
      for (Index i = 0; i < in_features(); ++i) row(i) = from[i * PackedMatrix<T>::width];
      return;
    }
    const Workspace::Frame frame;
    auto* const weights = frame.take<float>(in_features());
    parameters_->stored.get_row(o, weights);
    for (Index i = 0; i < in_features(); ++i) row(i) = static_cast<T>(weights[i]);
  }
  /// Replaces the weight, and stores it in the format of the one before.
  /// Errors: any shape but [out,in]; weights that the format cannot hold.
  void set_weight(View<const T, 2> weight) {
    detail::require_shape("Linear::set_weight", "weight [out,in]", weight, {out_features(), in_features()});
    if (!parameters_) return;
    if (weight_format() == WeightFormat::native)
      parameters_->weight.set(weight);
    else
      parameters_->stored = stored_as(weight_format(), "Linear::set_weight", weight);
  }

  // ---- Weights in fewer bits: in linear_formats.hpp ----

  /// The format the weight is stored in; `native` is the layer's own type.
  [[nodiscard]] WeightFormat weight_format() const {
    return parameters_ ? parameters_->stored.format() : WeightFormat::native;
  }
  /// Stores the weight in a format from now on, in this layer and in those that share it: rounded to nearest, so that what
  /// rounding took is lost. With int8 and int4, forward rounds its inputs to 8 bits too, 32 of a row at a time. Sums stay in
  /// float, for double as well. A layer can only be trained in its own type; its gradients are dropped.
  /// Errors: a format that does not exist, weights that it cannot hold (in half and bfloat16 finite ones that would round to
  /// infinity; in int8 and int4 infinities, NaN, and what no scale in half reaches). The weight is then as it was.
  void store_weights(WeightFormat format);
  /// Throws what `store_weights` would, and does nothing else.
  void check_store_weights(WeightFormat format) const;
  /// Replaces the weight by blocks of 32 inputs as GGUF files have them, [out][blocks], of Q8_0 (34 bytes each) or Q4_0 (18),
  /// which are stored without loss as int8 or int4. Errors: another number of bytes; a last block that holds other numbers
  /// than 0 past the end of the inputs.
  void set_quantised_weight(std::span<const std::byte> blocks);
  /// The blocks of an int8 or int4 weight, as set_quantised_weight takes them. Errors: another format.
  [[nodiscard]] std::vector<std::byte> quantised_weight() const;
  /// Replaces the weight by rows as files have them, which are stored in a format without loss: numbers of 16 bits for
  /// bfloat16 and half, blocks of Q8_0 for int8, of Q4_0 for int4. Errors: as set_quantised_weight; the layer's own type,
  /// which set_weight takes.
  void set_stored_weight(WeightFormat format, std::span<const std::byte> rows);

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
  /// What tells parameters apart: the same for all layers that share them.
  [[nodiscard]] const void* identity() const { return parameters_.get(); }

  /// Shapes: x [..., in] of rank 1 to 4 -> [..., out]. Types: sums in float, for double in double.
  /// Errors: another last dimension.
  template <detail::TensorOfElement<T> X>
  [[nodiscard]] Tensor<T, X::NumDimensions> forward(const X& x) const {
    static_assert(X::NumDimensions >= 1 && X::NumDimensions <= 4, "attn: Linear takes tensors of rank 1 to 4");
    auto shape = detail::shape_of(x);
    check_input(detail::as_shape(shape));
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
    static_assert(X::NumDimensions >= 1 && X::NumDimensions <= 4, "attn: Linear takes tensors of rank 1 to 4");
    const View<const T, X::NumDimensions> x(from);
    const View<T, X::NumDimensions> y(to);
    run(x.data(), detail::layout_of("input", x), y.data(), detail::layout_of("output", y));
  }
  /// Throws what `forward_into` would, and does nothing else.
  template <class Y, detail::TensorOfElement<T> X>
  void check(Y&& to, const X& from) const {
    const View<const T, X::NumDimensions> x(from);
    const View<T, X::NumDimensions> y(to);
    check(detail::layout_of("input", x), detail::layout_of("output", y));
  }

  template <detail::TensorLike X>
  [[nodiscard]] auto operator()(const X& x) const {
    return forward(x);
  }

  /// The gradient of the input, and adds those of the weight and the bias to what they are. May follow forward any
  /// number of times; `x` is what forward was given.
  /// Shapes: grad_y [..., out], x [..., in] of rank 1 to 4 -> [..., in]. Types: sums in float, for double in double.
  /// Errors: shapes that do not fit, views whose rows do not lie equally far apart, a layer that check_trainable refuses.
  template <detail::TensorOfElement<T> G, detail::TensorOfElement<T> X>
  [[nodiscard]] Tensor<T, X::NumDimensions> backward(const G& grad_y, const X& x) {
    auto grad_x = detail::make_tensor<T, X::NumDimensions>(detail::shape_of(x));
    backward_into(grad_x, grad_y, x);
    return grad_x;
  }
  /// The same, written into a tensor [..., in] of the caller's. Errors: besides, another shape; one that shares memory
  /// with x or grad_y.
  template <class Out, detail::TensorOfElement<T> G, detail::TensorOfElement<T> X>
  void backward_into(Out&& grad_x, const G& grad_y, const X& x) {
    run_backward<X::NumDimensions>(View<T, X::NumDimensions>(grad_x), grad_y, x, false);
  }
  /// The same, added to what grad_x holds: for an input that several layers read.
  template <class Out, detail::TensorOfElement<T> G, detail::TensorOfElement<T> X>
  void backward_add(Out&& grad_x, const G& grad_y, const X& x) {
    run_backward<X::NumDimensions>(View<T, X::NumDimensions>(grad_x), grad_y, x, true);
  }
  /// Adds the gradients of the weight and the bias alone: for an input that needs none. Errors: as backward.
  template <detail::TensorOfElement<T> G, detail::TensorOfElement<T> X>
  void add_gradients(const G& grad_y, const X& x) {
    run_backward<X::NumDimensions>(View<T, X::NumDimensions>(), grad_y, x, false);
  }
  /// Throws what `backward_into` would, and does nothing else.
  template <class Out, detail::TensorOfElement<T> G, detail::TensorOfElement<T> X>
  void check_backward(Out&& to, const G& of_output, const X& from) const {
    const View<T, X::NumDimensions> grad_x(to);
    const View<const T, X::NumDimensions> grad_y(of_output), x(from);
    check_backward(detail::layout_of("grad_x", grad_x), detail::layout_of("grad_y", grad_y),
                   detail::layout_of("input", x));
  }

  /// The gradient of the weight, [out,in]; 0 until a backward pass has added to it.
  [[nodiscard]] Tensor<Accumulator<T>, 2> weight_gradient() const {
    if (parameters_ && parameters_->weight_gradient.in() > 0) return parameters_->weight_gradient.get();
    auto zeros = detail::make_tensor<Accumulator<T>, 2>({out_features(), in_features()});
    zeros.setZero();
    return zeros;
  }
  /// The gradient of the bias, [out], or an empty tensor.
  [[nodiscard]] Tensor<Accumulator<T>, 1> bias_gradient() const {
    Tensor<Accumulator<T>, 1> result(has_bias() ? out_features() : 0);
    result.setZero();
    if (has_bias()) std::copy(parameters_->bias_gradient.begin(), parameters_->bias_gradient.end(), result.data());
    return result;
  }
  /// Sets all gradients to 0.
  void zero_gradients() {
    if (!parameters_) return;
    std::ranges::fill(parameters_->weight_gradient.elements(), Accumulator<T>{0});
    std::ranges::fill(parameters_->bias_gradient, Accumulator<T>{0});
  }
  /// Throws unless the layer can be trained. Errors: one that was moved from, a weight that is not stored in the layer's own
  /// type.
  void check_trainable(std::string_view fn) const {
    detail::require(parameters_ != nullptr, fn, "layer, expected one with parameters, got one moved from");
    detail::require(
        weight_format() == WeightFormat::native, fn,
        "weight, expected one in the layer's own type to train it (store_weights(WeightFormat::native)), got ",
        weight_format_name(weight_format()));
  }
  /// The weight and, where there is one, the bias: what an optimiser changes.
  /// Errors: a layer that was moved from, a weight that is not stored in the layer's own type.
  [[nodiscard]] std::vector<Parameter<T>> parameters() {
    make_gradients("Linear::parameters");
    std::vector<Parameter<T>> all{
        Parameter<T>("weight", parameters_->weight.elements(), parameters_->weight_gradient.elements())};
    if (has_bias()) all.emplace_back("bias", parameters_->bias, parameters_->bias_gradient);
    return all;
  }

 private:
  using Stored = kernel::Stored<T>;

  /// Forward with a weight in another format. A pointer, so that programs which store none compile none of it.
  using RunStored = void (*)(const StoredWeight& weight, const kernel::LinearProblem<Stored>& problem, Isa isa);

  struct Parameters {
    Index out, in;
    PackedMatrix<T> weight;                        // empty where it is stored in another format
    StoredWeight stored;                           // empty where it is not
    RunStored run_stored = nullptr;                // what computes with it
    AlignedVector<T> bias;                         // [out], or empty
    PackedMatrix<Accumulator<T>> weight_gradient;  // both empty until they are first needed
    AlignedVector<Accumulator<T>> bias_gradient;

    Parameters(Index out_features, Index in_features, bool has_bias)
        : out(out_features),
          in(in_features),
          weight(out, in),
          bias(has_bias ? static_cast<std::size_t>(out) : 0, T(0)) {}
  };

  /// Draws `count` numbers from (-bound, bound), each `stride` further; four share a call of the generator.
  [[gnu::noinline]] static void draw(Index count, std::array<std::uint32_t, 4> counter,
                                     const std::array<std::uint32_t, 2>& key, double bound, T* to, Index stride) {
    for (Index i = 0; i < count; ++counter[0]) {
      const auto words = philox4x32(counter, key);
      for (std::size_t word = 0; word < 4 && i < count; ++word, ++i)
        to[i * stride] = static_cast<T>(bound * (words[word] * 0x1p-31 - 1.0));
    }
  }

  // The shapes of tensors of any rank, as their layouts: so both are compiled once.

  void check_input(Shape shape, std::string_view fn = "Linear::forward") const {
    detail::require(parameters_ != nullptr, fn, "layer, expected one with parameters, got one moved from");
    detail::require(shape.back() == in_features(), fn, "input, expected a last dimension of ", in_features(), ", got ",
                    shape);
  }
  /// Checks the input, and that the output, or its gradient, has the input's shape but for the last dimension.
  void check_pair(std::string_view fn, const detail::Layout& x, const detail::Layout& y) const {
    check_input(x.shape, fn);
    const std::size_t rank = x.shape.size();
    std::array<Index, max_rank> expected{};
    std::copy_n(x.shape.data(), rank, expected.data());
    expected[rank - 1] = out_features();
    detail::require_shape(fn, y.name, y.shape, detail::as_shape(expected).first(rank));
    detail::require(detail::row_distance(x.shape, x.stride) >= 0 && detail::row_distance(y.shape, y.stride) >= 0, fn,
                    "views, expected packed ones, or rows that lie equally far apart");
  }
  [[gnu::noinline]] void check(const detail::Layout& x, const detail::Layout& y) const {
    check_pair("Linear::forward", x, y);
    detail::require_apart("Linear::forward", y, x);
  }
  [[gnu::noinline]] void run(const T* x, const detail::Layout& x_layout, T* y, const detail::Layout& y_layout) const {
    check(x_layout, y_layout);
    const Index rows = rows_of(x_layout.shape);
    if (rows == 0) return;
    const kernel::LinearProblem<Stored> problem{
        .x = kernel::stored(x),
        .bias = has_bias() ? kernel::stored(std::as_const(*parameters_).bias.data()) : nullptr,
        .y = kernel::stored(y),
        .rows = rows,
        .in = in_features(),
        .out = out_features(),
        .x_row = detail::row_distance(x_layout.shape, x_layout.stride),
        .y_row = detail::row_distance(y_layout.shape, y_layout.stride)};
    const Isa isa = active_isa();
    if (weight_format() != WeightFormat::native)
      return parameters_->run_stored(std::as_const(parameters_->stored), problem, isa);
    const auto* const weight = kernel::stored(std::as_const(*parameters_).weight.data());
    if constexpr (kernel::is_converted<Stored>) {
      const kernel::WeightPart part{.values = reinterpret_cast<const std::byte*>(weight)};
      run_panels(problem, isa,
                 kernel::StoredPanels{.reader = kernel::weight_reader_of<Stored>(isa),
                                      .first = part,
                                      .in = in_features(),
                                      .pairs = active_pairs(isa)});
    } else {
      run_panels(problem, isa, kernel::PlainPanels<T>{.weight = weight, .in = in_features()});
    }
  }
  template <class X, class Panels>
  static void run_panels(const kernel::LinearProblem<X>& problem, Isa isa, const Panels& panels) {
    const kernel::LinearKernels<X> kernels = kernels_of<X>(isa);
    const Index threads{current_executor().concurrency()};
    detail::run_tasks(kernel::LinearTasks<X, Panels>(problem, kernels, panels, threads));
  }
  static void run_stored(const StoredWeight& weight, const kernel::LinearProblem<Stored>& problem, Isa isa);
  void hold(StoredWeight weight);
  void hold_rows(std::string_view fn, WeightFormat format, std::span<const std::byte> rows);
  [[nodiscard]] StoredWeight stored_as(WeightFormat format, std::string_view fn, View<const T, 2> weight) const;
  void check_storable(WeightFormat format, std::string_view fn, View<const T, 2> weight) const;

  template <int Rank>
  void run_backward(View<T, Rank> grad_x, View<const T, Rank> grad_y, View<const T, Rank> x, bool add) {
    static_assert(Rank >= 1 && Rank <= 4, "attn: Linear takes tensors of rank 1 to 4");
    run_backward(grad_x.data(), detail::layout_of("grad_x", grad_x), grad_y.data(), detail::layout_of("grad_y", grad_y),
                 x.data(), detail::layout_of("input", x), add);
  }
  // ---- Backward: in linear_backward.hpp ----

  /// grad_x: without memory where it is not asked for.
  [[gnu::noinline]] void check_backward(const detail::Layout& grad_x, const detail::Layout& grad_y,
                                        const detail::Layout& x) const;
  [[gnu::noinline]] void run_backward(T* grad_x, const detail::Layout& grad_x_layout, const T* grad_y,
                                      const detail::Layout& grad_y_layout, const T* x, const detail::Layout& x_layout,
                                      bool add);
  /// Takes the memory of the gradients, if it has not been taken. Errors: a layer that cannot be trained.
  void make_gradients(std::string_view fn);

  /// What multiplies bfloat16 as it is, where that pays.
  [[nodiscard]] static const kernel::PairArithmetic* active_pairs([[maybe_unused]] Isa isa) {
    if constexpr (std::same_as<T, Eigen::bfloat16>)
      if (bf16_dots(isa)) return &kernel::pair_arithmetic_of(isa);
    return nullptr;
  }
  template <class X>
  [[nodiscard]] static kernel::LinearKernels<X> kernels_of(Isa isa) {
    return {.arithmetic = kernel::arithmetic_of<kernel::AccumulatorOf<X>>(isa), .inputs = kernel::codec_of<X>(isa)};
  }
  /// The rows of a tensor: the product of all dimensions but the last.
  [[nodiscard]] static Index rows_of(Shape shape) {
    Index rows = 1;
    for (const Index size : shape.first(shape.size() - 1)) rows *= size;
    return rows;
  }

  static constexpr std::size_t max_rank = 4;

  std::shared_ptr<Parameters> parameters_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn

#include "linear_backward.hpp"
#include "linear_formats.hpp"
