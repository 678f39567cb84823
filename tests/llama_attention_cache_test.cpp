// Decoding with a cache: the same tokens, however they are cut into calls, give the same output.
#include "module_support.hpp"

namespace {

using attn::Causal;
using attn::Index;
using attn::KvCache;
using attn::LlamaAttention;
using attn::LlamaAttentionConfig;
using attn::RotaryConfig;
using attn::RotaryLayout;
using attn::Tensor;
using attn_test::expect_error;
using attn_test::max_difference;
using attn_test::random_tensor;
using attn_test::rows_of;
using attn_test::same_bits;
using attn_test::slice;

constexpr Index E = 48;

/// Outputs here are of size 0.1 to 1; a hundred float roundings.
constexpr double close = 1e-6;

LlamaAttention<float> evaluating(LlamaAttentionConfig config) {
  config.hidden_size = E;
  config.seed = 7;
  LlamaAttention<float> module(config);
  module.eval();
  return module;
}

std::vector<LlamaAttentionConfig> configurations() {
  const RotaryConfig interleaved{.layout = RotaryLayout::interleaved};
  return {
      LlamaAttentionConfig{.num_attention_heads = 6},
      LlamaAttentionConfig{.num_attention_heads = 6, .num_key_value_heads = 2, .rotary = RotaryConfig{}},
      LlamaAttentionConfig{.num_attention_heads = 6, .num_key_value_heads = 1, .rotary = interleaved},
      LlamaAttentionConfig{.num_attention_heads = 6, .window = 5},
      LlamaAttentionConfig{
          .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 10, .rotary = RotaryConfig{}, .window = 7}};
}

/// The output of x, fed to a cache in pieces of these lengths.
Tensor<float, 3> in_pieces(const LlamaAttention<float>& module, const Tensor<float, 3>& x,
                           const std::vector<Index>& pieces, KvCache<float>& cache) {
  Tensor<float, 3> y(x.dimension(0), x.dimension(1), E);
  Index at = 0;
  for (const Index n : pieces) {
    const auto part = module.forward(rows_of(x, at, n), Causal{}, cache);
    for (Index b = 0; b < x.dimension(0); ++b)
      for (Index s = 0; s < n; ++s)
        for (Index e = 0; e < E; ++e) y(b, at + s, e) = part(b, s, e);
    at += n;
  }
  return y;
}

/// What a cache shows, bit by bit.
std::vector<float> contents(const KvCache<float>& cache) {
  std::vector<float> all(cache.lengths().begin(), cache.lengths().end());
  for (Index b = 0; b < cache.batch(); ++b)
    for (Index g = 0; g < cache.key_value_heads(); ++g)
      for (Index t = 0; t < cache.length(b); ++t)
        for (Index d = 0; d < cache.head_size(); ++d) {
          all.push_back(cache.keys()(b, g, t, d));
          all.push_back(cache.values()(b, g, t, d));
        }
  return all;
}

TEST(Cache, GivesTheSameHoweverTheTokensAreSplit) {
  for (const LlamaAttentionConfig& config : configurations()) {
    const auto module = evaluating(config);
    const auto x = random_tensor<float, 3>({2, 23, E}, 1);
    const auto expected = module.forward(x, Causal{});
    for (const std::vector<Index>& pieces :
         {std::vector<Index>{23}, std::vector<Index>(23, 1), {10, 13}, {1, 20, 2}, {17, 1, 1, 4}}) {
      auto cache = module.make_cache(2, 23);
      EXPECT_LE(max_difference(in_pieces(module, x, pieces, cache), expected), close) << pieces.size() << " pieces";
      EXPECT_EQ(cache.max_length(), 23);
    }
  }
}

// The keys fill several tiles.
TEST(Cache, GivesTheSameForLongSequences) {
  const auto module = evaluating({.num_attention_heads = 6, .num_key_value_heads = 3, .rotary = RotaryConfig{}});
  const auto x = random_tensor<float, 3>({1, 333, E}, 1);
  auto cache = module.make_cache(1, 400);
  EXPECT_LE(max_difference(in_pieces(module, x, {200, 1, 1, 64, 66, 1}, cache), module.forward(x, Causal{})), close);
}

TEST(Cache, HoldsRotatedKeysAndPlainValues) {
  const auto module = evaluating({.num_attention_heads = 6, .num_key_value_heads = 2, .rotary = RotaryConfig{}});
  const auto x = random_tensor<float, 3>({2, 9, E}, 1);
  auto cache = module.make_cache(2, 9);
  (void)in_pieces(module, x, {4, 5}, cache);
  auto k = attn_test::plain_linear<double>(module.key(), attn_test::cast<double>(x));
  auto v = attn_test::plain_linear<double>(module.value(), attn_test::cast<double>(x));
  const std::array<Index, 2> start{0, 0};
  attn::Rotary(8).apply(attn::split_heads(k, 2), start);
  for (Index b = 0; b < 2; ++b)
    for (Index g = 0; g < 2; ++g)
      for (Index t = 0; t < 9; ++t)
        for (Index d = 0; d < 8; ++d) {
          EXPECT_NEAR(cache.keys()(b, g, t, d), k(b, t, g * 8 + d), close);
          EXPECT_NEAR(cache.values()(b, g, t, d), v(b, t, g * 8 + d), close);
        }
}

TEST(Cache, ForgetsTokensThatAreRolledBack) {
  for (const LlamaAttentionConfig& config : configurations()) {
    const auto module = evaluating(config);
    const auto x = random_tensor<float, 3>({2, 12, E}, 1), wrong = random_tensor<float, 3>({2, 4, E}, 2);
    auto cache = module.make_cache(2, 12), plain = module.make_cache(2, 12);
    const auto expected = in_pieces(module, x, {8, 4}, plain);
    (void)module.forward(rows_of(x, 0, 8), Causal{}, cache);
    (void)module.forward(wrong, Causal{}, cache);
    cache.roll_back(4);
    EXPECT_TRUE(same_bits(module.forward(rows_of(x, 8, 4), Causal{}, cache), rows_of(expected, 8, 4)));
  }
}

// Prompts of unlike length, padded at the right with NaN; the Padding mask and the roll back keep it from everything.
TEST(Cache, GivesEachSequenceOfARaggedBatchItsOwnResult) {
  const std::vector<Index> prompt{5, 11, 1};
  const Index longest = 11, more = 6;
  for (const LlamaAttentionConfig& config : configurations()) {
    const auto module = evaluating(config);
    const auto x = random_tensor<float, 3>({3, longest + more, E}, 1);  // sequence b: its prompt, then `more` tokens
    Tensor<float, 3> padded(3, longest, E), next(3, more, E);
    padded.setConstant(std::numeric_limits<float>::quiet_NaN());
    for (Index b = 0; b < 3; ++b)
      for (Index e = 0; e < E; ++e) {
        const Index n = prompt[static_cast<std::size_t>(b)];
        for (Index s = 0; s < n; ++s) padded(b, s, e) = x(b, s, e);
        for (Index s = 0; s < more; ++s) next(b, s, e) = x(b, n + s, e);
      }

    auto cache = module.make_cache(3, 30);
    const auto of_prompt = module.forward(padded, Causal{} & attn::Padding(prompt), cache);
    for (Index b = 0; b < 3; ++b) cache.roll_back(b, longest - prompt[static_cast<std::size_t>(b)]);
    const auto of_next = in_pieces(module, next, {1, 1, 3, 1}, cache);

    for (Index b = 0; b < 3; ++b) {
      const Index n = prompt[static_cast<std::size_t>(b)];
      const auto alone = module.forward(slice(x, b, 0, n + more), Causal{});
      EXPECT_LE(max_difference(slice(of_prompt, b, 0, n), slice(alone, 0, 0, n)), close) << "prompt of " << n;
      EXPECT_LE(max_difference(slice(of_next, b, 0, more), slice(alone, 0, n, more)), close)
          << "after a prompt of " << n;
      EXPECT_EQ(cache.length(b), n + more);
    }
  }
}

TEST(Cache, ShowsAWindowExactlyItsKeysAcrossCalls) {
  const auto module = evaluating({.num_attention_heads = 6, .window = 3});
  auto x = random_tensor<float, 3>({1, 10, E}, 1);
  auto cache = module.make_cache(1, 10);
  const auto y = in_pieces(module, x, {6, 1, 1, 2}, cache);
  const auto tail = module.forward(rows_of(x, 7, 3), Causal{});  // the last token and the two before it
  EXPECT_LE(max_difference(rows_of(y, 9, 1), rows_of(tail, 2, 1)), close);
}

TEST(Cache, ShowsAQueryAllOfItsCallWithoutAMask) {
  const auto module = evaluating({.num_attention_heads = 6});
  const auto x = random_tensor<float, 3>({2, 9, E}, 1);
  auto cache = module.make_cache(2, 9);
  (void)module.forward(rows_of(x, 0, 4), attn::NoMask{}, cache);
  const auto y = module.forward(rows_of(x, 4, 5), attn::NoMask{}, cache);
  EXPECT_LE(max_difference(y, rows_of(module.forward(x), 4, 5)), close);
}

// Without Causal nothing but the cache's own lengths keeps a query from what stands past the end of its sequence.
TEST(Cache, NeverShowsTokensPastASequencesLength) {
  const auto module = evaluating({.num_attention_heads = 6, .num_key_value_heads = 2, .rotary = RotaryConfig{}});
  const auto x = random_tensor<float, 3>({2, 12, E}, 1);
  auto rubbish = x;
  for (Index s = 3; s < 9; ++s)
    for (Index e = 0; e < E; ++e) rubbish(0, s, e) = std::numeric_limits<float>::quiet_NaN();
  auto cache = module.make_cache(2, 12);
  (void)module.forward(rows_of(rubbish, 0, 9), attn::NoMask{}, cache);
  cache.roll_back(0, 6);
  const auto y = module.forward(rows_of(x, 9, 2), attn::NoMask{}, cache);
  for (Index b = 0; b < 2; ++b) {  // each alone: 3 tokens before, or 9
    const Index before = b == 0 ? 3 : 9;
    auto alone = module.make_cache(1, 12);
    (void)module.forward(slice(x, b, 0, before), attn::NoMask{}, alone);
    EXPECT_LE(max_difference(slice(y, b, 0, 2), module.forward(slice(x, b, 9, 2), attn::NoMask{}, alone)), close)
        << "sequence " << b;
  }
}

TEST(Cache, TakesAnAdditiveMaskOverAllKeysSoFar) {
  const auto module = evaluating({.num_attention_heads = 6});
  const auto x = random_tensor<float, 3>({2, 9, E}, 1);
  const auto mask = random_tensor<float, 2>({9, 9}, 2, 2.0);
  auto cache = module.make_cache(2, 9);
  Tensor<float, 2> first(4, 4), second(5, 9);
  for (Index s = 0; s < 9; ++s)
    for (Index t = 0; t < 9; ++t) {
      if (s >= 4) second(s - 4, t) = mask(s, t);
      if (s < 4 && t < 4) first(s, t) = mask(s, t);
    }
  (void)module.forward(rows_of(x, 0, 4), first, cache);
  EXPECT_LE(max_difference(module.forward(rows_of(x, 4, 5), second, cache), rows_of(module.forward(x, mask), 4, 5)),
            close);
}

TEST(Cache, GivesWeightsOverAllTokensSoFar) {
  const auto module = evaluating({.num_attention_heads = 6, .num_key_value_heads = 2, .rotary = RotaryConfig{}});
  const auto x = random_tensor<float, 3>({2, 9, E}, 1);
  auto cache = module.make_cache(2, 9);
  (void)module.forward(rows_of(x, 0, 7), Causal{}, cache);
  const auto [output, weights] = module.forward_with_weights(rows_of(x, 7, 2), Causal{}, &cache);
  const auto all = module.forward_with_weights(x, Causal{});
  ASSERT_EQ(attn::detail::shape_of(weights), (std::array<Index, 4>{2, 6, 2, 9}));
  EXPECT_LE(max_difference(output, rows_of(all.output, 7, 2)), close);
  for (Index h = 0; h < 6; ++h)
    for (Index s = 0; s < 2; ++s)
      for (Index t = 0; t < 9; ++t) EXPECT_NEAR(weights(1, h, s, t), all.weights(1, h, 7 + s, t), close);
}

TEST(Cache, IsUnchangedByACallWithoutTokens) {
  const auto module = evaluating({.num_attention_heads = 6, .rotary = RotaryConfig{}});
  auto cache = module.make_cache(2, 9);
  (void)module.forward(random_tensor<float, 3>({2, 3, E}, 1), Causal{}, cache);
  const auto before = contents(cache);
  EXPECT_EQ(module.forward(Tensor<float, 3>(2, 0, E), Causal{}, cache).dimension(1), 0);
  EXPECT_EQ(contents(cache), before);
  auto none = module.make_cache(0, 9);
  EXPECT_EQ(module.forward(Tensor<float, 3>(0, 4, E), Causal{}, none).dimension(0), 0);
}

TEST(Cache, DoesNotMixWithAnotherCacheUsedInTurn) {
  const auto module = evaluating({.num_attention_heads = 6, .rotary = RotaryConfig{}});
  const auto a = random_tensor<float, 3>({1, 8, E}, 1), b = random_tensor<float, 3>({1, 8, E}, 2);
  auto cache_a = module.make_cache(1, 8), cache_b = module.make_cache(1, 8);
  for (Index s = 0; s < 8; ++s) {
    const auto of_a = module.forward(rows_of(a, s, 1), Causal{}, cache_a),
               of_b = module.forward(rows_of(b, s, 1), Causal{}, cache_b);
    EXPECT_LE(max_difference(of_a, rows_of(module.forward(a, Causal{}), s, 1)), close);
    EXPECT_LE(max_difference(of_b, rows_of(module.forward(b, Causal{}), s, 1)), close);
  }
}

// ---- Errors leave the cache as it was ----

TEST(Cache, RefusesOverflowAndStaysUnchanged) {
  const auto module = evaluating({.num_attention_heads = 6});
  const auto x = random_tensor<float, 3>({2, 5, E}, 1);
  auto cache = module.make_cache(2, 8);
  (void)module.forward(x, Causal{}, cache);
  const auto before = contents(cache);
  expect_error([&] { return module.forward(x, Causal{}, cache); },
               {"[attn::KvCache::append] capacity", "room for 5", "got 5 of 8"});
  EXPECT_EQ(contents(cache), before);
  EXPECT_NO_THROW((void)module.forward(rows_of(x, 0, 3), Causal{}, cache));
}

TEST(Cache, RefusalUsesUpNoCallOfDropout) {
  const LlamaAttentionConfig config{.hidden_size = E, .num_attention_heads = 6, .seed = 1};
  const LlamaAttention<float> a(config), b(config);
  const auto x = random_tensor<float, 3>({2, 5, E}, 1);
  auto small = a.make_cache(2, 4), cache_a = a.make_cache(2, 5), cache_b = b.make_cache(2, 5);
  expect_error([&] { return a.forward(x, Causal{}, small); }, {"[attn::KvCache::append] capacity"});
  EXPECT_TRUE(same_bits(a.forward(x, Causal{}, cache_a), b.forward(x, Causal{}, cache_b)));
}

TEST(Cache, OfTheWrongShapeIsRefused) {
  const auto module = evaluating({.num_attention_heads = 6, .num_key_value_heads = 2});
  const auto x = random_tensor<float, 3>({2, 5, E}, 1);
  for (KvCache<float> cache : {KvCache<float>(3, 2, 8, 8), KvCache<float>(2, 6, 8, 8), KvCache<float>(2, 2, 8, 4),
                               KvCache<float>(2, 2, 8, 8, 4)}) {
    expect_error([&] { return module.forward(x, Causal{}, cache); },
                 {"[attn::LlamaAttention::forward] cache", "expected [2,2,8,8]", "got ["});
    EXPECT_EQ(cache.max_length(), 0);
  }
}

TEST(Cache, IsUnchangedByAMaskThatDoesNotBroadcast) {
  const auto module = evaluating({.num_attention_heads = 6});
  const auto x = random_tensor<float, 3>({2, 5, E}, 1);
  auto cache = module.make_cache(2, 20);
  (void)module.forward(x, Causal{}, cache);
  const auto before = contents(cache);
  expect_error([&] { return module.forward(x, Tensor<float, 2>(5, 5), cache); },
               {"[attn::LlamaAttention::forward] AdditiveMask", "[2,6,5,10]", "got [5,5]"});
  EXPECT_EQ(contents(cache), before);
}

TEST(Cache, IsUnchangedByAnExceptionOfAUsersMask) {
  const auto module = evaluating({.num_attention_heads = 6});
  const auto x = random_tensor<float, 3>({2, 100, E}, 1);
  auto cache = module.make_cache(2, 200);
  (void)module.forward(x, Causal{}, cache);
  const auto before = contents(cache);
  const auto failing = [](attn::Position at) -> bool {
    return at.key == 107 ? throw std::runtime_error("mine") : true;
  };
  EXPECT_THROW((void)module.forward(x, failing, cache), std::runtime_error);
  EXPECT_EQ(contents(cache), before);
}

// ---- Rotary scalings that ask for the length: cached keys are turned once, for good ----

std::vector<attn::RotaryScaling> scalings_by_length() {
  return {attn::DynamicNtkScaling{4.0, 8}, attn::LongRopeScaling{{1, 1.5, 2, 2.5}, {4, 5, 6, 7}, 8, 4.0, {}}};
}

TEST(Cache, IsRefusedIfItMayOutgrowAScalingsOriginalLength) {
  for (const attn::RotaryScaling& scaling : scalings_by_length()) {
    const auto module = evaluating({.num_attention_heads = 6, .rotary = RotaryConfig{.scaling = scaling}});
    const auto x = random_tensor<float, 3>({2, 4, E}, 1);
    auto cache = module.make_cache(2, 9);
    Tensor<float, 3> y = attn_test::filled<float, 3>({2, 4, E}, 42.F);
    const Tensor<float, 3> before = y;
    expect_error(
        [&] { module.forward_into(y, x, Causal{}, cache); },
        {"[attn::LlamaAttention::forward] cache", "expected RotaryConfig::length", "original_length = 8", "got 9"});
    EXPECT_TRUE(same_bits(y, before));
    EXPECT_EQ(cache.max_length(), 0);
  }
}

TEST(Cache, GivesTheSameInPiecesWithinTheOriginalLength) {
  for (const attn::RotaryScaling& scaling : scalings_by_length()) {
    const auto module = evaluating({.num_attention_heads = 6, .rotary = RotaryConfig{.scaling = scaling}});
    const auto x = random_tensor<float, 3>({2, 8, E}, 1);
    auto cache = module.make_cache(2, 8);
    EXPECT_LE(max_difference(in_pieces(module, x, {3, 1, 4}, cache), module.forward(x, Causal{})), close);
  }
}

TEST(Cache, GivesTheSameInPiecesWithAFixedRotaryLength) {
  for (const attn::RotaryScaling& scaling : scalings_by_length()) {
    const auto module =
        evaluating({.num_attention_heads = 6, .rotary = RotaryConfig{.scaling = scaling, .length = 23}});
    const auto by_length = evaluating({.num_attention_heads = 6, .rotary = RotaryConfig{.scaling = scaling}});
    const auto x = random_tensor<float, 3>({2, 23, E}, 1);
    const auto expected = module.forward(x, Causal{});
    EXPECT_LE(max_difference(by_length.forward(x, Causal{}), expected), close);  // as that scaling, at that length
    for (const std::vector<Index>& pieces : {std::vector<Index>(23, 1), {10, 13}}) {
      auto cache = module.make_cache(2, 30);
      EXPECT_LE(max_difference(in_pieces(module, x, pieces, cache), expected), close);
    }
  }
}

}  // namespace
