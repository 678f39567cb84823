// LlamaAttention against its definition (module_support.hpp), its configurations, its errors. With a cache:
// llama_attention_cache_test.cpp. Against PyTorch: torch_module_test.cpp. Mask types here: none, Causal, an additive
// tensor, a callable; each more is another instantiation per instruction set.
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
using attn::Position;
using attn::RotaryConfig;
using attn::RotaryLayout;
using attn::Tensor;
using attn::TensorMap;
using attn_test::expect_error;
using attn_test::float_epsilon;
using attn_test::largest;
using attn_test::max_difference;
using attn_test::plain_module;
using attn_test::random_tensor;
using attn_test::same_bits;

/// A user's own mask: a key at an odd position is seen by its own query alone.
struct EvenKeys {
  bool operator()(Position at) const { return at.key % 2 == 0 || at.key == at.query; }
};

LlamaAttention<float> evaluating(LlamaAttentionConfig config) {
  config.seed = 11;
  LlamaAttention<float> module(config);
  module.eval();
  return module;
}

/// Our error against the definition in double is at most twice that of the definition in float. The floor: 2 ulp of the
/// largest output.
template <class M = attn::NoMask>
void expect_definition(const LlamaAttention<float>& module, const Tensor<float, 3>& x, const M& mask = {}) {
  const auto exact = plain_module<double>(module, x, mask);
  const double plain = max_difference(plain_module<float>(module, x, mask), exact);
  EXPECT_LE(max_difference(module.forward(x, mask), exact),
            std::max(2.0 * plain, 2.0 * float_epsilon * largest(exact)));
}

// ---- The module ----

TEST(LlamaAttention, HasFourProjectionsWithBiasAndTwoDropouts) {
  LlamaAttention<float> module(48, 6, 0.25);
  for (const attn::Linear<float>* layer : {&module.query(), &module.key(), &module.value(), &module.out_proj()}) {
    EXPECT_EQ(layer->in_features(), 48);
    EXPECT_EQ(layer->out_features(), 48);
    EXPECT_TRUE(layer->has_bias());
  }
  EXPECT_EQ(module.config().num_key_value_heads, 6);
  EXPECT_EQ(module.config().head_dim, 8);
  EXPECT_EQ(module.config().attention_dropout, 0.25);
  EXPECT_EQ(module.config().projection_dropout, 0.25);
  EXPECT_FALSE(module.config().rotary.has_value());
  EXPECT_FALSE(module.config().window.has_value());
  EXPECT_EQ((LlamaAttention<float>(8, 2).config().attention_dropout), 0.1);
}

TEST(LlamaAttention, DrawsFourDifferentProjections) {
  LlamaAttention<float> module(48, 6);
  EXPECT_FALSE(same_bits(module.query().weight(), module.key().weight()));
  EXPECT_FALSE(same_bits(module.key().weight(), module.value().weight()));
  EXPECT_FALSE(same_bits(module.value().weight(), module.out_proj().weight()));
}

TEST(LlamaAttention, DrawsItsWeightsFromItsSeed) {
  const auto weight = [](std::uint64_t seed) {
    return LlamaAttention<float>({.hidden_size = 8, .num_attention_heads = 2, .seed = seed}).value().weight();
  };
  EXPECT_TRUE(same_bits(weight(3), weight(3)));
  EXPECT_FALSE(same_bits(weight(3), weight(4)));
}

TEST(LlamaAttention, MatchesItsDefinition) {
  const auto x = random_tensor<float, 3>({2, 19, 48}, 1);
  expect_definition(evaluating({.hidden_size = 48, .num_attention_heads = 6}), x);
  expect_definition(evaluating({.hidden_size = 48, .num_attention_heads = 6}), x, Causal{});
  expect_definition(evaluating({.hidden_size = 48, .num_attention_heads = 6}), x, EvenKeys{});
}

TEST(LlamaAttention, MatchesItsDefinitionForAdditiveMasksOfRank2To4) {
  const auto module = evaluating({.hidden_size = 48, .num_attention_heads = 6});
  const auto x = random_tensor<float, 3>({2, 9, 48}, 1);
  for (const Index rows : {1, 9}) {
    expect_definition(module, x, random_tensor<float, 2>({rows, 9}, 2, 3.0));
    expect_definition(module, x, random_tensor<float, 3>({6, rows, 9}, 3, 3.0));
    expect_definition(module, x, random_tensor<float, 3>({1, rows, 9}, 4, 3.0));
    expect_definition(module, x, random_tensor<float, 4>({2, 6, rows, 9}, 5, 3.0));
    expect_definition(module, x, random_tensor<float, 4>({2, 1, rows, 9}, 6, 3.0));
    expect_definition(module, x, random_tensor<float, 4>({1, 6, rows, 1}, 7, 3.0));
  }
}

TEST(LlamaAttention, AnAdditiveMaskOfMinusInfinityIsCausal) {
  const auto module = evaluating({.hidden_size = 24, .num_attention_heads = 3});
  const auto x = random_tensor<float, 3>({2, 9, 24}, 1);
  auto mask = attn_test::filled<float, 2>({9, 9}, 0.F);
  for (Index s = 0; s < 9; ++s)
    for (Index t = s + 1; t < 9; ++t) mask(s, t) = -std::numeric_limits<float>::infinity();
  EXPECT_LE(max_difference(module.forward(x, mask), module.forward(x, Causal{})), 4 * float_epsilon);
}

// ---- Configurations ----

TEST(LlamaAttention, MatchesItsDefinitionInEveryConfiguration) {
  const RotaryConfig half_split{}, interleaved{.layout = RotaryLayout::interleaved, .theta = 500.0};
  const RotaryConfig partial{.dimensions = 4},
      scaled{.scaling = attn::YarnScaling{.factor = 4.0, .original_length = 8}};
  for (const LlamaAttentionConfig& config : {
           LlamaAttentionConfig{.hidden_size = 48, .num_attention_heads = 6, .num_key_value_heads = 2},
           LlamaAttentionConfig{.hidden_size = 48, .num_attention_heads = 6, .num_key_value_heads = 1},
           LlamaAttentionConfig{.hidden_size = 48, .num_attention_heads = 1},
           LlamaAttentionConfig{.hidden_size = 48, .num_attention_heads = 48},
           LlamaAttentionConfig{.hidden_size = 48, .num_attention_heads = 5, .head_dim = 7},
           LlamaAttentionConfig{.hidden_size = 48, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 20},
           LlamaAttentionConfig{.hidden_size = 48, .num_attention_heads = 6, .bias = false},
           LlamaAttentionConfig{.hidden_size = 48, .num_attention_heads = 6, .rotary = half_split},
           LlamaAttentionConfig{.hidden_size = 48, .num_attention_heads = 6, .rotary = interleaved},
           LlamaAttentionConfig{
               .hidden_size = 48, .num_attention_heads = 4, .num_key_value_heads = 2, .rotary = partial},
           LlamaAttentionConfig{.hidden_size = 48, .num_attention_heads = 4, .rotary = scaled},
           LlamaAttentionConfig{.hidden_size = 48, .num_attention_heads = 6, .window = 1},
           LlamaAttentionConfig{.hidden_size = 48, .num_attention_heads = 6, .window = 5},
           LlamaAttentionConfig{.hidden_size = 48,
           .num_attention_heads = 6,
           .num_key_value_heads = 3,
           .rotary = half_split,
           .window = 1000},
       }) {
    const auto module = evaluating(config);
    const auto x = random_tensor<float, 3>({2, 21, 48}, 1);
    SCOPED_TRACE(testing::Message() << "heads " << config.num_attention_heads << " on " << config.num_key_value_heads
                                    << ", head_dim " << config.head_dim << ", rotary " << config.rotary.has_value()
                                    << ", window " << config.window.value_or(0));
    expect_definition(module, x);
    expect_definition(module, x, Causal{});
  }
}

TEST(LlamaAttention, MatchesItsDefinitionForOddSizes) {
  for (const auto& [B, S, H, D] :
       {std::array<Index, 4>{1, 1, 1, 1}, {3, 2, 1, 3}, {1, 67, 3, 5}, {2, 130, 2, 9}, {1, 197, 1, 33}}) {
    const auto module = evaluating({.hidden_size = H * D, .num_attention_heads = H});
    expect_definition(module, random_tensor<float, 3>({B, S, H * D}, 1), Causal{});
  }
}

// Rows 8 KB apart map to few sets of the CPU's caches, so the kernel copies them first.
TEST(LlamaAttention, MatchesItsDefinitionForProjectionsOf8KB) {
  const auto x = random_tensor<float, 3>({2, 21, 24}, 1);
  LlamaAttentionConfig config{.hidden_size = 24, .num_attention_heads = 4, .num_key_value_heads = 4, .head_dim = 512};
  expect_definition(evaluating(config), x, Causal{});
  config.rotary = attn::RotaryConfig{};
  auto module = evaluating(config);
  module.value().share(module.key());
  expect_definition(module, x, Causal{});
}

TEST(LlamaAttention, GivesProjectionsTheConfiguredShapes) {
  const auto module =
      evaluating({.hidden_size = 48, .num_attention_heads = 6, .num_key_value_heads = 2, .head_dim = 10});
  EXPECT_EQ(module.query().out_features(), 60);
  EXPECT_EQ(module.key().out_features(), 20);
  EXPECT_EQ(module.value().out_features(), 20);
  EXPECT_EQ(module.out_proj().in_features(), 60);
  EXPECT_EQ(module.out_proj().out_features(), 48);
}

// The same tokens give the same result after a masked prefix.
TEST(LlamaAttention, RotaryScoresDependOnDistanceAlone) {
  const auto module = evaluating({.hidden_size = 32, .num_attention_heads = 2, .rotary = RotaryConfig{}});
  const auto x = random_tensor<float, 3>({1, 12, 32}, 1);
  const auto tail = attn_test::rows_of(x, 5, 7);
  auto mask = attn_test::filled<float, 2>({1, 12}, 0.F);
  for (Index t = 0; t < 5; ++t) mask(0, t) = -std::numeric_limits<float>::infinity();
  EXPECT_LE(max_difference(attn_test::rows_of(module.forward(x, mask), 5, 7), module.forward(tail)), 2e-6);
}

// ---- Forms of forward ----

TEST(LlamaAttention, TakesMapsAndWritesIntoTheCallersMemory) {
  const auto module = evaluating({.hidden_size = 24, .num_attention_heads = 3});
  auto x = random_tensor<float, 3>({2, 5, 24}, 1);
  const auto expected = module.forward(x);
  std::vector<float> memory(242, 77.F);
  module.forward_into(TensorMap<float, 3>(memory.data() + 1, 2, 5, 24), TensorMap<const float, 3>(x.data(), 2, 5, 24));
  EXPECT_EQ(std::memcmp(memory.data() + 1, expected.data(), 240 * sizeof(float)), 0);
  EXPECT_EQ(memory.front() + memory.back(), 154.F);
  EXPECT_TRUE(same_bits(module(x), expected));
  EXPECT_TRUE(same_bits(module(TensorMap<float, 3>(x.data(), 2, 5, 24)), expected));
  EXPECT_TRUE(same_bits(module(x, Causal{}), module.forward(x, Causal{})));
}

TEST(LlamaAttention, GivesItsWeightsOnRequest) {
  const auto module = evaluating({.hidden_size = 24, .num_attention_heads = 3});
  const auto x = random_tensor<float, 3>({2, 5, 24}, 1);
  const auto [output, weights] = module.forward_with_weights(x, Causal{});
  EXPECT_TRUE(same_bits(output, module.forward(x, Causal{})));
  ASSERT_EQ(attn::detail::shape_of(weights), (std::array<Index, 4>{2, 3, 5, 5}));
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 3; ++h)
      for (Index s = 0; s < 5; ++s) {
        float sum = 0.F;
        for (Index t = 0; t < 5; ++t) {
          sum += weights(b, h, s, t);
          if (t > s) {
            EXPECT_EQ(weights(b, h, s, t), 0.F);
          }
        }
        EXPECT_NEAR(sum, 1.F, 1e-6F);
      }
}

TEST(LlamaAttention, GivesNothingForNoBatchOrNoTokens) {
  const auto module = evaluating({.hidden_size = 24, .num_attention_heads = 3, .rotary = RotaryConfig{}});
  const auto no_batch = module.forward(Tensor<float, 3>(0, 5, 24));
  EXPECT_EQ(attn::detail::shape_of(no_batch), (std::array<Index, 3>{0, 5, 24}));
  const auto no_tokens = module.forward(Tensor<float, 3>(2, 0, 24), Causal{});
  EXPECT_EQ(attn::detail::shape_of(no_tokens), (std::array<Index, 3>{2, 0, 24}));
}

TEST(LlamaAttention, GivesTheOutputBiasForARowWithoutKeys) {
  const auto module = evaluating({.hidden_size = 24, .num_attention_heads = 3});
  const auto x = random_tensor<float, 3>({2, 5, 24}, 1);
  auto mask = attn_test::filled<float, 2>({5, 5}, 0.F);
  for (Index t = 0; t < 5; ++t) mask(2, t) = -std::numeric_limits<float>::infinity();
  const auto y = module.forward(x, mask);
  const auto bias = module.out_proj().bias();
  for (Index e = 0; e < 24; ++e) EXPECT_EQ(y(1, 2, e), bias(e));
}

TEST(LlamaAttention, ForwardIsConstAndMayBeCalledFromSeveralThreads) {
  const auto module = evaluating({.hidden_size = 48, .num_attention_heads = 6, .rotary = RotaryConfig{}});
  const auto x = random_tensor<float, 3>({2, 33, 48}, 1);
  const auto expected = module.forward(x, Causal{});
  std::vector<Tensor<float, 3>> results(4);
  std::vector<std::thread> threads;
  for (Tensor<float, 3>& y : results)
    threads.emplace_back([&] {
      for (int i = 0; i < 10; ++i) y = module.forward(x, Causal{});
    });
  for (std::thread& thread : threads) thread.join();
  for (const auto& y : results) EXPECT_TRUE(same_bits(y, expected));
}

TEST(LlamaAttention, PassesAnExceptionOfAUsersMaskToTheCaller) {
  const auto module = evaluating({.hidden_size = 24, .num_attention_heads = 3});
  const auto x = random_tensor<float, 3>({2, 200, 24}, 1);  // enough for several threads
  attn::ThreadPool pool(3);
  const attn::UseExecutor use(pool);
  const auto failing = [](Position at) -> bool { return at.key == 3 ? throw std::runtime_error("mine") : true; };
  EXPECT_THROW((void)module.forward(x, failing), std::runtime_error);
  EXPECT_LE(max_difference(module.forward(x), plain_module<double>(module, x)), 1e-5);  // nothing is left behind
}

// ---- Errors ----

TEST(LlamaAttention, RefusesAHiddenSizeThatItsHeadsDoNotDivide) {
  expect_error([] { LlamaAttention<float> module(50, 6); },
               {"[attn::LlamaAttention] hidden_size", "multiple of num_attention_heads = 6", "got 50"});
}

TEST(LlamaAttention, RefusesHeadsThatKeyValueHeadsDoNotDivide) {
  expect_error(
      [] { LlamaAttention<float> module({.hidden_size = 48, .num_attention_heads = 6, .num_key_value_heads = 4}); },
      {"[attn::LlamaAttention] num_attention_heads", "multiple of num_key_value_heads = 4", "got 6"});
  expect_error(
      [] { LlamaAttention<float> module({.hidden_size = 48, .num_attention_heads = 6, .num_key_value_heads = -1}); },
      {"[attn::LlamaAttention]"});
}

TEST(LlamaAttention, RefusesSizesBelowOne) {
  expect_error([] { LlamaAttention<float> module(0, 1); }, {"[attn::LlamaAttention] hidden_size", "got 0"});
  expect_error([] { LlamaAttention<float> module(8, 0); }, {"[attn::LlamaAttention] num_attention_heads", "got 0"});
  expect_error([] { LlamaAttention<float> module({.hidden_size = 8, .num_attention_heads = 2, .head_dim = -4}); },
               {"[attn::LlamaAttention] head_dim", "got -4"});
}

TEST(LlamaAttention, RefusesADropoutThatIsNoProbability) {
  for (const double p : {-0.5, 1.5, std::nan("")})
    expect_error([&] { LlamaAttention<float> module(8, 2, p); }, {"[attn::LlamaAttention] dropout", "[0,1]", "got "});
  expect_error(
      [] { LlamaAttention<float> module({.hidden_size = 8, .num_attention_heads = 2, .projection_dropout = 2.0}); },
      {"[attn::LlamaAttention] dropout", "got 2"});
}

TEST(LlamaAttention, RefusesAnOddHeadSizeWithRotary) {
  expect_error(
      [] { LlamaAttention<float> module({.hidden_size = 15, .num_attention_heads = 3, .rotary = RotaryConfig{}}); },
      {"[attn::LlamaAttention] head_dim", "even", "rotary", "got 5"});
}

TEST(LlamaAttention, RefusesAWindowBelowOne) {
  for (const Index window : {0, -1})
    expect_error([&] { LlamaAttention<float> module({.hidden_size = 8, .num_attention_heads = 2, .window = window}); },
                 {"[attn::LlamaAttention] window", "at least 1", "got "});
}

TEST(LlamaAttention, RefusesAnInputOfAnotherLastDimension) {
  const auto module = evaluating({.hidden_size = 32, .num_attention_heads = 4});
  expect_error([&] { return module.forward(Tensor<float, 3>(2, 7, 48)); },
               {"[attn::LlamaAttention::forward] input", "expected", "32", "got [2,7,48]"});
  Tensor<float, 3> y(2, 8, 32);
  expect_error([&] { module.forward_into(y, Tensor<float, 3>(2, 7, 32)); },
               {"[attn::LlamaAttention::forward] output", "expected [2,7,32]", "got [2,8,32]"});
}

TEST(LlamaAttention, RefusesAMaskThatDoesNotBroadcast) {
  const auto module = evaluating({.hidden_size = 32, .num_attention_heads = 4});
  const auto x = random_tensor<float, 3>({2, 7, 32}, 1);
  const auto refuses = [&](const auto& mask, const char* shape) {
    expect_error([&] { return module.forward(x, mask); },
                 {"[attn::LlamaAttention::forward] AdditiveMask does not broadcast", "[2,4,7,7]", "got ", shape});
  };
  refuses(Tensor<float, 2>(7, 6), "[7,6]");
  refuses(Tensor<float, 2>(2, 7), "[2,7]");
  refuses(Tensor<float, 3>(2, 7, 7), "[2,7,7]");
  refuses(Tensor<float, 4>(4, 4, 7, 7), "[4,4,7,7]");
  refuses(Tensor<float, 2>(0, 7), "[0,7]");
}

TEST(LlamaAttention, RefusesWeightsOfTheWrongShape) {
  LlamaAttention<float> module({.hidden_size = 32, .num_attention_heads = 4, .num_key_value_heads = 2});
  expect_error([&] { module.key().set_weight(Tensor<float, 2>(32, 32)); },
               {"[attn::Linear::set_weight]", "expected [16,32]", "got [32,32]"});
  expect_error([&] { module.key().set_bias(Tensor<float, 1>(32)); },
               {"[attn::Linear::set_bias]", "expected [16]", "got [32]"});
}

TEST(LlamaAttention, RefusalUsesUpNoCallOfDropout) {
  const LlamaAttentionConfig config{.hidden_size = 32, .num_attention_heads = 4, .seed = 1};
  const LlamaAttention<float> a(config), b(config);
  const auto x = random_tensor<float, 3>({2, 7, 32}, 1);
  expect_error([&] { return a.forward(x, Tensor<float, 2>(7, 6)); }, {"does not broadcast"});
  EXPECT_TRUE(same_bits(a.forward(x), b.forward(x)));
}

TEST(LlamaAttention, RefusesSizesThatOverflow) {
  constexpr Index huge = Index{1} << 62;
  constexpr auto text = "memory can hold";
  expect_error([] { LlamaAttention<float> module(huge, 1); }, {"[attn::LlamaAttention]", text, "got [1,"});
  expect_error([] { LlamaAttention<float> module({.hidden_size = 8, .num_attention_heads = 4, .head_dim = huge}); },
               {"[attn::LlamaAttention]", text});
  expect_error([] { LlamaAttention<float> module({.hidden_size = 8, .num_attention_heads = huge, .head_dim = 8}); },
               {"[attn::LlamaAttention]", text});
  expect_error([] { LlamaAttention<float> module(Index{1} << 60, Index{1} << 60); }, {"[attn::LlamaAttention]", text});
  expect_error(
      [] { LlamaAttention<float> module({.hidden_size = Index{1} << 60, .num_attention_heads = 1, .head_dim = 1}); },
      {text});  // padded
}

// ---- Moves ----

TEST(LlamaAttention, RefusesToRunOnceMovedFromAndCanBeAssignedTo) {
  auto module = evaluating({.hidden_size = 24, .num_attention_heads = 3, .rotary = RotaryConfig{}, .window = 4});
  const auto x = random_tensor<float, 3>({2, 9, 24}, 1);
  const auto expected = module.forward(x);
  LlamaAttention<float> moved = std::move(module);
  EXPECT_TRUE(same_bits(moved.forward(x), expected));
  EXPECT_EQ(module.config().hidden_size, 0);
  EXPECT_EQ(module.config().num_attention_heads, 0);
  EXPECT_FALSE(module.config().rotary.has_value());
  for (const Index width : {Index{24}, Index{0}})
    expect_error([&] { return module.forward(Tensor<float, 3>(2, 9, width)); },
                 {"[attn::LlamaAttention::forward] module", "moved from"});
  expect_error([&] { return module.forward_with_weights(x); }, {"moved from"});
  expect_error([&] { module.share(moved); }, {"[attn::LlamaAttention::share]"});
  expect_error([&] { moved.share(module); }, {"[attn::LlamaAttention::share]"});
  LlamaAttention<float> other = module;
  expect_error([&] { module.share(other); }, {"[attn::LlamaAttention::share] module", "moved from"});
  expect_error([&] { return module.make_cache(1, 4); }, {"[attn::KvCache]"});
  module.train();
  module = moved;
  EXPECT_TRUE(same_bits(module.forward(x), expected));
  moved = std::move(module);
  EXPECT_TRUE(same_bits(moved.forward(x), expected));
}

// ---- Rotary scalings that ask for the length ----

std::vector<RotaryConfig> rotary_by_length() {
  return {RotaryConfig{.scaling = attn::DynamicNtkScaling{4.0, 8}},
          RotaryConfig{.scaling = attn::LongRopeScaling{{1, 1.5, 2, 2.5}, {4, 5, 6, 7}, 8, 4.0, {}}}};
}

/// Sequences of 10, 24 and 6 tokens beside each other, the rest padded with NaN.
struct Ragged {
  std::vector<Index> lengths{10, 24, 6};
  Tensor<float, 3> x = random_tensor<float, 3>({3, 24, 24}, 1);
  Tensor<float, 3> padded = x;
  Ragged() {
    for (Index b = 0; b < 3; ++b)
      for (Index s = lengths[static_cast<std::size_t>(b)]; s < 24; ++s)
        for (Index e = 0; e < 24; ++e) padded(b, s, e) = std::numeric_limits<float>::quiet_NaN();
  }
  void expect_each_as_alone(const LlamaAttention<float>& module, const Tensor<float, 3>& y) const {
    for (Index b = 0; b < 3; ++b) {
      const Index n = lengths[static_cast<std::size_t>(b)];
      const auto alone = module.forward(attn_test::slice(x, b, 0, n), Causal{});
      EXPECT_LE(max_difference(attn_test::slice(y, b, 0, n), alone), 1e-6) << "sequence of " << n;
    }
  }
};

TEST(LlamaAttentionLengths, PaddedSequencesGiveTheSameAsAlone) {
  const Ragged ragged;
  for (const RotaryConfig& rotary : rotary_by_length()) {
    const auto module = evaluating({.hidden_size = 24, .num_attention_heads = 3, .rotary = rotary});
    ragged.expect_each_as_alone(module, module.forward(ragged.padded, Causal{} & attn::Padding(ragged.lengths)));
    ragged.expect_each_as_alone(module, module.forward(ragged.padded, attn::Padding(ragged.lengths) & Causal{}));
  }
}

TEST(LlamaAttentionLengths, MayBeGivenByATensor) {
  Ragged ragged;
  Tensor<float, 4> bias(3, 1, 24, 24);
  for (Index b = 0; b < 3; ++b)
    for (Index s = 0; s < 24; ++s)
      for (Index t = 0; t < 24; ++t)
        bias(b, 0, s, t) =
            t <= s && t < ragged.lengths[static_cast<std::size_t>(b)] ? 0.F : -std::numeric_limits<float>::infinity();
  for (const RotaryConfig& rotary : rotary_by_length()) {
    const auto module = evaluating({.hidden_size = 24, .num_attention_heads = 3, .rotary = rotary});
    ragged.expect_each_as_alone(module, module.forward(ragged.x, bias));
  }
}

TEST(LlamaAttentionLengths, MayBePaddedAtTheLeft) {
  for (const RotaryConfig& rotary : rotary_by_length()) {
    const auto module = evaluating({.hidden_size = 24, .num_attention_heads = 3, .rotary = rotary});
    const auto x = random_tensor<float, 3>({1, 24, 24}, 1);
    const auto right_part = [](Position at) { return at.key >= 14; };
    const auto y = module.forward(x, Causal{} & right_part);
    EXPECT_LE(max_difference(attn_test::rows_of(y, 14, 10), module.forward(attn_test::rows_of(x, 14, 10), Causal{})),
              1e-6);
  }
}

TEST(LlamaAttentionLengths, MatchTheDefinitionWithoutPadding) {
  for (const RotaryConfig& rotary : rotary_by_length()) {
    const auto module = evaluating({.hidden_size = 24, .num_attention_heads = 3, .rotary = rotary});
    for (const Index S : {5, 8, 9, 24}) expect_definition(module, random_tensor<float, 3>({2, S, 24}, 1), Causal{});
  }
}

}  // namespace
