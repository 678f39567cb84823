// Sinks: one more score for each head, whose value is 0.

#include "backward_support.hpp"

namespace {

using attn::AttentionOptions;
using attn::Causal;
using attn::Index;
using attn::NoMask;
using attn::NoScore;
using attn::Padding;
using attn::Position;
using attn::scaled_dot_product_attention;
using attn::scaled_dot_product_attention_backward;
using attn::SlidingWindow;
using attn::Tensor;
using attn::View;
using attn_test::difference;
using attn_test::expect_attention;
using attn_test::expect_gradient;
using attn_test::infinity;
using attn_test::Inputs;
using attn_test::keep_all;
using attn_test::many_sizes;
using attn_test::only_if;
using attn_test::random_gradients;
using attn_test::random_inputs;
using attn_test::same_bits;
using attn_test::same_score;
using attn_test::Sizes;

/// Small, large, far above all scores, none.
std::vector<double> some_sinks(Index heads) {
  const std::array<double, 5> values{0.25, -1.5, 3.0, 30.0, -infinity};
  std::vector<double> sinks;
  for (Index h = 0; h < heads; ++h) sinks.push_back(values[static_cast<std::size_t>(h) % values.size()]);
  return sinks;
}

TEST(Sinks, GiveTheResultOfACaseWorkedByHand) {
  Tensor<float, 4> q(1, 1, 1, 1), k(1, 1, 2, 1), v(1, 1, 2, 1);
  q.setValues({{{{1}}}});
  k.setValues({{{{0}, {1}}}});
  v.setValues({{{{10}, {20}}}});
  const std::vector<double> sinks{std::log(2.0)};
  AttentionOptions options{.log_sum_exp = true, .weights = true};
  options.sinks = sinks;
  const auto result = scaled_dot_product_attention(q, k, v, NoMask{}, NoScore{}, options);
  const double e = std::exp(1.0), sum = 1 + e + 2;
  EXPECT_NEAR(result.output(0, 0, 0, 0), (10 + 20 * e) / sum, 1e-5);
  EXPECT_NEAR(result.log_sum_exp(0, 0, 0), std::log(sum), 1e-6);
  EXPECT_NEAR(result.weights(0, 0, 0, 1), e / sum, 1e-6);
}

TEST(Sinks, MatchTheOracleOverManySizes) {
  unsigned seed = 7100;
  for (const Sizes& n : many_sizes()) {
    const auto sinks = some_sinks(n.H);
    AttentionOptions options;
    options.sinks = sinks;
    expect_attention(random_inputs<float>(n, ++seed), NoMask{}, NoScore{}, keep_all, same_score, options);
    expect_attention(
        random_inputs<float>(n, ++seed), Causal{} & SlidingWindow(9), NoScore{},
        [=](Position at) {
          const Index distance = at.row + n.T - n.S - at.key;
          return only_if(0 <= distance && distance < 9);
        },
        same_score, options);
  }
}

TEST(Sinks, MatchTheOracleInEveryType) {
  const Sizes n{.B = 2, .H = 6, .G = 3, .S = 37, .T = 70, .D = 10, .Dv = 7};
  const auto sinks = some_sinks(n.H);
  AttentionOptions options;
  options.sinks = sinks;
  expect_attention(random_inputs<double>(n, 1), NoMask{}, NoScore{}, keep_all, same_score, options);
  expect_attention(random_inputs<Eigen::half>(n, 2), NoMask{}, NoScore{}, keep_all, same_score, options);
  expect_attention(random_inputs<Eigen::bfloat16>(n, 3), NoMask{}, NoScore{}, keep_all, same_score, options);
}

TEST(Sinks, AreOneMoreKeyWhoseValueIsZero) {
  for (const Index S : {1, 3, 60}) {
    const Sizes n{.B = 1, .H = 4, .G = 4, .S = S, .T = 5000, .D = 16, .Dv = 8};
    const auto with = random_inputs<double>(n, 5);
    auto k = with.k, v = with.v;  // the last key is the sink
    for (Index h = 0; h < n.H; ++h) {
      for (Index d = 0; d < n.D; ++d) k(0, h, n.T - 1, d) = 0;
      for (Index d = 0; d < n.Dv; ++d) v(0, h, n.T - 1, d) = 0;
    }
    const auto sinks = some_sinks(n.H);
    const auto score = [&](double x, Position at) {
      return at.key == 4999 ? sinks[static_cast<std::size_t>(at.head)] : x;
    };
    AttentionOptions options{.log_sum_exp = true};
    const auto expected = scaled_dot_product_attention(with.q, k, v, NoMask{}, score, options);
    const std::vector<Index> length{n.T - 1};
    options.sinks = sinks;
    const auto got = scaled_dot_product_attention(with.q, k, v, Padding(length), NoScore{}, options);
    EXPECT_LT(difference(got.output, expected.output).largest, 1e-13);
    EXPECT_LT(difference(got.log_sum_exp, expected.log_sum_exp).largest, 1e-13);
  }
}

TEST(Sinks, ARowWithoutKeysGivesTheSinksLogSumExp) {
  for (const Index S : {2, 40}) {
    const Sizes n{.B = 1, .H = 5, .G = 5, .S = S, .T = 30, .D = 8, .Dv = 8};
    const auto in = random_inputs<float>(n, 6);
    const auto sinks = some_sinks(n.H);
    AttentionOptions options{.log_sum_exp = true};
    options.sinks = sinks;
    const auto none = [](Position) { return false; };
    const auto result = scaled_dot_product_attention(in.q, in.k, in.v, none, NoScore{}, options);
    for (Index h = 0; h < n.H; ++h)
      for (Index s = 0; s < S; ++s) {
        EXPECT_EQ(result.output(0, h, s, 3), 0.F);
        EXPECT_EQ(result.log_sum_exp(0, h, s), static_cast<float>(sinks[static_cast<std::size_t>(h)]));
      }
  }
}

TEST(Sinks, OfMinusInfinityChangeNoBit) {
  for (const Index S : {1, 50}) {
    const auto in = random_inputs<float>({.B = 2, .H = 4, .G = 2, .S = S, .T = 300, .D = 16, .Dv = 16}, 7);
    const std::vector<double> sinks(4, -infinity);
    AttentionOptions options{.log_sum_exp = true};
    const auto without = scaled_dot_product_attention(in.q, in.k, in.v, Causal{}, NoScore{}, options);
    options.sinks = sinks;
    const auto with = scaled_dot_product_attention(in.q, in.k, in.v, Causal{}, NoScore{}, options);
    EXPECT_TRUE(same_bits(with.output, without.output));
    EXPECT_TRUE(same_bits(with.log_sum_exp, without.log_sum_exp));
  }
}

// ---- Backward ---------------------------------------------------------------------------------------------------

template <class T>
struct SinkGradients {
  Tensor<T, 4> q, k, v;
  Tensor<T, 1> sinks;
};
template <class T>
SinkGradients<T> by_reference(const Inputs<T>& in, const attn_test::OutputGradients<T>& grad,
                              const AttentionOptions& options) {
  SinkGradients<T> result{in.q, in.k, in.v, Tensor<T, 1>(in.n.H)};
  const attn::AttentionGradientOutputs<T> out{result.q, result.k, result.v, {}, {}, result.sinks};
  const Tensor<T, 3> unused = grad.log_sum_exp;
  attn::reference::scaled_dot_product_attention_backward_into(out, grad.output, in.q, in.k, in.v, grad.output, unused,
                                                              Causal{}, NoScore{}, options, grad.log_sum_exp);
  return result;
}
Tensor<double, 4> as_rank_4(const Tensor<double, 1>& x) {
  Tensor<double, 4> result(1, 1, 1, x.size());
  std::copy_n(x.data(), x.size(), result.data());
  return result;
}

TEST(SinksBackward, MatchesTheReferenceOverManySizes) {
  unsigned seed = 7300;
  for (const Sizes& n : many_sizes()) {
    SCOPED_TRACE(testing::Message() << n);
    const auto sinks = some_sinks(n.H);
    AttentionOptions options{.dropout = 0.2, .seed = 3, .log_sum_exp = true};
    options.sinks = sinks, options.sinks_gradient = true;
    const auto in = random_inputs<float>(n, ++seed);
    const auto grad = random_gradients<float>(n, ++seed);
    const auto exact =
        by_reference(attn_test::cast<double>(in),
                     {attn_test::cast<double>(grad.output), attn_test::cast<double>(grad.log_sum_exp)}, options);
    const auto in_float = by_reference(in, grad, options);
    const auto result = scaled_dot_product_attention(in.q, in.k, in.v, Causal{}, NoScore{}, options);
    const auto got = scaled_dot_product_attention_backward(grad.output, in.q, in.k, in.v, result, Causal{}, NoScore{},
                                                           options, grad.log_sum_exp);
    expect_gradient<float>("q", got.q, exact.q, attn_test::cast<double>(in_float.q));
    expect_gradient<float>("k", got.k, exact.k, attn_test::cast<double>(in_float.k));
    expect_gradient<float>("v", got.v, exact.v, attn_test::cast<double>(in_float.v));
    expect_gradient<float>("sinks", as_rank_4(attn_test::cast<double>(got.sinks)), as_rank_4(exact.sinks),
                           as_rank_4(attn_test::cast<double>(in_float.sinks)));
  }
}

TEST(SinksBackward, MatchesCentralDifferences) {
  const Sizes n{.B = 2, .H = 4, .G = 2, .S = 20, .T = 33, .D = 6, .Dv = 5};
  const auto in = random_inputs<double>(n, 8);
  const auto grad = random_gradients<double>(n, 9);
  std::vector<double> sinks{0.25, -1.5, 3.0, 0.0};
  AttentionOptions options{.log_sum_exp = true};
  options.sinks = sinks, options.sinks_gradient = true;
  const auto weighted_sum = [&] {
    const auto r = scaled_dot_product_attention(in.q, in.k, in.v, Causal{}, NoScore{}, options);
    double sum = 0;
    for (Index i = 0; i < r.output.size(); ++i) sum += r.output.data()[i] * grad.output.data()[i];
    for (Index i = 0; i < r.log_sum_exp.size(); ++i) sum += r.log_sum_exp.data()[i] * grad.log_sum_exp.data()[i];
    return sum;
  };
  const auto result = scaled_dot_product_attention(in.q, in.k, in.v, Causal{}, NoScore{}, options);
  const auto got = scaled_dot_product_attention_backward(grad.output, in.q, in.k, in.v, result, Causal{}, NoScore{},
                                                         options, grad.log_sum_exp);
  for (Index h = 0; h < n.H; ++h) {
    double& sink = sinks[static_cast<std::size_t>(h)];
    const double before = sink, step = 1e-5;
    sink = before + step;
    const double above = weighted_sum();
    sink = before - step;
    const double below = weighted_sum();
    sink = before;
    EXPECT_NEAR(got.sinks(h), (above - below) / (2 * step), 1e-6 * (1 + std::abs(got.sinks(h))));
  }
}

TEST(SinksBackward, WithoutSinksTheirGradientIsZero) {
  const auto in = random_inputs<float>({.B = 1, .H = 3, .G = 3, .S = 4, .T = 4, .D = 4, .Dv = 4}, 10);
  AttentionOptions options{.log_sum_exp = true};
  options.sinks_gradient = true;
  const auto result = scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, options);
  const auto got =
      scaled_dot_product_attention_backward(result.output, in.q, in.k, in.v, result, NoMask{}, NoScore{}, options);
  ASSERT_EQ(got.sinks.size(), 3);
  for (Index h = 0; h < 3; ++h) EXPECT_EQ(got.sinks(h), 0.F);
}

// ---- Bad input --------------------------------------------------------------------------------------------------

TEST(Sinks, AreRefusedWhereTheyDoNotFit) {
  const auto in = random_inputs<float>({.B = 1, .H = 3, .G = 3, .S = 4, .T = 4, .D = 4, .Dv = 4}, 11);
  const auto call = [&](std::vector<double> sinks) {
    AttentionOptions options;
    options.sinks = sinks;
    return scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, options);
  };
  EXPECT_THROW(static_cast<void>(call({1.0, 2.0})), attn::Error);
  EXPECT_THROW(static_cast<void>(call({1.0, 2.0, infinity})), attn::Error);
  EXPECT_THROW(static_cast<void>(call({1.0, 2.0, std::nan("")})), attn::Error);
  EXPECT_THROW(static_cast<void>(call({1.0, 2.0, 1e300})), attn::Error);
}

}  // namespace
