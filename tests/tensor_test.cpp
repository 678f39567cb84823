#include "module_support.hpp"

#include <concepts>

namespace {

using attn::Index;
using attn::Tensor;
using attn::TensorMap;
using attn::View;
using attn_test::expect_error;
using attn_test::random_tensor;

// What converts to a view, and what must not: another element type or rank, a mutable view of something const.
static_assert(std::convertible_to<Tensor<float, 3>&, View<float, 3>>);
static_assert(std::convertible_to<Tensor<float, 3>&, View<const float, 3>>);
static_assert(std::convertible_to<const Tensor<float, 3>&, View<const float, 3>>);
static_assert(!std::convertible_to<const Tensor<float, 3>&, View<float, 3>>);
static_assert(std::convertible_to<TensorMap<float, 3>&, View<float, 3>>);
static_assert(std::convertible_to<TensorMap<const float, 3>&, View<const float, 3>>);
static_assert(!std::convertible_to<TensorMap<const float, 3>&, View<float, 3>>);
static_assert(std::convertible_to<View<float, 3>, View<const float, 3>>);
static_assert(!std::convertible_to<View<const float, 3>, View<float, 3>>);
static_assert(!std::convertible_to<Tensor<float, 3>&, View<double, 3>>);
static_assert(!std::convertible_to<Tensor<float, 3>&, View<const float, 2>>);

static_assert(attn::Scalar<float> && attn::Scalar<double> && attn::Scalar<Eigen::half> &&
              attn::Scalar<Eigen::bfloat16>);
static_assert(!attn::Scalar<int> && !attn::Scalar<bool>);
static_assert(std::same_as<attn::Accumulator<Eigen::half>, float> &&
              std::same_as<attn::Accumulator<Eigen::bfloat16>, float>);
static_assert(std::same_as<attn::Accumulator<float>, float> && std::same_as<attn::Accumulator<double>, double>);
static_assert(std::same_as<attn::Index, Eigen::Index>);

TEST(Tensor, IsRowMajor) {
  Tensor<float, 2> x(2, 3);
  x.setZero();
  x(1, 0) = 5.F;
  EXPECT_EQ(x.data()[3], 5.F);
}

TEST(View, ReadsAndWritesATensorThroughItsStrides) {
  auto x = random_tensor<float, 4>({2, 3, 4, 5}, 1);
  const View<float, 4> view(x);
  EXPECT_EQ(view.shape(), (std::array<Index, 4>{2, 3, 4, 5}));
  EXPECT_EQ(view.size(), 120);
  EXPECT_EQ(view.stride(0), 60);
  EXPECT_EQ(view.stride(3), 1);
  for (Index i = 0; i < 2; ++i)
    for (Index j = 0; j < 3; ++j)
      for (Index k = 0; k < 4; ++k)
        for (Index l = 0; l < 5; ++l) EXPECT_EQ(&view(i, j, k, l), &x(i, j, k, l));
  view(1, 2, 3, 4) = 7.F;
  EXPECT_EQ(x(1, 2, 3, 4), 7.F);
}

TEST(View, OfATensorMapSharesTheCallersMemory) {
  std::vector<double> memory(12, 0.0);
  TensorMap<double, 2> map(memory.data(), 3, 4);
  const View<double, 2> view(map);
  view(2, 1) = 9.0;
  EXPECT_EQ(memory[9], 9.0);
  const TensorMap<const double, 2> constant(memory.data(), 3, 4);
  EXPECT_EQ((View<const double, 2>(constant)(2, 1)), 9.0);
}

TEST(View, DefaultIsEmpty) {
  const View<float, 3> view;
  EXPECT_EQ(view.data(), nullptr);
  EXPECT_EQ(view.size(), 0);
}

TEST(View, RefusesShapesAndStridesThatNoMemoryHas) {
  std::vector<float> memory(12);
  constexpr Index many = Index{1} << 32;
  expect_error([&] { return View<float, 2>(memory.data(), {-2, -1}); }, {"[attn::View] shape", "negative", "[-2,-1]"});
  expect_error([&] { return View<float, 2>(memory.data(), {many, many}); }, {"[attn::View] shape", "memory can hold"});
  expect_error([&] { return View<float, 2>(memory.data(), {many, many}, {0, 0}); }, {"[attn::View] shape"});
  expect_error(
      [&] {
        return View<float, 2>(memory.data(), {2, 3}, {Index{1} << 62, 1});
      },
      {"[attn::View] shape and strides"});
  expect_error(
      [&] {
        return View<float, 2>(memory.data() + 9, {2, 3}, {-3, 1});
      },
      {"[attn::View] strides", "below 0", "[-3,1]"});
  expect_error([&] { return View<Eigen::half, 1>(nullptr, {Index{1} << 62}); }, {"[attn::View] shape and strides"});
}

TEST(View, WithoutElementsMayHaveAnyOtherSizes) {
  constexpr Index many = Index{1} << 40;
  const View<float, 3> view(nullptr, {many, many, 0});
  EXPECT_EQ(view.size(), 0);
  EXPECT_TRUE(attn::detail::is_packed(view));
  EXPECT_EQ((View<float, 3>(nullptr, {0, many, many}).size()), 0);
}

TEST(MakeTensor, RefusesMoreThanMemoryCanHold) {
  expect_error(
      [] {
        return attn::detail::make_tensor<float, 2>({Index{1} << 32, Index{1} << 32});
      },
      {"[attn::Tensor] shape", "memory can hold", "[4294967296,4294967296]"});
  expect_error([] { return attn::detail::make_tensor<float, 2>({3, -1}); }, {"[attn::Tensor] shape", "negative"});
}

TEST(SplitHeads, CopiesNothing) {
  auto x = random_tensor<float, 3>({2, 5, 12}, 2);
  const View<float, 4> heads = attn::split_heads(x, 3);
  EXPECT_EQ(heads.shape(), (std::array<Index, 4>{2, 3, 5, 4}));
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 3; ++h)
      for (Index s = 0; s < 5; ++s)
        for (Index d = 0; d < 4; ++d) EXPECT_EQ(&heads(b, h, s, d), &x(b, s, h * 4 + d));
}

TEST(SplitHeads, KeepsALastAxisWithGaps) {
  auto x = random_tensor<float, 3>({2, 12, 5}, 2);
  const View<float, 3> turned(x.data(), {2, 5, 12}, {60, 1, 5});  // [B,S,E], with E the slower axis in memory
  const View<float, 4> heads = attn::split_heads(turned, 3);
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 3; ++h)
      for (Index s = 0; s < 5; ++s)
        for (Index d = 0; d < 4; ++d) EXPECT_EQ(&heads(b, h, s, d), &turned(b, s, h * 4 + d));
  expect_error([&] { return attn::scaled_dot_product_attention(heads, heads, heads); }, {"contiguous last axis"});
}

TEST(SplitHeads, TakesConstTensorsAndMaps) {
  const auto x = random_tensor<float, 3>({2, 5, 12}, 2);
  const TensorMap<const float, 3> map(x.data(), 2, 5, 12);
  EXPECT_EQ(attn::split_heads(x, 2).data(), x.data());
  EXPECT_EQ(attn::split_heads(map, 2).data(), x.data());
  static_assert(std::same_as<decltype(attn::split_heads(x, 2)), View<const float, 4>>);
  static_assert(std::same_as<decltype(attn::split_heads(map, 2)), View<const float, 4>>);
}

TEST(SplitHeads, RefusesALastDimensionThatDoesNotDivide) {
  const auto x = random_tensor<float, 3>({2, 5, 12}, 2);
  expect_error([&] { return attn::split_heads(x, 5); }, {"[attn::split_heads]", "multiple of 5", "got [2,5,12]"});
  expect_error([&] { return attn::split_heads(x, 0); }, {"[attn::split_heads]"});
  expect_error([&] { return attn::split_heads(x, -3); }, {"[attn::split_heads]"});
}

TEST(IsPacked, SaysWhetherRowsFollowEachOther) {
  auto x = random_tensor<float, 3>({2, 5, 12}, 3);
  EXPECT_TRUE(attn::detail::is_packed(View<float, 3>(x)));
  EXPECT_FALSE(attn::detail::is_packed(attn::split_heads(x, 3)));
  EXPECT_TRUE(attn::detail::is_packed(attn::split_heads(x, 1)));
  EXPECT_FALSE(attn::detail::is_packed(View<float, 2>(x.data(), {4, 6}, {12, 1})));
  EXPECT_TRUE(attn::detail::is_packed(View<float, 2>(x.data(), {1, 6}, {12, 1})));  // one row has no gap after it
}

}  // namespace
