// Attention in double, half and bfloat16.

#include "support.hpp"

namespace {

using attn::Causal;
using attn::Index;
using attn::NoMask;
using attn::NoScore;
using attn::Padding;
using attn::Position;
using attn::Tensor;
using attn_test::expect_attention;
using attn_test::infinity;
using attn_test::keep_all;
using attn_test::many_sizes;
using attn_test::only_if;
using attn_test::random_inputs;
using attn_test::random_tensor;
using attn_test::same_score;
using attn_test::Sizes;
using attn_test::to;

template <class T>
class AttentionTypes : public testing::Test {};

struct Names {
  template <class T>
  static std::string GetName(int) {
    return std::is_same_v<T, double> ? "double" : std::is_same_v<T, Eigen::half> ? "half" : "bfloat16";
  }
};
using Types = testing::Types<double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(AttentionTypes, Types, Names);

TYPED_TEST(AttentionTypes, MatchesTheOracleWithoutAMask) {
  unsigned seed = 5100;
  for (const Sizes& n : many_sizes())
    expect_attention(random_inputs<TypeParam>(n, ++seed), NoMask{}, NoScore{}, keep_all);
}

TYPED_TEST(AttentionTypes, MatchesTheOracleUnderCausalAndPadding) {
  unsigned seed = 5200;
  attn::AttentionOptions options;
  for (const Sizes& n : many_sizes()) {
    options.weights = !options.weights;
    const std::vector<Index> lengths(static_cast<std::size_t>(n.B), n.T - n.T / 4);
    expect_attention(
        random_inputs<TypeParam>(n, ++seed), Causal{} & Padding(lengths), NoScore{},
        [=](Position at) { return only_if(at.key <= at.row + n.T - n.S && at.key < n.T - n.T / 4); }, same_score,
        options);
  }
}

TYPED_TEST(AttentionTypes, TakesAnAdditiveMaskOfTheSameType) {
  unsigned seed = 5300;
  for (const Sizes& n : many_sizes()) {
    auto bias = random_tensor<TypeParam, 2>({n.S, n.T}, ++seed);
    for (Index i = 0; i < bias.size(); i += 6) bias.data()[i] = static_cast<TypeParam>(-infinity);
    expect_attention(
        random_inputs<TypeParam>(n, ++seed), bias, attn::SoftCap(2.F),
        [&](Position at) { return to<double>(bias(at.row, at.key)); },
        [](double x, Position) { return 2 * std::tanh(x / 2); });
  }
}

TYPED_TEST(AttentionTypes, ReturnsLogSumExpInTheAccumulatorsType) {
  using A = std::conditional_t<std::is_same_v<TypeParam, double>, double, float>;
  static_assert(std::is_same_v<attn::Accumulator<TypeParam>, A>);
  static_assert(std::is_same_v<decltype(attn::AttentionResult<TypeParam>::log_sum_exp), Tensor<A, 3>>);
  static_assert(std::is_same_v<decltype(attn::AttentionResult<TypeParam>::output), Tensor<TypeParam, 4>>);
}

}  // namespace
