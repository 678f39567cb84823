// Dropout in attention: which weights it drops, how many, and what it makes of the others.

#include "support.hpp"

namespace {

using attn::AttentionOptions;
using attn::Index;
using attn::NoMask;
using attn::NoScore;
using attn::Position;
using attn::scaled_dot_product_attention;
using attn::Tensor;
using attn_test::cast;
using attn_test::expect_attention;
using attn_test::filled;
using attn_test::for_each_position;
using attn_test::keep_all;
using attn_test::many_sizes;
using attn_test::only_if;
using attn_test::random_inputs;
using attn_test::same_bits;
using attn_test::same_score;
using attn_test::Sizes;

AttentionOptions dropping(double p, std::uint64_t seed = 1, std::uint32_t call = 0) {
  AttentionOptions options;
  options.dropout = p;
  options.seed = seed;
  options.call = call;
  return options;
}

/// With queries of 0 all weights of a row are 1/T, and with values [t][d] = (t == d) the output is the weights: what
/// the fused kernel drops, seen without asking for weights.
Tensor<float, 4> dropped_weights(Sizes n, const AttentionOptions& options) {
  n.Dv = n.T;
  auto in = random_inputs<float>(n, 1);
  in.q.setZero();
  in.v.setZero();
  for (Index b = 0; b < n.B; ++b)
    for (Index g = 0; g < n.G; ++g)
      for (Index t = 0; t < n.T; ++t) in.v(b, g, t, t) = 1;
  return scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, options).output;
}

const Sizes usual{.B = 2, .H = 4, .G = 2, .S = 70, .T = 131, .D = 4, .Dv = 5};

/// Whether a weight is dropped, asked of the rule of philox.hpp.
bool drops(const attn::DropoutRule& rule, const Sizes& n, Position at) {
  return !rule.keep(static_cast<std::uint32_t>(at.key), static_cast<std::uint32_t>(at.row),
                    static_cast<std::uint32_t>(at.batch * n.H + at.head));
}

TEST(AttentionDropout, FollowsTheRuleAndScalesTheRest) {
  for (const double p : {0.1, 0.5, 0.9}) {
    const AttentionOptions options = dropping(p, 77, 3);
    const attn::DropoutRule rule(p, 77, 3);
    const auto weights = dropped_weights(usual, options);
    for_each_position(usual, {}, [&](Position at) {
      const double expected = drops(rule, usual, at) ? 0.0 : 1.0 / static_cast<double>(usual.T) / (1 - p);
      ASSERT_NEAR(weights(at.batch, at.head, at.row, at.key), expected, 1e-6 * expected);
    });
  }
}

TEST(AttentionDropout, DropsAShareOfPWithinFiveStandardDeviations) {
  for (const double p : {0.01, 0.1, 0.5, 0.9}) {
    const auto weights = dropped_weights(usual, dropping(p, 5));
    const auto n = static_cast<double>(weights.size());
    const auto dropped = static_cast<double>(std::count(weights.data(), weights.data() + weights.size(), 0.F));
    EXPECT_NEAR(dropped, n * p, 5 * std::sqrt(n * p * (1 - p))) << p;
  }
}

TEST(AttentionDropout, DropsTheSameShareInEachRowColumnAndHead) {
  const auto weights = dropped_weights(usual, dropping(0.5, 6));
  std::vector<double> rows(70), columns(131), planes(8);
  for_each_position(usual, {}, [&](Position at) {
    const double dropped = weights(at.batch, at.head, at.row, at.key) == 0.F ? 1 : 0;
    rows[static_cast<std::size_t>(at.row)] += dropped;
    columns[static_cast<std::size_t>(at.key)] += dropped;
    planes[static_cast<std::size_t>(at.batch * usual.H + at.head)] += dropped;
  });
  const auto expect_half = [&](const std::vector<double>& counts) {
    const double n = static_cast<double>(weights.size()) / static_cast<double>(counts.size());
    for (const double count : counts) EXPECT_NEAR(count, n / 2, 5 * std::sqrt(n / 4));
  };
  expect_half(rows);
  expect_half(columns);
  expect_half(planes);
}

TEST(AttentionDropout, AveragesToTheOutputWithoutDropout) {
  const Sizes n{.B = 1, .H = 2, .G = 1, .S = 3, .T = 20, .D = 4, .Dv = 3};
  const auto in = random_inputs<float>(n, 2);
  const auto expected = scaled_dot_product_attention(in.q, in.k, in.v).output;
  Tensor<float, 4> mean = filled<float, 4>({n.B, n.H, n.S, n.Dv}, 0.F);
  constexpr std::uint32_t calls = 4000;
  for (std::uint32_t call = 0; call < calls; ++call)
    mean += scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, dropping(0.3, 3, call)).output;
  for (Index i = 0; i < mean.size(); ++i) EXPECT_NEAR(mean.data()[i] / calls, expected.data()[i], 0.05);
}

TEST(AttentionDropout, MatchesTheOracleInEveryOutput) {
  unsigned seed = 6100;
  for (const Sizes& n : many_sizes()) {
    const auto in = random_inputs<float>(n, ++seed);
    AttentionOptions options = dropping(0.25, seed, 9);
    expect_attention(in, NoMask{}, NoScore{}, keep_all, same_score, options);
    options.weights = true;
    expect_attention(in, NoMask{}, NoScore{}, keep_all, same_score, options);
  }
}

// Which weights are dropped must not depend on blocks that are skipped or cut.
TEST(AttentionDropout, MatchesTheOracleUnderMasks) {
  unsigned seed = 6200;
  for (const Sizes& n : many_sizes()) {
    ++seed;
    expect_attention(
        random_inputs<float>(n, seed), attn::Causal{} & attn::SlidingWindow(45), NoScore{},
        [=](Position at) {
          const Index query = at.row + n.T - n.S;
          return only_if(at.key <= query && at.key > query - 45);
        },
        same_score, dropping(0.4, seed));
  }
}

TEST(AttentionDropout, ReturnsTheWeightsThatWereUsed) {
  const auto in = random_inputs<float>(usual, 4);
  AttentionOptions options = dropping(0.5, 8);
  options.weights = true;
  const auto result = scaled_dot_product_attention(in.q, in.k, in.v, attn::Causal{}, NoScore{}, options);
  for (Index b = 0; b < usual.B; ++b)
    for (Index h = 0; h < usual.H; ++h)
      for (Index s = 0; s < usual.S; ++s)
        for (Index d = 0; d < usual.Dv; ++d) {
          double y = 0;
          for (Index t = 0; t < usual.T; ++t) y += double{result.weights(b, h, s, t)} * double{in.v(b, h / 2, t, d)};
          ASSERT_NEAR(result.output(b, h, s, d), y, 2e-6);
        }
}

TEST(AttentionDropout, LeavesLogSumExpUnchanged) {
  const auto in = random_inputs<float>(usual, 5);
  AttentionOptions with = dropping(0.5), without;
  with.log_sum_exp = without.log_sum_exp = true;
  EXPECT_TRUE(same_bits(scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, with).log_sum_exp,
                        scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, without).log_sum_exp));
}

TEST(AttentionDropout, GivesZerosAtPOneAndDoesNothingAtPZero) {
  const auto in = random_inputs<float>(usual, 6);
  AttentionOptions all = dropping(1.0);
  all.weights = true;
  const auto zeros = scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, all);
  EXPECT_TRUE(same_bits(zeros.output, filled<float, 4>({2, 4, 70, 5}, 0.F)));
  EXPECT_TRUE(same_bits(zeros.weights, filled<float, 4>(usual.scores(), 0.F)));
  EXPECT_TRUE(same_bits(scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, dropping(0.0, 9)).output,
                        scaled_dot_product_attention(in.q, in.k, in.v).output));
}

/// How many zeros two sets of weights share, among those of the first.
double shared_zeros(const Tensor<float, 4>& a, const Tensor<float, 4>& b) {
  double zeros = 0, shared = 0;
  for (Index i = 0; i < a.size(); ++i) {
    if (a.data()[i] != 0.F) continue;
    ++zeros;
    if (b.data()[i] == 0.F) ++shared;
  }
  return shared / zeros;
}

TEST(AttentionDropout, DropsOtherWeightsWithAnotherSeedOrCall) {
  const auto first = dropped_weights(usual, dropping(0.5, 1, 0));
  EXPECT_EQ(shared_zeros(first, dropped_weights(usual, dropping(0.5, 1, 0))), 1.0);
  EXPECT_NEAR(shared_zeros(first, dropped_weights(usual, dropping(0.5, 1, 1))), 0.5, 0.02);
  EXPECT_NEAR(shared_zeros(first, dropped_weights(usual, dropping(0.5, 2, 0))), 0.5, 0.02);
  EXPECT_NEAR(shared_zeros(first, dropped_weights(usual, dropping(0.5, 1 + (std::uint64_t{1} << 32), 0))), 0.5, 0.02)
      << "the upper half of the seed is not used";
}

TEST(AttentionDropout, DropsOtherWeightsInAnotherCallOfFewQueries) {
  const Sizes few{.B = 4, .H = 8, .G = 2, .S = 2, .T = 300, .D = 4};
  const auto first = dropped_weights(few, dropping(0.5, 1, 7));
  EXPECT_EQ(shared_zeros(first, dropped_weights(few, dropping(0.5, 1, 7))), 1.0);
  EXPECT_NEAR(shared_zeros(first, dropped_weights(few, dropping(0.5, 1, 8))), 0.5, 0.03);
  EXPECT_NEAR(shared_zeros(first, dropped_weights(few, dropping(0.5, 1, 0))), 0.5, 0.03);
}

TEST(AttentionDropout, DropsAtALargerPWhatItDropsAtASmallerOne) {
  EXPECT_EQ(shared_zeros(dropped_weights(usual, dropping(0.2)), dropped_weights(usual, dropping(0.6))), 1.0);
}

TEST(AttentionDropout, DependsOnPositionAndNotOnShape) {
  const auto small = dropped_weights({.B = 1, .H = 4, .G = 4, .S = 9, .T = 50, .D = 4}, dropping(0.5));
  for (const Sizes& n :
       {Sizes{.B = 3, .H = 4, .G = 1, .S = 9, .T = 50, .D = 7}, Sizes{.B = 1, .H = 4, .G = 4, .S = 9, .T = 53, .D = 4},
        Sizes{.B = 2, .H = 4, .G = 2, .S = 210, .T = 277, .D = 4},
        Sizes{.B = 1, .H = 4, .G = 2, .S = 2, .T = 900, .D = 4}}) {
    SCOPED_TRACE(testing::Message() << n);
    const auto large = dropped_weights(n, dropping(0.5));
    for (Index h = 0; h < 4; ++h)
      for (Index s = 0; s < std::min<Index>(9, n.S); ++s)
        for (Index t = 0; t < 50; ++t) ASSERT_EQ(small(0, h, s, t) == 0.F, large(0, h, s, t) == 0.F);
  }
}

TEST(AttentionDropout, DependsOnPositionAndNotOnType) {
  const auto in = random_inputs<double>(usual, 7);
  AttentionOptions options = dropping(0.5);
  options.weights = true;
  const auto in_double = scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, options).weights;
  const auto low = cast<Eigen::half>(in);
  const auto in_half = scaled_dot_product_attention(low.q, low.k, low.v, NoMask{}, NoScore{}, options).weights;
  for (Index i = 0; i < in_double.size(); ++i)
    ASSERT_EQ(in_double.data()[i] == 0.0, static_cast<float>(in_half.data()[i]) == 0.F);
}

}  // namespace
