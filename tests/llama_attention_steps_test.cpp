// What LlamaAttention does before and around its steps.
#include "attn/llama_attention.hpp"

#include "module_support.hpp"

namespace {

using attn::Coverage;
using attn::Index;
using attn::LlamaAttention;
using attn::Position;
using attn::Tensor;
using attn::View;
using attn_test::expect_error;
using attn_test::random_tensor;
using attn_test::same_bits;

/// Keeps everything and counts how often it is checked.
struct CountingMask {
  int* checks;

  static bool keep(Position) { return true; }
  static Coverage cover(attn::Block) { return Coverage::full; }
  void check(std::string_view, Index, Index, Index, Index) const { ++*checks; }
};

TEST(LlamaAttentionSteps, CheckAMaskOnce) {
  const LlamaAttention<float> module(16, 2, 0.0);
  const auto x = random_tensor<float, 3>({2, 5, 16}, 1);
  int checks = 0;
  const CountingMask mask{&checks};
  (void)module.forward(x, mask);
  EXPECT_EQ(checks, 1);
  (void)module.forward(x, mask & attn::Causal{});
  EXPECT_EQ(checks, 2);
  (void)module.forward_with_weights(x, mask);
  EXPECT_EQ(checks, 3);
}

TEST(LlamaAttentionSteps, CheckAMaskForTheKeysOfTheCacheToo) {
  const LlamaAttention<float> module(16, 2, 0.0);
  auto cache = module.make_cache(1, 8);
  const auto x = random_tensor<float, 3>({1, 5, 16}, 1);
  (void)module.forward(x, attn::Causal{}, cache);
  const auto fits = random_tensor<float, 2>({1, 6}, 2), short_of_one = random_tensor<float, 2>({1, 5}, 2);
  const auto token = random_tensor<float, 3>({1, 1, 16}, 3);
  expect_error([&] { (void)module.forward(token, short_of_one, cache); },
               {"[attn::LlamaAttention::forward] AdditiveMask", "expected [1,2,1,6]", "got [1,5]"});
  EXPECT_EQ(cache.max_length(), 5);
  (void)module.forward(token, fits, cache);
  EXPECT_EQ(cache.max_length(), 6);
}

TEST(LlamaAttentionSteps, RefuseMoreThan2ToThe30TokensBeforeAnyWork) {
  const LlamaAttention<float> module(1, 1, 0.0);
  float memory = 0.F;  // of a far larger tensor, which must not be read
  const View<float, 3> many(&memory, {1, (Index{1} << 30) + 1, 1});
  expect_error([&] { module.forward_into(many, many); },
               {"[attn::LlamaAttention::forward]", "expected at most 2^30", "got x [1,1073741825,1]"});
}

TEST(LlamaAttentionSteps, TakeAnInputWrittenAsABracedView) {
  const LlamaAttention<float> module(16, 2, 0.0);
  const auto x = random_tensor<float, 3>({1, 5, 16}, 1);
  EXPECT_TRUE(same_bits(module.forward({x.data(), {1, 5, 16}}), module.forward(x)));
}

TEST(LlamaAttentionSteps, DoNotRotateTiedKeysAsValues) {
  const attn::LlamaAttentionConfig config{.hidden_size = 16,
                                          .num_attention_heads = 2,
                                          .attention_dropout = 0.0,
                                          .projection_dropout = 0.0,
                                          .rotary = attn::RotaryConfig{},
                                          .seed = 1};
  LlamaAttention<float> tied(config), equal(config);
  tied.value().share(tied.key());
  equal.value().set_weight(equal.key().weight());
  equal.value().set_bias(equal.key().bias());
  const auto x = random_tensor<float, 3>({2, 5, 16}, 1);
  EXPECT_TRUE(same_bits(tied.forward(x, attn::Causal{}), equal.forward(x, attn::Causal{})));
}

}  // namespace
