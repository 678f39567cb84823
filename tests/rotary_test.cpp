// Frequencies, scalings and turned heads against PyTorch: torch_rotary_test.cpp.
#include "module_support.hpp"

namespace {

using attn::Index;
using attn::Rotary;
using attn::RotaryLayout;
using attn::Tensor;
using attn::View;
using attn_test::expect_error;
using attn_test::max_difference;
using attn_test::random_tensor;
using attn_test::same_bits;

constexpr auto half_split = RotaryLayout::half_split, interleaved = RotaryLayout::interleaved;

/// Head vectors [1,H,1,D] turned to a position.
Tensor<float, 4> turned(const Rotary& rotary, Tensor<float, 4> x, Index position) {
  const std::array<Index, 1> start{position};
  rotary.apply(x, start);
  return x;
}

double dot(const Tensor<float, 4>& a, const Tensor<float, 4>& b) {
  double sum = 0.0;
  for (Index i = 0; i < a.size(); ++i) sum += static_cast<double>(a.data()[i]) * static_cast<double>(b.data()[i]);
  return sum;
}

TEST(Rotary, RotatesEachPairByItsAngleInBothLayouts) {
  constexpr Index D = 6, position = 5;
  const auto x = random_tensor<float, 4>({1, 1, 1, D}, 1);
  for (const auto layout : {half_split, interleaved}) {
    const auto y = turned(Rotary(D, {.layout = layout, .theta = 100.0}), x, position);
    for (Index i = 0; i < D / 2; ++i) {
      const double angle = position * std::pow(100.0, -2.0 * static_cast<double>(i) / D);
      const Index a = layout == half_split ? i : 2 * i, b = layout == half_split ? i + D / 2 : 2 * i + 1;
      EXPECT_NEAR(y(0, 0, 0, a), x(0, 0, 0, a) * std::cos(angle) - x(0, 0, 0, b) * std::sin(angle), 1e-6);
      EXPECT_NEAR(y(0, 0, 0, b), x(0, 0, 0, b) * std::cos(angle) + x(0, 0, 0, a) * std::sin(angle), 1e-6);
    }
  }
}

TEST(Rotary, LeavesPositionZeroUnchanged) {
  const auto x = random_tensor<float, 4>({1, 3, 1, 8}, 1);
  EXPECT_TRUE(same_bits(turned(Rotary(8), x, 0), x));
}

TEST(Rotary, MakesScoresDependOnDistanceAlone) {
  const auto q = random_tensor<float, 4>({1, 1, 1, 32}, 1), k = random_tensor<float, 4>({1, 1, 1, 32}, 2);
  for (const auto layout : {half_split, interleaved}) {
    const Rotary rotary(32, {.layout = layout});
    const double score = dot(turned(rotary, q, 7), turned(rotary, k, 3));
    for (const Index shift : {1, 50, 1000, 100000})
      EXPECT_NEAR(dot(turned(rotary, q, 7 + shift), turned(rotary, k, 3 + shift)), score, 1e-5) << "shift " << shift;
    EXPECT_GT(std::abs(dot(turned(rotary, q, 8), turned(rotary, k, 3)) - score), 1e-3);
    EXPECT_GT(std::abs(dot(turned(rotary, q, 3), turned(rotary, k, 7)) - score), 1e-3);
  }
}

TEST(Rotary, GivesEachRowAndBatchEntryItsOwnPosition) {
  const Rotary rotary(8);
  const auto x = random_tensor<float, 4>({3, 2, 4, 8}, 1);
  auto y = x;
  const std::array<Index, 3> start{0, 10, 3};
  rotary.apply(y, start);
  for (Index b = 0; b < 3; ++b)
    for (Index h = 0; h < 2; ++h)
      for (Index s = 0; s < 4; ++s) {
        Tensor<float, 4> one(1, 1, 1, 8);
        for (Index d = 0; d < 8; ++d) one(0, 0, 0, d) = x(b, h, s, d);
        one = turned(rotary, one, start[static_cast<std::size_t>(b)] + s);
        for (Index d = 0; d < 8; ++d) EXPECT_EQ(y(b, h, s, d), one(0, 0, 0, d));
      }
}

TEST(Rotary, RotatesHeadsInPlaceThroughAStridedView) {
  auto x = random_tensor<float, 3>({2, 5, 24}, 1);
  Tensor<float, 4> heads(2, 3, 5, 8);
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 3; ++h)
      for (Index s = 0; s < 5; ++s)
        for (Index d = 0; d < 8; ++d) heads(b, h, s, d) = x(b, s, h * 8 + d);
  const std::array<Index, 2> start{4, 0};
  const Rotary rotary(8);
  rotary.apply(attn::split_heads(x, 3), start);
  rotary.apply(heads, start);
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 3; ++h)
      for (Index s = 0; s < 5; ++s)
        for (Index d = 0; d < 8; ++d) EXPECT_EQ(x(b, s, h * 8 + d), heads(b, h, s, d));
}

TEST(Rotary, RotatesTheFirstDimensionsAndLeavesTheRest) {
  const auto x = random_tensor<float, 4>({1, 2, 1, 12}, 1);
  Tensor<float, 4> first(1, 2, 1, 8);
  for (Index h = 0; h < 2; ++h)
    for (Index d = 0; d < 8; ++d) first(0, h, 0, d) = x(0, h, 0, d);
  for (const auto layout : {half_split, interleaved}) {
    const auto y = turned(Rotary(12, {.layout = layout, .dimensions = 8}), x, 9);
    const auto expected = turned(Rotary(8, {.layout = layout}), first, 9);
    for (Index h = 0; h < 2; ++h)
      for (Index d = 0; d < 12; ++d) EXPECT_EQ(y(0, h, 0, d), d < 8 ? expected(0, h, 0, d) : x(0, h, 0, d));
  }
}

TEST(Rotary, RoundsItsTablesToFloatForEveryScalar) {
  const Rotary rotary(4);
  Tensor<double, 4> x(1, 1, 1, 4);
  x.setValues({{{{1.0, 0.0, 0.0, 1.0}}}});
  const std::array<Index, 1> start{3};
  rotary.apply(x, start);
  EXPECT_EQ(x(0, 0, 0, 0), static_cast<double>(static_cast<float>(std::cos(3.0))));
  EXPECT_EQ(x(0, 0, 0, 2), static_cast<double>(static_cast<float>(std::sin(3.0))));
}

template <class T>
class RotaryStoredLow : public testing::Test {};
using Low = testing::Types<Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(RotaryStoredLow, Low);

TYPED_TEST(RotaryStoredLow, RotatesInFloatAndRoundsOnce) {
  for (const auto layout : {half_split, interleaved}) {
    auto x = random_tensor<TypeParam, 4>({1, 2, 9, 22}, 1);
    auto exact = attn_test::cast<double>(x);
    const std::array<Index, 1> start{100};
    const Rotary rotary(22, {.layout = layout});
    rotary.apply(x, start);
    rotary.apply(exact, start);
    for (Index i = 0; i < x.size(); ++i)
      EXPECT_NEAR(static_cast<double>(x.data()[i]), exact.data()[i],
                  attn_test::storage_error<TypeParam> * std::abs(exact.data()[i]) + 1e-6);
  }
}

TEST(Rotary, DoesNotDependOnTheNumberOfThreads) {
  const auto x = random_tensor<float, 4>({2, 3, 500, 16}, 1);
  const std::array<Index, 2> start{4, 0};
  attn::SerialExecutor serial;
  attn::ThreadPool pool(3);
  const auto on = [&](attn::Executor& executor) {
    const attn::UseExecutor use(executor);
    auto y = x;
    Rotary(16).apply(y, start);
    return y;
  };
  EXPECT_TRUE(same_bits(on(serial), on(pool)));
}

TEST(Rotary, DoesNothingToAnEmptyTensor) {
  Tensor<float, 4> none(2, 3, 0, 8), no_batch(0, 3, 2, 8);
  const std::array<Index, 2> start{0, 0};
  EXPECT_NO_THROW(Rotary(8).apply(none, start));
  EXPECT_NO_THROW(Rotary(8).apply(no_batch, {}));
}

TEST(RotaryScaling, LinearStretchesPositions) {
  const auto x = random_tensor<float, 4>({1, 1, 1, 16}, 1);
  const auto scaled = turned(Rotary(16, {.scaling = attn::LinearScaling{4.0}}), x, 40);
  EXPECT_LE(max_difference(scaled, turned(Rotary(16), x, 10)), 1e-6);
}

TEST(RotaryScaling, DynamicNtkIsPlainUpToItsOriginalLength) {
  const auto x = random_tensor<float, 4>({1, 1, 1, 16}, 1);
  const Rotary dynamic(16, {.scaling = attn::DynamicNtkScaling{2.0, 100}});
  EXPECT_TRUE(same_bits(turned(dynamic, x, 99), turned(Rotary(16), x, 99)));
  EXPECT_FALSE(same_bits(turned(dynamic, x, 100), turned(Rotary(16), x, 100)));
}

TEST(RotaryScaling, LongRopeChoosesItsFactorsByLength) {
  const attn::LongRopeScaling scaling{{1.0, 1.0}, {4.0, 4.0}, 100, 1.0, {}};
  const auto x = random_tensor<float, 4>({1, 1, 1, 4}, 1);
  const Rotary rotary(4, {.scaling = scaling});
  EXPECT_LE(max_difference(turned(rotary, x, 99), turned(Rotary(4), x, 99)), 1e-6);
  EXPECT_LE(max_difference(turned(rotary, x, 100), turned(Rotary(4), x, 25)), 1e-6);
  auto told = x;  // the same position, told that the sequence is longer
  const std::array<Index, 1> start{80}, length{101};
  rotary.apply(told, start, length);
  EXPECT_LE(max_difference(told, turned(Rotary(4), x, 20)), 1e-6);
}

TEST(RotaryScaling, AttentionFactorIsOneExceptForYarnAndLongRope) {
  EXPECT_EQ(Rotary(8).attention_factor(), 1.0);
  EXPECT_EQ(Rotary(8, {.scaling = attn::LinearScaling{4.0}}).attention_factor(), 1.0);
  EXPECT_EQ(Rotary(8, {.scaling = attn::Llama3Scaling{}}).attention_factor(), 1.0);
  EXPECT_DOUBLE_EQ(
      Rotary(8, {.scaling = attn::YarnScaling{.factor = 16.0, .original_length = 4096}}).attention_factor(),
      0.1 * std::log(16.0) + 1.0);
  EXPECT_EQ(Rotary(8, {.scaling = attn::YarnScaling{.factor = 0.5, .original_length = 4096}}).attention_factor(), 1.0);
  EXPECT_EQ(Rotary(8, {.scaling = attn::YarnScaling{.factor = 4.0, .original_length = 4096, .attention_factor = 1.5}})
                .attention_factor(),
            1.5);
}

/// Hugging Face's _compute_yarn_parameters, written down again.
std::vector<double> yarn_frequencies(Index D, double theta, const attn::YarnScaling& s) {
  const auto dim = static_cast<double>(D), length = static_cast<double>(s.original_length);
  const auto correction_dim = [&](double rotations) {
    return dim * std::log(length / (rotations * 2.0 * std::acos(-1.0))) / (2.0 * std::log(theta));
  };
  double low = correction_dim(s.beta_fast), high = correction_dim(s.beta_slow);
  if (s.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;
  std::vector<double> result;
  for (Index i = 0; i < D / 2; ++i) {
    const double frequency = 1.0 / std::pow(theta, 2.0 * static_cast<double>(i) / dim);
    const double ramp = std::min(std::max((static_cast<double>(i) - low) / (high - low), 0.0), 1.0);
    result.push_back(frequency / s.factor * ramp + frequency * (1.0 - ramp));
  }
  return result;
}

TEST(RotaryScaling, YarnFollowsItsPublishedFormula) {
  struct Case {
    const char* what;
    double theta;
    attn::YarnScaling scaling;
  };
  for (const Case& c : {
           Case{"a ramp within", 10000.0, {.factor = 4.0, .original_length = 4096}},
           Case{"both ends of the ramp at 0", 10000.0, {.factor = 4.0, .original_length = 2}},
           Case{"the ramp's end past the last dimension",
                10.0,
                {.factor = 4.0, .original_length = 1000000, .beta_fast = 1e6}},
           Case{"the same, not rounded",
                10.0,
                {.factor = 4.0, .original_length = 1000000, .beta_fast = 1e6, .truncate = false}},
           Case{"an end below its beginning", 10.0, {.factor = 4.0, .original_length = 1000000}},
       }) {
    const Index D = 8;
    const auto expected = yarn_frequencies(D, c.theta, c.scaling);
    std::vector<double> got(expected.size());
    Rotary(D, {.theta = c.theta, .scaling = c.scaling}).frequencies(0, got);
    for (std::size_t i = 0; i < got.size(); ++i)
      EXPECT_NEAR(got[i], expected[i], 1e-13 * expected[i]) << c.what << ", pair " << i;
  }
}

// ---- Sequences of unlike length ----

std::vector<attn::RotaryScaling> scalings_by_length() {
  return {attn::DynamicNtkScaling{2.0, 8},
          attn::LongRopeScaling{{1.0, 1.5, 2.0, 2.5}, {4.0, 5.0, 6.0, 7.0}, 8, 4.0, {}}};
}

/// Batch entry b of x.
Tensor<float, 4> entry(const Tensor<float, 4>& x, Index b) {
  return x.slice(Eigen::array<Index, 4>{b, 0, 0, 0},
                 Eigen::array<Index, 4>{1, x.dimension(1), x.dimension(2), x.dimension(3)});
}

TEST(RotaryLengths, RotateEachSequenceByItsOwnLength) {
  for (const attn::RotaryScaling& scaling : scalings_by_length()) {
    const Rotary rotary(8, {.scaling = scaling});
    const auto x = random_tensor<float, 4>({4, 2, 24, 8}, 1);
    const std::array<Index, 4> start{0, 0, 0, 3}, lengths{10, 24, 5, 10};
    auto y = x;
    rotary.apply(y, start, lengths);
    for (Index b = 0; b < 4; ++b) {
      auto alone = entry(x, b);
      rotary.apply(alone, std::span(start).subspan(static_cast<std::size_t>(b), 1),
                   std::span(lengths).subspan(static_cast<std::size_t>(b), 1));
      EXPECT_TRUE(same_bits(entry(y, b), alone)) << "batch entry " << b;
    }
    auto longer = entry(x, 2);
    rotary.apply(longer, std::span(start).first(1), std::span(lengths).subspan(1, 1));
    EXPECT_GT(max_difference(longer, entry(y, 2)), 1e-2);
  }
}

TEST(RotaryLengths, AreTheLastPositionsByDefault) {
  for (const attn::RotaryScaling& scaling : scalings_by_length()) {
    const Rotary rotary(8, {.scaling = scaling});
    const auto x = random_tensor<float, 4>({2, 1, 4, 8}, 1);
    const std::array<Index, 2> start{0, 20}, lengths{4, 24};
    auto y = x, told = x;
    rotary.apply(y, start);
    rotary.apply(told, start, lengths);
    EXPECT_TRUE(same_bits(y, told));
  }
}

TEST(RotaryLengths, AreReplacedByAFixedLength) {
  for (const attn::RotaryScaling& scaling : scalings_by_length()) {
    const Rotary by_length(8, {.scaling = scaling}), fixed(8, {.scaling = scaling, .length = 24});
    const auto x = random_tensor<float, 4>({1, 1, 4, 8}, 1);
    const std::array<Index, 1> start{0}, length{24}, other{100};
    auto y = x, told = x;
    by_length.apply(y, start, length);
    fixed.apply(told, start, other);
    EXPECT_TRUE(same_bits(y, told));
    EXPECT_EQ(by_length.same_up_to(), 8);
    EXPECT_EQ(fixed.same_up_to(), std::numeric_limits<Index>::max());
  }
}

TEST(RotaryLengths, DoNotMatterToTheOtherScalings) {
  for (const attn::RotaryScaling& scaling :
       {attn::RotaryScaling{}, attn::RotaryScaling{attn::LinearScaling{2.0}},
        attn::RotaryScaling{attn::Llama3Scaling{}},
        attn::RotaryScaling{attn::YarnScaling{.factor = 2.0, .original_length = 8}}}) {
    const Rotary rotary(8, {.scaling = scaling});
    const auto x = random_tensor<float, 4>({1, 1, 20, 8}, 1);
    const std::array<Index, 1> start{0}, length{1000};
    auto y = x, told = x;
    rotary.apply(y, start);
    rotary.apply(told, start, length);
    EXPECT_TRUE(same_bits(y, told));
    EXPECT_EQ(rotary.same_up_to(), std::numeric_limits<Index>::max());
  }
}

TEST(RotaryLengths, AreRefusedIfTheyDoNotFit) {
  auto x = random_tensor<float, 4>({2, 1, 3, 8}, 1);
  const auto before = x;
  const Rotary rotary(8);
  const std::array<Index, 2> start{0, 0}, negative{3, -1}, far{3, (Index{1} << 53) + 1};
  expect_error([&] { rotary.apply(x, start, std::span(negative).first(1)); },
               {"[attn::Rotary::apply] lengths", "2 batch entries", "got 1"});
  expect_error([&] { rotary.apply(x, start, negative); }, {"[attn::Rotary::apply] lengths", "2^53", "got -1"});
  expect_error([&] { rotary.apply(x, start, far); }, {"[attn::Rotary::apply] lengths", "2^53", "got 9007199254740993"});
  expect_error([] { Rotary fixed(8, {.length = -1}); }, {"[attn::Rotary] length", "2^53", "got -1"});
  EXPECT_TRUE(same_bits(x, before));
}

TEST(Rotary, RefusesOddHeadSizes) {
  expect_error([] { Rotary rotary(7); }, {"[attn::Rotary] head size", "even", "got 7"});
  expect_error([] { Rotary rotary(0); }, {"[attn::Rotary]", "got 0"});
  expect_error([] { Rotary rotary(8, {.dimensions = 3}); }, {"[attn::Rotary] dimensions", "got 3"});
  expect_error([] { Rotary rotary(8, {.dimensions = 10}); }, {"[attn::Rotary] dimensions", "8", "got 10"});
}

TEST(Rotary, RefusesFactorsThatAreNotPositive) {
  const auto with = [](attn::RotaryScaling scaling) { return [=] { Rotary rotary(8, {.scaling = scaling}); }; };
  expect_error([] { Rotary rotary(8, {.theta = 0.0}); }, {"[attn::Rotary] theta", "got 0"});
  expect_error([] { Rotary rotary(8, {.theta = std::nan("")}); }, {"[attn::Rotary] theta", "got "});
  expect_error(with(attn::LinearScaling{0.0}), {"[attn::Rotary] scaling factor", "got 0"});
  expect_error(with(attn::DynamicNtkScaling{2.0, 0}), {"[attn::Rotary] original_length", "got 0"});
  expect_error(with(attn::Llama3Scaling{.low_frequency_factor = 4.0, .high_frequency_factor = 4.0}),
               {"[attn::Rotary] llama3", "4 and 4"});
  expect_error(with(attn::YarnScaling{.factor = -1.0, .original_length = 10}),
               {"[attn::Rotary] scaling factor", "got -1"});
  expect_error(with(attn::YarnScaling{.factor = 2.0, .original_length = 10, .beta_fast = 1.0}),
               {"[attn::Rotary] yarn", "1 and 1"});
  expect_error(with(attn::LongRopeScaling{{1, 1, 1}, {1, 1, 1, 1}, 10, 2.0, {}}),
               {"[attn::Rotary] longrope", "expected 4", "got 3"});
}

TEST(Rotary, RefusesAnotherHeadSizeAndBadStarts) {
  auto x = random_tensor<float, 4>({2, 1, 3, 6}, 1);
  const std::array<Index, 2> zero{0, 0}, far{0, -(Index{1} << 53) - 1};
  expect_error([&] { Rotary(8).apply(x, zero); },
               {"[attn::Rotary::apply] last dimension", "expected 8", "got [2,1,3,6]"});
  expect_error([&] { Rotary(6).apply(x, std::span(zero).first(1)); },
               {"[attn::Rotary::apply] start", "2 batch entries", "got 1"});
  const auto before = x;
  expect_error([&] { Rotary(6).apply(x, far); }, {"[attn::Rotary::apply] start", "2^53", "got -9007199254740993"});
  EXPECT_TRUE(same_bits(x, before));
}

TEST(Rotary, ANegativeStartTurnsBack) {
  const auto before = random_tensor<double, 4>({2, 3, 1, 8}, 3);
  auto x = before;
  const std::array<Index, 2> there{5, 1000}, back{-5, -1000};
  const Rotary rotary(8);
  rotary.apply(x, there);
  rotary.apply(x, back);
  EXPECT_LT(max_difference(x, before), 1e-6);  // cosines and sines are float
}

TEST(Rotary, TakesAPositionForEachToken) {
  const auto before = random_tensor<float, 4>({2, 3, 4, 8}, 4);
  Tensor<Index, 2> positions(2, 4);
  positions.setValues({{0, 1, 1, 2}, {7, -3, 100000, 7}});
  auto x = before;
  const Rotary rotary(8);
  rotary.apply(x, positions);
  for (Index b = 0; b < 2; ++b)
    for (Index s = 0; s < 4; ++s) {
      auto token = random_tensor<float, 4>({1, 3, 1, 8}, 0);
      for (Index h = 0; h < 3; ++h)
        for (Index d = 0; d < 8; ++d) token(0, h, 0, d) = before(b, h, s, d);
      const std::array<Index, 1> start{positions(b, s)};
      rotary.apply(token, start);
      for (Index h = 0; h < 3; ++h)
        for (Index d = 0; d < 8; ++d) EXPECT_EQ(x(b, h, s, d), token(0, h, 0, d)) << b << ' ' << s;
    }
}

TEST(Rotary, TakesAPositionForEachPair) {
  const auto before = random_tensor<float, 4>({1, 2, 3, 8}, 5);
  Tensor<Index, 3> positions(1, 3, 4);
  for (Index s = 0; s < 3; ++s)
    for (Index pair = 0; pair < 4; ++pair) positions(0, s, pair) = 10 * s + (pair < 2 ? 3 : 900);
  auto x = before;
  const Rotary rotary(8);
  rotary.apply(x, positions);
  for (const Index base : {3, 900}) {
    Tensor<Index, 2> tokens(1, 3);
    tokens.setValues({{base, base + 10, base + 20}});
    auto one = before;
    rotary.apply(one, tokens);
    for (Index s = 0; s < 3; ++s)
      for (Index pair = base == 3 ? 0 : 2; pair < (base == 3 ? 2 : 4); ++pair) {
        EXPECT_EQ(x(0, 1, s, pair), one(0, 1, s, pair));
        EXPECT_EQ(x(0, 1, s, pair + 4), one(0, 1, s, pair + 4));
      }
  }
}

TEST(Rotary, RefusesPositionsOfAnotherShape) {
  auto x = random_tensor<float, 4>({2, 1, 3, 8}, 1);
  Tensor<Index, 2> few(1, 3), short_rows(2, 2);
  Tensor<Index, 3> pairs(2, 3, 3);
  few.setZero(), short_rows.setZero(), pairs.setZero();
  expect_error([&] { Rotary(8).apply(x, few); }, {"[attn::Rotary::apply] positions", "2 batch entries", "got 1"});
  expect_error([&] { Rotary(8).apply(x, short_rows); }, {"positions [B,S]", "3 tokens", "got 2"});
  expect_error([&] { Rotary(8).apply(x, pairs); }, {"positions [B,S,D/2]", "4 pairs", "got 3"});
}

TEST(Rotary, RefusesNumbersThatAreNotFinite) {
  const auto with = [](attn::RotaryScaling scaling) { return [=] { Rotary rotary(4, {.scaling = scaling}); }; };
  constexpr Index L = 10;
  for (const double x : {attn_test::not_a_number, attn_test::infinity, -attn_test::infinity, -1.0, 0.0}) {
    expect_error([=] { Rotary rotary(4, {.theta = x}); }, {"[attn::Rotary] theta", "got "});
    expect_error(with(attn::LinearScaling{x}), {"[attn::Rotary] scaling factor", "got "});
    expect_error(with(attn::DynamicNtkScaling{x, L}), {"[attn::Rotary] scaling factor", "got "});
    expect_error(with(attn::Llama3Scaling{.factor = x}), {"[attn::Rotary] scaling factor", "got "});
    expect_error(with(attn::Llama3Scaling{.low_frequency_factor = x}), {"[attn::Rotary] llama3", "got "});
    expect_error(with(attn::Llama3Scaling{.high_frequency_factor = x}), {"[attn::Rotary] llama3", "got "});
    expect_error(with(attn::YarnScaling{.factor = x, .original_length = L}), {"[attn::Rotary] scaling factor", "got "});
    expect_error(with(attn::YarnScaling{.factor = 2.0, .original_length = L, .beta_fast = x}),
                 {"[attn::Rotary] yarn", "got "});
    expect_error(with(attn::YarnScaling{.factor = 2.0, .original_length = L, .beta_slow = x}),
                 {"[attn::Rotary] yarn", "got "});
    expect_error(with(attn::YarnScaling{.factor = 2.0, .original_length = L, .attention_factor = x}),
                 {"[attn::Rotary] attention_factor", "got "});
    expect_error(with(attn::LongRopeScaling{{1, 1}, {1, 1}, L, x, {}}), {"[attn::Rotary] scaling factor", "got "});
    expect_error(with(attn::LongRopeScaling{{1, x}, {1, 1}, L, 2.0, {}}), {"[attn::Rotary] scaling factor", "got "});
    expect_error(with(attn::LongRopeScaling{{1, 1}, {1, x}, L, 2.0, {}}), {"[attn::Rotary] scaling factor", "got "});
    expect_error(with(attn::LongRopeScaling{{1, 1}, {1, 1}, L, 2.0, x}), {"[attn::Rotary] attention_factor", "got "});
  }
}

TEST(Rotary, RefusesNumbersThatOverflowTogether) {
  expect_error([] { Rotary rotary(4, {.theta = 1e-300, .scaling = attn::LinearScaling{1e-300}}); },
               {"[attn::Rotary] frequencies", "finite angles"});
  expect_error(
      [] {
        Rotary rotary(4, {.scaling = attn::LongRopeScaling{{1, 1}, {1, 1e-308}, 10, 2.0, {}}});
      },
      {"[attn::Rotary] frequencies"});
  for (const double theta : {1.0, 0.5})
    expect_error(
        [=] { Rotary rotary(4, {.theta = theta, .scaling = attn::YarnScaling{.factor = 2.0, .original_length = 10}}); },
        {"[attn::Rotary] theta", "above 1 with yarn", "got "});
}

TEST(Rotary, RefusesSizesAndPositionsThatOverflow) {
  constexpr Index most = std::numeric_limits<Index>::max();
  expect_error([] { Rotary rotary(most - 1); }, {"[attn::Rotary] head size", "got 9223372036854775806"});
  expect_error(
      [] {
        Rotary rotary(4, {.scaling = attn::DynamicNtkScaling{2.0, most}});
      },
      {"[attn::Rotary] original_length", "2^53", "got 9223372036854775807"});
  expect_error([] { Rotary rotary(4, {.scaling = attn::YarnScaling{.factor = 2.0, .original_length = most}}); },
               {"[attn::Rotary] original_length"});
  expect_error([&] { Rotary rotary(4, {.length = most}); }, {"[attn::Rotary] length", "2^53"});
  auto x = random_tensor<float, 4>({1, 1, 3, 4}, 1);
  const auto before = x;
  for (const Index far : {most, most - 3, (Index{1} << 53) - 2}) {
    const std::array<Index, 1> start{far};
    expect_error([&] { Rotary(4).apply(x, start); }, {"[attn::Rotary::apply] start", "3 positions up to 2^53", "got "});
  }
  EXPECT_TRUE(same_bits(x, before));
  const std::array<Index, 1> last{(Index{1} << 53) - 3};
  Rotary(4).apply(x, last);
  for (Index i = 0; i < x.size(); ++i) EXPECT_TRUE(std::isfinite(x.data()[i]));
}

TEST(Rotary, RefusesViewsThatItCannotRotateInPlace) {
  auto x = random_tensor<float, 4>({2, 3, 4, 8}, 1);
  const auto before = x;
  const std::array<Index, 2> start{0, 0};
  expect_error(
      [&] {
        Rotary(4).apply(View<float, 4>(x.data(), {2, 3, 4, 4}, {96, 32, 8, 2}), start);
      },
      {"[attn::Rotary::apply] view", "contiguous last axis", "got strides [96,32,8,2]"});
  for (const std::array<Index, 4>& stride : {std::array<Index, 4>{0, 32, 8, 1}, {96, 0, 8, 1}, {96, 32, 0, 1}})
    expect_error(
        [&] {
          Rotary(8).apply(View<float, 4>(x.data(), {2, 3, 4, 8}, stride), start);
        },
        {"[attn::Rotary::apply] view", "each element once", "got ["});
  EXPECT_TRUE(same_bits(x, before));
  Rotary(8).apply(View<float, 4>(x.data(), {1, 1, 1, 8}, {0, 0, 0, 1}),
                  std::span(start).first(1));  // nothing is repeated
}

TEST(Rotary, RefusesToRunOnceMovedFromAndCanBeAssignedTo) {
  Rotary rotary(8, {.scaling = attn::LongRopeScaling{{1, 2, 3, 4}, {1, 2, 3, 4}, 8, 2.0, {}}});
  const Rotary copy = rotary;
  const Rotary moved = std::move(rotary);
  auto x = random_tensor<float, 4>({1, 1, 4, 8}, 1);
  const std::array<Index, 1> start{3};
  EXPECT_EQ(rotary.head_size(), 0);
  EXPECT_TRUE(std::holds_alternative<std::monostate>(rotary.config().scaling));
  expect_error([&] { rotary.apply(x, start); }, {"[attn::Rotary::apply]", "moved from"});
  auto expected = x, got = x, again = x;
  copy.apply(expected, start);
  moved.apply(got, start);
  EXPECT_TRUE(same_bits(got, expected));
  rotary = moved;
  rotary.apply(again, start);
  EXPECT_TRUE(same_bits(again, expected));
}

}  // namespace
