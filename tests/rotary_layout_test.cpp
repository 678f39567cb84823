// Conversion of weights between the two layouts of rotary pairs.
#include "module_support.hpp"

namespace {

using attn::Index;
using attn::Rotary;
using attn::RotaryLayout;
using attn::Tensor;
using attn_test::expect_error;
using attn_test::max_difference;
using attn_test::random_tensor;
using attn_test::same_bits;

constexpr auto half_split = RotaryLayout::half_split, interleaved = RotaryLayout::interleaved;

TEST(RotaryWeights, ConvertThereAndBack) {
  for (const Index heads : {1, 2, 3}) {
    const auto weight = random_tensor<float, 2>({heads * 8, 5}, 1);
    const auto bias = random_tensor<double, 1>({heads * 8}, 2);
    EXPECT_TRUE(same_bits(attn::to_interleaved(attn::to_half_split(weight, heads), heads), weight));
    EXPECT_TRUE(same_bits(attn::to_half_split(attn::to_interleaved(weight, heads), heads), weight));
    EXPECT_TRUE(same_bits(attn::to_interleaved(attn::to_half_split(bias, heads), heads), bias));
    EXPECT_FALSE(same_bits(attn::to_half_split(weight, heads), weight));
  }
}

TEST(RotaryWeights, ToHalfSplitTakesEvenRowsThenOddRows) {
  Tensor<float, 1> bias(12);
  for (Index i = 0; i < 12; ++i) bias(i) = static_cast<float>(i);
  Tensor<float, 1> expected(12);
  expected.setValues({0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11});
  EXPECT_TRUE(same_bits(attn::to_half_split(bias, 2), expected));
}

TEST(RotaryWeights, GiveTheSameScoresOnceConverted) {
  constexpr Index H = 2, D = 8, E = 5;
  const auto x = random_tensor<float, 2>({7, E}, 1);
  const auto wq = random_tensor<float, 2>({H * D, E}, 2), wk = random_tensor<float, 2>({H * D, E}, 3);
  const auto scores = [&](const Tensor<float, 2>& of_q, const Tensor<float, 2>& of_k, RotaryLayout layout) {
    const auto heads = [&](const Tensor<float, 2>& w) {
      Tensor<float, 4> y(1, H, 7, D);
      for (Index h = 0; h < H; ++h)
        for (Index s = 0; s < 7; ++s)
          for (Index d = 0; d < D; ++d) {
            float sum = 0.F;
            for (Index e = 0; e < E; ++e) sum += x(s, e) * w(h * D + d, e);
            y(0, h, s, d) = sum;
          }
      const std::array<Index, 1> start{0};
      Rotary(D, {.layout = layout}).apply(y, start);
      return y;
    };
    const auto q = heads(of_q), k = heads(of_k);
    Tensor<float, 3> result(H, 7, 7);
    result.setZero();
    for (Index h = 0; h < H; ++h)
      for (Index s = 0; s < 7; ++s)
        for (Index t = 0; t < 7; ++t)
          for (Index d = 0; d < D; ++d) result(h, s, t) += q(0, h, s, d) * k(0, h, t, d);
    return result;
  };
  const auto expected = scores(wq, wk, interleaved);
  EXPECT_LE(max_difference(scores(attn::to_half_split(wq, H), attn::to_half_split(wk, H), half_split), expected), 1e-5);
  EXPECT_GT(max_difference(scores(wq, wk, half_split), expected), 1e-2);
}

TEST(RotaryWeights, RefuseHeadsThatDoNotDivideTheRows) {
  expect_error([] { return attn::to_half_split(Tensor<float, 2>(12, 3), 4); }, {"[attn::to_half_split]", "got [12,3]"});
  expect_error([] { return attn::to_interleaved(Tensor<float, 1>(12), 0); }, {"[attn::to_interleaved]", "got [12]"});
}

}  // namespace
