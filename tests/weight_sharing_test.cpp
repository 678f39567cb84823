#include "module_support.hpp"

#include <optional>

namespace {

using attn::Index;
using attn::Linear;
using attn::LlamaAttention;
using attn::LlamaAttentionConfig;
using attn::Tensor;
using attn_test::expect_error;
using attn_test::max_difference;
using attn_test::plain_module;
using attn_test::random_tensor;
using attn_test::same_bits;

// ---- Linear ----

TEST(SharedLinear, ShowsAChangeMadeThroughEither) {
  Linear<float> a(6, 5, true, 1), b(6, 5, true, 2);
  b.share(a);
  EXPECT_TRUE(a.shares_with(b) && b.shares_with(a));
  EXPECT_TRUE(same_bits(a.weight(), b.weight()));
  const auto weight = random_tensor<float, 2>({5, 6}, 3), other = random_tensor<float, 2>({5, 6}, 4);
  const auto bias = random_tensor<float, 1>({5}, 5);
  a.set_weight(weight);
  EXPECT_TRUE(same_bits(b.weight(), weight));
  b.set_weight(other);
  b.set_bias(bias);
  EXPECT_TRUE(same_bits(a.weight(), other));
  EXPECT_TRUE(same_bits(a.bias(), bias));
  const auto x = random_tensor<float, 2>({3, 6}, 6);
  EXPECT_TRUE(same_bits(a(x), b(x)));
}

TEST(SharedLinear, OutlivesTheLayerItCameFrom) {
  Linear<float> b(6, 5, true, 2);
  std::optional<Linear<float>> a(std::in_place, 6, 5, true, 1);
  const auto weight = a->weight();
  b.share(*a);
  a.reset();
  EXPECT_TRUE(same_bits(b.weight(), weight));
}

TEST(SharedLinear, HasIndependentCopies) {
  Linear<float> a(6, 5, true, 1), b(6, 5, true, 2);
  b.share(a);
  const Linear<float> copy = b;
  EXPECT_FALSE(copy.shares_with(a) || copy.shares_with(b));
  const auto weight = copy.weight();
  a.set_weight(random_tensor<float, 2>({5, 6}, 3));
  EXPECT_TRUE(same_bits(copy.weight(), weight));
}

TEST(SharedLinear, IsRefusedForAnotherShape) {
  Linear<float> a(6, 5), b(5, 6);
  expect_error([&] { a.share(b); }, {"[attn::Linear::share]", "6 in and 5 out", "got 5 in and 6 out"});
  EXPECT_FALSE(a.shares_with(b));
}

// ---- Two modules ----

LlamaAttention<float> evaluating(LlamaAttentionConfig config) {
  config.hidden_size = 24;
  config.num_attention_heads = 4;
  LlamaAttention<float> module(config);
  module.eval();
  return module;
}

TEST(SharedModules, GiveTheSameAlsoAfterAChange) {
  auto a = evaluating({.seed = 1}), b = evaluating({.seed = 2});
  const auto x = random_tensor<float, 3>({2, 7, 24}, 3);
  EXPECT_FALSE(same_bits(a.forward(x), b.forward(x)));
  b.share(a);
  const auto before = a.forward(x);
  EXPECT_TRUE(same_bits(b.forward(x), before));
  a.out_proj().set_weight(random_tensor<float, 2>({24, 24}, 4));
  b.query().set_weight(random_tensor<float, 2>({24, 24}, 5));
  EXPECT_FALSE(same_bits(a.forward(x), before));
  EXPECT_TRUE(same_bits(a.forward(x), b.forward(x)));
}

TEST(SharedModules, ShareAllFourProjections) {
  auto a = evaluating({.seed = 1}), b = evaluating({.seed = 2});
  b.share(a);
  EXPECT_TRUE(a.query().shares_with(b.query()) && a.key().shares_with(b.key()));
  EXPECT_TRUE(a.value().shares_with(b.value()) && a.out_proj().shares_with(b.out_proj()));
  EXPECT_FALSE(a.query().shares_with(b.key()));
}

TEST(SharedModules, KeepTheirOwnMode) {
  auto a = evaluating({.seed = 1}), b = evaluating({.seed = 2});
  b.train();
  b.share(a);
  EXPECT_TRUE(b.is_training());
  EXPECT_FALSE(a.is_training());
}

TEST(SharedModules, AreRefusedForDifferentSizesAndUnchanged) {
  auto a = evaluating({.seed = 1}), grouped = evaluating({.num_key_value_heads = 2, .seed = 2});
  const auto x = random_tensor<float, 3>({2, 7, 24}, 3);
  const auto before = a.forward(x);
  expect_error([&] { a.share(grouped); }, {"[attn::LlamaAttention::share]", "[24,4,4,6]", "got ", "[24,4,2,6]"});
  EXPECT_TRUE(same_bits(a.forward(x), before));
  EXPECT_FALSE(a.query().shares_with(grouped.query()));
}

TEST(SharedModules, HaveIndependentCopies) {
  auto a = evaluating({.seed = 1}), b = evaluating({.seed = 2});
  b.share(a);
  const LlamaAttention<float> copy = b;
  const auto x = random_tensor<float, 3>({2, 7, 24}, 3);
  const auto before = copy.forward(x);
  EXPECT_TRUE(same_bits(a.forward(x), before));
  a.key().set_weight(random_tensor<float, 2>({24, 24}, 4));
  EXPECT_TRUE(same_bits(copy.forward(x), before));
}

TEST(CopiedModule, KeepsModeAndSeedAndIsIndependent) {
  LlamaAttention<float> a({.hidden_size = 24, .num_attention_heads = 4, .seed = 1});
  const auto x = random_tensor<float, 3>({2, 7, 24}, 3);
  (void)a.forward(x);
  LlamaAttention<float> copy = a, assigned(8, 1);
  assigned = a;
  const auto y = a.forward(x);
  EXPECT_TRUE(same_bits(copy.forward(x), y));
  EXPECT_TRUE(same_bits(assigned.forward(x), y));
  a.eval();
  EXPECT_TRUE(copy.is_training());
  a.query().set_weight(random_tensor<float, 2>({24, 24}, 4));
  EXPECT_FALSE(same_bits(copy.query().weight(), a.query().weight()));
}

TEST(MovedModule, GivesTheSame) {
  auto a = evaluating({.rotary = attn::RotaryConfig{}});
  const auto x = random_tensor<float, 3>({2, 7, 24}, 3);
  const auto y = a.forward(x);
  LlamaAttention<float> moved = std::move(a);
  EXPECT_TRUE(same_bits(moved.forward(x), y));
}

// ---- Key and value of one module ----

class TiedKeyAndValue : public testing::TestWithParam<bool> {
 protected:
  /// A module whose value is tied to its key, and one that holds the same numbers twice.
  TiedKeyAndValue() {
    const LlamaAttentionConfig config{
        .num_key_value_heads = 2, .rotary = GetParam() ? std::optional(attn::RotaryConfig{}) : std::nullopt, .seed = 1};
    tied = evaluating(config);
    twice = evaluating(config);
    tied->value().share(tied->key());
    twice->value().set_weight(twice->key().weight());
    twice->value().set_bias(twice->key().bias());
  }
  std::optional<LlamaAttention<float>> tied, twice;
  Tensor<float, 3> x = random_tensor<float, 3>({2, 9, 24}, 3);
};
INSTANTIATE_TEST_SUITE_P(Rotary, TiedKeyAndValue, testing::Bool(),
                         [](const auto& test) { return test.param ? "On" : "Off"; });

// With rotary, keys are rotated and values must not be.
TEST_P(TiedKeyAndValue, GivesTheSameAsTwoEqualLayers) {
  EXPECT_TRUE(same_bits(tied->forward(x), twice->forward(x)));
  EXPECT_LE(max_difference(tied->forward(x), plain_module<double>(*tied, x)), 1e-6);
}

TEST_P(TiedKeyAndValue, GivesTheSameWithACache) {
  auto cache = tied->make_cache(2, 9);
  const auto first = tied->forward(attn_test::rows_of(x, 0, 6), attn::Causal{}, cache);
  const auto second = tied->forward(attn_test::rows_of(x, 6, 3), attn::Causal{}, cache);
  const auto expected = twice->forward(x, attn::Causal{});
  EXPECT_LE(max_difference(first, attn_test::rows_of(expected, 0, 6)), 1e-6);
  EXPECT_LE(max_difference(second, attn_test::rows_of(expected, 6, 3)), 1e-6);
}

TEST_P(TiedKeyAndValue, ShowsAChangeInBoth) {
  const auto weight = random_tensor<float, 2>({12, 24}, 4);
  tied->key().set_weight(weight);
  EXPECT_TRUE(same_bits(tied->value().weight(), weight));
}

TEST_P(TiedKeyAndValue, StaysTiedInAnIndependentCopy) {
  LlamaAttention<float> copy = *tied;
  EXPECT_TRUE(copy.value().shares_with(copy.key()));
  EXPECT_FALSE(copy.key().shares_with(tied->key()));
  EXPECT_TRUE(same_bits(copy.forward(x), tied->forward(x)));
}

TEST_P(TiedKeyAndValue, BecomesTiedOrUntiedByShare) {
  LlamaAttention<float> other = *twice;
  other.share(*tied);
  EXPECT_TRUE(other.value().shares_with(other.key()));
  other.share(*twice);
  EXPECT_FALSE(other.value().shares_with(other.key()));
}

// "What shared parameters within it still does", whichever projections those are.
TEST(CopiedModule, KeepsEveryTie) {
  auto a = evaluating({});
  a.key().share(a.query());
  a.out_proj().share(a.query());
  LlamaAttention<float> copy = a;
  EXPECT_TRUE(copy.key().shares_with(copy.query()));
  EXPECT_TRUE(copy.out_proj().shares_with(copy.query()));
  EXPECT_FALSE(copy.value().shares_with(copy.query()));
  EXPECT_FALSE(copy.query().shares_with(a.query()));
}

}  // namespace
