// One test or more for each row of the table of conventions (README, "Conventions"), named after it. Here: the order of
// operations, masks, heads, dropout, errors. In conventions_nan_test.cpp: rows without a key, padding, NaN. In
// conventions_memory_test.cpp: layout, offsets. In conventions_types_test.cpp: accumulation. In
// conventions_threads_test.cpp: the thread count. In conventions_module_test.cpp: what the module adds.

#include "support.hpp"

namespace {

using attn::AdditiveMask;
using attn::AttentionOptions;
using attn::Causal;
using attn::Index;
using attn::KeepMask;
using attn::NoMask;
using attn::NoScore;
using attn::Position;
using attn::scaled_dot_product_attention;
using attn::SlidingWindow;
using attn::Tensor;
using attn_test::error_of;
using attn_test::filled;
using attn_test::Inputs;
using attn_test::random_inputs;
using attn_test::reads;
using attn_test::same_bits;
using attn_test::Sizes;

/// Queries of 0, so that all keys that are left count the same, and values [t][d] = (t == d): output(s, t) is 1 / n
/// where t is one of the n keys that query s sees.
template <class M, class F = NoScore>
Tensor<float, 4> who_sees_whom(Index S, Index T, const M& mask, const F& score = {},
                               const AttentionOptions& options = {}) {
  auto in = random_inputs<float>({.S = S, .T = T, .D = 3, .Dv = T}, 1);
  in.q.setZero();
  in.v.setZero();
  for (Index t = 0; t < T; ++t) in.v(0, 0, t, t) = 1;
  return scaled_dot_product_attention(in.q, in.k, in.v, mask, score, options).output;
}

/// The same as a picture: a row for each query, x for a key that it sees.
template <class M>
std::string picture(Index S, Index T, const M& mask, const AttentionOptions& options = {}) {
  const auto seen = who_sees_whom(S, T, mask, NoScore{}, options);
  std::string text;
  for (Index s = 0; s < S; ++s) {
    for (Index t = 0; t < T; ++t) text += seen(0, 0, s, t) > 0 ? 'x' : '.';
    text += ' ';
  }
  return text;
}

/// Scores of exactly 24 before scaling, and values 0, 1, 2, ...
Inputs<float> equal_scores(Index T) {
  Inputs<float> in = random_inputs<float>({.S = 2, .T = T, .D = 4, .Dv = 1}, 1);
  in.q.setConstant(2);
  in.k.setConstant(3);
  for (Index t = 0; t < T; ++t) in.v(0, 0, t, 0) = static_cast<float>(t);
  return in;
}

// ---- order of operations: scale, then score functions in the order written, then mask, softmax, dropout, times V ----

TEST(Conventions, OrderIsScaleBeforeScoreFunction) {
  const auto in = equal_scores(3);
  AttentionOptions options;
  options.scale = 0.25;
  const auto is_six = [](float x, Position) { return x == 6.F ? 0.F : NAN; };
  EXPECT_FLOAT_EQ(scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, is_six, options).output(0, 0, 0, 0), 1.F);
}

TEST(Conventions, OrderOfScoreFunctionsIsAsWritten) {
  const auto in = equal_scores(2);
  const auto add_key = [](auto x, Position at) { return x + static_cast<float>(at.key); };
  const auto times_four = [](auto x, Position) { return 4 * x; };
  const auto second_weight = [&](const auto& score) {
    return scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, score).output(0, 0, 0, 0);
  };
  EXPECT_NEAR(second_weight(attn::Chain{add_key, times_four}), 1 / (1 + std::exp(-4.0)), 1e-6);
  EXPECT_NEAR(second_weight(attn::Chain{times_four, add_key}), 1 / (1 + std::exp(-1.0)), 1e-6);
}

TEST(Conventions, OrderIsScoreFunctionBeforeMask) {
  const auto in = equal_scores(2);
  Tensor<float, 1> bias(2);
  bias.setValues({-1000.F, 0.F});  // capped at 1, it would leave key 0 a weight of 0.27
  const auto capped = scaled_dot_product_attention(in.q, in.k, in.v, AdditiveMask(bias), attn::SoftCap(1.F));
  EXPECT_EQ(capped.output(0, 0, 0, 0), 1.F);
  const auto zero = [](float, Position) { return 0.F; };  // it must not bring back a key that a mask took
  Tensor<bool, 1> keep(2);
  keep.setValues({false, true});
  EXPECT_EQ(scaled_dot_product_attention(in.q, in.k, in.v, KeepMask(keep), zero).output(0, 0, 0, 0), 1.F);
}

TEST(Conventions, OrderIsSoftmaxThenDropoutThenValues) {
  AttentionOptions options;
  options.dropout = 0.5;
  const auto seen = who_sees_whom(40, 32, NoMask{}, NoScore{}, options);
  for (Index i = 0; i < seen.size(); ++i)  // had softmax come last, what is left of a row would sum to 1
    ASSERT_NEAR(seen.data()[i], seen.data()[i] == 0.F ? 0.0 : 2.0 / 32.0, 1e-7);
}

// ---- boolean mask: true = keep; no bare bool tensor is accepted ----

TEST(Conventions, BooleanMaskKeepsWhereTrue) {
  Tensor<bool, 2> keep(2, 4);
  keep.setValues({{true, false, false, true}, {false, true, true, true}});
  EXPECT_EQ(picture(2, 4, KeepMask(keep)), "x..x .xxx ");
}

template <class A, class B>
concept Joins = requires(const A& a, const B& b) {
  (a & b);
};
template <class X>
concept MakesKeepMask = requires(const X& x) {
  KeepMask(x);
};
template <class X>
concept MakesAdditiveMask = requires(const X& x) {
  AdditiveMask(x);
};
template <class X>
concept MakesScoreBias = requires(const X& x) {
  attn::ScoreBias(x);
};

// Passed to scaled_dot_product_attention, a bool tensor meets a static_assert in as_mask, which no concept can look
// into. Here: it is no mask, joins none, and makes none but a KeepMask; and only bool makes that.
TEST(Conventions, BooleanMaskIsNeverABareTensor) {
  using Bools = Tensor<bool, 4>;
  static_assert(!attn::Mask<Bools> && !attn::detail::PredicateFunction<Bools>);
  static_assert(!Joins<Causal, Bools> && !Joins<Bools, Causal> && Joins<Causal, KeepMask>);
  static_assert(MakesKeepMask<Bools> && !MakesKeepMask<Tensor<float, 4>> && !MakesKeepMask<Tensor<int, 4>>);
  static_assert(MakesAdditiveMask<Tensor<float, 4>> && MakesScoreBias<Tensor<float, 4>>);
  EXPECT_FALSE(MakesAdditiveMask<Bools>) << "true would add 1 to the score";
  EXPECT_FALSE(MakesScoreBias<Bools>) << "true would add 1 to the score";
}

// ---- additive mask: added to the score; -inf means "never attend"; a finite filler is an ordinary number ----

TEST(Conventions, AdditiveMaskIsAddedToTheScore) {
  const auto in = equal_scores(2);
  Tensor<float, 2> bias(2, 2);
  bias.setValues({{0.F, 3.F}, {-2.F, 0.F}});
  const auto y = scaled_dot_product_attention(in.q, in.k, in.v, bias).output;
  EXPECT_NEAR(y(0, 0, 0, 0), 1 / (1 + std::exp(-3.0)), 1e-6);
  EXPECT_NEAR(y(0, 0, 1, 0), 1 / (1 + std::exp(-2.0)), 1e-6);
}

TEST(Conventions, AdditiveMaskOfMinusInfinityNeverAttends) {
  Tensor<float, 2> bias(2, 4);
  const float inf = std::numeric_limits<float>::infinity();
  bias.setValues({{0.F, -inf, 0.F, -inf}, {-inf, -inf, -inf, 0.F}});
  EXPECT_EQ(picture(2, 4, AdditiveMask(bias)), "x.x. ...x ");
}

TEST(Conventions, AdditiveMaskTakesAFiniteFillerAsANumber) {
  const Index T = 90;
  for (const float filler : {-1e4F, -1e9F, std::numeric_limits<float>::lowest()}) {
    Tensor<float, 2> bias(2, T);
    bias.setConstant(filler);
    bias(1, 7) = 0;
    const auto y = who_sees_whom(2, T, AdditiveMask(bias));
    for (Index t = 0; t < T; ++t) {
      EXPECT_FLOAT_EQ(y(0, 0, 0, t), 1.F / 90.F) << "a row of fillers weighs all keys the same";
      EXPECT_NEAR(y(0, 0, 1, t), t == 7 ? 1.0 : 0.0, 1e-30) << "beside an ordinary score nothing is left of it";
    }
  }
}

// ---- causal, S != T: lower-right aligned; top-left on request ----

TEST(Conventions, CausalIsLowerRightAligned) {
  EXPECT_EQ(picture(3, 3, Causal{}), "x.. xx. xxx ");
  EXPECT_EQ(picture(2, 5, Causal{}), "xxxx. xxxxx ");
  EXPECT_EQ(picture(1, 4, Causal{}), "xxxx ");
  EXPECT_EQ(picture(4, 2, Causal{}), ".. .. x. xx ");
}

TEST(Conventions, CausalIsTopLeftAlignedOnRequest) {
  const Causal top_left{attn::Align::top_left};
  EXPECT_EQ(picture(3, 3, top_left), "x.. xx. xxx ");
  EXPECT_EQ(picture(2, 5, top_left), "x.... xx... ");
  EXPECT_EQ(picture(4, 2, top_left), "x. xx xx xx ");
}

TEST(Conventions, CausalCountsFromQueryStart) {
  const std::array<Index, 1> start{1};
  AttentionOptions options;
  options.query_start = start;
  EXPECT_EQ(picture(3, 6, Causal{}, options), "xx.... xxx... xxxx.. ");
}

// ---- window W: a query sees exactly W keys, itself included ----

TEST(Conventions, WindowShowsExactlyWKeysTheQuerysOwnIncluded) {
  EXPECT_EQ(picture(4, 4, SlidingWindow(1)), "x... .x.. ..x. ...x ");
  EXPECT_EQ(picture(4, 4, SlidingWindow(2)), "x... xx.. .xx. ..xx ");
  EXPECT_EQ(picture(2, 6, SlidingWindow(3)), "..xxx. ...xxx ");
  EXPECT_EQ(picture(4, 4, SlidingWindow(2, 1)), "xx.. xxx. .xxx ..xx ");
  for (const Index W : {1, 2, 31, 64, 65, 150}) {
    const auto seen = who_sees_whom(40, 260, SlidingWindow(W));
    for (Index s = 0; s < 40; ++s) {
      Index count = 0;
      for (Index t = 0; t < 260; ++t) count += seen(0, 0, s, t) > 0 ? 1 : 0;
      EXPECT_EQ(count, W) << s;
      EXPECT_GT(seen(0, 0, s, 220 + s), 0.F) << "itself";
    }
  }
}

// ---- query head -> key/value head: h / (H/G) ----

TEST(Conventions, QueryHeadsShareKeyValueHeadsInOrder) {
  const Sizes n{.B = 2, .H = 6, .G = 3, .S = 2, .T = 4, .D = 2, .Dv = 1};
  auto in = random_inputs<float>(n, 2);
  for (Index b = 0; b < n.B; ++b)
    for (Index g = 0; g < n.G; ++g)
      for (Index t = 0; t < n.T; ++t) in.v(b, g, t, 0) = static_cast<float>(10 * b + g);
  const auto y = scaled_dot_product_attention(in.q, in.k, in.v).output;
  const std::array<float, 6> expected{0, 0, 1, 1, 2, 2};
  for (Index b = 0; b < n.B; ++b)
    for (Index h = 0; h < n.H; ++h)
      EXPECT_FLOAT_EQ(y(b, h, 1, 0), static_cast<float>(10 * b) + expected[static_cast<std::size_t>(h)]);
}

// ---- dropout: inverted scaling; a pure function of (seed, call, b, h, s, t) ----

TEST(Conventions, DropoutScalesInversely) {
  for (const double p : {0.25, 0.75}) {
    AttentionOptions options;
    options.dropout = p;
    const auto seen = who_sees_whom(30, 64, NoMask{}, NoScore{}, options);
    for (Index i = 0; i < seen.size(); ++i)
      ASSERT_NEAR(seen.data()[i], seen.data()[i] == 0.F ? 0.0 : 1.0 / 64.0 / (1 - p), 1e-7);
  }
}

TEST(Conventions, DropoutDependsOnSeedCallAndPositionAlone) {
  AttentionOptions options;
  options.dropout = 0.5;
  const auto first = who_sees_whom(30, 64, NoMask{}, NoScore{}, options);
  EXPECT_TRUE(same_bits(who_sees_whom(30, 64, NoMask{}, NoScore{}, options), first));
  const auto larger = who_sees_whom(130, 300, NoMask{}, NoScore{}, options);
  for (Index s = 0; s < 30; ++s)
    for (Index t = 0; t < 64; ++t) ASSERT_EQ(larger(0, 0, s, t) == 0.F, first(0, 0, s, t) == 0.F);
  ++options.call;
  EXPECT_FALSE(same_bits(who_sees_whom(30, 64, NoMask{}, NoScore{}, options), first));
  --options.call;
  ++options.seed;
  EXPECT_FALSE(same_bits(who_sees_whom(30, 64, NoMask{}, NoScore{}, options), first));
}

// ---- errors: std::invalid_argument before any work, "[attn::fn] what, expected ..., got [2,7,48]"; never prints ----

TEST(Conventions, ErrorsSayWhatWasExpectedAndGotAndPrintNothing) {
  const Tensor<float, 4> q(2, 4, 3, 8), k(2, 2, 5, 8), v(2, 2, 4, 8);
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const std::string text = error_of([&] { static_cast<void>(scaled_dot_product_attention(q, k, v)); });
  EXPECT_EQ(testing::internal::GetCapturedStdout() + testing::internal::GetCapturedStderr(), "");
  EXPECT_TRUE(reads(text, {"[attn::scaled_dot_product_attention] v", ", expected [2,2,5,8]", ", got [2,2,4,8]"}));
}

TEST(Conventions, ErrorsComeBeforeAnyWork) {
  const Tensor<float, 4> q(2, 4, 3, 8), k(2, 2, 5, 8), v(2, 2, 4, 8);
  auto y = filled<float, 4>({2, 4, 3, 8}, 42.F);
  EXPECT_THROW(attn::scaled_dot_product_attention_into(y, q, k, v), std::invalid_argument);
  EXPECT_TRUE(same_bits(y, filled<float, 4>({2, 4, 3, 8}, 42.F)));
}

}  // namespace
