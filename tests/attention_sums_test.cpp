// Sums over many keys, and means of values whose sums overflow.
#include "support.hpp"

namespace {

using attn::AttentionOptions;
using attn::Causal;
using attn::Index;
using attn::NoMask;
using attn::NoScore;
using attn::Position;
using attn::scaled_dot_product_attention;
using attn::Tensor;
using attn_test::expect_attention;
using attn_test::filled;
using attn_test::Inputs;
using attn_test::only_if;
using attn_test::random_inputs;
using attn_test::random_tensor;
using attn_test::Sizes;
using attn_test::to;

/// Few queries take another path through the kernels than many.
constexpr std::array<Index, 2> few_and_many{1, 9};

/// Sums of blocks of 64, summed in blocks of 64, and so on.
float blocked_sum(std::vector<float> x) {
  while (x.size() > 1) {
    std::vector<float> sums((x.size() + 63) / 64, 0.F);
    for (std::size_t i = 0; i < x.size(); ++i) sums[i / 64] += x[i];
    x = sums;
  }
  return x[0];
}

AttentionOptions unscaled() {
  AttentionOptions options;
  options.scale = 1.0;
  options.log_sum_exp = true;
  return options;
}

/// Queries of 1, keys that are their scores, one value each.
Inputs<float> with_scores(const std::vector<float>& scores, const std::vector<float>& values, Index queries) {
  const Index T = std::ssize(scores);
  Inputs<float> in{{.S = queries, .T = T},
                   filled<float, 4>({1, 1, queries, 1}, 1.F),
                   Tensor<float, 4>(1, 1, T, 1),
                   Tensor<float, 4>(1, 1, T, 1)};
  std::copy(scores.begin(), scores.end(), in.k.data());
  std::copy(values.begin(), values.end(), in.v.data());
  return in;
}

/// Compares the mean and the log-sum-exp with sums in double; twice the error of blocked sums in
/// float is allowed, or 16 ulp where these happen to be exact.
void expect_sums(const std::vector<float>& scores, const std::vector<float>& values) {
  const float largest = *std::max_element(scores.begin(), scores.end());
  std::vector<float> weights(scores.size()), weighted(scores.size());
  double sum = 0, total = 0;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const double weight = std::exp(static_cast<double>(scores[i]) - static_cast<double>(largest));
    weights[i] = static_cast<float>(weight);
    weighted[i] = weights[i] * values[i];
    sum += weight;
    total += weight * static_cast<double>(values[i]);
  }
  const double mean = total / sum, lse = static_cast<double>(largest) + std::log(sum);
  const float blocked = blocked_sum(weights);
  const double mean_bar = 2 * std::abs(static_cast<double>(blocked_sum(weighted) / blocked) - mean);
  const double lse_bar = 2 * std::abs(static_cast<double>(largest + std::log(blocked)) - lse);
  for (const Index S : few_and_many) {
    const auto in = with_scores(scores, values, S);
    const auto y = scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, unscaled());
    for (Index s = 0; s < S; ++s) {
      EXPECT_NEAR(y.output(0, 0, s, 0), mean, std::max(mean_bar, 1e-6 * std::abs(mean))) << "queries " << S;
      EXPECT_NEAR(y.log_sum_exp(0, 0, s), lse, std::max(lse_bar, 1e-6 * std::abs(lse))) << "queries " << S;
    }
  }
}

TEST(AttentionSums, MayHoldOneSmallWeightAmongAMillionLargerOnes) {
  for (const std::size_t keys : {32768U, 131072U, 1048576U}) {
    SCOPED_TRACE(keys);
    std::vector<float> scores(keys, std::log(0.1F)), values(keys, 1.F);
    scores[0] = values[0] = 0.F;
    expect_sums(scores, values);
  }
}

TEST(AttentionSums, AreAsExactAsBlockedSumsOfUnlikeWeights) {
  for (const std::size_t keys : {5000U, 300001U, 1048576U}) {
    SCOPED_TRACE(keys);
    const auto scores = random_tensor<float, 1>({static_cast<Index>(keys)}, 11, 2.0);
    const auto values = random_tensor<float, 1>({static_cast<Index>(keys)}, 12);
    std::vector<float> positive(values.data(), values.data() + keys);
    for (float& value : positive) value = std::abs(value);
    expect_sums(std::vector<float>(scores.data(), scores.data() + keys), positive);
  }
}

TEST(AttentionSums, ThirtyTwoMillionEqualKeysWeighOne) {
  const Index T = Index{1} << 25;
  Tensor<float, 4> q(1, 1, 5, 1), k(1, 1, T, 1), v(1, 1, T, 1);
  q.setConstant(1.F);
  k.setConstant(0.5F);
  v.setConstant(1.F);
  const auto y = scaled_dot_product_attention(q, k, v, NoMask{}, NoScore{}, unscaled());
  EXPECT_EQ(y.output(0, 0, 4, 0), 1.F);
  EXPECT_NEAR(y.log_sum_exp(0, 0, 4), 0.5 + 25 * std::log(2.0), 1e-5);
}

// There are more keys than one partial sum takes.
TEST(AttentionSums, ChunksOfKeysJoinUnderEveryMask) {
  const Sizes n{.B = 1, .H = 2, .G = 1, .S = 60, .T = 9001, .D = 8, .Dv = 5};
  expect_attention(random_inputs<float>(n, 21), Causal{}, NoScore{},
                   [&](Position at) { return only_if(at.key <= at.row + n.T - n.S); });
  expect_attention(random_inputs<float>(n, 22), attn::SlidingWindow(300), NoScore{}, [&](Position at) {
    const Index back = at.row + n.T - n.S - at.key;
    return only_if(0 <= back && back < 300);
  });
  expect_attention(
      random_inputs<double>(n, 23), [](Position at) { return at.key % 5000 < 40; }, NoScore{},
      [&](Position at) { return only_if(at.key % 5000 < 40); });
}

// ---- Means --------------------------------------------------------------------------------------------------------

/// Equal scores, values of `size` or of its negative.
template <class T>
void expect_mean(T size, Index S, Index keys, Index Dv) {
  SCOPED_TRACE(testing::Message() << "S " << S << ", T " << keys << ", Dv " << Dv);
  auto q = filled<T, 4>({1, 2, S, 4}, T(0)), k = filled<T, 4>({1, 1, keys, 4}, T(1));
  auto v = filled<T, 4>({1, 1, keys, Dv}, size);
  for (Index t = 0; t < keys; ++t) v(0, 0, t, Dv - 1) = static_cast<T>(-size);
  const auto y = scaled_dot_product_attention(q, k, v).output;
  for (Index i = 0; i < y.size(); ++i) {
    const double expected = i % Dv == Dv - 1 ? -to<double>(size) : to<double>(size);
    ASSERT_NEAR(to<double>(y.data()[i]) / expected, 1.0, 1e-5) << i;
  }
}

TEST(AttentionMeans, OfLargeValuesAreFinite) {
  for (const Index S : {1, 4, 30, 100})
    for (const Index keys : {100, 300, 5000})
      for (const Index Dv : {1, 16, 33}) {
        expect_mean<float>(1e37F, S, keys, Dv);
        expect_mean<float>(3.3e38F, S, keys, Dv);
        expect_mean<double>(1.7e308, S, keys, Dv);
        expect_mean<Eigen::bfloat16>(Eigen::bfloat16(3e38F), S, keys, Dv);
      }
}

TEST(AttentionMeans, OfLargeValuesAreFiniteUnderAMask) {
  for (const Index S : {3, 70}) {
    Tensor<float, 4> q(1, 1, S, 4), k(1, 1, 5000, 4), v(1, 1, 5000, 16);
    q.setConstant(0.5F);
    k.setConstant(0.5F);
    v.setConstant(1e38F);
    AttentionOptions options;
    options.weights = options.log_sum_exp = true;
    const auto y = scaled_dot_product_attention(q, k, v, Causal{}, NoScore{}, options);
    for (Index i = 0; i < y.output.size(); ++i) ASSERT_NEAR(y.output.data()[i] / 1e38F, 1.F, 1e-5F);
    for (Index s = 0; s < S; ++s) {
      ASSERT_NEAR(y.log_sum_exp(0, 0, s), 0.5 + std::log(5001.0 - static_cast<double>(S - s)), 1e-5);
      ASSERT_NEAR(y.weights(0, 0, s, 7) * static_cast<float>(5001 - (S - s)), 1.F, 1e-5F);
    }
  }
}

TEST(AttentionMeans, ThatOverflowAtFirstLeaveOtherRowsAlone) {
  for (const Index S : {3, 40}) {
    auto in = random_inputs<float>({.S = S, .T = 200, .D = 4, .Dv = 16}, 31);
    for (Index t = 100; t < 200; ++t) in.v(0, 0, t, 3) = 1e37F;
    const auto first_half = [S](Position at) { return at.key < 100 || at.row == S / 2; };
    const auto with = scaled_dot_product_attention(in.q, in.k, in.v, first_half).output;
    for (Index t = 100; t < 200; ++t) in.v(0, 0, t, 3) = 1.F;
    const auto without = scaled_dot_product_attention(in.q, in.k, in.v, first_half).output;
    for (Index s = 0; s < S; ++s)
      for (Index d = 0; d < 16; ++d)
        if (s == S / 2)
          ASSERT_TRUE(std::isfinite(with(0, 0, s, d)));
        else
          ASSERT_EQ(with(0, 0, s, d), without(0, 0, s, d)) << s;
  }
}

TEST(AttentionMeans, OfLargeValuesAreFiniteWithDropout) {
  AttentionOptions options;
  options.dropout = 0.25;
  options.seed = 5;
  for (const Index S : {2, 50}) {
    auto in = random_inputs<float>({.S = S, .T = 400, .D = 4, .Dv = 3}, 32);
    in.v.setConstant(1e37F);
    const auto large = scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, options).output;
    in.v.setConstant(1.F);
    const auto small = scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, options).output;
    for (Index i = 0; i < large.size(); ++i) ASSERT_NEAR(large.data()[i] / 1e37F, small.data()[i], 1e-5F);
  }
}

}  // namespace
