// Gradients of attention and of LlamaAttention against PyTorch's autograd.
#include "backward_support.hpp"
#include "torch_support.hpp"

namespace {

using attn::AdditiveMask;
using attn::Causal;
using attn::Index;
using attn::LlamaAttention;
using attn::NoMask;
using attn::NoScore;
using attn::SlidingWindow;
using attn::Tensor;
using attn::View;
using attn_test::Bar;
using attn_test::cast;
using attn_test::difference;
using attn_test::magnitude;
using attn_test::to_tensor;
using attn_test::torch_cases;
using attn_test::TorchCase;
using attn_test::type_name;

template <class T>
class TorchGradients : public testing::Test {};
TYPED_TEST_SUITE(TorchGradients, attn_test::FloatAndDouble);

/// What is allowed besides PyTorch's own error: that of the plain formula in float, or half of what it costs that weights are
/// computed from log-sum-exp, which is rounded to float. PyTorch keeps the weights.
double own_error(const TorchCase& c, const std::string& name, double rounded, double plain = 0.0) {
  return std::max(plain, c.torch_max_error(name) + 0.5 * 0x1p-24 * rounded);
}

/// PyTorch's gradient, at rank 4.
Tensor<double, 4> exact(const TorchCase& c, const std::string& name) {
  const auto tensor = c.tensor(name);
  std::array<Index, 4> shape{1, 1, 1, 1};
  std::copy(tensor.dims.begin(), tensor.dims.end(), shape.end() - std::ssize(tensor.dims));
  return to_tensor<double, 4>(tensor, shape);
}

/// Calls f(mask, score) with those of a case.
template <class T, class Function>
void with_mask_and_score(const TorchCase& c, const Tensor<T, 4>& additive, const Function& f) {
  const auto window = c.param<Index>("window");
  const auto causal =
      attn::as_mask([is = c.param<bool>("causal")](attn::Position at) { return !is || at.key <= at.query; }) &
      (window > 0 ? SlidingWindow(window) : SlidingWindow::unlimited());
  const auto cap = c.param<float>("softcap");
  if (c.param<bool>("bias"))
    f(causal, attn::Chain{attn::ScoreBias(additive), attn::SoftCap(cap)});
  else if (c.has_tensor("mask"))
    f(AdditiveMask(additive) & causal, NoScore{});
  else if (cap > 0)
    f(causal, attn::SoftCap(cap));
  else if (c.param<bool>("alibi"))
    f(causal, attn::Alibi(c.param<Index>("H")));
  else
    f(causal, NoScore{});
}

TYPED_TEST(TorchGradients, AttentionAgrees) {
  using T = TypeParam;
  constexpr bool is_float = std::same_as<T, float>;
  Bar bar(std::string("attention gradients, ") + type_name<T>);
  for (const TorchCase& c : torch_cases("attention_gradient")) {
    const auto q = to_tensor<T, 4>(c.tensor("q")), k = to_tensor<T, 4>(c.tensor("k")),
               v = to_tensor<T, 4>(c.tensor("v"));
    const auto grad = to_tensor<T, 4>(c.tensor("grad"));
    const auto additive = c.has_tensor("mask") ? cast<T>(exact(c, "mask")) : Tensor<T, 4>(1, 1, 1, 1);
    with_mask_and_score(c, additive, [&](const auto& mask, const auto& score) {
      attn::AttentionOptions options;
      options.log_sum_exp = true;
      const auto result = attn::scaled_dot_product_attention(q, k, v, mask, score, options);
      options.score_bias_gradient = c.param<bool>("bias");
      options.mask_gradient = !options.score_bias_gradient && c.has_tensor("grad_mask");
      const auto got = attn::scaled_dot_product_attention_backward(grad, q, k, v, result, mask, score, options);
      const attn_test::Inputs<T> in{{}, q, k, v};
      const auto plain = attn_test::gradients_by_reference(in, {grad, {}}, mask, score, options);
      const auto check = [&](const auto& ours, const Tensor<double, 4>& by_formula, const std::string& name) {
        const auto theirs = exact(c, name);
        // A mask that adds the same to all scores of a query has no gradient: what is left is rounding.
        const double rounded = magnitude(theirs) * magnitude(cast<double>(result.log_sum_exp));
        if (magnitude(theirs) > 1e-13)
          bar.expect(c, ours, theirs, name, own_error(c, name, rounded, difference(by_formula, theirs).largest));
        else
          EXPECT_LT(magnitude(cast<double>(ours)), is_float ? 1e-6 : 1e-14) << c << ", " << name;
      };
      check(got.q, plain.q, "grad_q");
      check(got.k, plain.k, "grad_k");
      check(got.v, plain.v, "grad_v");
      if (options.mask_gradient) check(got.mask, plain.mask, "grad_mask");
      if (options.score_bias_gradient) check(got.score_bias, plain.score_bias, "grad_mask");
    });
  }
}

/// PyTorch's gradients in float64 judge the formula by itself, in double; the fused gradients are held to it in float.
TEST(TorchGradientsOfTheReference, Agree) {
  Bar bar("attention gradients, the plain formula");
  for (const TorchCase& c : torch_cases("attention_gradient")) {
    const auto read = [&](const char* name) { return to_tensor<double, 4>(c.tensor(name)); };
    const attn_test::Inputs<double> in{{}, read("q"), read("k"), read("v")};
    const auto additive = c.has_tensor("mask") ? exact(c, "mask") : Tensor<double, 4>(1, 1, 1, 1);
    with_mask_and_score(c, additive, [&](const auto& mask, const auto& score) {
      attn::AttentionOptions options;
      options.score_bias_gradient = c.param<bool>("bias");
      options.mask_gradient = !options.score_bias_gradient && c.has_tensor("grad_mask");
      const auto got = attn_test::gradients_by_reference(in, {read("grad"), {}}, mask, score, options);
      const auto check = [&](const Tensor<double, 4>& ours, const std::string& name) {
        const auto theirs = exact(c, name);
        if (magnitude(theirs) > 1e-13)
          bar.expect(c, ours, theirs, name);
        else
          EXPECT_LT(magnitude(ours), 1e-14) << c << ", " << name;  // 0 but for rounding
      };
      check(got.q, "grad_q");
      check(got.k, "grad_k");
      check(got.v, "grad_v");
      if (options.mask_gradient) check(got.mask, "grad_mask");
      if (options.score_bias_gradient) check(got.score_bias, "grad_mask");
    });
  }
}

template <class T>
LlamaAttention<T> trained_module(const TorchCase& c) {
  attn::LlamaAttentionConfig config{.hidden_size = c.param<Index>("E"), .num_attention_heads = c.param<Index>("H")};
  config.num_key_value_heads = c.param<Index>("G");
  config.attention_dropout = config.projection_dropout = 0.0;
  if (c.param<bool>("rotary")) config.rotary = attn::RotaryConfig{};
  LlamaAttention<T> module(config);
  if (c.param<bool>("tied")) module.value().share(module.key());
  const auto set = [&](attn::Linear<T>& layer, const std::string& letter) {
    if (!c.has_tensor("w" + letter)) return;  // tied
    layer.set_weight(to_tensor<T, 2>(c.tensor("w" + letter)));
    layer.set_bias(to_tensor<T, 1>(c.tensor("b" + letter)));
  };
  set(module.query(), "q");
  set(module.key(), "k");
  set(module.value(), "v");
  set(module.out_proj(), "o");
  return module;
}

TYPED_TEST(TorchGradients, LlamaAttentionAgrees) {
  using T = TypeParam;
  Bar bar(std::string("module gradients, ") + type_name<T>);
  for (const TorchCase& c : torch_cases("module_gradient")) {
    if (std::same_as<T, double> && c.param<bool>("rotary")) continue;  // attn's angles are float32 for every scalar
    auto module = trained_module<T>(c);
    const auto x = to_tensor<T, 3>(c.tensor("x")), grad_y = to_tensor<T, 3>(c.tensor("grad"));
    typename LlamaAttention<T>::Activations saved;
    const bool masked = c.has_tensor("mask");
    const auto additive = masked ? cast<T>(exact(c, "mask")) : Tensor<T, 4>(1, 1, 1, 1);
    Tensor<attn::Accumulator<T>, 4> grad_mask;
    Tensor<T, 3> grad_x;
    if (masked) {
      (void)module.forward(x, AdditiveMask(additive), saved);
      grad_mask = Tensor<attn::Accumulator<T>, 4>(additive.dimensions());
      grad_x = module.backward(grad_y, saved, grad_mask);
      bar.expect(c, grad_mask, exact(c, "grad_mask"), "grad_mask");
    } else if (c.param<bool>("causal")) {
      (void)module.forward(x, Causal{}, saved);
      grad_x = module.backward(grad_y, saved);
    } else {
      (void)module.forward(x, NoMask{}, saved);
      grad_x = module.backward(grad_y, saved);
    }
    const auto expect = [&](const auto& ours, const auto& theirs, const std::string& name) {
      bar.expect(c, ours, theirs, name, own_error(c, name, 4.0 * magnitude(theirs)));  // log-sum-exp is about 4
    };
    expect(grad_x, to_tensor<double, 3>(c.tensor("grad_x")), "grad_x");
    const auto check = [&](const attn::Linear<T>& layer, const std::string& letter) {
      if (!c.has_tensor("grad_w" + letter)) return;
      expect(layer.weight_gradient(), to_tensor<double, 2>(c.tensor("grad_w" + letter)), "grad_w" + letter);
      // Without rotary a key's bias adds the same to all scores of a query: both gradients are 0 but for rounding.
      if (letter != "k" || c.param<bool>("rotary") || c.param<bool>("tied"))
        expect(layer.bias_gradient(), to_tensor<double, 1>(c.tensor("grad_b" + letter)), "grad_b" + letter);
    };
    check(module.query(), "q");
    check(module.key(), "k");
    check(module.value(), "v");
    check(module.out_proj(), "o");
  }
}

}  // namespace
