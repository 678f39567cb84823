// Queries and keys rotated by one call, and the configuration that a module holds.
#include "attn/rotary.hpp"

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "module_support.hpp"

namespace {

using attn::Index;
using attn::OptionalRotary;
using attn::Rotary;
using attn::RotaryConfig;
using attn::Tensor;
using attn::View;
using attn_test::expect_error;
using attn_test::random_tensor;
using attn_test::same_bits;

template <class T>
void expect_pair_equals_singles(const RotaryConfig& config) {
  const Rotary rotary(8, config);
  auto q = random_tensor<T, 4>({2, 3, 21, 8}, 1), k = random_tensor<T, 4>({2, 1, 21, 8}, 2);
  auto q_alone = q, k_alone = k;
  const std::array<Index, 2> start{0, 40}, lengths{9, 61};
  rotary.apply(q_alone, start, lengths);
  rotary.apply(k_alone, start, lengths);
  rotary.apply(q, k, start, lengths);
  EXPECT_TRUE(same_bits(q, q_alone));
  EXPECT_TRUE(same_bits(k, k_alone));
}

TEST(RotaryPair, GivesTheSameAsTwoCalls) {
  for (const auto layout : {attn::RotaryLayout::half_split, attn::RotaryLayout::interleaved}) {
    expect_pair_equals_singles<float>({.layout = layout});
    expect_pair_equals_singles<double>({.layout = layout, .dimensions = 4});
    expect_pair_equals_singles<Eigen::half>({.layout = layout, .scaling = attn::DynamicNtkScaling{2.0, 16}});
    expect_pair_equals_singles<Eigen::bfloat16>(
        {.layout = layout, .scaling = attn::YarnScaling{.factor = 4.0, .original_length = 16}});
  }
}

TEST(RotaryPair, RefusesKeysOfOtherTokens) {
  auto q = random_tensor<float, 4>({1, 2, 3, 8}, 1);
  const auto before = q;
  const std::array<Index, 1> start{0};
  for (const auto& shape : {std::array<Index, 4>{1, 2, 4, 8}, {2, 2, 3, 8}}) {
    auto k = random_tensor<float, 4>(shape, 2);
    expect_error([&] { Rotary(8).apply(View<float, 4>(q), View<float, 4>(k), start); },
                 {"[attn::Rotary::apply] keys", "[1,2,3,8]", "got ["});
  }
  auto narrow = random_tensor<float, 4>({1, 2, 3, 6}, 2);
  expect_error([&] { Rotary(8).apply(View<float, 4>(q), View<float, 4>(narrow), start); },
               {"[attn::Rotary::apply] last dimension", "expected 8", "got [1,2,3,6]"});
  EXPECT_TRUE(same_bits(q, before));
}

TEST(RotaryPair, RefusesKeysThatShareMemoryWithQueries) {
  auto x = random_tensor<float, 4>({1, 2, 3, 8}, 1);
  const auto before = x;
  const std::array<Index, 1> start{0};
  const View<float, 4> whole(x), part(x.data() + 24, {1, 1, 3, 8});
  expect_error([&] { Rotary(8).apply(whole, part, start); }, {"[attn::Rotary::apply]", "keys", "queries"});
  EXPECT_TRUE(same_bits(x, before));
}

TEST(OptionalRotary, IsEmptyUnlessGivenAConfiguration) {
  EXPECT_FALSE(OptionalRotary().has_value());
  EXPECT_FALSE(OptionalRotary(std::nullopt).has_value());
  EXPECT_FALSE(OptionalRotary(std::optional<RotaryConfig>()).has_value());
  EXPECT_EQ(OptionalRotary().make(8), nullptr);
  EXPECT_EQ(OptionalRotary(RotaryConfig{.theta = 5.0})->theta, 5.0);
  EXPECT_EQ(OptionalRotary(std::optional(RotaryConfig{.theta = 5.0}))->theta, 5.0);
}

TEST(OptionalRotary, HasIndependentCopies) {
  OptionalRotary a = RotaryConfig{.theta = 5.0};
  OptionalRotary b = a, c;
  c = a;
  b->theta = 6.0;
  (*c).theta = 7.0;
  EXPECT_EQ(a->theta, 5.0);
  EXPECT_EQ(b->theta, 6.0);
  EXPECT_EQ(c->theta, 7.0);
}

TEST(OptionalRotary, IsEmptyOnceMovedFrom) {
  OptionalRotary a = RotaryConfig{.theta = 5.0};
  const OptionalRotary b = std::move(a);
  EXPECT_FALSE(a.has_value());  // NOLINT: what a move leaves is what is tested
  EXPECT_EQ(a.make(8), nullptr);
  EXPECT_EQ(b->theta, 5.0);
  a = b;
  EXPECT_EQ(a->theta, 5.0);
}

TEST(OptionalRotary, MakesTheRotationOfItsConfiguration) {
  const OptionalRotary choice = RotaryConfig{.theta = 5.0, .dimensions = 4};
  const auto rotary = choice.make(8);
  EXPECT_EQ(rotary->head_size(), 8);
  EXPECT_EQ(rotary->config().theta, 5.0);
  expect_error([&] { (void)choice.make(2); }, {"[attn::Rotary] dimensions", "got 4"});
}

}  // namespace
