// ForwardOptions: positions, score functions, activations; cross-attention; the longest sequence.
#include "module_support.hpp"

namespace {

using attn::Causal;
using attn::ForwardOptions;
using attn::Index;
using attn::LeftPadding;
using attn::LlamaAttention;
using attn::LlamaAttentionConfig;
using attn::NoMask;
using attn::Position;
using attn::Tensor;
using attn::View;
using attn_test::expect_differences;
using attn_test::expect_error;
using attn_test::max_difference;
using attn_test::random_tensor;
using attn_test::rows_of;
using attn_test::same_bits;
using attn_test::slice;
using attn_test::weighted_sum;

LlamaAttentionConfig rotated() {
  LlamaAttentionConfig config{.hidden_size = 12, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 6};
  config.attention_dropout = config.projection_dropout = 0.0, config.seed = 5;
  config.rotary = attn::RotaryConfig{};
  return config;
}
template <class T>
LlamaAttention<T> make(const LlamaAttentionConfig& config) {
  LlamaAttention<T> module(config);
  module.eval();
  return module;
}
Tensor<Index, 2> positions_of(std::initializer_list<std::initializer_list<Index>> rows) {
  Tensor<Index, 2> result(static_cast<Index>(rows.size()), static_cast<Index>(rows.begin()->size()));
  Index i = 0;
  for (const auto& row : rows)
    for (const Index position : row) result.data()[i++] = position;
  return result;
}

// ---- Positions --------------------------------------------------------------------------------------------------

TEST(ForwardPositions, OneAfterTheOtherAreWhatAPlainCallTakes) {
  const auto module = make<float>(rotated());
  const auto x = random_tensor<float, 3>({2, 5, 12}, 1);
  const auto positions = positions_of({{0, 1, 2, 3, 4}, {0, 1, 2, 3, 4}});
  EXPECT_TRUE(same_bits(module.forward(x, Causal{}, ForwardOptions<float>{.positions = positions}),
                        module.forward(x, Causal{})));
}

TEST(ForwardPositions, ShiftedTogetherChangeNothing) {
  const auto module = make<double>(rotated());
  const auto x = random_tensor<double, 3>({2, 3, 12}, 2);
  const std::vector<Index> start{700, -30};
  EXPECT_LT(max_difference(module.forward(x, Causal{}, ForwardOptions<double>{.positions = start}),
                           module.forward(x, Causal{})),
            1e-6);  // cosines and sines are float
}

TEST(ForwardPositions, OfPackedSequencesStartAnew) {
  const auto module = make<double>(rotated());
  const auto x = random_tensor<double, 3>({1, 7, 12}, 3);
  const auto positions = positions_of({{0, 1, 2, 0, 1, 2, 3}});
  const auto same_sequence = [](Position at) { return (at.row < 3) == (at.key < 3) && at.key <= at.row; };
  const auto packed = module.forward(x, same_sequence, ForwardOptions<double>{.positions = positions});
  EXPECT_LT(max_difference(rows_of(packed, 0, 3), module.forward(rows_of(x, 0, 3), Causal{})), 1e-12);
  EXPECT_LT(max_difference(rows_of(packed, 3, 4), module.forward(rows_of(x, 3, 4), Causal{})), 1e-12);
}

TEST(ForwardPositions, OfATreeOfDraftsFollowItsBranches) {
  const auto module = make<double>(rotated());
  const auto prompt = random_tensor<double, 3>({1, 4, 12}, 4), drafts = random_tensor<double, 3>({1, 3, 12}, 5);
  auto cache = module.make_cache(1, 8);
  static_cast<void>(module.forward(prompt, Causal{}, cache));
  // Token 0 of the drafts has two children, 1 and 2, which do not see each other.
  const auto positions = positions_of({{4, 5, 5}});
  const auto tree = [](Position at) { return at.key < 4 || at.key - 4 == at.row || at.key == 4; };
  const auto y = module.forward(drafts, tree, ForwardOptions<double>{.positions = positions, .cache = cache});
  EXPECT_EQ(cache.length(0), 7);
  for (const Index leaf : {1, 2}) {
    auto alone = module.make_cache(1, 8);
    static_cast<void>(module.forward(prompt, Causal{}, alone));
    static_cast<void>(module.forward(rows_of(drafts, 0, 1), Causal{}, alone));
    EXPECT_LT(max_difference(rows_of(y, leaf, 1), module.forward(rows_of(drafts, leaf, 1), Causal{}, alone)), 1e-12);
  }
}

TEST(ForwardPositions, OfLeftPaddingGiveWhatEachSequenceGivesAlone) {
  auto dynamic = rotated();
  dynamic.rotary->scaling = attn::DynamicNtkScaling{.factor = 4.0, .original_length = 3};
  for (const auto& config : {rotated(), dynamic}) {
    const auto module = make<double>(config);
    auto x = random_tensor<double, 3>({2, 6, 12}, 6);
    const std::vector<Index> padding{4, 1};
    for (Index b = 0; b < 2; ++b)
      for (Index s = 0; s < padding[static_cast<std::size_t>(b)]; ++s)
        for (Index e = 0; e < 12; ++e) x(b, s, e) = 1e3;
    const auto positions = positions_of({{0, 0, 0, 0, 0, 1}, {0, 0, 1, 2, 3, 4}});
    const auto mask = Causal{} & LeftPadding(padding);
    const auto with_positions = module.forward(x, mask, ForwardOptions<double>{.positions = positions});
    const auto without = module.forward(x, mask);
    for (Index b = 0; b < 2; ++b) {
      const Index first = padding[static_cast<std::size_t>(b)];
      const auto alone = module.forward(slice(x, b, first, 6 - first), Causal{});
      EXPECT_LT(max_difference(slice(with_positions, b, first, 6 - first), alone), 1e-12);
      EXPECT_LT(max_difference(slice(without, b, first, 6 - first), alone), 1e-6);  // other angles, rounded
    }
  }
}

TEST(ForwardPositions, AreKeptForBackward) {
  const auto module_of = [] { return make<double>(rotated()); };
  auto module = module_of();
  auto x = random_tensor<double, 3>({2, 4, 12}, 7);
  const auto grad_y = random_tensor<double, 3>({2, 4, 12}, 8);
  LlamaAttention<double>::Activations saved;
  {
    const auto positions = positions_of({{3, 0, 9, 1}, {0, 5, 5, 2}});
    static_cast<void>(
        module.forward(x, NoMask{}, ForwardOptions<double>{.positions = positions, .activations = &saved}));
  }
  const auto grad_x = module.backward(grad_y, saved);
  const auto positions = positions_of({{3, 0, 9, 1}, {0, 5, 5, 2}});
  const auto sum = [&] {
    const auto y = module.forward(x, NoMask{}, ForwardOptions<double>{.positions = positions});
    return weighted_sum(y, grad_y);
  };
  expect_differences("x", x.data(), grad_x.data(), x.size(), sum);
}

TEST(ForwardPositions, OfAnotherShapeAreRefused) {
  const auto module = make<float>(rotated());
  const auto x = random_tensor<float, 3>({2, 3, 12}, 9);
  const auto few = positions_of({{0, 1, 2}}), narrow = positions_of({{0, 1}, {0, 1}});
  expect_error([&] { static_cast<void>(module.forward(x, NoMask{}, ForwardOptions<float>{.positions = few})); },
               {"[attn::LlamaAttention::forward] positions", "2 batch entries", "got 1"});
  expect_error([&] { static_cast<void>(module.forward(x, NoMask{}, ForwardOptions<float>{.positions = narrow})); },
               {"[attn::LlamaAttention::forward] positions [B,S]", "3 tokens", "got 2"});
}

// ---- Score functions --------------------------------------------------------------------------------------------

TEST(ForwardScore, IsAppliedAfterTheCap) {
  auto config = rotated();
  config.softcap = 0.8;
  const auto module = make<double>(config);
  auto uncapped_config = rotated();
  const auto uncapped = make<double>(uncapped_config);  // the same seed, the same weights
  const auto x = random_tensor<double, 3>({1, 6, 12}, 10);
  const auto score = [](auto s, Position at) { return s - 0.3 * at.distance(); };
  const auto both = [](auto s, Position at) { return 0.8 * std::tanh(s / 0.8) - 0.3 * at.distance(); };
  EXPECT_LT(max_difference(module.forward(x, Causal{}, ForwardOptions<double, decltype(score)>{.score = score}),
                           uncapped.forward(x, Causal{}, ForwardOptions<double, decltype(both)>{.score = both})),
            1e-13);
}

TEST(ForwardScore, MayBeACapAfterTheCap) {
  auto config = rotated();
  config.softcap = 0.8;
  const auto module = make<double>(config);
  const auto uncapped = make<double>(rotated());
  const auto x = random_tensor<double, 3>({1, 6, 12}, 10);
  const attn::SoftCap cap(0.5F);
  const auto both = [](double s, Position) { return 0.5 * std::tanh(0.8 * std::tanh(s / 0.8) / 0.5); };
  EXPECT_LT(max_difference(module.forward(x, Causal{}, ForwardOptions<double, attn::SoftCap>{.score = cap}),
                           uncapped.forward(x, Causal{}, ForwardOptions<double, decltype(both)>{.score = both})),
            1e-13);
}

TEST(ForwardScore, IsDifferentiatedThroughTheCap) {
  auto config = rotated();
  config.softcap = 0.8;
  auto module = make<double>(config);
  auto x = random_tensor<double, 3>({1, 5, 12}, 11);
  const auto grad_y = random_tensor<double, 3>({1, 5, 12}, 12);
  const auto score = [](auto s, Position at) { return s * s * 0.4 - 0.3 * at.distance(); };
  using Options = ForwardOptions<double, decltype(score)>;
  LlamaAttention<double>::Activations saved;
  static_cast<void>(module.forward(x, Causal{}, Options{.score = score}, saved));
  const auto grad_x = module.backward(grad_y, saved);
  const auto sum = [&] {
    const auto y = module.forward(x, Causal{}, Options{.score = score});
    return weighted_sum(y, grad_y);
  };
  expect_differences("x", x.data(), grad_x.data(), x.size(), sum);
}

TEST(ForwardScore, WithoutADerivativeIsRefusedInTraining) {
  const auto module = make<float>(rotated());
  const auto x = random_tensor<float, 3>({1, 3, 12}, 13);
  const auto score = [](float s, Position) { return s; };
  using Options = ForwardOptions<float, decltype(score)>;
  LlamaAttention<float>::Activations saved;
  EXPECT_TRUE(same_bits(module.forward(x, NoMask{}, Options{.score = score}), module.forward(x)));
  expect_error([&] { static_cast<void>(module.forward(x, NoMask{}, Options{.score = score, .activations = &saved})); },
               {"[attn::LlamaAttention::forward] options", "derivative", "forward(x, mask, options, saved)"});
  EXPECT_TRUE(saved.empty());
}

TEST(ForwardOptions, ActivationsAreThoseOfThePlainCall) {
  auto a = make<float>(rotated()), b = make<float>(rotated());
  const auto x = random_tensor<float, 3>({2, 5, 12}, 14);
  LlamaAttention<float>::Activations of_a, of_b;
  EXPECT_TRUE(
      same_bits(a.forward(x, Causal{}, of_a), b.forward(x, Causal{}, ForwardOptions<float>{.activations = &of_b})));
  EXPECT_TRUE(same_bits(a.backward(x, of_a), b.backward(x, of_b)));
}

TEST(ForwardOptions, ACacheWithActivationsIsRefused) {
  const auto module = make<float>(rotated());
  const auto x = random_tensor<float, 3>({1, 2, 12}, 15);
  auto cache = module.make_cache(1, 4);
  LlamaAttention<float>::Activations saved;
  expect_error(
      [&] {
        static_cast<void>(module.forward(x, NoMask{}, ForwardOptions<float>{.cache = cache, .activations = &saved}));
      },
      {"[attn::LlamaAttention::forward] options", "cache or activations", "both"});
  EXPECT_EQ(cache.length(0), 0);
}

// ---- Cross-attention --------------------------------------------------------------------------------------------

LlamaAttentionConfig crossed() {
  auto config = rotated();
  config.rotary = std::nullopt;
  config.context_size = 7;
  return config;
}

TEST(CrossAttention, FollowsTheFormula) {
  const auto module = make<double>(crossed());
  EXPECT_EQ(module.key().in_features(), 7);
  const auto x = random_tensor<double, 3>({2, 5, 12}, 16), context = random_tensor<double, 3>({2, 9, 7}, 17);
  const std::vector<Index> lengths{9, 4};
  const auto q = attn_test::plain_linear<double>(module.query(), x);
  const auto k = attn_test::plain_linear<double>(module.key(), context);
  const auto v = attn_test::plain_linear<double>(module.value(), context);
  const auto attended = attn::scaled_dot_product_attention(attn::split_heads(q, 4), attn::split_heads(k, 2),
                                                           attn::split_heads(v, 2), attn::Padding(lengths));
  Tensor<double, 3> merged(2, 5, 24);
  for (Index b = 0; b < 2; ++b)
    for (Index s = 0; s < 5; ++s)
      for (Index i = 0; i < 24; ++i) merged(b, s, i) = attended.output(b, i / 6, s, i % 6);
  const auto expected = attn_test::plain_linear<double>(module.out_proj(), merged);
  EXPECT_LT(max_difference(module.forward(x, context, attn::Padding(lengths)), expected), 1e-13);
}

TEST(CrossAttention, TakesKeysAndValuesComputedOnce) {
  for (const auto norm : {attn::QueryKeyNorm::none, attn::QueryKeyNorm::per_head}) {
    auto config = crossed();
    config.query_key_norm = norm;
    const auto module = make<float>(config);
    const auto x = random_tensor<float, 3>({2, 5, 12}, 18), context = random_tensor<float, 3>({2, 9, 7}, 19);
    auto kept = module.make_context(context);
    EXPECT_TRUE(same_bits(module.forward(x, NoMask{}, kept), module.forward(x, context, NoMask{})));
    EXPECT_TRUE(same_bits(module.forward(x, NoMask{}, kept), module.forward(x, context, NoMask{})));
    EXPECT_EQ(kept.length(0), 9) << "nothing is appended";
  }
}

TEST(CrossAttention, HasTheGradientsOfCentralDifferences) {
  auto module = make<double>(crossed());
  auto x = random_tensor<double, 3>({2, 3, 12}, 20), context = random_tensor<double, 3>({2, 4, 7}, 21);
  const auto grad_y = random_tensor<double, 3>({2, 3, 12}, 22);
  LlamaAttention<double>::Activations saved;
  const ForwardOptions<double> options{.activations = &saved, .context = context};
  static_cast<void>(module.forward(x, NoMask{}, options));
  Tensor<double, 3> grad_context(2, 4, 7);
  const auto grad_x = module.backward(grad_y, saved, {}, grad_context);
  const auto parameters = module.parameters();
  const auto sum = [&] {
    const auto y = module.forward(x, context, NoMask{});
    return weighted_sum(y, grad_y);
  };
  expect_differences("x", x.data(), grad_x.data(), x.size(), sum);
  expect_differences("context", context.data(), grad_context.data(), context.size(), sum);
  for (const auto& p : parameters)
    expect_differences(p.name(), p.values().data(), p.gradient().data(), std::ssize(p.values()), sum);
  module.zero_gradients();
  EXPECT_TRUE(same_bits(module.backward(grad_y, saved), grad_x)) << "the context's gradient is optional";
}

TEST(CrossAttention, RefusesWhatDoesNotFit) {
  const auto module = make<float>(crossed());
  const auto plain = make<float>(rotated());
  const auto x = random_tensor<float, 3>({2, 5, 12}, 23), context = random_tensor<float, 3>({2, 9, 7}, 24);
  expect_error([&] { static_cast<void>(module.forward(x)); }, {"LlamaAttention::forward] cross-attention", "neither"});
  expect_error([&] { static_cast<void>(plain.forward(x, context, NoMask{})); },
               {"LlamaAttention::forward] context", "none without context_size"});
  expect_error(
      [&] {
        static_cast<void>(module.forward(x, random_tensor<float, 3>({1, 9, 7}, 1), NoMask{}));
      },
      {"LlamaAttention::forward] context [B,K,C]", "got [1,9,7]"});
  expect_error(
      [&] {
        static_cast<void>(module.forward(x, random_tensor<float, 3>({2, 9, 6}, 1), NoMask{}));
      },
      {"LlamaAttention::forward] context [B,K,C]", "got [2,9,6]"});
  expect_error([&] { static_cast<void>(plain.make_context(context)); }, {"LlamaAttention::make_context] module"});
  auto kept = module.make_context(context);
  expect_error(
      [&] { static_cast<void>(module.forward(x, NoMask{}, ForwardOptions<float>{.cache = kept, .context = context})); },
      {"LlamaAttention::forward] cross-attention", "both"});
}

TEST(CrossAttention, RefusesCachesThatForgetTokens) {
  const auto module = make<float>(crossed());
  const auto x = random_tensor<float, 3>({2, 5, 12}, 23), context = random_tensor<float, 3>({2, 9, 7}, 24);
  auto whole = module.make_context(context);
  attn::KvCache<float> window(2, 2, 9, 6, 6, {.window = 4});
  window.append(whole.keys(), whole.values());
  expect_error([&] { static_cast<void>(module.forward(x, NoMask{}, window)); },
               {"[attn::LlamaAttention::forward] cache", "without a window", "got a window of 4"});
  expect_error([&] { module.erase(whole, 0, 2, 3); },
               {"[attn::LlamaAttention::erase] module", "self-attention", "forward appends to"});
  EXPECT_EQ(whole.length(0), 9);
}

// ---- The longest sequence ---------------------------------------------------------------------------------------

TEST(MaxLength, FixesFrequenciesThatDependOnTheLength) {
  auto config = rotated();
  config.rotary->scaling = attn::DynamicNtkScaling{.factor = 4.0, .original_length = 3};
  const auto growing = make<double>(config);
  config.max_length = 8;
  const auto module = make<double>(config);
  const auto x = random_tensor<double, 3>({1, 8, 12}, 25);
  const auto expected = module.forward(x, Causal{});
  EXPECT_LT(max_difference(growing.forward(x, Causal{}), expected), 1e-12) << "a sequence of just this length";
  auto cache = module.make_cache(1, 8);
  for (Index s = 0; s < 8; ++s)
    EXPECT_LT(max_difference(module.forward(rows_of(x, s, 1), Causal{}, cache), rows_of(expected, s, 1)), 1e-12);
  auto refused = growing.make_cache(1, 8);
  expect_error([&] { static_cast<void>(growing.forward(rows_of(x, 0, 1), Causal{}, refused)); }, {"max_length"});
}

TEST(MaxLength, RefusesLongerSequences) {
  auto config = rotated();
  config.max_length = 4;
  const auto module = make<float>(config);
  const auto x = random_tensor<float, 3>({1, 5, 12}, 26);
  expect_error([&] { static_cast<void>(module.forward(x)); },
               {"[attn::LlamaAttention::forward] sequence", "max_length = 4", "got 5"});
  auto cache = module.make_cache(1, 9);
  static_cast<void>(module.forward(rows_of(x, 0, 3), Causal{}, cache));
  expect_error([&] { static_cast<void>(module.forward(rows_of(x, 3, 2), Causal{}, cache)); }, {"sequence", "got 5"});
  EXPECT_EQ(cache.length(0), 3);
}

}  // namespace
