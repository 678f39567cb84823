// What holds for the gradients of every attention: threads, padding, rows without a key, memory of the caller's, errors.
#include "backward_support.hpp"

namespace {

using attn::AttentionGradientOutputs;
using attn::AttentionOptions;
using attn::Causal;
using attn::Index;
using attn::NoMask;
using attn::NoScore;
using attn::Padding;
using attn::Position;
using attn::scaled_dot_product_attention;
using attn::scaled_dot_product_attention_backward;
using attn::scaled_dot_product_attention_backward_into;
using attn::Tensor;
using attn::View;
using attn_test::filled;
using attn_test::infinity;
using attn_test::Inputs;
using attn_test::not_a_number;
using attn_test::random_gradients;
using attn_test::random_inputs;
using attn_test::random_tensor;
using attn_test::same_bits;
using attn_test::Sizes;

const Sizes usual{.B = 2, .H = 4, .G = 2, .S = 53, .T = 75, .D = 10, .Dv = 7};

template <class T, class M = NoMask, class F = NoScore>
attn::AttentionGradients<T> gradients_of(const Inputs<T>& in, const M& mask = {}, const F& score = {},
                                         AttentionOptions options = {}) {
  options.log_sum_exp = true;
  const auto grad = random_gradients<T>(in.n, 3);
  const auto result = scaled_dot_product_attention(in.q, in.k, in.v, mask, score, options);
  return scaled_dot_product_attention_backward(grad.output, in.q, in.k, in.v, result, mask, score, options,
                                               grad.log_sum_exp);
}

template <class T>
bool same(const attn::AttentionGradients<T>& a, const attn::AttentionGradients<T>& b) {
  return same_bits(a.q, b.q) && same_bits(a.k, b.k) && same_bits(a.v, b.v) && same_bits(a.mask, b.mask) &&
         same_bits(a.score_bias, b.score_bias);
}

/// The derivative of a function of one element, by central differences.
template <class Function>
double slope_of(double& x, const Function& function) {
  constexpr double step = 1e-5;
  const double middle = x;
  x = middle + step;
  const double above = function();
  x = middle - step;
  const double below = function();
  x = middle;
  return (above - below) / (2 * step);
}

/// Gradients in double are those of central differences, to 1e-6 of the largest. `make` makes mask and score of the bias.
template <class Make>
void expect_central_differences(const Make& make, double dropout, const std::array<Index, 4>& bias_shape) {
  auto in = random_inputs<double>({.B = 2, .H = 4, .G = 2, .S = 5, .T = 7, .D = 3, .Dv = 2}, 1);
  auto bias = random_tensor<double, 4>(bias_shape, 2);
  const auto grad = random_gradients<double>(in.n, 3);
  const auto [mask, score] = make(bias);
  AttentionOptions options;
  options.dropout = dropout, options.seed = 4;
  options.mask_gradient = attn::detail::additive_masks<std::remove_cvref_t<decltype(mask)>> == 1;
  options.score_bias_gradient = attn::detail::score_biases<std::remove_cvref_t<decltype(score)>> == 1;
  const auto got = gradients_of(in, mask, score, options);
  options.log_sum_exp = true;
  const auto sum = [&, &mask = mask, &score = score] {
    const auto result = scaled_dot_product_attention(in.q, in.k, in.v, mask, score, options);
    double total = 0;
    for (Index i = 0; i < grad.output.size(); ++i) total += grad.output.data()[i] * result.output.data()[i];
    for (Index i = 0; i < grad.log_sum_exp.size(); ++i)
      if (result.log_sum_exp.data()[i] != -infinity) total += grad.log_sum_exp.data()[i] * result.log_sum_exp.data()[i];
    return total;
  };
  const auto check = [&](const char* what, Tensor<double, 4>& x, const Tensor<double, 4>& gradient) {
    ASSERT_EQ(x.dimensions(), gradient.dimensions()) << what;
    const double largest = attn_test::magnitude(gradient);
    for (Index i = 0; i < x.size(); ++i)
      ASSERT_NEAR(gradient.data()[i], slope_of(x.data()[i], sum), 1e-6 * largest) << what << " at " << i;
  };
  check("q", in.q, got.q);
  check("k", in.k, got.k);
  check("v", in.v, got.v);
  if (options.mask_gradient) check("mask", bias, got.mask);
  if (options.score_bias_gradient) check("ScoreBias", bias, got.score_bias);
}

TEST(CentralDifferences, AgreeForMasks) {
  for (const double dropout : {0.0, 0.3}) {
    expect_central_differences([](auto&) { return std::pair(NoMask{}, NoScore{}); }, dropout, {1, 1, 1, 1});
    expect_central_differences([](auto&) { return std::pair(Causal{} & attn::SlidingWindow(3), NoScore{}); }, dropout,
                               {1, 1, 1, 1});
    for (const std::array<Index, 4>& shape :
         {std::array<Index, 4>{2, 4, 5, 7}, {1, 4, 1, 7}, {2, 1, 5, 1}, {1, 1, 1, 1}})
      expect_central_differences([](auto& bias) { return std::pair(attn::AdditiveMask(bias) & Causal{}, NoScore{}); },
                                 dropout, shape);
  }
}

TEST(CentralDifferences, AgreeForScoreFunctions) {
  const auto user = [](auto score, Position at) {
    return score + 0.05 * score * score - 0.1 * abs(score) * at.distance() + exp(-score) / (1 + score * score);
  };
  for (const double dropout : {0.0, 0.3}) {
    expect_central_differences([&](auto&) { return std::pair(Causal{}, user); }, dropout, {1, 1, 1, 1});
    expect_central_differences([&](auto&) { return std::pair(NoMask{}, attn::SoftCap(2.F)); }, dropout, {1, 1, 1, 1});
    expect_central_differences([&](auto& bias) { return std::pair(Causal{}, attn::ScoreBias(bias)); }, dropout,
                               {1, 4, 5, 7});
    expect_central_differences(
        [&](auto& bias) {
          return std::pair(NoMask{}, attn::Chain{attn::SoftCap(3.F), attn::ScoreBias(bias), attn::Alibi(4), user});
        },
        dropout, {2, 1, 5, 7});
  }
}

TEST(GradientConventions, ThreadsAndRunsChangeNoBit) {
  const auto in = random_inputs<float>({.B = 2, .H = 6, .G = 2, .S = 300, .T = 1300, .D = 20, .Dv = 17}, 1);
  const auto bias = random_tensor<float, 4>({1, 6, 300, 1}, 2);
  AttentionOptions options;
  options.dropout = 0.2, options.seed = 9, options.mask_gradient = true;
  const auto mask = attn::AdditiveMask(bias) & Causal{};
  attn::ThreadPool one(1);
  attn::UseExecutor use_one(one);
  const auto expected = gradients_of(in, mask, attn::SoftCap(4.F), options);
  for (const int threads : {1, 2, 3, 5, 16}) {
    attn::ThreadPool pool(threads);
    attn::UseExecutor use(pool);
    for (int run = 0; run < 4; ++run)
      EXPECT_TRUE(same(gradients_of(in, mask, attn::SoftCap(4.F), options), expected)) << threads << " threads";
  }
}

TEST(GradientConventions, NothingPastAPaddingLengthIsRead) {
  const std::vector<Index> lengths{40, 1};
  auto in = random_inputs<float>(usual, 2);
  const auto expected = gradients_of(in, Padding(lengths));
  for (Index b = 0; b < 2; ++b)
    for (Index g = 0; g < 2; ++g)
      for (Index t = lengths[static_cast<std::size_t>(b)]; t < 75; ++t) {
        for (Index d = 0; d < 10; ++d) in.k(b, g, t, d) = static_cast<float>(not_a_number);
        for (Index d = 0; d < 7; ++d) in.v(b, g, t, d) = static_cast<float>(not_a_number);
      }
  const auto got = gradients_of(in, Padding(lengths));
  EXPECT_TRUE(same(got, expected));
  for (Index d = 0; d < 10; ++d) EXPECT_EQ(got.k(1, 0, 5, d), 0.F);
  for (Index d = 0; d < 7; ++d) EXPECT_EQ(got.v(0, 1, 60, d), 0.F);
}

TEST(GradientConventions, RowsAndKeysThatSeeNothingHaveGradientZero) {
  const auto in = random_inputs<float>({.B = 1, .H = 2, .G = 1, .S = 80, .T = 50, .D = 6, .Dv = 5}, 3);
  const auto got = gradients_of(in, Causal{} & attn::as_mask([](Position at) { return at.key != 7; }));
  for (Index s = 0; s < 30; ++s)
    for (Index d = 0; d < 6; ++d) EXPECT_EQ(got.q(0, 1, s, d), 0.F) << s;
  for (Index d = 0; d < 6; ++d) EXPECT_EQ(got.k(0, 0, 7, d), 0.F);
  for (Index d = 0; d < 5; ++d) EXPECT_EQ(got.v(0, 0, 7, d), 0.F);
}

TEST(GradientConventions, NanStaysWithTheRowsThatReadIt) {
  auto in = random_inputs<float>({.B = 1, .H = 2, .G = 2, .S = 70, .T = 70, .D = 6, .Dv = 5}, 4);
  in.q(0, 1, 69, 2) = static_cast<float>(not_a_number);
  const auto got = gradients_of(in, Causal{});
  for (Index s = 0; s < 69; ++s) EXPECT_FALSE(std::isnan(got.q(0, 1, s, 0))) << s;
  EXPECT_TRUE(std::isnan(got.q(0, 1, 69, 0)));
  EXPECT_TRUE(std::isnan(got.k(0, 1, 0, 0)));
  EXPECT_FALSE(std::isnan(got.k(0, 0, 0, 0)));
}

TEST(GradientConventions, FarKeysWithTinyWeightsGiveFiniteGradients) {
  const auto in = random_inputs<float>({.B = 1, .H = 1, .G = 1, .S = 200, .T = 200, .D = 8, .Dv = 8}, 5);
  const auto got = gradients_of(in, Causal{}, [](auto score, Position at) { return score - 3.F * at.distance(); });
  for (Index i = 0; i < got.k.size(); ++i) ASSERT_TRUE(std::isfinite(got.k.data()[i]));
}

TEST(GradientMemory, PartsMayBeLeftOut) {
  const auto in = random_inputs<float>({.B = 1, .H = 2, .G = 1, .S = 60, .T = 1100, .D = 6, .Dv = 5}, 6);
  const auto grad = random_gradients<float>(in.n, 7);
  AttentionOptions options;
  options.log_sum_exp = true;
  const auto result = scaled_dot_product_attention(in.q, in.k, in.v, Causal{}, NoScore{}, options);
  const auto all = scaled_dot_product_attention_backward(grad.output, in.q, in.k, in.v, result, Causal{});
  const auto part = [&](bool q, bool k, bool v) {
    attn::AttentionGradients<float> g{filled<float, 4>({1, 2, 60, 6}, 9.F),
                                      filled<float, 4>({1, 1, 1100, 6}, 9.F),
                                      filled<float, 4>({1, 1, 1100, 5}, 9.F),
                                      {},
                                      {}};
    AttentionGradientOutputs<float> out;
    if (q) out.q = View<float, 4>(g.q);
    if (k) out.k = View<float, 4>(g.k);
    if (v) out.v = View<float, 4>(g.v);
    scaled_dot_product_attention_backward_into(out, grad.output, in.q, in.k, in.v, result.output, result.log_sum_exp,
                                               Causal{});
    return g;
  };
  const auto queries = part(true, false, false), keys = part(false, true, false), values = part(false, false, true);
  EXPECT_LT(attn_test::difference(queries.q, all.q).largest, 1e-6);  // summed in another order
  EXPECT_EQ(queries.k(0, 0, 3, 3), 9.F);
  EXPECT_TRUE(same_bits(keys.k, all.k));
  EXPECT_EQ(keys.v(0, 0, 3, 3), 9.F);
  EXPECT_TRUE(same_bits(values.v, all.v));
  EXPECT_EQ(values.q(0, 0, 3, 3), 9.F);
}

TEST(GradientMemory, ViewsMayBeStrided) {
  const auto in = random_inputs<float>(usual, 8);
  const auto grad = random_gradients<float>(in.n, 9);
  AttentionOptions options;
  options.log_sum_exp = true;
  const auto result = scaled_dot_product_attention(in.q, in.k, in.v, Causal{}, NoScore{}, options);
  const auto expected = scaled_dot_product_attention_backward(grad.output, in.q, in.k, in.v, result, Causal{});
  auto tokens = filled<float, 3>({2, 53, 40}, 9.F);  // [B,S,H*D]
  AttentionGradientOutputs<float> out;
  out.q = attn::split_heads(View<float, 3>(tokens), 4);
  scaled_dot_product_attention_backward_into(out, grad.output, in.q, in.k, in.v, result.output, result.log_sum_exp,
                                             Causal{});
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 4; ++h)
      for (Index s = 0; s < 53; ++s)
        for (Index d = 0; d < 10; ++d) ASSERT_EQ(tokens(b, s, h * 10 + d), expected.q(b, h, s, d));
}

// ---- Errors -----------------------------------------------------------------------------------------------------

template <class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const attn::Error& error) {
    return error.what();
  }
  return "no error";
}

struct BadGradients : testing::Test {
  Inputs<float> in = random_inputs<float>(usual, 10);
  Tensor<float, 4> grad = random_tensor<float, 4>({2, 4, 53, 7}, 11);
  attn::AttentionResult<float> result =
      scaled_dot_product_attention(in.q, in.k, in.v, NoMask{}, NoScore{}, {.log_sum_exp = true});
  const std::string fn = "[attn::scaled_dot_product_attention_backward] ";
};

TEST_F(BadGradients, ResultWithoutLogSumExp) {
  result.log_sum_exp = Tensor<float, 3>();
  EXPECT_EQ(message_of([&] { (void)scaled_dot_product_attention_backward(grad, in.q, in.k, in.v, result); }),
            fn + "log_sum_exp [B,H,S] of the forward call, which returns it with options.log_sum_exp = true, expected "
                 "[2,4,53], got [0,0,0]");
}

TEST_F(BadGradients, GradientOfAnotherShape) {
  const auto wrong = random_tensor<float, 4>({2, 4, 53, 8}, 11);
  EXPECT_EQ(message_of([&] { (void)scaled_dot_product_attention_backward(wrong, in.q, in.k, in.v, result); }),
            fn + "grad_output [B,H,S,Dv], expected [2,4,53,7], got [2,4,53,8]");
}

TEST_F(BadGradients, GradientOfLogSumExpOfAnotherShape) {
  const auto wrong = random_tensor<float, 3>({2, 4, 52}, 11);
  EXPECT_EQ(message_of([&] {
              (void)scaled_dot_product_attention_backward(grad, in.q, in.k, in.v, result, NoMask{}, NoScore{}, {},
                                                          wrong);
            }),
            fn + "gradient of log_sum_exp [B,H,S], expected [2,4,53], got [2,4,52]");
}

TEST_F(BadGradients, MaskGradientWithoutATensor) {
  AttentionOptions options;
  options.mask_gradient = true;
  EXPECT_EQ(message_of([&] {
              (void)scaled_dot_product_attention_backward(grad, in.q, in.k, in.v, result, Causal{}, NoScore{}, options);
            }),
            fn + "options.mask_gradient, expected a mask with one tensor that is added to the scores, got 0 of them");
}

TEST_F(BadGradients, MaskGradientOfTwoTensors) {
  const auto bias = random_tensor<float, 2>({53, 75}, 12);
  AttentionOptions options;
  options.mask_gradient = true;
  const auto both = attn::AdditiveMask(bias) & attn::AdditiveMask(bias);
  EXPECT_EQ(message_of([&] {
              (void)scaled_dot_product_attention_backward(grad, in.q, in.k, in.v, result, both, NoScore{}, options);
            }),
            fn + "options.mask_gradient, expected a mask with one tensor that is added to the scores, got 2 of them");
}

TEST_F(BadGradients, OutputsThatOverlap) {
  AttentionGradientOutputs<float> out;
  out.q = View<float, 4>(in.q);
  const std::string message = message_of([&] {
    scaled_dot_product_attention_backward_into(out, grad, in.q, in.k, in.v, result.output, result.log_sum_exp);
  });
  EXPECT_NE(message.find(fn), std::string::npos) << message;
  EXPECT_NE(message.find("gradient of q"), std::string::npos) << message;
}

}  // namespace
