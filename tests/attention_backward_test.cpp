// scaled_dot_product_attention_backward against attn::reference: every mask, every score function, every type.
#include "backward_support.hpp"

namespace {

using attn::AdditiveMask;
using attn::Causal;
using attn::Index;
using attn::NoMask;
using attn::NoScore;
using attn::Position;
using attn_test::expect_gradients;
using attn_test::many_sizes;
using attn_test::random_inputs;
using attn_test::random_tensor;
using attn_test::Sizes;

const Sizes usual{.B = 2, .H = 4, .G = 2, .S = 53, .T = 75, .D = 10, .Dv = 7};

TEST(AttentionBackward, FollowsTheFormulaForManySizes) {
  for (const Sizes& n : many_sizes()) expect_gradients(random_inputs<float>(n, 1), NoMask{}, NoScore{});
}

TEST(AttentionBackward, FollowsTheFormulaForManySizesUnderACausalMask) {
  for (const Sizes& n : many_sizes()) expect_gradients(random_inputs<float>(n, 2), Causal{}, NoScore{});
}

TEST(AttentionBackward, FollowsTheFormulaInDouble) {
  for (const Sizes& n : many_sizes()) expect_gradients(random_inputs<double>(n, 3), Causal{}, NoScore{});
}

TEST(AttentionBackward, CutsManyKeysIntoSlabs) {
  const Sizes n{.B = 1, .H = 2, .G = 1, .S = 70, .T = 2100, .D = 12, .Dv = 9};
  expect_gradients(random_inputs<float>(n, 4), NoMask{}, NoScore{});
  expect_gradients(random_inputs<float>(n, 5), Causal{} & attn::SlidingWindow(700), NoScore{});
}

TEST(AttentionBackward, CutsManyQueriesIntoBlocks) {
  const Sizes n{.B = 1, .H = 2, .G = 2, .S = 650, .T = 650, .D = 20, .Dv = 33};
  expect_gradients(random_inputs<float>(n, 6), Causal{}, NoScore{});
}

TEST(AttentionBackward, FollowsTypedMasksAndTheUsers) {
  const auto in = random_inputs<float>(usual, 7);
  const std::vector<Index> lengths{75, 20};
  attn::Tensor<bool, 2> keep(53, 75);
  for (Index i = 0; i < keep.size(); ++i) keep.data()[i] = i * i % 7 < 4;
  expect_gradients(in, Causal{attn::Align::top_left}, NoScore{});
  expect_gradients(in, Causal{} & attn::SlidingWindow(5), NoScore{});
  expect_gradients(in, attn::Padding(lengths), NoScore{});
  expect_gradients(in, attn::KeepMask(keep), NoScore{});
  expect_gradients(in, attn::as_mask([](Position at) { return (at.key + at.head) % 3 != 0; }), NoScore{});
}

TEST(AttentionBackward, GivesTheGradientOfMasksOfEveryShape) {
  const auto in = random_inputs<float>(usual, 8);
  for (int axes = 0; axes < 16; ++axes) {
    const auto at = [&](int axis, Index size) { return (axes >> axis & 1) != 0 ? size : Index{1}; };
    const auto bias = random_tensor<float, 4>({at(0, 2), at(1, 4), at(2, 53), at(3, 75)}, 9);
    expect_gradients(in, AdditiveMask(bias), NoScore{});
    expect_gradients(in, AdditiveMask(bias) & Causal{}, attn::SoftCap(3.F));
  }
}

TEST(AttentionBackward, GivesTheGradientOfMasksOfEveryRank) {
  const auto in = random_inputs<float>(usual, 10);
  expect_gradients(in, AdditiveMask(random_tensor<float, 1>({75}, 11)), NoScore{});
  expect_gradients(in, AdditiveMask(random_tensor<float, 2>({53, 75}, 12)), NoScore{});
  expect_gradients(in, AdditiveMask(random_tensor<float, 3>({4, 1, 75}, 13)), NoScore{});
}

TEST(AttentionBackward, GivesNoGradientWhereTheMaskIsMinusInfinity) {
  const auto in = random_inputs<float>(usual, 14);
  auto bias = random_tensor<float, 2>({53, 75}, 15);
  for (Index i = 0; i < bias.size(); i += 3) bias.data()[i] = -std::numeric_limits<float>::infinity();
  expect_gradients(in, AdditiveMask(bias), NoScore{});
}

TEST(AttentionBackward, FollowsScoreFunctions) {
  const auto in = random_inputs<float>(usual, 16);
  expect_gradients(in, NoMask{}, attn::SoftCap(1.5F));
  expect_gradients(in, Causal{}, attn::Alibi(4));
  expect_gradients(in, Causal{},
                   [](auto score, Position at) { return score * score / (1.F + abs(score)) - at.distance(); });
  const auto bias = random_tensor<float, 4>({1, 4, 53, 75}, 17);
  expect_gradients(in, Causal{}, attn::ScoreBias(bias));
}

TEST(AttentionBackward, FollowsChainsWithABiasInTheMiddle) {
  const auto in = random_inputs<float>(usual, 18);
  const auto bias = random_tensor<float, 3>({4, 1, 75}, 19);
  const auto square = [](auto score, Position) { return score + 0.1F * score * score; };
  expect_gradients(in, Causal{}, attn::Chain{square, attn::ScoreBias(bias), attn::SoftCap(2.F), attn::Alibi(4)});
}

TEST(AttentionBackward, DropsTheWeightsThatForwardDropped) {
  attn::AttentionOptions options;
  options.dropout = 0.3, options.seed = 5, options.call = 2;
  for (const Sizes& n : many_sizes()) expect_gradients(random_inputs<float>(n, 20), Causal{}, NoScore{}, options);
}

TEST(AttentionBackward, FollowsScaleAndQueryStart) {
  const std::vector<Index> start{3, 10};
  attn::AttentionOptions options;
  options.query_start = start, options.scale = -0.7;
  expect_gradients(random_inputs<float>(usual, 21), Causal{}, attn::Alibi(4), options);
}

TEST(AttentionBackward, ReadsHalfAndBfloat16WithSumsInFloat) {
  for (const Sizes& n : many_sizes()) {
    expect_gradients(random_inputs<Eigen::half>(n, 22), Causal{}, NoScore{});
    expect_gradients(random_inputs<Eigen::bfloat16>(n, 23), Causal{}, NoScore{});
  }
}

}  // namespace
