// Conventions: sums, scores and softmax in float for half, bfloat16 and float; in double for double.

#include "support.hpp"

namespace {

using attn::Index;
using attn::NoMask;
using attn::NoScore;
using attn::Position;
using attn::scaled_dot_product_attention;
using attn_test::cast;
using attn_test::Inputs;
using attn_test::random_inputs;
using attn_test::storage_error;
using attn_test::to;

template <class T>
class Accumulation : public testing::Test {};
using Low = testing::Types<Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(Accumulation, Low);

// 512 * 16 * 16 is twice the largest number of half.
TYPED_TEST(Accumulation, DotProductsMayExceedTheRangeOfHalf) {
  Inputs<float> in = random_inputs<float>({.S = 3, .T = 2, .D = 512, .Dv = 1}, 1);
  in.q.setConstant(16);
  for (Index d = 0; d < 512; ++d) in.k(0, 0, 0, d) = 16, in.k(0, 0, 1, d) = 8;
  in.v.setValues({{{{0.F}, {1.F}}}});
  const auto x = cast<TypeParam>(in);
  attn::AttentionOptions options;
  options.scale = 1.0 / 131072.0;  // scores 1 and 0.5
  options.log_sum_exp = true;
  const auto result = scaled_dot_product_attention(x.q, x.k, x.v, NoMask{}, NoScore{}, options);
  EXPECT_NEAR(to<double>(result.output(0, 0, 1, 0)), 1 / (1 + std::exp(0.5)), 0.38 * storage_error<TypeParam>);
  EXPECT_NEAR(result.log_sum_exp(0, 0, 1), std::log(std::exp(1.0) + std::exp(0.5)), 1e-6);
}

// The sum is 1 + 511 / 512; added up in low precision it would stay at 1.
TYPED_TEST(Accumulation, DotProductsKeepSmallTerms) {
  Inputs<float> in = random_inputs<float>({.S = 1, .T = 1, .D = 512, .Dv = 1}, 1);
  in.q.setConstant(1);
  in.k.setConstant(1.F / 512.F);
  in.k(0, 0, 0, 0) = 1;
  const auto x = cast<TypeParam>(in);
  attn::AttentionOptions options;
  options.scale = 1.0;
  options.log_sum_exp = true;
  const auto result = scaled_dot_product_attention(x.q, x.k, x.v, NoMask{}, NoScore{}, options);
  EXPECT_NEAR(result.log_sum_exp(0, 0, 0), 1.0 + 511.0 / 512.0, 1e-6);
}

// A sum of ones stops growing at 2048 in half and at 256 in bfloat16.
TYPED_TEST(Accumulation, SoftmaxAndValuesAreSummedInFloat) {
  Inputs<float> in = random_inputs<float>({.S = 2, .T = 5000, .D = 3, .Dv = 2}, 1);
  in.q.setZero();
  in.v.setConstant(1);
  const auto x = cast<TypeParam>(in);
  const auto result = scaled_dot_product_attention(x.q, x.k, x.v, NoMask{}, NoScore{}, {.log_sum_exp = true});
  EXPECT_NEAR(result.log_sum_exp(0, 0, 0), std::log(5000.0), 2e-6);
  for (Index i = 0; i < result.output.size(); ++i) EXPECT_EQ(to<float>(result.output.data()[i]), 1.F);
}

TYPED_TEST(Accumulation, ScoreFunctionsAreGivenFloat) {
  const auto x = cast<TypeParam>(random_inputs<float>({.S = 2, .T = 3, .D = 3, .Dv = 2}, 2));
  const auto score = [](auto value, Position) {
    static_assert(std::is_same_v<decltype(value), float>);
    return value;
  };
  EXPECT_EQ(scaled_dot_product_attention(x.q, x.k, x.v, NoMask{}, score).output.size(), 4);
}

TEST(AccumulationOfDouble, IsInDouble) {
  Inputs<double> in = random_inputs<double>({.S = 1, .T = 300, .D = 40, .Dv = 1}, 3);
  in.q.setConstant(1.0);
  in.k.setConstant(1.0 + 0x1p-40);  // as float, this is 1
  in.v.setConstant(1.0 + 0x1p-40);
  attn::AttentionOptions options;
  options.scale = 1.0;
  options.log_sum_exp = true;
  const auto result = scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, options);
  EXPECT_NEAR(result.output(0, 0, 0, 0) - 1.0, 0x1p-40, 0x1p-50);
  EXPECT_NEAR(result.log_sum_exp(0, 0, 0), 40 * (1.0 + 0x1p-40) + std::log(300.0), 1e-13);
}

TEST(AccumulationOfDouble, GivesDoubleToScoreFunctions) {
  const auto x = random_inputs<double>({.S = 2, .T = 3, .D = 3, .Dv = 2}, 2);
  const auto score = [](auto value, Position) {
    static_assert(std::is_same_v<decltype(value), double>);
    return value;
  };
  EXPECT_EQ(scaled_dot_product_attention(x.q, x.k, x.v, NoMask{}, score).output.size(), 4);
}

}  // namespace
