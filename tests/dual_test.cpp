// Dual numbers, and the derivatives of score functions: against central differences.
#include <attn/attn.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace {

using attn::Dual;
using attn::Position;

/// The derivative of f at x, which both overloads of f compute.
template <class F>
void expect_derivative(const char* what, const F& f, double x) {
  const Dual<double> got = f(Dual<double>(x, 1.0));
  const double step = 1e-6, expected = (f(Dual<double>(x + step)).value - f(Dual<double>(x - step)).value) / (2 * step);
  EXPECT_EQ(got.value, f(Dual<double>(x)).value) << what << " at " << x;
  EXPECT_NEAR(got.derivative, expected, 1e-8 * (1 + std::abs(expected))) << what << " at " << x;
}

TEST(Dual, HasTheDerivativesOfArithmetic) {
  for (const double x : {-1.5, 0.3, 2.0}) {
    expect_derivative(
        "+", [](auto a) { return 2.F + a + 3 - a * 0.5 + a; }, x);
    expect_derivative(
        "*", [](auto a) { return a * a * 3 * a; }, x);
    expect_derivative(
        "/", [](auto a) { return (1 - a) / (a * a + 2) / 3 + 1 / a; }, x);
    expect_derivative(
        "-", [](auto a) { return -a - (-a) * a; }, x);
    expect_derivative(
        "compound",
        [](auto a) {
          auto b = a;
          b += 1.F, b *= a, b -= a / 4, b /= 2 + a * a;
          return b;
        },
        x);
    expect_derivative(
        "fma", [](auto a) { return fma(a, a + 1, a); }, x);
    expect_derivative(
        "abs", [](auto a) { return abs(a) + 2 * fabs(a); }, x);
    expect_derivative(
        "min, max", [](auto a) { return min(a, a * a) + max(a, 1 - a); }, x);
    expect_derivative(
        "a choice", [](auto a) { return a > 0 ? a * a : 3 * a; }, x);
  }
}

TEST(Dual, HasTheDerivativesOfFunctions) {
  for (const double x : {0.2, 1.0, 1.7}) {
    expect_derivative(
        "exp", [](auto a) { return exp(a * a); }, x);
    expect_derivative(
        "exp2", [](auto a) { return exp2(-a); }, x);
    expect_derivative(
        "expm1", [](auto a) { return expm1(2 * a); }, x);
    expect_derivative(
        "log", [](auto a) { return log(a + a * a); }, x);
    expect_derivative(
        "log1p", [](auto a) { return log1p(a * a); }, x);
    expect_derivative(
        "sqrt", [](auto a) { return sqrt(1 + a); }, x);
    expect_derivative(
        "pow", [](auto a) { return pow(a, 3) + pow(a, -0.5F); }, x);
    expect_derivative(
        "sin, cos", [](auto a) { return sin(2 * a) * cos(a); }, x);
    expect_derivative(
        "tanh", [](auto a) { return tanh(a * a); }, x);
    expect_derivative(
        "erf", [](auto a) { return erf(1 - a); }, x);
  }
}

TEST(Dual, ToThePowerOfZeroIsAConstantAtZeroToo) {
  const Dual<double> got = pow(Dual<double>(0.0, 1.0), 0);
  EXPECT_EQ(got.value, 1.0);
  EXPECT_EQ(got.derivative, 0.0);
}

TEST(Dual, TakesTheTanhOfSoftCap) {
  for (float x = -12.F; x < 12.F; x += 0.37F) {
    const Dual<float> got = 3.F * tanh(Dual<float>(x, 1.F) / 3.F);
    EXPECT_EQ(got.value, attn::SoftCap(3.F)(x, Position{})) << x;
    EXPECT_NEAR(got.derivative, attn::SoftCap(3.F).derivative(x, Position{}), 1e-6F) << x;
  }
}

TEST(Dual, ComparesValuesAlone) {
  EXPECT_TRUE(Dual<float>(1.F, 5.F) == Dual<float>(1.F, 6.F));
  EXPECT_TRUE(Dual<float>(1.F, 5.F) < 2.F);
  EXPECT_TRUE(Dual<float>(3.F, 5.F) > 2);
  EXPECT_FALSE(Dual<float>(3.F, 5.F) != 3.0);
}

/// A score function's derivative at several scores and positions.
template <class F>
void expect_score_derivative(const char* what, const F& score) {
  for (const double x : {-4.0, -0.5, 0.1, 2.0})
    for (const Position at : {Position{0, 0, 3, 5, 2}, Position{1, 2, 0, 1, 6}}) {
      const double step = 1e-6, expected = (score(x + step, at) - score(x - step, at)) / (2 * step);
      const auto got = attn::detail::score_with_derivative<double>(score, x, at);
      EXPECT_EQ(got.value, score(x, at)) << what;
      EXPECT_NEAR(got.derivative, expected, 1e-7 * (1 + std::abs(expected))) << what << " at " << x;
    }
}

/// Squares, and says its derivative, which is wrong on purpose: that it is what is asked.
struct WithItsOwn {
  double operator()(double score, Position) const { return score * score; }
  static double derivative(double, Position) { return 7.0; }
};

TEST(ScoreDerivative, IsThatOfEveryScoreFunction) {
  attn::Tensor<double, 4> bias(2, 3, 4, 7);
  bias.setRandom();
  const auto user = [](auto s, Position at) { return s * s / (1 + abs(s)) - 0.1 * at.distance() * s; };
  expect_score_derivative("NoScore", attn::NoScore{});
  expect_score_derivative("SoftCap", attn::SoftCap(2.F));
  expect_score_derivative("Alibi", attn::Alibi(3));
  expect_score_derivative("ScoreBias", attn::ScoreBias(bias));
  expect_score_derivative("a lambda", user);
  expect_score_derivative("Chain", attn::Chain{user, attn::SoftCap(3.F), attn::ScoreBias(bias), user, attn::Alibi(3)});
}

TEST(ScoreDerivative, IsTheFunctionsOwnWhereItHasOne) {
  EXPECT_EQ(attn::detail::score_with_derivative<double>(WithItsOwn{}, 3.0, Position{}).derivative, 7.0);
  const auto twice = [](auto s, Position) { return 2 * s; };
  const attn::Chain chain{twice, WithItsOwn{}, twice};
  EXPECT_EQ(attn::detail::score_with_derivative<double>(chain, 3.0, Position{}).value, 72.0);
  EXPECT_EQ(attn::detail::score_with_derivative<double>(chain, 3.0, Position{}).derivative, 28.0);
}

static_assert(attn::detail::Differentiable<WithItsOwn, double>);
static_assert(attn::detail::Differentiable<attn::Chain<attn::SoftCap, attn::Chain<WithItsOwn, attn::Alibi>>, double>);

/// Takes a number, so that dual numbers cannot pass.
struct WithoutADerivative {
  double operator()(double score, Position) const { return score; }
};

TEST(ScoreDerivative, OfAChainNeedsThatOfEveryLink) {
  using attn::detail::Differentiable;
  using Nested = attn::Chain<attn::SoftCap, attn::Chain<attn::Alibi, WithoutADerivative>>;
  EXPECT_FALSE((Differentiable<WithoutADerivative, double>));
  EXPECT_FALSE((Differentiable<attn::Chain<WithoutADerivative>, double>));
  EXPECT_FALSE((Differentiable<Nested, double>));
  EXPECT_TRUE((attn::ScoreFunction<Nested, double>));
}

TEST(ScoreDerivative, OfABiasIsThatOfWhatFollowsIt) {
  attn::Tensor<double, 1> bias(7);
  bias.setRandom();
  const auto twice = [](auto s, Position) { return 2 * s; };
  const auto square = [](auto s, Position) { return s * s; };
  const Position at{0, 0, 3, 5, 2};
  EXPECT_EQ(attn::detail::score_with_bias_derivative<double>(attn::ScoreBias(bias), 3.0, at).derivative, 1.0);
  const attn::Chain chain{twice, attn::ScoreBias(bias), square};
  EXPECT_NEAR(attn::detail::score_with_bias_derivative<double>(chain, 3.0, at).derivative, 2 * (6.0 + bias(2)), 1e-12);
  EXPECT_EQ(attn::detail::score_biases<std::remove_cvref_t<decltype(chain)>>, 1);
}

}  // namespace
