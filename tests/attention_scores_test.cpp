// Every score function in attention, against the same function written in plain code, over many sizes.

#include "support.hpp"

namespace {

using attn::Alibi;
using attn::Causal;
using attn::Index;
using attn::NoMask;
using attn::Position;
using attn::ScoreBias;
using attn::SoftCap;
using attn_test::by_reference;
using attn_test::cast;
using attn_test::expect_attention;
using attn_test::keep_all;
using attn_test::many_sizes;
using attn_test::only_if;
using attn_test::random_inputs;
using attn_test::random_tensor;
using attn_test::same_bits;
using attn_test::Sizes;

double soft_cap(double x, double cap) { return cap * std::tanh(x / cap); }

/// The slope of ALiBi's paper for 1 to 8 heads, its recursion written out.
double alibi_slope(Index head, Index heads) {
  const Index power = heads >= 8 ? 8 : heads >= 4 ? 4 : heads >= 2 ? 2 : 1;
  const double exponent = head < power
                              ? 8.0 * static_cast<double>(head + 1) / static_cast<double>(power)
                              : 8.0 * static_cast<double>(2 * (head - power) + 1) / static_cast<double>(2 * power);
  return static_cast<float>(std::pow(2.0, -exponent));
}

TEST(AttentionScore, SoftCapMatchesPlainCode) {
  unsigned seed = 3100;
  for (const Sizes& n : many_sizes())
    expect_attention(random_inputs<float>(n, ++seed), NoMask{}, SoftCap(1.5F), keep_all,
                     [](double x, Position) { return soft_cap(x, 1.5); });
}

TEST(AttentionScore, SoftCapUnderACausalMaskMatchesPlainCode) {
  unsigned seed = 3200;
  for (const Sizes& n : many_sizes())
    expect_attention(
        random_inputs<float>(n, ++seed), Causal{}, SoftCap(50.F),
        [=](Position at) { return only_if(at.key <= at.row + n.T - n.S); },
        [](double x, Position) { return soft_cap(x, 50.0); });
}

TEST(AttentionScore, AlibiMatchesPlainCode) {
  unsigned seed = 3300;
  for (const Sizes& n : many_sizes())
    expect_attention(random_inputs<float>(n, ++seed), NoMask{}, Alibi(n.H), keep_all, [=](double x, Position at) {
      return x - alibi_slope(at.head, n.H) * static_cast<double>(at.row + n.T - n.S - at.key);
    });
}

TEST(AttentionScore, ScoreBiasOfEveryRankMatchesPlainCode) {
  unsigned seed = 3400;
  for (const Sizes& n : many_sizes()) {
    const auto in = random_inputs<float>(n, ++seed);
    const auto rank1 = random_tensor<float, 1>({n.T}, ++seed);
    const auto rank2 = random_tensor<float, 2>({n.S, 1}, ++seed);
    const auto rank3 = random_tensor<float, 3>({n.H, n.S, n.T}, ++seed);
    const auto rank4 = random_tensor<float, 4>({n.B, 1, n.S, n.T}, ++seed);
    expect_attention(in, NoMask{}, ScoreBias(rank1), keep_all,
                     [&](double x, Position at) { return x + rank1(at.key); });
    expect_attention(in, NoMask{}, ScoreBias(rank2), keep_all,
                     [&](double x, Position at) { return x + rank2(at.row, 0); });
    expect_attention(in, NoMask{}, ScoreBias(rank3), keep_all,
                     [&](double x, Position at) { return x + rank3(at.head, at.row, at.key); });
    expect_attention(in, NoMask{}, ScoreBias(rank4), keep_all,
                     [&](double x, Position at) { return x + rank4(at.batch, 0, at.row, at.key); });
  }
}

TEST(AttentionScore, CallableSeesScoreBatchHeadRowQueryAndKey) {
  unsigned seed = 3500;
  const auto score = [](float x, Position at) {
    return 0.7F * x + 0.25F * static_cast<float>(at.batch) - 0.01F * static_cast<float>(at.row) +
           0.125F * static_cast<float>((at.head + at.key) % 3) - 0.02F * std::abs(at.distance());
  };
  for (const Sizes& n : many_sizes())
    expect_attention(random_inputs<float>(n, ++seed), NoMask{}, score, keep_all, [=](double x, Position at) {
      const auto distance = static_cast<double>(at.row + n.T - n.S - at.key);
      return 0.7 * x + 0.25 * at.batch - 0.01 * at.row + 0.125 * ((at.head + at.key) % 3) - 0.02 * std::abs(distance);
    });
}

TEST(AttentionScore, ReturningMinusInfinityMasksTheKey) {
  unsigned seed = 3600;
  const auto score = [](float x, Position at) { return at.key % 3 == 1 ? -std::numeric_limits<float>::infinity() : x; };
  for (const Sizes& n : many_sizes())
    expect_attention(random_inputs<float>(n, ++seed), NoMask{}, score,
                     [](Position at) { return only_if(at.key % 3 != 1); });
}

TEST(AttentionScore, ChainUnderAMaskMatchesPlainCode) {
  unsigned seed = 3700;
  for (const Sizes& n : many_sizes()) {
    const auto bias = random_tensor<float, 2>({n.S, n.T}, ++seed);
    const auto near = [](auto x, Position at) { return at.key == at.query ? x + 1 : x; };
    expect_attention(
        random_inputs<float>(n, ++seed), Causal{} & attn::SlidingWindow(70),
        attn::Chain{SoftCap(2.F), Alibi(n.H), ScoreBias(bias), near},
        [=](Position at) {
          const Index query = at.row + n.T - n.S;
          return only_if(at.key <= query && at.key > query - 70);
        },
        [&](double x, Position at) {
          const Index query = at.row + n.T - n.S;
          x = soft_cap(x, 2.0) - alibi_slope(at.head, n.H) * static_cast<double>(query - at.key);
          return x + bias(at.row, at.key) + (at.key == query ? 1 : 0);
        });
  }
}

float halved(float score, Position) { return 0.5F * score; }
double nearer(double score, Position at) noexcept { return score - 0.01 * static_cast<double>(at.distance()); }

TEST(AttentionScore, APlainFunctionIsAScoreFunction) {
  const Sizes n{.B = 2, .H = 4, .G = 2, .S = 11, .T = 30, .D = 7, .Dv = 4};
  const auto in = random_inputs<float>(n, 3900);
  const auto half = [](double x, Position) { return 0.5 * x; };
  expect_attention(in, NoMask{}, halved, keep_all, half);
  expect_attention(in, NoMask{}, &halved, keep_all, half);
  expect_attention(in, NoMask{}, attn::Chain{halved, nearer}, keep_all,
                   [](double x, Position at) { return 0.5 * x - 0.01 * static_cast<double>(at.query - at.key); });
  expect_attention(cast<double>(in), NoMask{}, nearer, keep_all,
                   [](double x, Position at) { return x - 0.01 * static_cast<double>(at.query - at.key); });
}

TEST(AttentionScore, TheReferenceTakesAPlainFunction) {
  const Sizes n{.B = 1, .H = 1, .G = 1, .S = 3, .T = 5, .D = 7, .Dv = 4};
  const auto in = random_inputs<float>(n, 3950);
  const auto lambda = [](float x, Position at) { return halved(x, at); };
  EXPECT_TRUE(same_bits(by_reference(in, NoMask{}, halved, {}).output, by_reference(in, NoMask{}, lambda, {}).output));
}

}  // namespace
