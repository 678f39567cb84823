// What the tests against PyTorch share: its tensors as attn's, modules with its weights, and the bar.
#pragma once

#include "module_support.hpp"
#include "torch_cases.hpp"

#include <cmath>
#include <cstdio>
#include <sstream>

namespace attn_test {

template <class T, int Rank>
[[nodiscard]] Tensor<T, Rank> to_tensor(const TorchTensor& from,
                                        std::type_identity_t<std::array<Index, std::size_t{Rank}>> shape) {
  auto result = attn::detail::make_tensor<T, Rank>(shape);
  EXPECT_EQ(static_cast<std::size_t>(result.size()), from.values.size());
  for (Index i = 0; i < result.size(); ++i) result.data()[i] = static_cast<T>(from.values[static_cast<std::size_t>(i)]);
  return result;
}
template <class T, int Rank>
[[nodiscard]] Tensor<T, Rank> to_tensor(const TorchTensor& from) {
  std::array<Index, std::size_t{Rank}> shape{};
  EXPECT_EQ(from.dims.size(), shape.size());
  for (std::size_t axis = 0; axis < std::min(shape.size(), from.dims.size()); ++axis) shape[axis] = from.dims[axis];
  return to_tensor<T, Rank>(from, shape);
}

/// LlamaAttention with the weights of a case of kind module or mha, in evaluation mode.
template <class T>
[[nodiscard]] attn::LlamaAttention<T> module_of(const TorchCase& c) {
  attn::LlamaAttention<T> module(
      {.hidden_size = c.param<Index>("E"), .num_attention_heads = c.param<Index>("H"), .bias = c.has_tensor("bq")});
  module.eval();
  const auto set = [&](attn::Linear<T>& layer, const std::string& letter) {
    layer.set_weight(to_tensor<T, 2>(c.tensor("w" + letter)));
    if (layer.has_bias()) layer.set_bias(to_tensor<T, 1>(c.tensor("b" + letter)));
  };
  set(module.query(), "q");
  set(module.key(), "k");
  set(module.value(), "v");
  set(module.out_proj(), "o");
  return module;
}

/// Calls f with the tensor `name` of a case as a Tensor<T, 2>, <T, 3> or <T, 4>.
template <class T, class F>
void with_mask(const TorchCase& c, const std::string& name, const F& f) {
  const TorchTensor mask = c.tensor(name);
  if (mask.dims.size() == 2)
    f(to_tensor<T, 2>(mask));
  else if (mask.dims.size() == 3)
    f(to_tensor<T, 3>(mask));
  else
    f(to_tensor<T, 4>(mask));
}

/// The bar for float, over all cases of a kind: our largest error against PyTorch's float64 result is at most twice
/// that of PyTorch's own float32. Where PyTorch is exact or all but, 1 ulp of the largest output is allowed (of the
/// log-sum-exp 2: it is the sum of two numbers that are each rounded). PyTorch's error is one draw of luck: where a
/// result has torch_reordered_max_error (the worst of nine orders of the same sums), or a test gives the error of the
/// plain formula in float instead, and it misses the literal bar, it is counted, and held to twice that. What was found
/// is printed and recorded.
class Bar {
 public:
  explicit Bar(std::string name) : name_(std::move(name)) {}
  Bar(const Bar&) = delete;
  Bar& operator=(const Bar&) = delete;

  template <class T, int Rank>
  void expect(const TorchCase& c, const Tensor<T, Rank>& ours, const Tensor<double, Rank>& theirs,
              const std::string& tensor = "output", double plain = 0.0) {
    const double error = max_difference(ours, theirs), size = magnitude(theirs);
    ++cases_;
    if constexpr (std::same_as<T, double>) {
      ++doubles_;
      worst_double_ = std::max(worst_double_, size > 0.0 ? error / size : 0.0);
      EXPECT_LE(error, 1e-12 * size) << c << ", double, " << tensor;
    } else {
      const double floor =
          (tensor == "lse" ? 2.0 : 1.0) * float_epsilon * std::exp2(std::floor(std::log2(std::max(size, 1e-30))));
      const double torch = c.torch_max_error(tensor);
      const std::string reordered = "torch_reordered_max_error" + (tensor == "output" ? "" : "_" + tensor);
      const double lenient = std::max({torch, plain, c.has_param(reordered) ? c.param<double>(reordered) : 0.0});
      EXPECT_LE(error, std::max(2.0 * lenient, floor)) << c << ", " << tensor << "; PyTorch errs by " << torch;
      ++floats_;
      if (error > 2.0 * torch)
        over_ +=
            " " + c.name() + (tensor == "output" ? "" : "." + tensor) + (error <= floor ? " (within the floor)" : "");
      if (torch > 0.0) update(literal_, literal_case_, error / torch, c);
      if (lenient > 0.0) update(lenient_, lenient_case_, error / lenient, c);
    }
  }

  ~Bar() {
    std::ostringstream text;
    text.precision(3);
    text << cases_ << " results";
    if (doubles_ > 0) text << "; double: worst error " << worst_double_ << " of the largest output";
    if (floats_ > 0)
      text << "; float: worst ratio to PyTorch's own error " << literal_ << " (" << literal_case_
           << "), to the worst order of its sums " << lenient_ << " (" << lenient_case_
           << "); over the literal bar of 2:" << (over_.empty() ? " none" : over_);
    std::printf("[ PyTorch  ] %s: %s\n", name_.c_str(), text.str().c_str());
    testing::Test::RecordProperty(name_, text.str());
  }

 private:
  static void update(double& worst, std::string& where, double ratio, const TorchCase& c) {
    if (ratio > worst) worst = ratio, where = c.name();
  }

  std::string name_, literal_case_, lenient_case_, over_;
  int cases_ = 0, doubles_ = 0, floats_ = 0;
  double literal_ = 0.0, lenient_ = 0.0, worst_double_ = 0.0;
};

/// Float and double, for TYPED_TEST.
using FloatAndDouble = testing::Types<float, double>;
template <class T>
inline constexpr const char* type_name = std::same_as<T, float> ? "float" : "double";

}  // namespace attn_test
