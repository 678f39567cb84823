// LlamaAttention in training mode: its dropouts and its seeds.
#include "module_support.hpp"

#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>

namespace {

using attn::Causal;
using attn::Index;
using attn::LlamaAttention;
using attn::LlamaAttentionConfig;
using attn_test::largest;
using attn_test::max_difference;
using attn_test::plain_module;
using attn_test::random_tensor;
using attn_test::same_bits;

// ---- Training ----

TEST(LlamaAttention, IsInTrainingModeWhenNew) {
  LlamaAttention<float> module(24, 3, 0.5);
  const auto x = random_tensor<float, 3>({2, 5, 24}, 1);
  EXPECT_TRUE(module.is_training());
  EXPECT_GT(max_difference(module.forward(x), plain_module<double>(module, x)), 1e-2);
  module.eval();
  EXPECT_FALSE(module.is_training());
  EXPECT_LE(max_difference(module.forward(x), plain_module<double>(module, x)), 1e-5);
  module.train();
  EXPECT_TRUE(module.is_training());
}

TEST(LlamaAttention, IsDeterministicInEvaluation) {
  LlamaAttention<float> module(24, 3, 0.5);
  module.eval();
  const auto x = random_tensor<float, 3>({2, 5, 24}, 1);
  EXPECT_TRUE(same_bits(module.forward(x), module.forward(x)));
}

TEST(LlamaAttention, TrainingIsRandomAndReproducibleBySeed) {
  const LlamaAttentionConfig config{.hidden_size = 24, .num_attention_heads = 3, .seed = 5};
  const LlamaAttention<float> a(config), same(config);
  LlamaAttentionConfig other_config = config;
  other_config.seed = 6;
  LlamaAttention<float> other(other_config);
  other.share(a);
  const auto x = random_tensor<float, 3>({2, 5, 24}, 1);
  const auto first = a.forward(x), second = a.forward(x);
  EXPECT_FALSE(same_bits(first, second));
  EXPECT_TRUE(same_bits(same.forward(x), first));
  EXPECT_TRUE(same_bits(same.forward(x), second));
  EXPECT_FALSE(same_bits(other.forward(x), first));
}

TEST(LlamaAttention, ProjectionDropoutActsOnTheOutputAlone) {
  LlamaAttention<float> module(
      {.hidden_size = 24, .num_attention_heads = 3, .attention_dropout = 0.0, .projection_dropout = 0.5});
  const auto x = random_tensor<float, 3>({4, 50, 24}, 1);
  const auto y = module.forward(x);
  module.eval();
  const auto expected = module.forward(x);
  int dropped = 0;
  for (Index i = 0; i < y.size(); ++i) {
    dropped += y.data()[i] == 0.F;
    EXPECT_EQ(y.data()[i], y.data()[i] == 0.F ? 0.F : 2.F * expected.data()[i]);
  }
  EXPECT_NEAR(dropped, 2400, 5 * 35);
}

TEST(LlamaAttention, AttentionDropoutActsOnTheWeightsAlone) {
  LlamaAttention<float> module(
      {.hidden_size = 24, .num_attention_heads = 3, .attention_dropout = 0.25, .projection_dropout = 0.0});
  const auto x = random_tensor<float, 3>({2, 40, 24}, 1);
  const auto [output, weights] = module.forward_with_weights(x, Causal{});
  module.eval();
  const auto plain = module.forward_with_weights(x, Causal{}).weights;
  int dropped = 0, live = 0;
  for (Index i = 0; i < weights.size(); ++i) {
    if (plain.data()[i] == 0.F) {
      EXPECT_EQ(weights.data()[i], 0.F);
      continue;
    }
    ++live;
    dropped += weights.data()[i] == 0.F;
    if (weights.data()[i] != 0.F) {
      EXPECT_NEAR(weights.data()[i], plain.data()[i] / 0.75F, 2e-7F);
    }
  }
  EXPECT_NEAR(dropped, 0.25 * live, 5 * std::sqrt(0.1875 * live));

  // The output is what these very weights make of the values.
  const auto v = attn_test::plain_linear<double>(module.value(), attn_test::cast<double>(x));
  auto context = attn_test::filled<double, 3>({2, 40, 24}, 0.0);
  for (Index b = 0; b < 2; ++b)
    for (Index s = 0; s < 40; ++s)
      for (Index e = 0; e < 24; ++e)
        for (Index t = 0; t < 40; ++t) context(b, s, e) += static_cast<double>(weights(b, e / 8, s, t)) * v(b, t, e);
  EXPECT_LE(max_difference(output, attn_test::plain_linear<double>(module.out_proj(), context)), 2e-6);
}

TEST(LlamaAttention, AttentionDropoutDropsOtherWeightsInEveryCall) {
  const LlamaAttentionConfig config{
      .hidden_size = 24, .num_attention_heads = 3, .attention_dropout = 0.5, .projection_dropout = 0.0, .seed = 5};
  const LlamaAttention<float> module(config), same(config);
  const auto x = random_tensor<float, 3>({2, 40, 24}, 1);
  const auto first = module.forward_with_weights(x).weights, second = module.forward_with_weights(x).weights;
  int dropped = 0, dropped_in_both = 0;
  for (Index i = 0; i < first.size(); ++i) {
    if (first.data()[i] != 0.F) continue;
    ++dropped;
    dropped_in_both += second.data()[i] == 0.F;
  }
  EXPECT_NEAR(dropped_in_both, 0.5 * dropped, 5 * std::sqrt(0.25 * dropped));
  EXPECT_TRUE(same_bits(same.forward_with_weights(x).weights, first));
  EXPECT_TRUE(same_bits(same.forward_with_weights(x).weights, second));

  // Without weights, and with a query or two: other paths through the kernels count the same calls.
  for (const Index rows : {40, 2}) {
    const LlamaAttention<float> fresh(config);
    const auto part = attn_test::rows_of(x, 0, rows);
    EXPECT_GT(max_difference(fresh.forward(part), fresh.forward(part)), 1e-3);
  }
}

// With the same random numbers for both, their first rows would drop the same elements.
TEST(LlamaAttention, TwoDropoutsDropIndependently) {
  constexpr Index n = 512;
  const LlamaAttention<float> module(
      {.hidden_size = n, .num_attention_heads = 1, .attention_dropout = 0.5, .projection_dropout = 0.5, .seed = 5});
  const auto [output, weights] = module.forward_with_weights(random_tensor<float, 3>({1, n, n}, 1));
  int dropped = 0, dropped_in_both = 0;
  for (Index i = 0; i < n; ++i) {
    if (weights(0, 0, 0, i) != 0.F) continue;
    ++dropped;
    dropped_in_both += output(0, 0, i) == 0.F;
  }
  EXPECT_NEAR(dropped_in_both, 0.5 * dropped, 5 * std::sqrt(0.25 * dropped));
}

TEST(LlamaAttention, DropoutOfOneLeavesNothing) {
  const auto x = random_tensor<float, 3>({1, 5, 24}, 1);
  EXPECT_EQ(largest(LlamaAttention<float>(24, 3, 1.0).forward(x)), 0.0);
  const LlamaAttention<float> module(
      {.hidden_size = 24, .num_attention_heads = 3, .attention_dropout = 1.0, .projection_dropout = 0.0});
  const auto y = module.forward(x);
  const auto bias = module.out_proj().bias();
  for (Index e = 0; e < 24; ++e) EXPECT_EQ(y(0, 4, e), bias(e));
}

// ---- Seeds ----

TEST(LlamaAttention, WithoutASeedDrawsWeightsOfItsOwn) {
  const LlamaAttention<float> a(24, 3, 0.5), b(24, 3, 0.5);
  EXPECT_FALSE(same_bits(a.query().weight(), b.query().weight()));
  EXPECT_FALSE(same_bits(a.out_proj().bias(), b.out_proj().bias()));
  EXPECT_FALSE(a.config().seed.has_value());
}

/// Which elements of the output a module drops, and which weights.
std::string dropped(const LlamaAttention<float>& module) {
  const auto x = random_tensor<float, 3>({2, 9, 24}, 1);
  const auto [output, weights] = module.forward_with_weights(x);
  std::string text;
  for (Index i = 0; i < output.size(); ++i) text += output.data()[i] == 0.F ? '0' : '1';
  text += ' ';
  for (Index i = 0; i < weights.size(); ++i) text += weights.data()[i] == 0.F ? '0' : '1';
  return text;
}

TEST(LlamaAttention, CopiesWithoutASeedDropDifferentElements) {
  const LlamaAttention<float> a(24, 3, 0.5), copy = a;
  LlamaAttention<float> assigned(24, 3, 0.5);
  assigned = a;
  const std::vector<LlamaAttention<float>> layers(3, a);
  std::vector<std::string> outputs, weights;
  for (const auto* module : {&a, &copy, &std::as_const(assigned), &layers[0], &layers[1], &layers[2]}) {
    EXPECT_TRUE(same_bits(module->query().weight(), a.query().weight()));
    const std::string text = dropped(*module);
    outputs.push_back(text.substr(0, text.find(' ')));
    weights.push_back(text.substr(text.find(' ')));
  }
  EXPECT_EQ((std::set<std::string>(outputs.begin(), outputs.end()).size()), outputs.size());
  EXPECT_EQ((std::set<std::string>(weights.begin(), weights.end()).size()), weights.size());
}

TEST(LlamaAttention, CopiesKeepAGivenSeed) {
  const LlamaAttention<float> a({.hidden_size = 24, .num_attention_heads = 3, .seed = 0}), copy = a;
  EXPECT_EQ(dropped(copy), dropped(a));
  EXPECT_EQ(copy.config().seed, std::optional<std::uint64_t>(0));
}

TEST(LlamaAttention, WeightsDependOnEveryBitOfTheSeed) {
  const auto weight = [](std::uint64_t seed) {
    return LlamaAttention<float>({.hidden_size = 8, .num_attention_heads = 2, .seed = seed}).query().weight();
  };
  for (const int bit : {0, 1, 31, 32, 60, 61, 62, 63})
    EXPECT_FALSE(same_bits(weight(0), weight(std::uint64_t{1} << bit))) << "bit " << bit;
}

}  // namespace
