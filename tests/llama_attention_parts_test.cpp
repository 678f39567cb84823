// What LlamaAttention has beyond grouped heads and rotary: each part by its formula, in decoding, in training.
#include "module_support.hpp"

#include <functional>
#include <string>

namespace {

using attn::Causal;
using attn::ForwardOptions;
using attn::Index;
using attn::KvCache;
using attn::LlamaAttention;
using attn::LlamaAttentionConfig;
using attn::NoMask;
using attn::NoScore;
using attn::Position;
using attn::QueryKeyNorm;
using attn::Tensor;
using attn::View;
using attn_test::cast;
using attn_test::expect_differences;
using attn_test::expect_error;
using attn_test::max_difference;
using attn_test::random_tensor;
using attn_test::rows_of;
using attn_test::same_bits;

// ---- The configurations -----------------------------------------------------------------------------------------

struct Case {
  std::string name;
  LlamaAttentionConfig config;
};

LlamaAttentionConfig plain() {
  LlamaAttentionConfig config{.hidden_size = 12, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 6};
  config.attention_dropout = config.projection_dropout = 0.0, config.seed = 5;
  return config;
}
/// What models are made of, one part at a time, then together.
std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](std::string name, const std::function<void(LlamaAttentionConfig&)>& change) {
    all.push_back({std::move(name), plain()});
    change(all.back().config);
  };
  add("values of another size", [](auto& c) { c.value_head_dim = 5; });
  add("scale", [](auto& c) { c.scale = 0.7; });
  add("softcap", [](auto& c) { c.softcap = 0.5, c.scale = 2.0; });
  add("sinks", [](auto& c) { c.sinks = true; });
  add("norm per head", [](auto& c) { c.query_key_norm = QueryKeyNorm::per_head, c.rotary = attn::RotaryConfig{}; });
  add("norm with 1 + weight", [](auto& c) { c.query_key_norm = QueryKeyNorm::per_head_one_plus_weight; });
  add("norm of all heads", [](auto& c) { c.query_key_norm = QueryKeyNorm::whole_projection, c.norm_epsilon = 0.1; });
  add("gates", [](auto& c) { c.output_gate = true; });
  add("biases of queries and keys", [](auto& c) { c.bias = false, c.query_bias = c.key_bias = true; });
  add("no bias of the output", [](auto& c) { c.output_bias = false; });
  add("everything", [](auto& c) {
    c.value_head_dim = 3, c.scale = 0.9, c.softcap = 1.5, c.sinks = true, c.output_gate = true;
    c.query_key_norm = QueryKeyNorm::per_head, c.rotary = attn::RotaryConfig{}, c.window = 4, c.value_bias = false;
  });
  return all;
}

/// Sets what starts as ones or zeros to numbers that show.
template <class T>
LlamaAttention<T> make(const LlamaAttentionConfig& config) {
  LlamaAttention<T> module(config);
  module.eval();
  if (config.query_key_norm != QueryKeyNorm::none) {
    module.query_norm().set_weight(random_tensor<T, 1>({module.query_norm().size()}, 21));
    module.key_norm().set_weight(random_tensor<T, 1>({module.key_norm().size()}, 22));
  }
  if (config.sinks) module.set_sinks(random_tensor<T, 1>({config.num_attention_heads}, 23));
  return module;
}

/// The same module in double.
template <class T>
LlamaAttention<double> in_double(const LlamaAttention<T>& module) {
  LlamaAttention<double> result(module.config());
  result.eval();
  const auto copy = [](attn::Linear<double>& to, const attn::Linear<T>& from) {
    to.set_weight(cast<double>(from.weight()));
    if (from.has_bias()) to.set_bias(cast<double>(from.bias()));
  };
  copy(result.query(), module.query()), copy(result.key(), module.key());
  copy(result.value(), module.value()), copy(result.out_proj(), module.out_proj());
  if (module.config().query_key_norm != QueryKeyNorm::none) {
    result.query_norm().set_weight(cast<double>(module.query_norm().weight()));
    result.key_norm().set_weight(cast<double>(module.key_norm().weight()));
  }
  if (module.config().sinks) result.set_sinks(cast<double>(module.sinks()));
  return result;
}

// ---- The definition ---------------------------------------------------------------------------------------------

/// Rows of `size` over their root mean square, times a weight.
void plain_norm(Tensor<double, 3>& x, const attn::RmsNorm<double>& norm) {
  const auto weight = norm.weight();
  const double plus = norm.factor() == attn::NormFactor::one_plus_weight ? 1.0 : 0.0;
  for (Index first = 0; first < x.size(); first += norm.size()) {
    double squares = 0.0;
    for (Index i = 0; i < norm.size(); ++i) squares += x.data()[first + i] * x.data()[first + i];
    const double root = std::sqrt(squares / static_cast<double>(norm.size()) + norm.epsilon());
    for (Index i = 0; i < norm.size(); ++i) x.data()[first + i] *= (plus + weight(i)) / root;
  }
}

/// The definition of the module with all its parts, in double. source: what keys and values are made of.
template <class M, class F = NoScore>
Tensor<double, 3> by_definition(const LlamaAttention<double>& module, const Tensor<double, 3>& x,
                                const Tensor<double, 3>& source, const M& mask, const F& score = {}) {
  const LlamaAttentionConfig& c = module.config();
  const Index B = x.dimension(0), S = x.dimension(1), H = c.num_attention_heads, G = c.num_key_value_heads;
  const Index D = c.head_dim, Dv = c.value_head_dim;
  auto projected = attn_test::plain_linear<double>(module.query(), x);
  Tensor<double, 3> q(B, S, H * D), gates(B, S, H * Dv);
  const Index width = D + (c.output_gate ? Dv : 0);
  for (Index b = 0; b < B; ++b)
    for (Index s = 0; s < S; ++s)
      for (Index h = 0; h < H; ++h) {
        for (Index d = 0; d < D; ++d) q(b, s, h * D + d) = projected(b, s, h * width + d);
        for (Index d = 0; d < Dv && c.output_gate; ++d) gates(b, s, h * Dv + d) = projected(b, s, h * width + D + d);
      }
  auto k = attn_test::plain_linear<double>(module.key(), source);
  const auto v = attn_test::plain_linear<double>(module.value(), source);
  if (c.query_key_norm != QueryKeyNorm::none) plain_norm(q, module.query_norm()), plain_norm(k, module.key_norm());
  const std::vector<Index> start(static_cast<std::size_t>(B), 0);
  if (c.rotary) {
    attn::Rotary(D, *c.rotary).apply(attn::split_heads(q, H), start);
    attn::Rotary(D, *c.rotary).apply(attn::split_heads(k, G), start);
  }
  attn::AttentionOptions options;
  options.scale = c.scale;
  std::vector<double> sinks;
  for (Index h = 0; h < H && c.sinks; ++h) sinks.push_back(module.sinks()(h));
  options.sinks = sinks;
  Tensor<double, 3> attended(B, S, H * Dv);
  attn::AttentionOutputs<double> out;
  out.output = attn::split_heads(attended, H);
  const auto capped = [&](double s, Position at) {
    if (c.softcap) s = *c.softcap * std::tanh(s / *c.softcap);
    return static_cast<double>(score(s, at));
  };
  const auto window = c.window ? attn::SlidingWindow(*c.window) : attn::SlidingWindow::unlimited();
  const Tensor<double, 3>&keys = k, &values = v;
  attn::reference::scaled_dot_product_attention_into<double>(
      out, View<const double, 4>(attn::split_heads(q, H)), attn::split_heads(View<const double, 3>(keys), G),
      attn::split_heads(View<const double, 3>(values), G), mask & window, capped, options);
  for (Index i = 0; i < attended.size() && c.output_gate; ++i) attended.data()[i] /= 1 + std::exp(-gates.data()[i]);
  return attn_test::plain_linear<double>(module.out_proj(), attended);
}

constexpr double near = 1e-12;  // in double; rotary's cosines are float, but the same on both sides

// ---- Each part --------------------------------------------------------------------------------------------------

TEST(LlamaAttentionParts, FollowTheirFormulas) {
  const auto x = random_tensor<double, 3>({2, 70, 12}, 1);
  for (const auto& [name, config] : cases()) {
    SCOPED_TRACE(name);
    const auto module = make<double>(config);
    EXPECT_LT(max_difference(module.forward(x, Causal{}), by_definition(module, x, x, Causal{})), near);
    EXPECT_LT(max_difference(module.forward(x), by_definition(module, x, x, NoMask{})), near);
  }
}

TEST(LlamaAttentionParts, ErrInFloatAsTheFormulaDoes) {
  const auto x = random_tensor<float, 3>({1, 50, 12}, 2);
  for (const auto& [name, config] : cases()) {
    SCOPED_TRACE(name);
    const auto module = make<float>(config);
    const auto exact = in_double(module);
    const auto expected = by_definition(exact, cast<double>(x), cast<double>(x), Causal{});
    EXPECT_LT(max_difference(module.forward(x, Causal{}), expected), 2e-6 * attn_test::largest(expected));
  }
}

TEST(LlamaAttentionParts, DecodeTokenByTokenWhatTheyPrefill) {
  const auto x = random_tensor<double, 3>({2, 9, 12}, 3);
  for (const auto& [name, config] : cases()) {
    SCOPED_TRACE(name);
    const auto module = make<double>(config);
    const auto expected = module.forward(x, Causal{});
    auto cache = module.make_cache(2, 9);
    EXPECT_LT(max_difference(module.forward(rows_of(x, 0, 4), Causal{}, cache), rows_of(expected, 0, 4)), near);
    for (Index s = 4; s < 9; ++s)
      EXPECT_LT(max_difference(module.forward(rows_of(x, s, 1), Causal{}, cache), rows_of(expected, s, 1)), near);
  }
}

TEST(LlamaAttentionParts, HaveBiasesOneByOne) {
  auto config = plain();
  config.bias = false, config.key_bias = true;
  const LlamaAttention<float> module(config);
  EXPECT_FALSE(module.query().has_bias());
  EXPECT_TRUE(module.key().has_bias());
  EXPECT_FALSE(module.value().has_bias());
  EXPECT_FALSE(module.out_proj().has_bias());
  EXPECT_EQ(module.config().query_bias, false);
}

TEST(LlamaAttentionParts, WeightsOfSinksSumToLessThanOne) {
  const auto module = make<double>(cases()[3].config);
  const auto x = random_tensor<double, 3>({1, 5, 12}, 4);
  const auto result = module.forward_with_weights(x);
  EXPECT_TRUE(same_bits(result.output, module.forward(x)));
  for (Index h = 0; h < 4; ++h) {
    double sum = 0;
    for (Index t = 0; t < 5; ++t) sum += result.weights(0, h, 2, t);
    EXPECT_GT(sum, 0.1);
    EXPECT_LT(sum, 0.95);
  }
}

TEST(LlamaAttentionParts, CopiesAreIndependentAndSharingIsSeen) {
  const auto everything = cases().back().config;
  auto module = make<double>(everything);
  auto copy = module, shared = make<double>(everything);
  shared.share(module);
  const auto x = random_tensor<double, 3>({1, 5, 12}, 4);
  const auto before = module.forward(x);
  module.set_sinks(random_tensor<double, 1>({4}, 31));
  module.query_norm().set_weight(random_tensor<double, 1>({6}, 32));
  EXPECT_GT(max_difference(module.forward(x), before), 1e-3);
  EXPECT_TRUE(same_bits(copy.forward(x), before));
  EXPECT_TRUE(same_bits(shared.forward(x), module.forward(x)));
  expect_error([&] { module.share(LlamaAttention<double>(plain())); }, {"LlamaAttention::share", "parts"});
}

// ---- Training ---------------------------------------------------------------------------------------------------

TEST(LlamaAttentionParts, HaveTheGradientsOfCentralDifferences) {
  for (const bool tied : {false, true})
    for (const auto& [name, config] : cases()) {
      if (tied && (config.value_head_dim != 0 || config.bias != true)) continue;
      SCOPED_TRACE(name + (tied ? ", tied" : ""));
      auto module = make<double>(config);
      if (tied) module.value().share(module.key());
      auto x = random_tensor<double, 3>({2, 6, 12}, 5);
      const auto grad_y = random_tensor<double, 3>({2, 6, 12}, 6);
      LlamaAttention<double>::Activations saved;
      EXPECT_TRUE(same_bits(module.forward(x, Causal{}, saved), module.forward(x, Causal{})));
      const auto grad_x = module.backward(grad_y, saved);
      const auto sum = [&] { return attn_test::weighted_sum(module.forward(x, Causal{}), grad_y); };
      expect_differences("x", x.data(), grad_x.data(), x.size(), sum);
      for (const auto& p : module.parameters())
        expect_differences(p.name(), p.values().data(), p.gradient().data(), std::ssize(p.values()), sum);
    }
}

TEST(LlamaAttentionParts, AreNamedAsParametersAndZeroed) {
  auto module = make<double>(cases().back().config);
  std::vector<std::string> names;
  for (const auto& p : module.parameters()) names.push_back(p.name());
  const std::vector<std::string> expected{
      "query.weight",    "query.bias",    "key.weight",        "key.bias",        "value.weight",
      "out_proj.weight", "out_proj.bias", "query_norm.weight", "key_norm.weight", "sinks"};
  EXPECT_EQ(names, expected);
  const auto x = random_tensor<double, 3>({1, 5, 12}, 7);
  LlamaAttention<double>::Activations saved;
  const auto y = module.forward(x, NoMask{}, saved);
  static_cast<void>(module.backward(y, saved));
  const double once = module.sinks_gradient()(1);
  EXPECT_NE(once, 0.0);
  static_cast<void>(module.backward(y, saved));
  EXPECT_DOUBLE_EQ(module.sinks_gradient()(1), 2 * once);
  module.zero_gradients();
  for (const auto& p : module.parameters())
    for (const double g : p.gradient()) ASSERT_EQ(g, 0.0) << p.name();
}

TEST(LlamaAttentionParts, TrainInLowPrecision) {
  const auto config = cases().back().config;
  auto module = make<Eigen::bfloat16>(config);
  auto exact_module = in_double(module);
  const auto x = random_tensor<Eigen::bfloat16, 3>({2, 6, 12}, 8);
  LlamaAttention<Eigen::bfloat16>::Activations saved;
  LlamaAttention<double>::Activations exact_saved;
  const auto y = module.forward(x, Causal{}, saved);
  const auto exact_y = exact_module.forward(cast<double>(x), Causal{}, exact_saved);
  EXPECT_LT(max_difference(y, exact_y), 0.03 * attn_test::largest(exact_y));
  const auto grad_x = module.backward(x, saved);
  const auto exact = exact_module.backward(cast<double>(x), exact_saved);
  EXPECT_LT(max_difference(grad_x, exact), 0.05 * attn_test::largest(exact));
}

TEST(LlamaAttentionParts, ThreadsChangeNoBitOfAGradient) {
  const auto config = cases().back().config;
  const auto x = random_tensor<float, 3>({3, 150, 12}, 9);
  std::vector<std::vector<float>> all;
  for (const int threads : {1, 2, 3, 5}) {
    attn::ThreadPool pool(threads);
    const attn::UseExecutor use(pool);
    auto module = make<float>(config);
    LlamaAttention<float>::Activations saved;
    const auto y = module.forward(x, Causal{}, saved);
    const auto grad = module.backward(y, saved);
    all.emplace_back(grad.data(), grad.data() + grad.size());
    for (const auto& p : module.parameters())
      all.back().insert(all.back().end(), p.gradient().begin(), p.gradient().end());
  }
  for (const auto& one : all) EXPECT_EQ(one, all.front());
}

// ---- Errors -----------------------------------------------------------------------------------------------------

TEST(LlamaAttentionParts, RefuseConfigurationsThatMakeNoSense) {
  const auto with = [](const std::function<void(LlamaAttentionConfig&)>& change) {
    return [=] {
      auto config = plain();
      change(config);
      LlamaAttention<float> module(config);
    };
  };
  expect_error(with([](auto& c) { c.value_head_dim = -1; }), {"[attn::LlamaAttention] value_head_dim", "got -1"});
  expect_error(with([](auto& c) { c.scale = attn_test::infinity; }), {"[attn::LlamaAttention] scale", "got inf"});
  expect_error(with([](auto& c) { c.softcap = 0.0; }), {"[attn::LlamaAttention] softcap", "positive", "got 0"});
  expect_error(with([](auto& c) { c.softcap = -1.0; }), {"[attn::LlamaAttention] softcap", "positive", "got -1"});
  expect_error(with([](auto& c) { c.norm_epsilon = -1e-6; }), {"[attn::LlamaAttention] norm_epsilon"});
  expect_error(with([](auto& c) { c.query_key_norm = static_cast<QueryKeyNorm>(9); }),
               {"[attn::LlamaAttention] query_key_norm", "QueryKeyNorm(9)"});
  expect_error(with([](auto& c) { c.context_size = -2; }), {"[attn::LlamaAttention] context_size", "got -2"});
  expect_error(with([](auto& c) { c.context_size = 4, c.rotary = attn::RotaryConfig{}; }), {"context_size", "rotary"});
  expect_error(with([](auto& c) { c.context_size = 4, c.window = 3; }), {"context_size", "window"});
  expect_error(with([](auto& c) { c.max_length = 0; }), {"[attn::LlamaAttention] max_length", "got 0"});
}

TEST(LlamaAttentionParts, ThatAModuleLacksAreRefusedByName) {
  LlamaAttention<float> module(plain());
  expect_error([&] { static_cast<void>(module.query_norm()); }, {"[attn::LlamaAttention::query_norm] module"});
  expect_error([&] { static_cast<void>(module.key_norm()); }, {"[attn::LlamaAttention::key_norm] module"});
  expect_error([&] { static_cast<void>(module.sinks()); }, {"[attn::LlamaAttention::sinks] module"});
  expect_error([&] { module.set_sinks(random_tensor<float, 1>({4}, 1)); }, {"[attn::LlamaAttention::set_sinks]"});
  expect_error([&] { static_cast<void>(module.sinks_gradient()); }, {"[attn::LlamaAttention::sinks_gradient]"});
  auto with_sinks = make<float>(cases()[3].config);
  expect_error([&] { with_sinks.set_sinks(random_tensor<float, 1>({3}, 1)); }, {"set_sinks] sinks [H]", "[4]", "[3]"});
  Tensor<float, 1> bad(4);
  bad.setConstant(std::numeric_limits<float>::quiet_NaN());
  const auto before = with_sinks.sinks();
  expect_error([&] { with_sinks.set_sinks(bad); }, {"set_sinks] sinks", "finite"});
  EXPECT_TRUE(same_bits(with_sinks.sinks(), before));
}

}  // namespace
