// scaled_dot_product_attention: its options, what it returns, the forms in which tensors go in and out.

#include "support.hpp"

namespace {

using attn::AttentionOptions;
using attn::AttentionOutputs;
using attn::Causal;
using attn::Index;
using attn::NoMask;
using attn::NoScore;
using attn::Position;
using attn::scaled_dot_product_attention;
using attn::scaled_dot_product_attention_into;
using attn::Tensor;
using attn::TensorMap;
using attn::View;
using attn_test::Answer;
using attn_test::ask_oracle;
using attn_test::difference;
using attn_test::expect_attention;
using attn_test::expect_close;
using attn_test::filled;
using attn_test::infinity;
using attn_test::Inputs;
using attn_test::keep_all;
using attn_test::many_sizes;
using attn_test::only_if;
using attn_test::PlainMask;
using attn_test::random_inputs;
using attn_test::random_tensor;
using attn_test::same_bits;
using attn_test::same_score;
using attn_test::Sizes;

const Sizes usual{.B = 2, .H = 4, .G = 2, .S = 33, .T = 75, .D = 10, .Dv = 7};

PlainMask plain_causal(const Sizes& n) {
  return [=](Position at) { return only_if(at.key <= at.row + n.T - n.S); };
}

TEST(Attention, GivesTheResultOfACaseWorkedByHand) {
  Tensor<float, 4> q(1, 1, 1, 2), k(1, 1, 2, 2), v(1, 1, 2, 1);
  q.setValues({{{{1, 1}}}});
  k.setValues({{{{0, 0}, {1, 1}}}});  // scores 0 and 2 / sqrt(2)
  v.setValues({{{{10}, {20}}}});
  const double e = std::exp(std::sqrt(2.0));
  const auto result =
      scaled_dot_product_attention(q, k, v, NoMask{}, NoScore{}, {.log_sum_exp = true, .weights = true});
  EXPECT_NEAR(result.output(0, 0, 0, 0), (10 + 20 * e) / (1 + e), 1e-5);
  EXPECT_NEAR(result.log_sum_exp(0, 0, 0), std::log(1 + e), 1e-6);
  EXPECT_NEAR(result.weights(0, 0, 0, 0), 1 / (1 + e), 1e-6);
  EXPECT_NEAR(result.weights(0, 0, 0, 1), e / (1 + e), 1e-6);
}

// ---- Options ----------------------------------------------------------------------------------------------------

TEST(AttentionOptions, ScaleMayBeAnyNumber) {
  for (const double scale : {1.0, 0.05, -0.3, 0.0}) {
    SCOPED_TRACE(scale);
    AttentionOptions options;
    options.scale = scale;
    expect_attention(random_inputs<float>(usual, 1), Causal{}, NoScore{}, plain_causal(usual), same_score, options);
  }
}

TEST(AttentionOptions, ScaleDefaultsToOneOverTheRootOfTheHeadSize) {
  const auto in = random_inputs<float>({.S = 9, .T = 20, .D = 16, .Dv = 3}, 2);
  AttentionOptions options;
  options.scale = 0.25;
  EXPECT_TRUE(same_bits(scaled_dot_product_attention(in.q, in.k, in.v).output,
                        scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, options).output));
}

TEST(AttentionOptions, WeightsMatchTheOracleOverManySizes) {
  unsigned seed = 4100;
  AttentionOptions options;
  options.weights = true;
  for (const Sizes& n : many_sizes())
    expect_attention(random_inputs<float>(n, ++seed), Causal{}, NoScore{}, plain_causal(n), same_score, options);
}

// These windows do not start at a multiple of the kernel's step of keys.
TEST(AttentionOptions, WeightsUnderAWindowAreStoredAtTheirOwnKeys) {
  unsigned seed = 4200;
  AttentionOptions options;
  options.weights = true;
  for (const Index width : {1, 23, 80})
    for (const Sizes& n : many_sizes())
      expect_attention(
          random_inputs<float>(n, ++seed), attn::SlidingWindow(width, 2), NoScore{},
          [=](Position at) {
            const Index query = at.row + n.T - n.S;
            return only_if(query - width < at.key && at.key <= query + 2);
          },
          same_score, options);
}

TEST(AttentionOptions, WeightsOfARowSumToOneOrToZeroWithoutKeys) {
  const Sizes n{.B = 2, .H = 2, .G = 1, .S = 40, .T = 31, .D = 8, .Dv = 4};  // the first 9 queries see nothing
  const auto in = random_inputs<float>(n, 3);
  const auto result = scaled_dot_product_attention(in.q, in.k, in.v, Causal{}, NoScore{}, {.weights = true});
  for (Index b = 0; b < n.B; ++b)
    for (Index h = 0; h < n.H; ++h)
      for (Index s = 0; s < n.S; ++s) {
        double sum = 0;
        for (Index t = 0; t < n.T; ++t) sum += double{result.weights(b, h, s, t)};
        EXPECT_NEAR(sum, s < 9 ? 0.0 : 1.0, 1e-6) << s;
      }
}

TEST(AttentionOptions, LogSumExpIsMinusInfinityWithoutKeys) {
  const Sizes n{.B = 1, .H = 2, .G = 2, .S = 12, .T = 10, .D = 8, .Dv = 4};
  const auto in = random_inputs<float>(n, 4);
  const auto result = scaled_dot_product_attention(in.q, in.k, in.v, Causal{}, NoScore{}, {.log_sum_exp = true});
  for (Index h = 0; h < n.H; ++h)
    for (Index s = 0; s < n.S; ++s) {
      double sum = 0;
      for (Index t = 0; t <= s - 2; ++t) {
        double score = 0;
        for (Index d = 0; d < n.D; ++d) score += double{in.q(0, h, s, d)} * double{in.k(0, h, t, d)};
        sum += std::exp(score / std::sqrt(8.0));
      }
      if (s < 2) {
        EXPECT_EQ(result.log_sum_exp(0, h, s), -infinity);
      } else {
        EXPECT_NEAR(result.log_sum_exp(0, h, s), std::log(sum), 1e-6);
      }
    }
}

TEST(AttentionOptions, OutputsThatWereNotAskedForAreEmpty) {
  const auto in = random_inputs<float>(usual, 5);
  const auto result = scaled_dot_product_attention(in.q, in.k, in.v);
  EXPECT_EQ(result.output.size(), usual.B * usual.H * usual.S * usual.Dv);
  EXPECT_EQ(result.log_sum_exp.size(), 0);
  EXPECT_EQ(result.weights.size(), 0);
}

TEST(AttentionOptions, AskingForMoreDoesNotChangeTheOutput) {
  // The kernel may take another path for the weights: nearly the same bits, and the same bar for both.
  const auto in = random_inputs<float>(usual, 6);
  const auto plain = scaled_dot_product_attention(in.q, in.k, in.v, Causal{});
  const auto with_log = scaled_dot_product_attention(in.q, in.k, in.v, Causal{}, NoScore{}, {.log_sum_exp = true});
  EXPECT_TRUE(same_bits(plain.output, with_log.output));
  const auto with_weights = scaled_dot_product_attention(in.q, in.k, in.v, Causal{}, NoScore{}, {.weights = true});
  EXPECT_LT(difference(plain.output, with_weights.output).largest, 2e-6);
}

TEST(AttentionOptions, QueryStartMovesEachBatchEntryByItself) {
  const Sizes n{.B = 5, .H = 2, .G = 1, .S = 9, .T = 90, .D = 8, .Dv = 5};
  const std::vector<Index> start{0, 81, 40, -4, 200};  // before the first key and past the last one, too
  AttentionOptions options;
  options.query_start = start;
  expect_attention(
      random_inputs<float>(n, 7), Causal{}, NoScore{},
      [&](Position at) { return only_if(at.key <= start[static_cast<std::size_t>(at.batch)] + at.row); }, same_score,
      options);
  expect_attention(
      random_inputs<float>(n, 8), Causal{} & attn::SlidingWindow(13), attn::Alibi(2),
      [&](Position at) {
        const Index query = start[static_cast<std::size_t>(at.batch)] + at.row;
        return only_if(at.key <= query && at.key > query - 13);
      },
      [&](double x, Position at) {
        const Index query = start[static_cast<std::size_t>(at.batch)] + at.row;
        return x - (at.head == 0 ? 0x1p-4 : 0x1p-8) * static_cast<double>(query - at.key);
      },
      options);
}

TEST(AttentionOptions, QueryStartAndPaddingGiveEachSequenceItsOwnResult) {
  // What a batch gives is what each sequence gives alone, its keys cut to its length.
  const Sizes n{.B = 3, .H = 4, .G = 2, .S = 2, .T = 70, .D = 8, .Dv = 6};
  const auto in = random_inputs<float>(n, 9);
  const std::vector<Index> lengths{70, 2, 33};
  std::vector<Index> start;
  for (const Index length : lengths) start.push_back(length - n.S);
  AttentionOptions options;
  options.query_start = start;
  const auto together =
      scaled_dot_product_attention(in.q, in.k, in.v, Causal{} & attn::Padding(lengths), NoScore{}, options).output;
  for (Index b = 0; b < n.B; ++b) {
    const Index T = lengths[static_cast<std::size_t>(b)];
    const View<const float, 4> q(&in.q(b, 0, 0, 0), {1, n.H, n.S, n.D});
    const View<const float, 4> k(&in.k(b, 0, 0, 0), {1, n.G, T, n.D}, {0, n.T * n.D, n.D, 1});
    const View<const float, 4> v(&in.v(b, 0, 0, 0), {1, n.G, T, n.Dv}, {0, n.T * n.Dv, n.Dv, 1});
    const auto alone = scaled_dot_product_attention(q, k, v, Causal{}).output;
    for (Index i = 0; i < alone.size(); ++i)
      EXPECT_NEAR(alone.data()[i], together.data()[b * alone.size() + i], 2e-6) << "batch entry " << b;
  }
}

// ---- Forms ------------------------------------------------------------------------------------------------------

class AttentionForms : public testing::Test {
 protected:
  Sizes n = usual;
  Inputs<float> in = random_inputs<float>(n, 10);
  Tensor<float, 4> expected = scaled_dot_product_attention(in.q, in.k, in.v, Causal{}).output;
  Tensor<float, 4> out = filled<float, 4>({n.B, n.H, n.S, n.Dv}, 42.F);
};

TEST_F(AttentionForms, WritesIntoATensor) {
  const float* before = out.data();
  scaled_dot_product_attention_into(out, in.q, in.k, in.v, Causal{});
  EXPECT_TRUE(same_bits(out, expected));
  EXPECT_EQ(out.data(), before);
}

TEST_F(AttentionForms, TakesMapsOfConstAndMutableElements) {
  TensorMap<float, 4> q(in.q.data(), n.B, n.H, n.S, n.D);
  TensorMap<const float, 4> k(in.k.data(), n.B, n.G, n.T, n.D);
  const TensorMap<float, 4> v(in.v.data(), n.B, n.G, n.T, n.Dv);
  EXPECT_TRUE(same_bits(scaled_dot_product_attention(q, k, v, Causal{}).output, expected));
  TensorMap<float, 4> y(out.data(), n.B, n.H, n.S, n.Dv);
  scaled_dot_product_attention_into(y, q, k, v, Causal{});
  EXPECT_TRUE(same_bits(out, expected));
}

TEST_F(AttentionForms, WritesThroughATemporaryMapOrView) {
  scaled_dot_product_attention_into(TensorMap<float, 4>(out.data(), n.B, n.H, n.S, n.Dv), in.q, in.k, in.v, Causal{});
  EXPECT_TRUE(same_bits(out, expected));
  out.setConstant(42.F);
  scaled_dot_product_attention_into(View<float, 4>(out), in.q, in.k, in.v, Causal{});
  EXPECT_TRUE(same_bits(out, expected));
}

TEST_F(AttentionForms, WritesTheOutputsThatHaveMemory) {
  auto log_sum_exp = filled<float, 3>({n.B, n.H, n.S}, 42.F);
  auto weights = filled<float, 4>(n.scores(), 42.F);
  const auto oracle = ask_oracle(in, plain_causal(n), same_score, {});

  AttentionOutputs<float> outputs;
  outputs.output = out;
  outputs.log_sum_exp = log_sum_exp;
  scaled_dot_product_attention_into(outputs, in.q, in.k, in.v, Causal{});
  expect_close("output", out, oracle, &Answer::output);
  expect_close("log_sum_exp", log_sum_exp, oracle, &Answer::log_sum_exp);
  EXPECT_EQ(weights(0, 0, 0, 0), 42.F);

  outputs.weights = weights;
  scaled_dot_product_attention_into(outputs, in.q, in.k, in.v, Causal{});
  expect_close("weights", weights, oracle, &Answer::weights);
}

/// Outputs of one attention, of which each may be asked for by itself.
template <class T>
struct Parts {
  Tensor<T, 4> output, weights;
  Tensor<attn::Accumulator<T>, 3> log_sum_exp;

  explicit Parts(const Sizes& n)
      : output(filled<T, 4>({n.B, n.H, n.S, n.Dv}, T(42))),
        weights(filled<T, 4>(n.scores(), T(42))),
        log_sum_exp(filled<attn::Accumulator<T>, 3>({n.B, n.H, n.S}, 42)) {}
  /// The parts that the bits of `which` name.
  [[nodiscard]] AttentionOutputs<T> views(unsigned which) {
    AttentionOutputs<T> out;
    if ((which & 1U) != 0) out.output = output;
    if ((which & 2U) != 0) out.log_sum_exp = log_sum_exp;
    if ((which & 4U) != 0) out.weights = weights;
    return out;
  }
};

template <class T>
void expect_each_part_alone(const Sizes& n) {
  SCOPED_TRACE(testing::Message() << n);
  const auto in = random_inputs<T>(n, 21);
  Parts<T> all(n), untouched(n);
  scaled_dot_product_attention_into(all.views(7), in.q, in.k, in.v, Causal{});
  const bool few = n.S <= 4;  // another kernel where no weights are asked for
  for (const unsigned which : {0U, 2U, 4U, 6U}) {
    Parts<T> some(n), by_formula(n);
    scaled_dot_product_attention_into(some.views(which), in.q, in.k, in.v, Causal{});
    attn::reference::scaled_dot_product_attention_into<T>(by_formula.views(which), in.q, in.k, in.v, Causal{},
                                                          NoScore{}, {});
    for (const Parts<T>* got : {&some, &by_formula}) {
      const bool bits = got == &some && !(few && which == 2);
      const Parts<T>& of_log = (which & 2U) != 0 ? all : untouched;
      const Parts<T>& of_weights = (which & 4U) != 0 ? all : untouched;
      EXPECT_TRUE(same_bits(got->output, untouched.output)) << which;
      EXPECT_LE(difference(got->log_sum_exp, of_log.log_sum_exp).largest, bits ? 0.0 : 4e-6) << which;
      EXPECT_LE(difference(got->weights, of_weights.weights).largest, bits ? 0.0 : 4e-3) << which;
    }
  }
}

TEST(AttentionParts, EachMayBeWrittenWithoutTheOthers) {
  for (const Sizes& n : {usual, Sizes{.B = 2, .H = 4, .G = 2, .S = 1, .T = 700, .D = 16, .Dv = 16},
                         Sizes{.B = 1, .H = 2, .G = 1, .S = 130, .T = 90, .D = 8, .Dv = 16},
                         Sizes{.B = 1, .H = 2, .G = 1, .S = 3, .T = 0, .D = 8, .Dv = 5}}) {
    expect_each_part_alone<float>(n);
    expect_each_part_alone<double>(n);
    expect_each_part_alone<Eigen::half>(n);
  }
}

TEST_F(AttentionForms, GivesEmptyResultsTheRightShape) {
  for (const Sizes& m : {Sizes{.B = 0, .H = 2, .G = 1, .S = 3, .T = 3, .D = 4, .Dv = 2},
                         Sizes{.B = 2, .H = 2, .G = 1, .S = 0, .T = 3, .D = 4, .Dv = 2},
                         Sizes{.B = 2, .H = 0, .G = 0, .S = 3, .T = 3, .D = 4, .Dv = 2},
                         Sizes{.B = 2, .H = 0, .G = 1, .S = 3, .T = 3, .D = 4, .Dv = 2},
                         Sizes{.B = 2, .H = 2, .G = 1, .S = 3, .T = 3, .D = 4, .Dv = 0}}) {
    SCOPED_TRACE(testing::Message() << m);
    const auto x = random_inputs<float>(m, 11);
    const auto result =
        scaled_dot_product_attention(x.q, x.k, x.v, Causal{}, NoScore{}, {.log_sum_exp = true, .weights = true});
    EXPECT_EQ(attn::detail::shape_of(result.output), (std::array{m.B, m.H, m.S, m.Dv}));
    EXPECT_EQ(attn::detail::shape_of(result.log_sum_exp), (std::array{m.B, m.H, m.S}));
    EXPECT_EQ(attn::detail::shape_of(result.weights), m.scores());
  }
}

TEST_F(AttentionForms, GivesWeightsForValuesOfSizeZero) {
  const Sizes m{.B = 1, .H = 2, .G = 1, .S = 5, .T = 6, .D = 4, .Dv = 0};
  AttentionOptions options;
  options.weights = true;
  expect_attention(random_inputs<float>(m, 12), Causal{}, NoScore{}, plain_causal(m), same_score, options);
}

TEST_F(AttentionForms, EarlierCallsDoNotChangeLaterOnes) {
  // Scratch memory is kept between calls: a large call before a small one must not show in it.
  for (const Sizes& m : {Sizes{.B = 1, .H = 2, .G = 2, .S = 300, .T = 310, .D = 64, .Dv = 64}, usual,
                         Sizes{.B = 1, .H = 1, .G = 1, .S = 1, .T = 1, .D = 1, .Dv = 1}, usual}) {
    const auto x = random_inputs<float>(m, 13);
    const auto first = scaled_dot_product_attention(x.q, x.k, x.v, Causal{}).output;
    const auto nans =
        Inputs<float>{m, filled<float, 4>({m.B, m.H, m.S, m.D}, NAN), filled<float, 4>({m.B, m.G, m.T, m.D}, NAN),
                      filled<float, 4>({m.B, m.G, m.T, m.Dv}, NAN)};
    EXPECT_TRUE(std::isnan(scaled_dot_product_attention(nans.q, nans.k, nans.v).output(0, 0, 0, 0)));
    EXPECT_TRUE(same_bits(scaled_dot_product_attention(x.q, x.k, x.v, Causal{}).output, first));
  }
}

// ---- Strides ----------------------------------------------------------------------------------------------------

TEST(AttentionStrides, HeadsMayBeSplitByStrides) {
  for (const Sizes& n : {usual, Sizes{.B = 1, .H = 2, .G = 2, .S = 140, .T = 260, .D = 16, .Dv = 16}}) {
    SCOPED_TRACE(testing::Message() << n);
    const auto q = random_tensor<float, 3>({n.B, n.S, n.H * n.D}, 14);
    const auto k = random_tensor<float, 3>({n.B, n.T, n.G * n.D}, 15);
    const auto v = random_tensor<float, 3>({n.B, n.T, n.G * n.Dv}, 16);
    Tensor<float, 3> y(n.B, n.S, n.H * n.Dv);
    scaled_dot_product_attention_into(attn::split_heads(y, n.H), attn::split_heads(q, n.H), attn::split_heads(k, n.G),
                                      attn::split_heads(v, n.G), Causal{});

    const auto move_heads = [](const Tensor<float, 3>& x, Index heads) {
      const Index d = x.dimension(2) / heads;
      Tensor<float, 4> moved(x.dimension(0), heads, x.dimension(1), d);
      for (Index b = 0; b < moved.dimension(0); ++b)
        for (Index h = 0; h < heads; ++h)
          for (Index s = 0; s < moved.dimension(2); ++s)
            for (Index i = 0; i < d; ++i) moved(b, h, s, i) = x(b, s, h * d + i);
      return moved;
    };
    const Inputs<float> packed{n, move_heads(q, n.H), move_heads(k, n.G), move_heads(v, n.G)};
    const auto oracle = ask_oracle(packed, plain_causal(n), same_score, {});
    expect_close("output", move_heads(y, n.H), oracle, &Answer::output);
  }
}

/// x spread out with gaps in every axis but the last, the gaps filled with NaN; the order of axes in memory is b, s, h.
struct Spread {
  std::vector<float> memory;
  View<float, 4> view;
  explicit Spread(const Tensor<float, 4>& x) {
    const Index row = x.dimension(3) + 5, token = (x.dimension(1) + 1) * row, entry = (x.dimension(2) + 2) * token;
    memory.assign(static_cast<std::size_t>(x.dimension(0) * entry), NAN);
    view = View<float, 4>(memory.data(), attn::detail::shape_of(x), {entry, row, token, 1});
    for_each_element([&](Index b, Index h, Index s, Index d) { view(b, h, s, d) = x(b, h, s, d); });
  }
  template <class F>
  void for_each_element(const F& f) const {
    for (Index b = 0; b < view.dimension(0); ++b)
      for (Index h = 0; h < view.dimension(1); ++h)
        for (Index s = 0; s < view.dimension(2); ++s)
          for (Index d = 0; d < view.dimension(3); ++d) f(b, h, s, d);
  }
};

TEST(AttentionStrides, GapsAreNeitherReadNorWritten) {
  for (const Sizes& n : {usual, Sizes{.B = 1, .H = 4, .G = 1, .S = 1, .T = 300, .D = 24, .Dv = 31},
                         Sizes{.B = 1, .H = 2, .G = 1, .S = 90, .T = 200, .D = 33, .Dv = 16}}) {
    SCOPED_TRACE(testing::Message() << n);
    const auto in = random_inputs<float>(n, 17);
    const Spread q(in.q), k(in.k), v(in.v);
    Spread y(filled<float, 4>({n.B, n.H, n.S, n.Dv}, NAN));
    const auto sentinel = 42.F;
    std::fill(y.memory.begin(), y.memory.end(), sentinel);
    scaled_dot_product_attention_into(y.view, q.view, k.view, v.view, Causal{});

    Tensor<float, 4> got(n.B, n.H, n.S, n.Dv);
    y.for_each_element(
        [&](Index b, Index h, Index s, Index d) { got(b, h, s, d) = std::exchange(y.view(b, h, s, d), sentinel); });
    const auto oracle = ask_oracle(in, plain_causal(n), same_score, {});
    expect_close("output", got, oracle, &Answer::output);
    EXPECT_EQ(std::count(y.memory.begin(), y.memory.end(), sentinel), std::ssize(y.memory)) << "written into a gap";
  }
}

TEST(AttentionStrides, InputsAndOutputMayInterleaveInOneBuffer) {
  for (const Index S : {3, 200}) {
    constexpr Index B = 2, H = 4, D = 12, E = H * D;
    auto buffer = random_tensor<float, 3>({B, S, 4 * E}, 22);
    const auto part = [&](Index i) {
      return attn::split_heads(View<float, 3>(buffer.data() + i * E, {B, S, E}, {S * 4 * E, 4 * E, 1}), H);
    };
    const auto packed = [&](const View<float, 4>& x) {
      Tensor<float, 4> y(B, H, S, D);
      for (Index b = 0; b < B; ++b)
        for (Index h = 0; h < H; ++h)
          for (Index s = 0; s < S; ++s)
            for (Index d = 0; d < D; ++d) y(b, h, s, d) = x(b, h, s, d);
      return y;
    };
    const auto q = packed(part(0)), k = packed(part(1)), v = packed(part(2));
    scaled_dot_product_attention_into(part(3), part(0), part(1), part(2), Causal{});
    EXPECT_TRUE(same_bits(packed(part(0)), q) && same_bits(packed(part(1)), k) && same_bits(packed(part(2)), v));
    EXPECT_LT(difference(packed(part(3)), scaled_dot_product_attention(q, k, v, Causal{}).output).largest, 1e-6);
  }
}

TEST(AttentionStrides, StridesOfZeroRepeatHeadsAndBatchEntries) {
  const Sizes n{.B = 2, .H = 2, .G = 2, .S = 6, .T = 11, .D = 5, .Dv = 4};
  const auto q = random_tensor<float, 4>({n.B, n.H, n.S, n.D}, 18);
  const auto k = random_tensor<float, 4>({1, 1, n.T, n.D}, 19);
  const auto v = random_tensor<float, 4>({1, 1, n.T, n.Dv}, 20);
  const View<const float, 4> k_shared(k.data(), {n.B, n.G, n.T, n.D}, {0, 0, n.D, 1});
  const View<const float, 4> v_shared(v.data(), {n.B, n.G, n.T, n.Dv}, {0, 0, n.Dv, 1});
  const auto got = scaled_dot_product_attention(q, k_shared, v_shared).output;
  Inputs<float> in{n, q, Tensor<float, 4>(n.B, n.G, n.T, n.D), Tensor<float, 4>(n.B, n.G, n.T, n.Dv)};
  for (Index i = 0; i < n.B * n.G; ++i) {
    std::copy_n(k.data(), k.size(), in.k.data() + i * k.size());
    std::copy_n(v.data(), v.size(), in.v.data() + i * v.size());
  }
  const auto oracle = ask_oracle(in, keep_all, same_score, {});
  expect_close("output", got, oracle, &Answer::output);
}

}  // namespace
