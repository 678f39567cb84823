// The oracle of gradients itself: attn::reference's backward pass against differences of its forward pass, in double.
#include "backward_support.hpp"

#include <span>

namespace {

using attn::AdditiveMask;
using attn::AttentionOptions;
using attn::Causal;
using attn::Index;
using attn::NoMask;
using attn::NoScore;
using attn::Position;
using attn::ScoreBias;
using attn::SoftCap;
using attn::Tensor;
using attn_test::cast;
using attn_test::gradients_by_reference;
using attn_test::infinity;
using attn_test::Inputs;
using attn_test::not_a_number;
using attn_test::OutputGradients;
using attn_test::random_gradients;
using attn_test::random_inputs;
using attn_test::random_tensor;
using attn_test::same_bits;
using attn_test::Sizes;

const Sizes usual{.B = 2, .H = 4, .G = 2, .S = 5, .T = 7, .D = 3, .Dv = 2};

/// The elements of a tensor, which masks and score functions made of it refer to.
template <int Rank>
std::span<double> elements(Tensor<double, Rank>& x) {
  return {x.data(), static_cast<std::size_t>(x.size())};
}

/// The derivative of a function of one element, by differences at four points: their error is of the order of step^4.
template <class Function>
double slope_of(double& x, const Function& function) {
  constexpr double step = 1e-3;
  const double middle = x;
  const auto difference = [&](double h) {
    x = middle + h;
    const double above = function();
    x = middle - h;
    const double below = function();
    x = middle;
    return above - below;
  };
  return (8 * difference(step) - difference(2 * step)) / (12 * step);
}

/// The reference's forward pass as one number, whose gradients its backward pass gives.
template <class M, class F>
double weighted_sum(const Inputs<double>& in, const OutputGradients<double>& grad, const M& mask, const F& score,
                    const AttentionOptions& options) {
  const auto answer = attn_test::by_reference(in, mask, score, options);
  double sum = 0;
  for (Index i = 0; i < grad.output.size(); ++i) sum += grad.output.data()[i] * answer.output.data()[i];
  for (Index i = 0; i < grad.log_sum_exp.size(); ++i)
    if (answer.log_sum_exp.data()[i] != -infinity) sum += grad.log_sum_exp.data()[i] * answer.log_sum_exp.data()[i];
  return sum;
}

/// Gradients err by at most 1e-6 of themselves; those below a thousandth of the largest, of that. `added`: the elements of
/// the tensor that the mask or the score function adds to the scores.
template <class M, class F>
void expect_differences(Inputs<double> in, OutputGradients<double> grad, const M& mask, const F& score,
                        AttentionOptions options = {}, std::span<double> added = {}) {
  SCOPED_TRACE(testing::Message() << in.n);
  options.mask_gradient = attn::detail::additive_masks<M> == 1;
  options.score_bias_gradient = attn::detail::score_biases<F> == 1;
  ASSERT_EQ(!added.empty(), options.mask_gradient || options.score_bias_gradient);
  const auto got = gradients_by_reference(in, grad, mask, score, options);
  const auto check = [&](const char* what, std::span<double> x, const Tensor<double, 4>& gradient) {
    ASSERT_EQ(std::ssize(x), gradient.size()) << what;
    const double largest = attn_test::magnitude(gradient);
    ASSERT_GT(largest, 1e-3) << what;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double expected = slope_of(x[i], [&] { return weighted_sum(in, grad, mask, score, options); });
      ASSERT_NEAR(gradient.data()[i], expected, 1e-6 * std::max(std::abs(expected), 1e-3 * largest))
          << what << " " << i;
    }
  };
  check("q", elements(in.q), got.q);
  check("k", elements(in.k), got.k);
  check("v", elements(in.v), got.v);
  if (options.mask_gradient) check("mask", added, got.mask);
  if (options.score_bias_gradient) check("ScoreBias", added, got.score_bias);
}

/// The same for inputs at random, the gradient of log-sum-exp included, without and with dropout.
template <class M, class F>
void expect_differences(const M& mask, const F& score, std::span<double> added = {}, const Sizes& n = usual) {
  for (const double dropout : {0.0, 0.3}) {
    AttentionOptions options;
    options.dropout = dropout, options.seed = 4, options.call = 3;
    expect_differences(random_inputs<double>(n, 1), random_gradients<double>(n, 2), mask, score, options, added);
  }
}

/// A mask of the user's own, which adds numbers.
struct Slanted {
  static bool keep(Position at) { return (at.key + at.head) % 5 != 2; }
  static attn::Coverage cover(attn::Block) { return attn::Coverage::mixed; }
  static float bias(Position at) { return 0.25F * static_cast<float>(at.key - at.row); }
};

/// A score function of the user's own, with its derivative.
struct Cubic {
  template <class A>
  A operator()(A score, Position) const {
    return score + A(0.125) * score * score * score;
  }
  template <class A>
  A derivative(A score, Position) const {
    return 1 + A(0.375) * score * score;
  }
};

const auto lambda = [](auto score, Position at) {
  return score / sqrt(1 + score * score) + 0.1 * exp(-score) - 0.05 * score * at.distance() + tanh(score * score);
};

TEST(ReferenceBackward, FollowsHeadsAndSizesOfAllKinds) {
  for (const Sizes& n : {Sizes{.B = 1, .H = 1, .G = 1, .S = 1, .T = 3, .D = 1, .Dv = 1},
                         {.B = 1, .H = 3, .G = 3, .S = 4, .T = 4, .D = 5, .Dv = 5},
                         {.B = 2, .H = 6, .G = 1, .S = 2, .T = 9, .D = 2, .Dv = 7},
                         {.B = 1, .H = 6, .G = 3, .S = 8, .T = 3, .D = 4, .Dv = 3}}) {
    expect_differences(NoMask{}, NoScore{}, {}, n);
    expect_differences(Causal{}, lambda, {}, n);
  }
}

TEST(ReferenceBackward, FollowsTypedMasks) {
  const std::vector<Index> lengths{7, 3};
  Tensor<bool, 2> keep(5, 7);
  for (Index i = 0; i < keep.size(); ++i) keep.data()[i] = i * i % 7 < 4;
  expect_differences(Causal{}, NoScore{});
  expect_differences(Causal{attn::Align::top_left}, NoScore{});
  expect_differences(attn::SlidingWindow(3), NoScore{});
  expect_differences(attn::Padding(lengths), NoScore{});
  expect_differences(attn::KeepMask(keep), NoScore{});
}

TEST(ReferenceBackward, FollowsMasksOfTheUserAndJoinedOnes) {
  const std::vector<Index> lengths{6, 4};
  const auto predicate = attn::as_mask([](Position at) { return (at.key + at.query) % 3 != 0; });
  expect_differences(predicate, NoScore{});
  expect_differences(Slanted{}, NoScore{});
  expect_differences(Causal{} & attn::SlidingWindow(4) & attn::Padding(lengths), NoScore{});
  expect_differences(Slanted{} & predicate & Causal{}, SoftCap(2.F));
}

TEST(ReferenceBackward, GivesTheGradientOfMasksOfEveryShape) {
  for (int axes = 0; axes < 16; ++axes) {
    const auto at = [&](int axis, Index size) { return (axes >> axis & 1) != 0 ? size : Index{1}; };
    auto x = random_tensor<double, 4>({at(0, 2), at(1, 4), at(2, 5), at(3, 7)}, 5);
    expect_differences(AdditiveMask(x), NoScore{}, elements(x));
  }
}

TEST(ReferenceBackward, GivesTheGradientOfMasksOfEveryRank) {
  auto of_1 = random_tensor<double, 1>({7}, 6);
  auto of_2 = random_tensor<double, 2>({5, 7}, 7);
  auto of_3 = random_tensor<double, 3>({4, 1, 7}, 8);
  expect_differences(AdditiveMask(of_1), NoScore{}, elements(of_1));
  expect_differences(AdditiveMask(of_2), lambda, elements(of_2));
  expect_differences(AdditiveMask(of_3), SoftCap(3.F), elements(of_3));
}

TEST(ReferenceBackward, GivesTheGradientOfAMaskAmongOthers) {
  auto x = random_tensor<double, 4>({2, 1, 5, 7}, 9);
  for (Index i = 0; i < x.size(); i += 4) x.data()[i] = -infinity;
  expect_differences(AdditiveMask(x) & Causal{}, NoScore{}, elements(x));
  expect_differences(AdditiveMask(x) & Slanted{}, Cubic{}, elements(x));
}

TEST(ReferenceBackward, FollowsScoreFunctions) {
  expect_differences(NoMask{}, SoftCap(1.5F));
  expect_differences(Causal{}, attn::Alibi(4));
  expect_differences(Causal{}, lambda);
  expect_differences(NoMask{}, Cubic{});
  expect_differences(NoMask{}, attn::Chain{lambda, SoftCap(2.F), attn::Chain{Cubic{}, attn::Alibi(4)}});
}

TEST(ReferenceBackward, GivesTheGradientOfAScoreBias) {
  for (int axes = 0; axes < 16; ++axes) {
    const auto at = [&](int axis, Index size) { return (axes >> axis & 1) != 0 ? size : Index{1}; };
    auto x = random_tensor<double, 4>({at(0, 2), at(1, 4), at(2, 5), at(3, 7)}, 10);
    expect_differences(NoMask{}, ScoreBias(x), elements(x));
    expect_differences(Causal{}, attn::Chain{Cubic{}, ScoreBias(x), SoftCap(2.F), lambda}, elements(x));
  }
}

TEST(ReferenceBackward, FollowsScaleAndQueryStart) {
  const std::vector<Index> start{3, -2};
  AttentionOptions options;
  options.query_start = start, options.scale = -0.7;
  expect_differences(random_inputs<double>(usual, 11), random_gradients<double>(usual, 12), Causal{}, attn::Alibi(4),
                     options);
}

TEST(ReferenceBackward, NeedsNoGradientOfLogSumExp) {
  auto x = random_tensor<double, 4>({1, 4, 1, 7}, 13);
  auto grad = random_gradients<double>(usual, 14);
  grad.log_sum_exp = Tensor<double, 3>(0, 0, 0);
  expect_differences(random_inputs<double>(usual, 15), grad, AdditiveMask(x), lambda, {}, elements(x));
}

TEST(ReferenceBackward, LeavesAtZeroWhatNoQueryAttendsAndReadsItNot) {
  const std::vector<Index> lengths{7, 3};
  auto in = random_inputs<double>(usual, 16);
  const auto grad = random_gradients<double>(usual, 17);
  const auto expected = gradients_by_reference(in, grad, attn::Padding(lengths), lambda, {});
  for (Index g = 0; g < 2; ++g)
    for (Index t = 3; t < 7; ++t) {
      for (Index d = 0; d < 3; ++d) {
        EXPECT_EQ(expected.k(1, g, t, d), 0.0);
        in.k(1, g, t, d) = not_a_number;
      }
      for (Index d = 0; d < 2; ++d) {
        EXPECT_EQ(expected.v(1, g, t, d), 0.0);
        in.v(1, g, t, d) = not_a_number;
      }
    }
  const auto got = gradients_by_reference(in, grad, attn::Padding(lengths), lambda, {});
  EXPECT_TRUE(same_bits(got.q, expected.q) && same_bits(got.k, expected.k) && same_bits(got.v, expected.v));
}

TEST(ReferenceBackward, SumsInFloatAndRoundsHalfOnce) {
  const auto in = random_inputs<Eigen::half>(usual, 18);
  const auto grad = random_gradients<Eigen::half>(usual, 19);
  const OutputGradients<float> grad_in_float{cast<float>(grad.output), grad.log_sum_exp};
  const auto got = gradients_by_reference(in, grad, Causal{}, SoftCap(2.F), {});
  const auto in_float = gradients_by_reference(cast<float>(in), grad_in_float, Causal{}, SoftCap(2.F), {});
  const auto rounded = [](const Tensor<double, 4>& x) { return cast<double>(cast<Eigen::half>(cast<float>(x))); };
  EXPECT_TRUE(same_bits(got.q, rounded(in_float.q)));
  EXPECT_TRUE(same_bits(got.k, rounded(in_float.k)));
  EXPECT_TRUE(same_bits(got.v, rounded(in_float.v)));
}

}  // namespace
