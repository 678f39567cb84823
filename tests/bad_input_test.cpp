// What attention, masks and score functions refuse: std::invalid_argument, before any work, with a text that names the
// function, what was expected and what came.

#include "support.hpp"

namespace {

using attn::AdditiveMask;
using attn::Alibi;
using attn::AttentionOptions;
using attn::AttentionOutputs;
using attn::Causal;
using attn::Index;
using attn::KeepMask;
using attn::NoMask;
using attn::NoScore;
using attn::Padding;
using attn::Position;
using attn::ScoreBias;
using attn::SlidingWindow;
using attn::SoftCap;
using attn::Tensor;
using attn::View;
using attn_test::error_of;
using attn_test::filled;
using attn_test::infinity;
using attn_test::not_a_number;
using attn_test::random_tensor;
using attn_test::reads;

constexpr std::string_view fn = "[attn::scaled_dot_product_attention] ";

/// q [2,4,3,8], k [2,2,5,8], v [2,2,5,6]; outputs filled with 42, which no refused call may touch.
class BadInput : public testing::Test {
 protected:
  Tensor<float, 4> q = random_tensor<float, 4>({2, 4, 3, 8}, 1);
  Tensor<float, 4> k = random_tensor<float, 4>({2, 2, 5, 8}, 2);
  Tensor<float, 4> v = random_tensor<float, 4>({2, 2, 5, 6}, 3);
  Tensor<float, 4> output = filled<float, 4>({2, 4, 3, 6}, 42.F);
  Tensor<float, 3> log_sum_exp = filled<float, 3>({2, 4, 3}, 42.F);
  Tensor<float, 4> weights = filled<float, 4>({2, 4, 3, 5}, 42.F);

  [[nodiscard]] AttentionOutputs<float> all() { return {output, log_sum_exp, weights}; }

  template <class M = NoMask, class F = NoScore>
  std::string refusal(const M& mask = {}, const F& score = {}, const AttentionOptions& options = {}) {
    return refusal_into(all(), q, k, v, mask, score, options);
  }
  template <class Q, class K, class V, class M = NoMask, class F = NoScore>
  std::string refusal_into(const AttentionOutputs<float>& out, const Q& q_, const K& k_, const V& v_,
                           const M& mask = {}, const F& score = {}, const AttentionOptions& options = {}) {
    const std::string text =
        error_of([&] { attn::scaled_dot_product_attention_into(out, q_, k_, v_, mask, score, options); });
    EXPECT_TRUE(untouched(output) && untouched(log_sum_exp) && untouched(weights)) << "written before: " << text;
    return text;
  }
  template <int Rank>
  static bool untouched(const Tensor<float, Rank>& x) {
    return std::all_of(x.data(), x.data() + x.size(), [](float value) { return value == 42.F; });
  }
};

TEST_F(BadInput, TheFixtureItselfIsAccepted) {
  attn::scaled_dot_product_attention_into(all(), q, k, v);
  EXPECT_FALSE(untouched(output) || untouched(log_sum_exp) || untouched(weights));
}

TEST_F(BadInput, ThrowsAnInvalidArgument) {
  static_assert(std::is_base_of_v<std::invalid_argument, attn::Error>);
  EXPECT_THROW(static_cast<void>(attn::scaled_dot_product_attention(q, v, v)), attn::Error);
}

// ---- Shapes -----------------------------------------------------------------------------------------------------

TEST_F(BadInput, RefusesKeysOfAnotherHeadSize) {
  EXPECT_TRUE(reads(refusal_into(all(), q, v, v), {fn, "k", "expected [2,2,5,8]", "got [2,2,5,6]"}));
}
TEST_F(BadInput, RefusesKeysOfAnotherBatch) {
  Tensor<float, 4> other(3, 2, 5, 8);
  EXPECT_TRUE(reads(refusal_into(all(), q, other, v), {fn, "k", "expected [2,2,5,8]", "got [3,2,5,8]"}));
}
TEST_F(BadInput, RefusesKeysAndValuesOfDifferentLength) {
  Tensor<float, 4> other(2, 2, 4, 6);
  EXPECT_TRUE(reads(refusal_into(all(), q, k, other), {fn, "v", "expected [2,2,5,6]", "got [2,2,4,6]"}));
}
TEST_F(BadInput, RefusesKeysAndValuesWithDifferentHeads) {
  Tensor<float, 4> other(2, 1, 5, 6);
  EXPECT_TRUE(reads(refusal_into(all(), q, k, other), {fn, "v", "expected [2,2,5,6]", "got [2,1,5,6]"}));
}
TEST_F(BadInput, RefusesHeadsThatKeyValueHeadsDoNotDivide) {
  Tensor<float, 4> k3(2, 3, 5, 8), v3(2, 3, 5, 6);
  EXPECT_TRUE(reads(refusal_into(all(), q, k3, v3), {fn, "heads", "expected a multiple of 3", "got q [2,4,3,8]"}));
}
TEST_F(BadInput, RefusesZeroKeyValueHeads) {
  Tensor<float, 4> k0(2, 0, 5, 8), v0(2, 0, 5, 6);
  EXPECT_TRUE(reads(refusal_into(all(), q, k0, v0), {fn, "heads", "expected a multiple of 0", "got q [2,4,3,8]"}));
}
TEST_F(BadInput, RefusesAHeadSizeOfZero) {
  Tensor<float, 4> q0(2, 4, 3, 0), k0(2, 2, 5, 0);
  EXPECT_TRUE(reads(refusal_into(all(), q0, k0, v), {fn, "head size", "expected at least 1", "got q [2,4,3,0]"}));
}
TEST_F(BadInput, RefusesAnOutputOfAnotherShape) {
  Tensor<float, 4> other(2, 4, 3, 8);
  AttentionOutputs<float> out = all();
  out.output = other;
  EXPECT_TRUE(reads(refusal_into(out, q, k, v), {fn, "output", "expected [2,4,3,6]", "got [2,4,3,8]"}));
}
TEST_F(BadInput, RefusesAnOutputTensorWithoutMemory) {
  Tensor<float, 4> none;
  EXPECT_TRUE(reads(error_of([&] { attn::scaled_dot_product_attention_into(none, q, k, v); }),
                    {fn, "output", "expected [2,4,3,6]", "got [0,0,0,0]"}));
  AttentionOutputs<float> out = all();
  Tensor<float, 4> no_batch(0, 4, 3, 6);
  out.output = no_batch;
  EXPECT_TRUE(reads(refusal_into(out, q, k, v), {fn, "output", "expected [2,4,3,6]", "got [0,4,3,6]"}));
}
TEST_F(BadInput, RefusesALogSumExpOfAnotherShape) {
  Tensor<float, 3> other(2, 4, 5);
  AttentionOutputs<float> out = all();
  out.log_sum_exp = other;
  EXPECT_TRUE(reads(refusal_into(out, q, k, v), {fn, "log_sum_exp", "expected [2,4,3]", "got [2,4,5]"}));
}
TEST_F(BadInput, RefusesWeightsOfAnotherShape) {
  Tensor<float, 4> other(2, 2, 3, 5);
  AttentionOutputs<float> out = all();
  out.weights = other;
  EXPECT_TRUE(reads(refusal_into(out, q, k, v), {fn, "weights", "expected [2,4,3,5]", "got [2,2,3,5]"}));
}
TEST_F(BadInput, RefusesQueriesOrOutputWithGapsInTheLastAxis) {
  const View<const float, 4> gaps(q.data(), {2, 2, 3, 4}, {96, 24, 8, 2});
  Tensor<float, 4> k4(2, 2, 5, 4), v4(2, 2, 5, 6);
  AttentionOutputs<float> out;
  Tensor<float, 4> y(2, 2, 3, 6);
  out.output = y;
  EXPECT_TRUE(reads(refusal_into(out, gaps, k4, v4), {fn, "expected a contiguous last axis"}));
  out = all();
  out.output = View<float, 4>(output.data(), {2, 4, 3, 6}, {72, 18, 6, 2});
  EXPECT_TRUE(reads(refusal_into(out, q, k, v), {fn, "output", "expected a contiguous last axis"}));
}
TEST_F(BadInput, RefusesKeysOrValuesWithGapsInTheLastAxis) {
  const View<const float, 4> k_apart(k.data(), {2, 2, 5, 8}, {80, 40, 8, 2}),
      v_apart(v.data(), {2, 2, 5, 6}, {60, 30, 6, 2});
  EXPECT_TRUE(reads(refusal_into(all(), q, k_apart, v), {fn, "contiguous last axis"}));
  EXPECT_TRUE(reads(refusal_into(all(), q, k, v_apart), {fn, "contiguous last axis"}));
}
TEST_F(BadInput, RefusesLogSumExpAndWeightsWithGaps) {
  AttentionOutputs<float> out = all();
  out.log_sum_exp = View<float, 3>(log_sum_exp.data(), {2, 4, 3}, {12, 3, 2});
  EXPECT_TRUE(reads(refusal_into(out, q, k, v), {fn, "log_sum_exp", "expected a packed tensor"}));
  out = all();
  out.weights = View<float, 4>(weights.data(), {2, 4, 3, 5}, {60, 15, 6, 1});
  EXPECT_TRUE(reads(refusal_into(out, q, k, v), {fn, "weights", "expected a packed tensor"}));
}
TEST_F(BadInput, RefusesMoreThan2ToThe30QueriesKeysOrHeads) {
  constexpr Index many = (Index{1} << 30) + 1;
  const auto view = [&](Index h, Index s, Index d) { return View<const float, 4>(q.data(), {1, h, s, d}); };
  AttentionOutputs<float> out = all();
  EXPECT_TRUE(reads(refusal_into(out, view(1, many, 8), view(1, 5, 8), view(1, 5, 6)),
                    {fn, "expected at most 2^30 queries", "got q [1,1,1073741825,8]"}));
  EXPECT_TRUE(reads(refusal_into(out, view(1, 3, 8), view(1, many, 8), view(1, many, 6)),
                    {fn, "expected at most 2^30 queries", "k [1,1,1073741825,8]"}));
  EXPECT_TRUE(
      reads(refusal_into(out, view(many, 3, 8), view(1, 5, 8), view(1, 5, 6)), {fn, "expected at most 2^30 queries"}));
}
TEST_F(BadInput, RefusesMoreElementsThanMemoryCanHold) {
  constexpr Index many = Index{1} << 30;
  const auto repeated = [&](Index heads, Index rows, Index size) {  // one row for all
    return View<const float, 4>(q.data(), {1, heads, rows, size}, {0, 0, 0, 1});
  };
  const auto result = [](const auto& q_, const auto& k_, const auto& v_, bool with_weights) {
    AttentionOptions options;
    options.weights = with_weights;
    return error_of(
        [&] { static_cast<void>(attn::scaled_dot_product_attention(q_, k_, v_, NoMask{}, NoScore{}, options)); });
  };
  EXPECT_TRUE(reads(result(repeated(many, many, 4), repeated(1, 5, 4), repeated(1, 5, 8), false),
                    {"[attn::Tensor] shape", "memory can hold", "got [1,1073741824,1073741824,8]"}));
  EXPECT_TRUE(reads(result(repeated(2, many, 8), repeated(1, many, 8), repeated(1, many, 0), true),
                    {"[attn::Tensor] shape", "memory can hold", "got [1,2,1073741824,1073741824]"}));
}
TEST_F(BadInput, RefusesSizesOfOutputsThatWereNotAskedFor) {
  AttentionOutputs<float> out;
  out.log_sum_exp = log_sum_exp;
  const View<const float, 4> v_wide(v.data(), {2, 2, 0, (Index{1} << 30) + 1}), k_none(k.data(), {2, 2, 0, 8});
  EXPECT_TRUE(reads(refusal_into(out, q, k_none, v_wide), {fn, "head sizes", "at most 2^30", "v [2,2,0,1073741825]"}));
}

// ---- Memory -----------------------------------------------------------------------------------------------------

TEST_F(BadInput, RefusesAnOutputThatReachesAnElementTwice) {
  AttentionOutputs<float> out = all();
  out.output = View<float, 4>(output.data(), {2, 4, 3, 6}, {72, 0, 6, 1});
  EXPECT_TRUE(reads(refusal_into(out, q, k, v), {fn, "output", "each element once", "got [72,0,6,1]"}));
  out.output = View<float, 4>(output.data(), {2, 4, 3, 6}, {72, 18, 5, 1});  // rows that run into each other
  EXPECT_TRUE(reads(refusal_into(out, q, k, v), {fn, "output", "each element once", "got [72,18,5,1]"}));
}
TEST_F(BadInput, RefusesAnOutputThatSharesMemoryWithAnInput) {
  Tensor<float, 4> k6(2, 2, 5, 6), q6(2, 4, 3, 6);
  k6.setConstant(42.F), q6.setConstant(42.F);
  const auto shares = [&](const View<float, 4>& y, const View<const float, 4>& q_, std::string_view what) {
    const AttentionOutputs<float> out{y, {}, {}};
    return reads(refusal_into(out, q_, k6, v), {fn, "output", "memory of its own", "also ", what});
  };
  EXPECT_TRUE(shares(q6, q6, "q"));
  EXPECT_TRUE(shares(View<float, 4>(v.data(), {2, 2, 3, 6}), View<const float, 4>(output.data(), {2, 2, 3, 6}), "v"));
  EXPECT_TRUE(shares(View<float, 4>(k6.data(), {2, 2, 3, 6}), View<const float, 4>(output.data(), {2, 2, 3, 6}), "k"));
  EXPECT_TRUE(
      shares(View<float, 4>(k6.data() + 59, {2, 2, 1, 6}), View<const float, 4>(output.data(), {2, 2, 1, 6}), "k"));
  EXPECT_TRUE(untouched(k6) && untouched(q6));
}
TEST_F(BadInput, RefusesOutputsThatShareMemoryWithEachOther) {
  std::vector<float> memory(500, 42.F);
  const View<float, 4> y(memory.data(), {2, 4, 3, 6});  // 144 elements
  const auto refused = [&](const AttentionOutputs<float>& out, std::string_view what, std::string_view other) {
    return reads(refusal_into(out, q, k, v), {fn, what, "memory of its own", "also ", other});
  };
  EXPECT_TRUE(refused({y, View<float, 3>(memory.data() + 143, {2, 4, 3}), {}}, "log_sum_exp", "output"));
  EXPECT_TRUE(refused({y, log_sum_exp, View<float, 4>(memory.data() + 100, {2, 4, 3, 5})}, "weights", "output"));
  EXPECT_TRUE(
      refused({output, View<float, 3>(memory.data() + 20, {2, 4, 3}), View<float, 4>(memory.data(), {2, 4, 3, 5})},
              "weights", "log_sum_exp"));
  EXPECT_TRUE(std::all_of(memory.begin(), memory.end(), [](float x) { return x == 42.F; }));
  const AttentionOutputs<float> beside{y, View<float, 3>(memory.data() + 144, {2, 4, 3}),
                                       View<float, 4>(memory.data() + 168, {2, 4, 3, 5})};
  attn::scaled_dot_product_attention_into(beside, q, k, v);
  EXPECT_EQ(memory[288], 42.F);
}
TEST_F(BadInput, TheReferenceRefusesSharedMemoryToo) {
  const View<float, 4> onto_v(v.data(), {2, 4, 1, 6});
  const auto text = error_of([&] {
    attn::reference::scaled_dot_product_attention_into<float>(
        {onto_v, {}, {}}, View<const float, 4>(q.data(), {2, 4, 1, 8}), k, v, NoMask{}, NoScore{}, {});
  });
  EXPECT_TRUE(reads(text, {fn, "output", "memory of its own", "also v"}));
}
TEST_F(BadInput, SplitHeadsRefusesHeadsThatDoNotDivide) {
  Tensor<float, 3> x(2, 7, 48);
  EXPECT_TRUE(reads(error_of([&] { static_cast<void>(attn::split_heads(x, 5)); }),
                    {"[attn::split_heads] ", "expected a multiple of 5", "got [2,7,48]"}));
  EXPECT_TRUE(reads(error_of([&] { static_cast<void>(attn::split_heads(x, 0)); }), {"[attn::split_heads] "}));
}

// ---- Options ----------------------------------------------------------------------------------------------------

TEST_F(BadInput, RefusesADropoutThatIsNoProbability) {
  AttentionOptions options;
  const auto with = [&](double p) {
    options.dropout = p;
    return refusal(NoMask{}, NoScore{}, options);
  };
  EXPECT_TRUE(reads(with(-0.1), {fn, "dropout", "expected a probability in [0,1]", "got -0.1"}));
  EXPECT_TRUE(reads(with(1.5), {fn, "dropout", "expected a probability in [0,1]", "got 1.5"}));
  EXPECT_TRUE(reads(with(not_a_number), {fn, "dropout", "expected a probability in [0,1]", "nan"}));
  EXPECT_TRUE(reads(with(infinity), {fn, "dropout", "expected a probability in [0,1]", "got inf"}));
  EXPECT_TRUE(reads(with(-1e-9), {fn, "dropout", "expected a probability in [0,1]", "got -"}));
}
TEST_F(BadInput, PrintsNumbersJustOutsideTheRangeDistinctly) {
  AttentionOptions options;
  options.dropout = 1.000000001;
  EXPECT_FALSE(refusal(NoMask{}, NoScore{}, options).ends_with("got 1"));
  options.dropout = -1e-9;
  EXPECT_FALSE(refusal(NoMask{}, NoScore{}, options).ends_with("got -0"));
}
TEST_F(BadInput, RefusesAScaleThatIsNotFinite) {
  AttentionOptions options;
  for (const double scale : {infinity, -infinity, not_a_number}) {
    options.scale = scale;
    EXPECT_TRUE(reads(refusal(NoMask{}, NoScore{}, options), {fn, "scale", "expected a finite number", "got "}));
  }
}
TEST_F(BadInput, RefusesAScaleThatScoresCannotHold) {
  const double most = std::numeric_limits<float>::max();
  AttentionOptions options;
  for (const double scale : {1e300, -1e300, std::nextafter(most, infinity)}) {
    options.scale = scale;
    EXPECT_TRUE(reads(refusal(NoMask{}, NoScore{}, options), {fn, "scale", "expected a finite number", "got "}));
  }
  options.scale = most;
  EXPECT_NO_THROW(static_cast<void>(attn::scaled_dot_product_attention(q, k, v, NoMask{}, NoScore{}, options)));
}
TEST(BadScale, IsLargerForDoubleThanForFloat) {
  const auto x = filled<double, 4>({1, 1, 2, 3}, 0.0);
  EXPECT_NO_THROW(
      static_cast<void>(attn::scaled_dot_product_attention(x, x, x, NoMask{}, NoScore{}, {.scale = 1e300})));
}
TEST_F(BadInput, RefusesAQueryStartOfAnotherLength) {
  const std::array<Index, 3> start{1, 2, 3};
  AttentionOptions options;
  options.query_start = start;
  EXPECT_TRUE(reads(refusal(NoMask{}, NoScore{}, options),
                    {fn, "query_start", "expected one for each of 2 batch entries", "got 3"}));
}
TEST_F(BadInput, RefusesAQueryStartBeyond2ToThe30) {
  AttentionOptions options;
  for (const Index far : {(Index{1} << 30) + 1, Index{1} << 40, -(Index{1} << 30) - 1,
                          std::numeric_limits<Index>::min(), std::numeric_limits<Index>::max()}) {
    const std::array<Index, 2> start{0, far};
    options.query_start = start;
    EXPECT_TRUE(reads(refusal(NoMask{}, NoScore{}, options),
                      {fn, "query_start", "expected a position within 2^30", "got " + std::to_string(far)}));
  }
}

// The fixture has 3 queries: the last one may stand at 2^30 - 1 at most.
TEST_F(BadInput, RefusesQueriesThatEndBeyond2ToThe30) {
  constexpr Index limit = Index{1} << 30;
  AttentionOptions options;
  for (const Index far : {limit, limit - 1, limit - 2, -limit - 1}) {
    const std::array<Index, 2> start{far, 0};
    options.query_start = start;
    EXPECT_TRUE(
        reads(refusal(NoMask{}, NoScore{}, options), {fn, "query_start", "2^30", "got " + std::to_string(far)}));
  }
  for (const Index near : {limit - 3, -limit}) {
    const std::array<Index, 2> start{0, near};
    options.query_start = start;
    EXPECT_NO_THROW(attn::scaled_dot_product_attention_into(all(), q, k, v, NoMask{}, NoScore{}, options)) << near;
  }
}

// ---- Masks ------------------------------------------------------------------------------------------------------

TEST_F(BadInput, RefusesAKeepMaskThatDoesNotBroadcast) {
  Tensor<bool, 2> keep(3, 4);
  Tensor<bool, 1> keys(6);
  Tensor<bool, 4> all_axes(2, 3, 3, 5);
  keep.setConstant(true);
  EXPECT_TRUE(
      reads(refusal(KeepMask(keep)), {fn, "KeepMask", "does not broadcast", "expected [2,4,3,5]", "got [3,4]"}));
  EXPECT_TRUE(reads(refusal(KeepMask(keys)), {fn, "KeepMask", "expected [2,4,3,5]", "got [6]"}));
  EXPECT_TRUE(reads(refusal(KeepMask(all_axes)), {fn, "KeepMask", "expected [2,4,3,5]", "got [2,3,3,5]"}));
}
TEST_F(BadInput, RefusesAnAdditiveMaskThatDoesNotBroadcast) {
  Tensor<float, 2> bias(2, 5);
  Tensor<float, 3> heads(2, 3, 5);  // [B,S,T] is a common slip
  Tensor<float, 4> empty(2, 4, 3, 0);
  EXPECT_TRUE(reads(refusal(AdditiveMask(bias)),
                    {fn, "AdditiveMask", "does not broadcast", "expected [2,4,3,5]", "got [2,5]"}));
  EXPECT_TRUE(reads(refusal(heads), {fn, "AdditiveMask", "expected [2,4,3,5]", "got [2,3,5]"}));
  EXPECT_TRUE(reads(refusal(AdditiveMask(empty)), {fn, "AdditiveMask", "expected [2,4,3,5]", "got [2,4,3,0]"}));
}
TEST_F(BadInput, ChecksMasksWhereverTheyAreJoined) {
  Tensor<float, 2> bias(3, 4);
  const auto any = [](Position) { return true; };
  EXPECT_TRUE(reads(refusal(Causal{} & AdditiveMask(bias)), {fn, "AdditiveMask", "got [3,4]"}));
  const auto deep = any & (AdditiveMask(bias) & Causal{}) & SlidingWindow(3);
  EXPECT_TRUE(reads(error_of([&] { deep.check("f", 2, 4, 3, 5); }), {"[attn::f] AdditiveMask", "got [3,4]"}));
}
TEST_F(BadInput, RefusesPaddingOfAnotherBatch) {
  const std::vector<Index> lengths{1, 2, 3};
  EXPECT_TRUE(
      reads(refusal(Padding(lengths)), {fn, "Padding", "expected one length for each of 2 batch entries", "got 3"}));
}
TEST_F(BadInput, RefusesPaddingLengthsOutsideTheKeys) {
  const std::vector<Index> negative{-1, 2}, long_one{2, 6};
  EXPECT_TRUE(reads(refusal(Padding(negative)), {fn, "Padding", "expected lengths from 0 to 5", "got -1"}));
  EXPECT_TRUE(reads(refusal(Padding(long_one)), {fn, "Padding", "expected lengths from 0 to 5", "got 6"}));
}
TEST_F(BadInput, RefusesAWindowBelowOne) {
  EXPECT_TRUE(reads(error_of([] { static_cast<void>(SlidingWindow(0)); }),
                    {"[attn::SlidingWindow] ", "expected at least 1", "got 0"}));
  EXPECT_TRUE(reads(error_of([] { static_cast<void>(SlidingWindow(-3)); }),
                    {"[attn::SlidingWindow] ", "expected at least 1", "got -3"}));
  EXPECT_TRUE(reads(error_of([] { static_cast<void>(SlidingWindow(std::numeric_limits<Index>::min())); }),
                    {"[attn::SlidingWindow] ", "got -9"}));
}
TEST_F(BadInput, RefusesAWindowWithANegativeNumberOfKeysAhead) {
  EXPECT_TRUE(reads(error_of([] { static_cast<void>(SlidingWindow(4, -1)); }),
                    {"[attn::SlidingWindow] ", "ahead", "expected at least 0", "got -1"}));
}

// ---- Scores -----------------------------------------------------------------------------------------------------

TEST_F(BadInput, RefusesASoftCapThatIsNotPositive) {
  EXPECT_TRUE(reads(error_of([] { static_cast<void>(SoftCap(0.F)); }),
                    {"[attn::SoftCap] ", "expected a positive number", "got 0"}));
  EXPECT_TRUE(reads(error_of([] { static_cast<void>(SoftCap(-2.5F)); }),
                    {"[attn::SoftCap] ", "expected a positive number", "got -2.5"}));
  for (const float cap : {NAN, INFINITY, -INFINITY})
    EXPECT_TRUE(reads(error_of([=] { static_cast<void>(SoftCap(cap)); }),
                      {"[attn::SoftCap] ", "expected a positive number", "got "}));
}
TEST_F(BadInput, RefusesAlibiForAnotherNumberOfHeads) {
  EXPECT_TRUE(reads(error_of([] { static_cast<void>(Alibi(0)); }), {"[attn::Alibi] ", "expected at least 1", "got 0"}));
  EXPECT_TRUE(reads(refusal(NoMask{}, Alibi(2)), {fn, "Alibi", "expected slopes for 4 heads", "got 2"}));
  EXPECT_TRUE(reads(refusal(NoMask{}, Alibi(8)), {fn, "Alibi", "expected slopes for 4 heads", "got 8"}));
}
TEST_F(BadInput, RefusesAScoreBiasThatDoesNotBroadcast) {
  Tensor<float, 3> bias(2, 3, 5);
  EXPECT_TRUE(reads(refusal(NoMask{}, ScoreBias(bias)),
                    {fn, "ScoreBias", "does not broadcast", "expected [2,4,3,5]", "got [2,3,5]"}));
  EXPECT_TRUE(reads(refusal(NoMask{}, attn::Chain{SoftCap(5.F), ScoreBias(bias)}), {fn, "ScoreBias", "got [2,3,5]"}));
  const attn::Chain deep{SoftCap(5.F), attn::Chain<NoScore, Alibi>{NoScore{}, Alibi(3)}};
  EXPECT_TRUE(reads(error_of([&] { deep.check("f", 2, 4, 3, 5); }), {"[attn::f] Alibi", "for 4 heads", "got 3"}));
}

}  // namespace
