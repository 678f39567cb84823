// A row's result depends on its own sequence, not by a bit on what else the batch holds.
#include "support.hpp"

namespace {

using attn::Causal;
using attn::Index;
using attn::Linear;
using attn::NoScore;
using attn::Padding;
using attn::Position;
using attn::scaled_dot_product_attention;
using attn::Tensor;
using attn_test::random_inputs;
using attn_test::random_tensor;
using attn_test::same_bits;
using attn_test::to;

/// Batch entry b of x.
template <class T>
Tensor<T, 4> entry(const Tensor<T, 4>& x, Index b) {
  Tensor<T, 4> one(1, x.dimension(1), x.dimension(2), x.dimension(3));
  std::copy_n(x.data() + b * one.size(), one.size(), one.data());
  return one;
}
/// The first `keys` of k or v.
template <class T>
Tensor<T, 4> shortened(const Tensor<T, 4>& x, Index keys) {
  Tensor<T, 4> y(x.dimension(0), x.dimension(1), keys, x.dimension(3));
  for (Index b = 0; b < x.dimension(0); ++b)
    for (Index g = 0; g < x.dimension(1); ++g) std::copy_n(&x(b, g, 0, 0), keys * x.dimension(3), &y(b, g, 0, 0));
  return y;
}

/// Sequences of unlike length in one batch, each against itself alone.
template <class T, class M>
void expect_independent(Index S, Index G, const std::vector<Index>& lengths, const M& mask) {
  SCOPED_TRACE(testing::Message() << "S " << S << ", G " << G);
  const Index B = std::ssize(lengths), longest = *std::ranges::max_element(lengths);
  const auto in = random_inputs<T>({.B = B, .H = 2 * G, .G = G, .S = S, .T = longest, .D = 20, .Dv = 16}, 41);
  std::vector<Index> start;
  for (const Index length : lengths) start.push_back(length - S);
  attn::AttentionOptions options;
  options.query_start = start;
  options.log_sum_exp = true;
  const auto together = scaled_dot_product_attention(in.q, in.k, in.v, mask & Padding(lengths), NoScore{}, options);
  options.query_start = {};
  for (Index b = 0; b < B; ++b) {
    const Index keys = lengths[static_cast<std::size_t>(b)];
    const auto alone = scaled_dot_product_attention(entry(in.q, b), shortened(entry(in.k, b), keys),
                                                    shortened(entry(in.v, b), keys), mask, NoScore{}, options);
    EXPECT_TRUE(same_bits(alone.output, entry(together.output, b))) << "entry " << b;
    for (Index i = 0; i < alone.log_sum_exp.size(); ++i)
      EXPECT_EQ(alone.log_sum_exp.data()[i], together.log_sum_exp.data()[b * alone.log_sum_exp.size() + i]);
  }
}

template <class T>
class BatchIndependence : public testing::Test {};
using Scalars = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(BatchIndependence, Scalars);

TYPED_TEST(BatchIndependence, HoldsForDecodingWithACausalMask) {
  for (const Index S : {1, 3})
    for (const Index G : {1, 3}) expect_independent<TypeParam>(S, G, {10, 2100, 255, 256, 257, 777, 33}, Causal{});
}

TYPED_TEST(BatchIndependence, HoldsForDecodingInAWindow) {
  for (const Index window : {17, 300})
    expect_independent<TypeParam>(2, 1, {40, 1500, 513, 700}, Causal{} & attn::SlidingWindow(window));
}

TYPED_TEST(BatchIndependence, HoldsForDecodingWithAUserDefinedMask) {
  expect_independent<TypeParam>(1, 2, {40, 1500, 513}, attn::as_mask([](Position at) { return at.key % 3 != 1; }));
}

TYPED_TEST(BatchIndependence, HoldsForManyQueries) {
  for (const Index S : {7, 60}) expect_independent<TypeParam>(S, 2, {60, 300, 65, 128}, Causal{});
}

TYPED_TEST(BatchIndependence, HoldsForRowsOfALinearLayer) {
  for (const Index in : {5, 512, 513, 1300})
    for (const Index out : {1, 48, 50, 131}) {
      const Linear<TypeParam> linear(in, out, true, 1);
      const auto x = random_tensor<TypeParam, 2>({64, in}, 42);
      const auto together = linear.forward(x);
      for (const Index rows : {1, 2, 9}) {
        Tensor<TypeParam, 2> few(rows, in);
        std::copy_n(x.data() + 3 * in, few.size(), few.data());
        const auto y = linear.forward(few);
        for (Index i = 0; i < y.size(); ++i)
          ASSERT_EQ(to<double>(y.data()[i]), to<double>(together.data()[3 * out + i])) << in << " -> " << out;
      }
    }
}

TEST(LinearSums, OfOneRowAreAsExactAsOfMany) {
  for (const Index in : {16384, 1048576}) {
    Linear<float> linear(in, 3, false, 1);
    const auto weight = random_tensor<float, 2>({3, in}, 43);
    const auto x = random_tensor<float, 2>({1, in}, 44);
    linear.set_weight(weight);
    const auto y = linear.forward(x);
    for (Index o = 0; o < 3; ++o) {
      double sum = 0, size = 0;
      for (Index i = 0; i < in; ++i) {
        const double product = static_cast<double>(x(0, i)) * static_cast<double>(weight(o, i));
        sum += product;
        size += product * product;
      }
      // Errors add up at random: some 12 of them in each block of 512 inputs, more between the blocks.
      EXPECT_NEAR(y(0, o), sum, 30 * 6e-8 * std::sqrt(size)) << in;
    }
  }
}

}  // namespace
