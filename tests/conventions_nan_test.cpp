// Conventions: a row with no key left, keys that are never read, NaN in a live score.

#include "support.hpp"

namespace {

using attn::AdditiveMask;
using attn::AttentionOptions;
using attn::Causal;
using attn::Index;
using attn::KeepMask;
using attn::NoMask;
using attn::NoScore;
using attn::Padding;
using attn::Position;
using attn::scaled_dot_product_attention;
using attn::SlidingWindow;
using attn::Tensor;
using attn_test::filled;
using attn_test::infinity;
using attn_test::Inputs;
using attn_test::random_inputs;
using attn_test::same_bits;

// ---- a row with no key left: output 0, log-sum-exp -inf; never NaN, never the mean of V ----

class RowWithNoKeyLeft : public testing::Test {
 protected:
  static constexpr Index T = 150;
  Inputs<float> in = random_inputs<float>({.B = 2, .H = 2, .G = 1, .S = 5, .T = T, .D = 8, .Dv = 6}, 3);

  /// Rows `first` to `last` of this batch entry (of all: -1) are dead, all others live.
  template <class M, class F = NoScore>
  void expect_dead(const Inputs<float>& x, Index batch, Index first, Index last, const M& mask, const F& score = {}) {
    const auto result =
        scaled_dot_product_attention(x.q, x.k, x.v, mask, score, {.log_sum_exp = true, .weights = true});
    for (Index b = 0; b < x.n.B; ++b)
      for (Index h = 0; h < x.n.H; ++h)
        for (Index s = 0; s < x.n.S; ++s) {
          const bool dead = (batch < 0 || b == batch) && first <= s && s <= last;
          EXPECT_EQ(result.log_sum_exp(b, h, s) == -infinity, dead) << b << ' ' << h << ' ' << s;
          for (Index d = 0; d < x.n.Dv; ++d) {
            EXPECT_EQ(result.output(b, h, s, d) == 0.F, dead) << b << ' ' << h << ' ' << s;
            EXPECT_FALSE(std::isnan(result.output(b, h, s, d)));
          }
          for (Index t = 0; dead && t < x.n.T; ++t) EXPECT_EQ(result.weights(b, h, s, t), 0.F);
        }
  }
};

TEST_F(RowWithNoKeyLeft, IsZeroUnderABooleanMask) {
  Tensor<bool, 4> keep(2, 1, 5, T);
  keep.setConstant(true);
  for (Index t = 0; t < T; ++t) keep(1, 0, 2, t) = false;
  expect_dead(in, 1, 2, 2, KeepMask(keep));
}
TEST_F(RowWithNoKeyLeft, IsZeroUnderAnAdditiveMask) {
  Tensor<float, 4> bias(2, 1, 5, 1);
  bias.setZero();
  bias(0, 0, 4, 0) = -std::numeric_limits<float>::infinity();
  expect_dead(in, 0, 4, 4, AdditiveMask(bias));
}
TEST_F(RowWithNoKeyLeft, IsZeroWithPaddingOfLengthZero) {
  const std::vector<Index> lengths{T, 0};
  expect_dead(in, 1, 0, 4, Padding(lengths));
}
TEST_F(RowWithNoKeyLeft, IsZeroForQueriesBeforeTheFirstKeyOfACausalMask) {
  expect_dead(random_inputs<float>({.B = 1, .H = 2, .G = 2, .S = 100, .T = 30, .D = 8, .Dv = 6}, 4), -1, 0, 69,
              Causal{});
}
TEST_F(RowWithNoKeyLeft, IsZeroUnderMasksThatExcludeEachOther) {
  const auto after = [](Position at) { return at.row != 3 || at.key > at.query; };
  expect_dead(in, -1, 3, 3, Causal{} & after);
}
TEST_F(RowWithNoKeyLeft, IsZeroForScoresOfMinusInfinity) {
  const auto score = [](float x, Position at) { return at.row == 1 ? -std::numeric_limits<float>::infinity() : x; };
  expect_dead(in, -1, 1, 1, NoMask{}, score);
}
TEST_F(RowWithNoKeyLeft, IsZeroWhereThereAreNoKeys) {
  expect_dead(random_inputs<float>({.B = 2, .H = 2, .G = 1, .S = 5, .T = 0, .D = 8, .Dv = 6}, 5), -1, 0, 4, NoMask{});
}

// ---- keys past a padding length, blocks a mask calls empty: never read ----

/// The inputs with NaN in the keys and values for which garbage(batch entry, key) holds.
template <class F>
Inputs<float> with_garbage(Inputs<float> in, const F& garbage) {
  for (Index b = 0; b < in.n.B; ++b)
    for (Index g = 0; g < in.n.G; ++g)
      for (Index t = 0; t < in.n.T; ++t) {
        if (!garbage(b, t)) continue;
        for (Index d = 0; d < in.n.D; ++d) in.k(b, g, t, d) = NAN;
        for (Index d = 0; d < in.n.Dv; ++d) in.v(b, g, t, d) = d % 2 == 0 ? NAN : INFINITY;
      }
  return in;
}

template <class M>
void expect_garbage_does_not_show(const Inputs<float>& clean, const Inputs<float>& dirty, const M& mask) {
  SCOPED_TRACE(testing::Message() << clean.n);
  for (const bool weights : {false, true}) {
    const AttentionOptions options{.log_sum_exp = true, .weights = weights};
    const auto expected = scaled_dot_product_attention(clean.q, clean.k, clean.v, mask, NoScore{}, options);
    const auto got = scaled_dot_product_attention(dirty.q, dirty.k, dirty.v, mask, NoScore{}, options);
    EXPECT_TRUE(same_bits(got.output, expected.output));
    EXPECT_TRUE(same_bits(got.log_sum_exp, expected.log_sum_exp));
    EXPECT_TRUE(same_bits(got.weights, expected.weights));
    for (Index i = 0; i < got.output.size(); ++i) ASSERT_TRUE(std::isfinite(got.output.data()[i]));
  }
}

TEST(Conventions, PaddingIsNeverRead) {
  for (const Index S : {1, 6, 75})
    for (const Index T : {70, 333, 1300}) {
      const std::vector<Index> lengths{T, 37, 0, T / 2, 1};
      const auto clean = random_inputs<float>({.B = 5, .H = 4, .G = 2, .S = S, .T = T, .D = 9, .Dv = 11}, 6);
      const auto dirty =
          with_garbage(clean, [&](Index b, Index t) { return t >= lengths[static_cast<std::size_t>(b)]; });
      expect_garbage_does_not_show(clean, dirty, Padding(lengths));
      expect_garbage_does_not_show(clean, dirty,
                                   Causal{} & SlidingWindow(100) & Padding(lengths));  // as the module does
    }
}

TEST(Conventions, BlocksThatAMaskCallsEmptyAreNeverRead) {
  const auto clean = random_inputs<float>({.B = 1, .H = 2, .G = 1, .S = 3, .T = 1500, .D = 8, .Dv = 8}, 7);
  expect_garbage_does_not_show(clean, with_garbage(clean, [](Index, Index t) { return t < 1000; }), SlidingWindow(40));
  const auto keys_after = with_garbage(clean, [](Index, Index t) { return t > 500; });
  expect_garbage_does_not_show(clean, keys_after, Causal{attn::Align::top_left});
}

// Within a block the key may be read, but its NaN must not spread.
TEST(Conventions, NanInAMaskedKeyReachesNothing) {
  const auto clean = random_inputs<float>({.B = 1, .H = 2, .G = 1, .S = 20, .T = 50, .D = 8, .Dv = 8}, 8);
  auto dirty = clean;
  Tensor<bool, 1> keep(50);
  keep.setConstant(true);
  for (const Index t : {0, 13, 14, 49}) {
    keep(t) = false;
    for (Index d = 0; d < 8; ++d) dirty.k(0, 0, t, d) = d % 2 == 0 ? NAN : INFINITY;
  }
  expect_garbage_does_not_show(clean, dirty, KeepMask(keep));
}

// ---- NaN in a live score: stays in its own row ----

/// Rows for which nan_in(b, h, s) holds are NaN throughout, the others are what they are without the NaN.
template <class M, class F>
void expect_nan_rows(const Inputs<float>& clean, const Inputs<float>& dirty, const M& clean_mask, const M& dirty_mask,
                     const F& nan_in) {
  const AttentionOptions options{.log_sum_exp = true};
  const auto expected = scaled_dot_product_attention(clean.q, clean.k, clean.v, clean_mask, NoScore{}, options);
  const auto got = scaled_dot_product_attention(dirty.q, dirty.k, dirty.v, dirty_mask, NoScore{}, options);
  for (Index b = 0; b < clean.n.B; ++b)
    for (Index h = 0; h < clean.n.H; ++h)
      for (Index s = 0; s < clean.n.S; ++s) {
        const bool nan = nan_in(b, h, s);
        const auto fits = [&](float x, float without) { return nan ? std::isnan(x) : x == without; };
        ASSERT_TRUE(fits(got.log_sum_exp(b, h, s), expected.log_sum_exp(b, h, s))) << b << ' ' << h << ' ' << s;
        for (Index d = 0; d < clean.n.Dv; ++d)
          ASSERT_TRUE(fits(got.output(b, h, s, d), expected.output(b, h, s, d))) << b << ' ' << h << ' ' << s;
      }
}

TEST(Conventions, NanInAKeptScoreStaysInItsRow) {
  for (const Index S : {1, 21, 100}) {
    const auto clean = random_inputs<float>({.B = 2, .H = 4, .G = 2, .S = S, .T = 700, .D = 9, .Dv = 5}, 12);
    SCOPED_TRACE(testing::Message() << clean.n);
    auto query = clean;  // of one query: its row
    query.q(1, 2, S / 2, 3) = NAN;
    expect_nan_rows(clean, query, NoMask{}, NoMask{},
                    [=](Index b, Index h, Index s) { return b == 1 && h == 2 && s == S / 2; });
    auto key = clean;  // of one key: the rows that attend it
    key.k(0, 1, 699 - S / 2, 8) = NAN;
    expect_nan_rows(clean, key, Causal{}, Causal{},
                    [=](Index b, Index h, Index s) { return b == 0 && h >= 2 && s + S / 2 >= S - 1; });
  }
}

TEST(Conventions, NanInAnAdditiveMaskStaysInItsRow) {
  const auto in = random_inputs<float>({.B = 2, .H = 2, .G = 1, .S = 19, .T = 200, .D = 9, .Dv = 5}, 13);
  const auto without = filled<float, 4>({2, 1, 19, 200}, 0.F);
  auto bias = without;
  bias(1, 0, 4, 150) = NAN;  // far from the first tile
  bias(0, 0, 18, 0) = NAN;
  const auto nan_in = [](Index b, Index, Index s) { return (b == 1 && s == 4) || (b == 0 && s == 18); };
  expect_nan_rows(in, in, AdditiveMask(without), AdditiveMask(bias), nan_in);
}

// This must hold for every query of a block, and for keys of the window's first step.
TEST(Conventions, KeysBeforeAWindowAreNeverRead) {
  for (const Index S : {1, 4, 20, 40}) {
    const auto clean = random_inputs<float>({.B = 1, .H = 2, .G = 1, .S = S, .T = 400, .D = 8, .Dv = 16}, 14);
    auto dirty = clean;
    const Index first = 400 - S - 9;  // the first key that the first query sees
    for (Index t = 0; t < first; ++t)
      for (Index d = 0; d < 16; ++d) dirty.v(0, 0, t, d) = NAN;
    expect_garbage_does_not_show(clean, dirty, Causal{} & SlidingWindow(10));
  }
}

}  // namespace
