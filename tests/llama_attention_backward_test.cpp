// LlamaAttention trains: its gradients, its activations, what backward refuses.
#include "module_support.hpp"

#include <optional>
#include <utility>

namespace {

using attn::AdditiveMask;
using attn::Causal;
using attn::Index;
using attn::LlamaAttention;
using attn::LlamaAttentionConfig;
using attn::NoMask;
using attn::Position;
using attn::Tensor;
using attn::View;
using attn_test::cast;
using attn_test::difference;
using attn_test::magnitude;
using attn_test::random_tensor;
using attn_test::same_bits;
using attn_test::to;

LlamaAttentionConfig small() {
  LlamaAttentionConfig config{.hidden_size = 8, .num_attention_heads = 4};
  config.attention_dropout = 0.0, config.projection_dropout = 0.0, config.seed = 7;
  return config;
}
LlamaAttentionConfig with_everything() {
  auto config = small();
  config.attention_dropout = 0.3, config.projection_dropout = 0.2;
  config.num_key_value_heads = 2, config.window = 4;
  config.rotary = attn::RotaryConfig{};
  return config;
}

template <class T>
std::vector<double> all_gradients(LlamaAttention<T>& module) {
  std::vector<double> all;
  for (const auto& parameter : module.parameters())
    for (const auto x : parameter.gradient()) all.push_back(static_cast<double>(x));
  return all;
}

// ---- Central differences ----------------------------------------------------------------------------------------

/// Every gradient of a module in double, to 1e-6 of the largest of its tensor. A fresh module draws the same dropout.
template <class M>
void expect_central_differences(const LlamaAttentionConfig& config, const M& mask, bool tied,
                                Tensor<double, 4>* additive = nullptr) {
  const auto make = [&] {
    LlamaAttention<double> module(config);
    if (tied) module.value().share(module.key());
    return module;
  };
  auto module = make();
  auto x = random_tensor<double, 3>({2, 6, 8}, 1);
  const auto grad_y = random_tensor<double, 3>({2, 6, 8}, 2);
  LlamaAttention<double>::Activations saved;
  const auto y = module.forward(x, mask, saved);
  auto grad_mask = additive != nullptr ? *additive : Tensor<double, 4>();
  const auto grad_x =
      module.backward(grad_y, saved, additive != nullptr ? View<double, 4>(grad_mask) : View<double, 4>());

  const auto sum = [&] {
    auto copy = make();
    auto to_parameters = copy.parameters();
    const auto from = module.parameters();
    for (std::size_t i = 0; i < from.size(); ++i) to_parameters[i].assign(from[i].values());
    const auto output = copy.forward(x, mask);
    return attn_test::weighted_sum(output, grad_y);
  };
  const double at_rest = sum();
  ASSERT_EQ(attn_test::weighted_sum(y, grad_y), at_rest) << "forward with and without activations";
  attn_test::expect_differences("x", x.data(), grad_x.data(), x.size(), sum);
  for (const auto& parameter : module.parameters())
    attn_test::expect_differences(parameter.name(), parameter.values().data(), parameter.gradient().data(),
                                  std::ssize(parameter.values()), sum);
  if (additive != nullptr)
    attn_test::expect_differences("mask", additive->data(), grad_mask.data(), additive->size(), sum);
}

TEST(LlamaAttentionBackward, AgreesWithCentralDifferences) {
  expect_central_differences(small(), NoMask{}, false);
  expect_central_differences(with_everything(), Causal{}, false);
  expect_central_differences(with_everything(), attn::as_mask([](Position at) { return (at.key + at.row) % 3 != 0; }),
                             false);
}

TEST(LlamaAttentionBackward, AddsTheGradientsOfTiedKeysAndValues) {
  expect_central_differences(with_everything(), Causal{}, true);
  auto config = with_everything();
  config.rotary = std::nullopt;
  expect_central_differences(config, Causal{}, true);
}

TEST(LlamaAttentionBackward, WritesTheGradientOfAnAdditiveMask) {
  auto bias = random_tensor<double, 4>({1, 4, 6, 6}, 3);
  expect_central_differences(small(), AdditiveMask(bias) & Causal{}, false, &bias);
  auto row = random_tensor<double, 4>({1, 1, 1, 6}, 4);
  expect_central_differences(with_everything(), AdditiveMask(row), false, &row);
}

// ---- Gradients --------------------------------------------------------------------------------------------------

TEST(LlamaAttentionBackward, AddsUpUntilGradientsAreZeroed) {
  LlamaAttention<float> module(small());
  const auto x = random_tensor<float, 3>({2, 6, 8}, 1), grad_y = random_tensor<float, 3>({2, 6, 8}, 2);
  LlamaAttention<float>::Activations saved;
  (void)module.forward(x, Causal{}, saved);
  const auto once_x = module.backward(grad_y, saved);
  const auto once = all_gradients(module);
  EXPECT_TRUE(same_bits(module.backward(grad_y, saved), once_x));
  const auto twice = all_gradients(module);
  for (std::size_t i = 0; i < once.size(); ++i) ASSERT_NEAR(twice[i], 2 * once[i], 1e-6);
  module.zero_gradients();
  for (const double x_ : all_gradients(module)) ASSERT_EQ(x_, 0.0);
}

TEST(LlamaAttentionBackward, SharedModulesHaveOneGradient) {
  LlamaAttention<float> a(small()), b(small());
  b.share(a);
  const auto x = random_tensor<float, 3>({1, 6, 8}, 1), grad_y = random_tensor<float, 3>({1, 6, 8}, 2);
  LlamaAttention<float>::Activations saved;
  (void)a.forward(x, NoMask{}, saved);
  (void)a.backward(grad_y, saved);
  const auto once = all_gradients(a);
  (void)b.backward(grad_y, saved);  // the same projections: the same module to backward
  const auto twice = all_gradients(a);
  for (std::size_t i = 0; i < once.size(); ++i) ASSERT_NEAR(twice[i], 2 * once[i], 1e-6);
}

TEST(LlamaAttentionBackward, ThreadsChangeNoBit) {
  auto config = with_everything();
  config.hidden_size = 96, config.window = 100;
  const auto x = random_tensor<float, 3>({3, 150, 96}, 1), grad_y = random_tensor<float, 3>({3, 150, 96}, 2);
  const auto run = [&](int threads) {
    attn::ThreadPool pool(threads);
    const attn::UseExecutor use(pool);
    LlamaAttention<float> module(config);
    LlamaAttention<float>::Activations saved;
    (void)module.forward(x, Causal{}, saved);
    const auto grad_x = module.backward(grad_y, saved);
    return std::pair(grad_x, all_gradients(module));
  };
  const auto expected = run(1);
  for (const int threads : {2, 3, 5, 16}) {
    const auto got = run(threads);
    EXPECT_TRUE(same_bits(got.first, expected.first)) << threads;
    EXPECT_EQ(got.second, expected.second) << threads;
  }
}

template <class T>
void expect_low_precision_near_float(double bar) {
  auto config = with_everything();
  config.hidden_size = 32;
  LlamaAttention<T> module(config);
  LlamaAttention<float> in_float(config);
  auto from = module.parameters();
  auto parameters = in_float.parameters();
  for (std::size_t i = 0; i < from.size(); ++i)
    for (std::size_t j = 0; j < from[i].values().size(); ++j)
      parameters[i].values()[j] = static_cast<float>(from[i].values()[j]);
  const auto x = random_tensor<T, 3>({2, 20, 32}, 1), grad_y = random_tensor<T, 3>({2, 20, 32}, 2);
  typename LlamaAttention<T>::Activations saved;
  LlamaAttention<float>::Activations saved_float;
  (void)module.forward(x, Causal{}, saved);
  (void)in_float.forward(cast<float>(x), Causal{}, saved_float);
  const auto got = module.backward(grad_y, saved);
  const auto expected = cast<double>(in_float.backward(cast<float>(grad_y), saved_float));
  EXPECT_LT(difference(got, expected).largest, bar * magnitude(expected));
  const auto gradients = all_gradients(module), exact = all_gradients(in_float);
  double largest = 0;
  for (const double g : exact) largest = std::max(largest, std::abs(g));
  for (std::size_t i = 0; i < exact.size(); ++i) ASSERT_NEAR(gradients[i], exact[i], bar * largest);
}
TEST(LlamaAttentionBackward, TrainsHalfAndBfloat16WithGradientsInFloat) {
  expect_low_precision_near_float<Eigen::half>(0.01);
  expect_low_precision_near_float<Eigen::bfloat16>(0.08);
}

// ---- Parameters -------------------------------------------------------------------------------------------------

TEST(LlamaAttentionParameters, AreNamedAndListedOnce) {
  LlamaAttention<float> module(small());
  std::vector<std::string> names;
  for (const auto& parameter : module.parameters()) names.push_back(parameter.name());
  EXPECT_EQ(names, (std::vector<std::string>{"query.weight", "query.bias", "key.weight", "key.bias", "value.weight",
                                             "value.bias", "out_proj.weight", "out_proj.bias"}));
  module.value().share(module.key());
  EXPECT_EQ(module.parameters().size(), 6U);
}

TEST(LlamaAttentionParameters, WhatIsWrittenToValuesIsInUse) {
  LlamaAttention<float> module(small());
  for (attn::Parameter<float>& parameter : module.parameters())
    std::fill(parameter.values().begin(), parameter.values().end(), 0.F);
  const auto y = module.forward(random_tensor<float, 3>({1, 3, 8}, 1));
  for (Index i = 0; i < y.size(); ++i) EXPECT_EQ(y.data()[i], 0.F);
}

// ---- Activations ------------------------------------------------------------------------------------------------

TEST(LlamaActivations, OutliveTheInputAndMove) {
  LlamaAttention<float> module(small());
  const auto x = random_tensor<float, 3>({2, 6, 8}, 1), grad_y = random_tensor<float, 3>({2, 6, 8}, 2);
  LlamaAttention<float>::Activations saved;
  EXPECT_TRUE(saved.empty());
  {
    auto input = x;
    (void)module.forward(input, Causal{}, saved);
    input.setZero();
  }
  const auto expected = module.backward(grad_y, saved);
  auto moved = std::move(saved);
  EXPECT_TRUE(saved.empty());  // NOLINT: what a moved one is like is part of its promise
  EXPECT_FALSE(moved.empty());
  const LlamaAttention<float> copy = module;
  auto owner = std::move(module);
  EXPECT_TRUE(same_bits(owner.backward(grad_y, moved), expected));
}

TEST(LlamaActivations, ServeCallsOfEverySizeAndMask) {
  LlamaAttention<float> module(small());
  LlamaAttention<float>::Activations reused;
  for (const Index S : {6, 2, 9, 9}) {
    const auto x = random_tensor<float, 3>({2, S, 8}, 1), grad_y = random_tensor<float, 3>({2, S, 8}, 2);
    LlamaAttention<float>::Activations fresh;
    const auto check = [&](const auto& mask) {
      (void)module.forward(x, mask, reused);
      (void)module.forward(x, mask, fresh);
      EXPECT_TRUE(same_bits(module.backward(grad_y, reused), module.backward(grad_y, fresh)));
    };
    check(Causal{});
    check(attn::as_mask([kept = std::vector<int>{0, 1, 2}](Position at) { return at.key <= kept[1] + at.row; }));
    check(NoMask{});
  }
}

// ---- Errors -----------------------------------------------------------------------------------------------------

struct BadBackward : testing::Test {
  LlamaAttention<float> module{small()};
  Tensor<float, 3> x = random_tensor<float, 3>({2, 6, 8}, 1), grad_y = random_tensor<float, 3>({2, 6, 8}, 2);
  LlamaAttention<float>::Activations saved;
  const std::string fn = "[attn::LlamaAttention::backward] ";

  template <class Call>
  std::string message_of(const Call& call) {
    const auto before = all_gradients(module);
    std::string message = "no error";
    try {
      call();
    } catch (const attn::Error& error) {
      message = error.what();
    }
    EXPECT_EQ(all_gradients(module), before);
    return message;
  }
};

TEST_F(BadBackward, BeforeForward) {
  EXPECT_EQ(message_of([&] { (void)module.backward(grad_y, saved); }),
            fn + "activations, expected those of a forward call that succeeded, got none");
}

TEST_F(BadBackward, AfterAForwardThatFailed) {
  (void)module.forward(x, NoMask{}, saved);
  const auto wrong = random_tensor<float, 3>({2, 6, 9}, 1);
  EXPECT_THROW((void)module.forward(wrong, NoMask{}, saved), attn::Error);
  EXPECT_EQ(message_of([&] { (void)module.backward(grad_y, saved); }),
            fn + "activations, expected those of a forward call that succeeded, got none");
}

TEST_F(BadBackward, OfAnotherModule) {
  LlamaAttention<float> other(small());
  (void)other.forward(x, NoMask{}, saved);
  EXPECT_EQ(message_of([&] { (void)module.backward(grad_y, saved); }),
            fn + "activations, expected those of a forward call of this module, got those of other projections");
}

TEST_F(BadBackward, OfAnotherShape) {
  (void)module.forward(x, NoMask{}, saved);
  const auto wrong = random_tensor<float, 3>({2, 5, 8}, 2);
  EXPECT_EQ(message_of([&] { (void)module.backward(wrong, saved); }),
            fn + "grad_y [B,S,E], expected [2,6,8], got [2,5,8]");
}

TEST_F(BadBackward, MaskGradientWithoutATensor) {
  (void)module.forward(x, Causal{}, saved);
  Tensor<float, 4> grad_mask(1, 1, 6, 6);
  EXPECT_EQ(message_of([&] { (void)module.backward(grad_y, saved, grad_mask); }),
            fn + "grad_mask, expected a mask with one additive tensor, got 0 of them");
}

TEST_F(BadBackward, MaskGradientOfAnotherShape) {
  const auto bias = random_tensor<float, 2>({6, 6}, 3);
  (void)module.forward(x, AdditiveMask(bias), saved);
  Tensor<float, 4> grad_mask(1, 4, 6, 6);
  EXPECT_EQ(message_of([&] { (void)module.backward(grad_y, saved, grad_mask); }),
            fn + "grad_mask, expected [1,1,6,6], got [1,4,6,6]");
}

}  // namespace
