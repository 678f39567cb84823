// Score functions by themselves: the numbers they give.

#include "support.hpp"

namespace {

using attn::Alibi;
using attn::Chain;
using attn::Index;
using attn::NoScore;
using attn::Position;
using attn::ScoreBias;
using attn::SoftCap;
using attn::Tensor;
using attn_test::infinity;
using attn_test::not_a_number;

constexpr Position at(std::int32_t head, std::int32_t query, std::int32_t key) { return {0, head, 0, query, key}; }

static_assert(attn::ScoreFunction<NoScore, float> && attn::ScoreFunction<SoftCap, double>);
static_assert(NoScore{}(2.5F, Position{}) == 2.5F);

TEST(Score, SoftCapIsCapTimesTanhOfScoreOverCap) {
  const SoftCap cap(50.F);
  for (const double x : {-1e6, -50.0, -0.01, 0.0, 1.0, 75.0, 1e30}) {
    EXPECT_DOUBLE_EQ(cap(x, Position{}), 50.0 * std::tanh(x / 50.0));
    EXPECT_FLOAT_EQ(cap(static_cast<float>(x), Position{}), static_cast<float>(50.0 * std::tanh(x / 50.0)));
  }
}

TEST(Score, SoftCapBoundsInfinity) {
  EXPECT_TRUE(std::isnan(SoftCap(3.F)(not_a_number, Position{})));
  EXPECT_EQ(SoftCap(3.F)(infinity, Position{}), 3.0);
}

/// The slopes that Alibi takes for a number of heads: what a distance of 1 subtracts.
std::vector<double> slopes(Index heads) {
  const Alibi alibi(heads);
  std::vector<double> result;
  for (std::int32_t h = 0; h < heads; ++h) result.push_back(-alibi(0.0, at(h, 1, 0)));
  return result;
}

TEST(Score, AlibiHasThePublishedSlopes) {
  EXPECT_EQ(slopes(1), (std::vector<double>{0x1p-8}));
  EXPECT_EQ(slopes(2), (std::vector<double>{0x1p-4, 0x1p-8}));
  EXPECT_EQ(slopes(8), (std::vector<double>{0x1p-1, 0x1p-2, 0x1p-3, 0x1p-4, 0x1p-5, 0x1p-6, 0x1p-7, 0x1p-8}));
  // Not a power of two: those of the next lower one, then every other one of the next higher.
  EXPECT_EQ(slopes(6), (std::vector<double>{0x1p-2, 0x1p-4, 0x1p-6, 0x1p-8, 0x1p-1, 0x1p-3}));
  EXPECT_EQ(slopes(3), (std::vector<double>{0x1p-4, 0x1p-8, 0x1p-2}));
  const auto of_12 = slopes(12), of_16 = slopes(16);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(of_12[8 + i], of_16[2 * i]);
  EXPECT_NEAR(of_16[0], std::sqrt(0.5), 1e-7);
}

TEST(Score, AlibiSubtractsSlopeTimesDistance) {
  const Alibi alibi(8);
  EXPECT_EQ(alibi(1.0F, at(1, 10, 4)), 1.0F - 0.25F * 6);
  EXPECT_EQ(alibi(1.0F, at(1, 4, 10)), 1.0F + 0.25F * 6);
  EXPECT_EQ(alibi(1.0, at(0, 7, 7)), 1.0);
}

TEST(Score, BiasAlignsItsAxesAtTheRight) {
  Tensor<float, 3> bias(2, 1, 3);  // [H,1,T]
  bias.setValues({{{1, 2, 3}}, {{10, 20, 30}}});
  EXPECT_EQ(ScoreBias(bias)(0.5F, at(1, 0, 2)), 30.5F);
  EXPECT_EQ(ScoreBias(bias)(0.5, at(0, 5, 1)), 2.5);
}

TEST(Score, ChainRunsInTheOrderWritten) {
  const auto add = [](auto score, Position) { return score + 1; };
  const auto twice = [](auto score, Position) { return score * 2; };
  EXPECT_EQ((Chain{add, twice}(3.0F, Position{})), 8.0F);
  EXPECT_EQ((Chain{twice, add}(3.0F, Position{})), 7.0F);
  EXPECT_EQ((Chain{twice, Chain{add, twice}}(3.0, Position{})), 14.0);
  EXPECT_EQ((Chain{}(3.0, Position{})), 3.0);
}

TEST(Score, PositionTellsTheDistanceOfTheKey) {
  EXPECT_EQ(at(0, 9, 4).distance(), 5.F);
  EXPECT_EQ(at(0, 4, 9).distance(), -5.F);
}

TEST(Score, SoftCapOfNanIsNan) {
  EXPECT_TRUE(std::isnan(attn::SoftCap(50.F)(std::numeric_limits<float>::quiet_NaN(), Position{})));
  EXPECT_TRUE(std::isnan(attn::SoftCap(50.F)(std::numeric_limits<double>::quiet_NaN(), Position{})));
}

}  // namespace
