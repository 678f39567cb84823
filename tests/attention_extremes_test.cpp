// Attention of scores at the ends of what float can hold.

#include "support.hpp"

namespace {

using attn::AdditiveMask;
using attn::AttentionOptions;
using attn::Index;
using attn::NoMask;
using attn::NoScore;
using attn::Position;
using attn::scaled_dot_product_attention;
using attn::Tensor;
using attn_test::expect_attention;
using attn_test::filled;
using attn_test::Inputs;
using attn_test::keep_all;
using attn_test::random_inputs;
using attn_test::same_score;

constexpr float lowest = std::numeric_limits<float>::lowest();
constexpr float inf = std::numeric_limits<float>::infinity();

/// Few queries take another path through the kernels than many, so everything is tried with both.
constexpr std::array<Index, 2> few_and_many{1, 20};

/// Scores that are q * k with D = 1 and scale 1: query s sees scores q[s] * k[t]. Queries are repeated. Values are
/// random.
Inputs<float> with_scores(const std::vector<float>& q, const std::vector<float>& k, Index repeat) {
  auto in = random_inputs<float>({.S = repeat * std::ssize(q), .T = std::ssize(k), .D = 1, .Dv = 5}, 1);
  for (Index i = 0; i < repeat; ++i) std::copy(q.begin(), q.end(), in.q.data() + i * std::ssize(q));
  std::copy(k.begin(), k.end(), in.k.data());
  return in;
}
AttentionOptions unscaled() {
  AttentionOptions options;
  options.scale = 1.0;
  return options;
}

/// 1100 keys, so that they fill several tiles: `filler` but for a few.
std::vector<float> many(float filler, std::initializer_list<std::pair<std::size_t, float>> others = {}) {
  std::vector<float> k(1100, filler);
  for (const auto& [t, value] : others) k[t] = value;
  return k;
}

TEST(AttentionExtremes, LargeScoresDoNotOverflow) {
  for (const float size : {100.F, 3e4F, 1e30F, 3e38F}) {
    SCOPED_TRACE(size);
    for (const auto& k : {many(1.F, {{150, -1.F}}), many(-1.F, {{900, 1.F}}), many(0.F, {{3, 1.F}, {1099, -1.F}})})
      for (const Index repeat : few_and_many)
        expect_attention(with_scores({size, -size, 0.F}, k, repeat), NoMask{}, NoScore{}, keep_all, same_score,
                         unscaled());
  }
}

TEST(AttentionExtremes, ScoresFarApartLeaveOnlyTheLargest) {
  for (const Index repeat : few_and_many)
    for (const std::size_t winner : {0U, 63U, 64U, 130U, 511U, 512U, 1099U}) {
      const auto in = with_scores({1.F}, many(-3e38F, {{winner, 3e38F}}), repeat);
      const auto y = scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, unscaled()).output;
      for (Index d = 0; d < 5; ++d) EXPECT_EQ(y(0, 0, repeat - 1, d), in.v(0, 0, static_cast<Index>(winner), d));
    }
}

// The running maximum changes at every step.
TEST(AttentionExtremes, ScoresMayRiseFromTileToTile) {
  std::vector<float> rising, falling;
  for (int t = 0; t < 1100; ++t) {
    rising.push_back(0.25F * static_cast<float>(t));
    falling.push_back(-0.25F * static_cast<float>(t));
  }
  for (const Index repeat : few_and_many)
    for (const auto& k : {rising, falling})
      expect_attention(with_scores({1.F, -1.F, 0.03125F, 64.F}, k, repeat), NoMask{}, NoScore{}, keep_all, same_score,
                       unscaled());
}

TEST(AttentionExtremes, LogSumExpOfLargeScoresIsFinite) {
  AttentionOptions options = unscaled();
  options.log_sum_exp = true;
  for (const Index repeat : few_and_many) {
    const auto in = with_scores({1.F}, many(1e30F), repeat);
    const auto result = scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, options);
    EXPECT_FLOAT_EQ(result.log_sum_exp(0, 0, 0), 1e30F);
  }
}

/// Random scores with 1100 keys, plus the same biases for every row.
void expect_biased(const std::vector<float>& biases) {
  const attn::TensorMap<const float, 1> bias(biases.data(), std::ssize(biases));
  for (const Index rows : few_and_many)
    expect_attention(
        random_inputs<float>({.B = 1, .H = 4, .G = 2, .S = rows, .T = std::ssize(biases), .D = 8, .Dv = 48}, 2),
        AdditiveMask(bias), NoScore{}, [&](Position at) { return double{biases[static_cast<std::size_t>(at.key)]}; });
}

TEST(AttentionExtremes, RowsOfMinusInfinityGiveZero) { expect_biased(many(-inf)); }
TEST(AttentionExtremes, OneKeyMayBeLeftInAnyTile) {
  for (const std::size_t t : {0U, 15U, 16U, 63U, 64U, 511U, 512U, 1099U}) expect_biased(many(-inf, {{t, 0.F}}));
}
TEST(AttentionExtremes, WholeTilesMayBeMinusInfinity) {
  auto biases = many(0.F);
  std::fill(biases.begin(), biases.begin() + 730, -inf);
  expect_biased(biases);
  std::fill(biases.begin(), biases.end(), 0.F);
  std::fill(biases.begin() + 40, biases.begin() + 1030, -inf);
  expect_biased(biases);
  std::fill(biases.begin(), biases.end(), 0.F);
  std::fill(biases.begin() + 50, biases.end(), -inf);
  expect_biased(biases);
}

/// The largest |output - mean of V|, over everything.
double off_the_mean(const Inputs<float>& in, const Tensor<float, 4>& y) {
  double largest = 0;
  for (Index b = 0; b < in.n.B; ++b)
    for (Index h = 0; h < in.n.H; ++h)
      for (Index d = 0; d < in.n.Dv; ++d) {
        double mean = 0;
        for (Index t = 0; t < in.n.T; ++t) mean += double{in.v(b, h / (in.n.H / in.n.G), t, d)};
        mean /= static_cast<double>(in.n.T);
        for (Index s = 0; s < in.n.S; ++s) largest = std::max(largest, std::abs(y(b, h, s, d) - mean));
      }
  return largest;
}

TEST(AttentionExtremes, ARowOfFillersGivesTheMeanOfTheValues) {
  // finfo(float).min swallows the score it is added to: all keys weigh the same. -1e9 leaves steps of 64.
  for (const Index rows : few_and_many)
    for (const float filler : {lowest, -1e30F, -1e9F}) {
      const auto in = random_inputs<float>({.B = 1, .H = 4, .G = 2, .S = rows, .T = 1100, .D = 8, .Dv = 6}, 3);
      const auto y = scaled_dot_product_attention(in.q, in.k, in.v, filled<float, 2>({1, 1100}, filler)).output;
      EXPECT_LT(off_the_mean(in, y), 1e-6) << filler;
    }
}

TEST(AttentionExtremes, FillersVanishBesideOrdinaryScores) {
  for (const float filler : {lowest, -1e30F, -1e9F, -1e4F}) {
    SCOPED_TRACE(filler);
    expect_biased(many(filler, {{0, 0.F}}));
    expect_biased(many(filler, {{1099, 0.F}}));
    expect_biased(many(filler, {{70, 0.F}, {71, 1.F}}));
  }
}

// -inf means never; the lowest float is an ordinary number.
TEST(AttentionExtremes, FillersAmongMinusInfinityShareTheRow) {
  for (const auto& biases : {many(-inf, {{5, lowest}, {100, lowest}, {1099, lowest}}),
                             many(lowest, {{0, -inf}, {850, -inf}}), many(-inf, {{1099, lowest}})})
    expect_biased(biases);
}

// What a score function returns: its lowest finite number is a score as any other, -infinity means never.

template <class T>
class AttentionFillers : public testing::Test {
 protected:
  static constexpr T lowest = std::numeric_limits<T>::lowest(), never = -std::numeric_limits<T>::infinity();
  static constexpr Index keys = 1100;

  /// Where every score is the lowest number or never, those of the lowest number share the weight among them. Few queries
  /// and many; with weights asked for, which even few queries compute as many do.
  template <class Live>
  void expect_shared_among(const Live& live) {
    const auto score = [&](T, Position at) { return live(at.key) ? lowest : never; };
    for (const Index rows : few_and_many)
      for (const bool weights : {false, true}) {
        const auto in = random_inputs<T>({.B = 1, .H = 2, .G = 1, .S = rows, .T = keys, .D = 8, .Dv = 1}, 7);
        const auto result =
            scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, score, {.log_sum_exp = true, .weights = weights});
        double sum = 0, count = 0;
        for (Index t = 0; t < keys; ++t)
          if (live(t)) sum += static_cast<double>(in.v(0, 0, t, 0)), ++count;
        for (Index s = 0; s < rows; ++s) {
          ASSERT_NEAR(result.output(0, 1, s, 0), count > 0 ? sum / count : 0.0, 1e-6) << rows << " rows";
          const T log_sum_exp = result.log_sum_exp(0, 1, s);
          if (count > 0) {
            ASSERT_NEAR(log_sum_exp / lowest, T(1), std::numeric_limits<T>::epsilon());
          } else {
            ASSERT_EQ(log_sum_exp, never);
          }
        }
      }
  }
};
using Accumulators = testing::Types<float, double>;
TYPED_TEST_SUITE(AttentionFillers, Accumulators);

TYPED_TEST(AttentionFillers, TheLowestNumberOfAScoreFunctionIsANumber) {
  this->expect_shared_among([](Index) { return true; });
}

TYPED_TEST(AttentionFillers, MinusInfinityOfAScoreFunctionTakesTheKeyAway) {
  this->expect_shared_among([](Index) { return false; });
}

TYPED_TEST(AttentionFillers, TheLowestNumberWinsOverMinusInfinity) {
  this->expect_shared_among([](Index key) { return key % 3 == 1; });
}

TYPED_TEST(AttentionFillers, TheLowestNumberOfAMaskIsANumber) {
  for (const Index rows : few_and_many) {
    auto in = random_inputs<TypeParam>({.B = 1, .H = 1, .G = 1, .S = rows, .T = 100, .D = 8, .Dv = 1}, 8);
    in.v.setConstant(TypeParam(1));
    const auto filler = filled<TypeParam, 1>({100}, this->lowest), nothing = filled<TypeParam, 1>({100}, this->never);
    EXPECT_NEAR(scaled_dot_product_attention(in.q, in.k, in.v, filler).output(0, 0, 0, 0), 1.0, 1e-6);
    EXPECT_EQ(scaled_dot_product_attention(in.q, in.k, in.v, nothing).output(0, 0, 0, 0), TypeParam(0));
  }
}

TEST(AttentionExtremes, TheLargestFillersTakeTheRow) { expect_biased(many(lowest, {{20, -1e30F}, {930, -1e30F}})); }

TEST(AttentionExtremes, AnInfiniteScoreIsNanInItsOwnRow) {
  for (const Index S : {3, 30})
    for (const Index t : {0, 77, 799}) {
      const auto in = random_inputs<float>({.B = 1, .H = 2, .G = 1, .S = S, .T = 800, .D = 8, .Dv = 6}, 4);
      const auto without = filled<float, 2>({S, 800}, 0.F);
      auto with = without;
      with(S / 2, t) = inf;
      const auto y = scaled_dot_product_attention(in.q, in.k, in.v, with).output;
      const auto expected = scaled_dot_product_attention(in.q, in.k, in.v, without).output;
      for (Index h = 0; h < 2; ++h)
        for (Index s = 0; s < S; ++s)
          for (Index d = 0; d < 6; ++d)
            ASSERT_TRUE(s == S / 2 ? std::isnan(y(0, h, s, d)) : y(0, h, s, d) == expected(0, h, s, d)) << s;
    }
}

// Subnormal values must not be flushed to zero.
TEST(AttentionExtremes, SubnormalValuesPassThrough) {
  for (const Index repeat : few_and_many) {
    auto in = with_scores({1e-40F}, {1.F}, repeat);
    in.v.setConstant(1e-40F);
    const auto y = scaled_dot_product_attention(in.q, in.k, in.v).output;
    for (Index d = 0; d < 5; ++d) EXPECT_EQ(y(0, 0, 0, d), 1e-40F);
  }
}

TEST(AttentionExtremes, LargeValuesDoNotOverflow) {
  for (const Index rows : few_and_many) {
    auto in = random_inputs<float>({.S = rows, .T = 200, .D = 4, .Dv = 3}, 5);
    in.v.setConstant(1e36F);  // sums of p v are divided last: T times the largest value must fit
    const auto y = scaled_dot_product_attention(in.q, in.k, in.v).output;
    for (Index i = 0; i < y.size(); ++i) EXPECT_NEAR(y.data()[i] / 1e36F, 1.0, 1e-5);
  }
}

}  // namespace
