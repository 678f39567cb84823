#include <attn/attn.hpp>

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

namespace {

using attn::Accumulator;
using attn::Index;
using attn::RmsNorm;
using attn::Tensor;

double value(Index i) { return std::sin(0.7 * static_cast<double>(i)) * 3.0; }

template <class X>
void fill(X& x) {
  using T = std::remove_cvref_t<decltype(*x.data())>;
  for (Index i = 0; i < static_cast<Index>(x.size()); ++i) x.data()[i] = static_cast<T>(value(i));
}

/// PyTorch's formula, in double, of elements as they are stored.
template <class T>
double expected(const T* row, const T* weight, Index size, Index i, double epsilon) {
  double squares = 0.0;
  for (Index j = 0; j < size; ++j) squares += static_cast<double>(row[j]) * static_cast<double>(row[j]);
  return static_cast<double>(row[i]) / std::sqrt(squares / static_cast<double>(size) + epsilon) *
         static_cast<double>(weight[i]);
}

/// The distance of 1 from the next number of a type.
template <class T>
double step_of() {
  if (std::is_same_v<T, double>) return std::numeric_limits<double>::epsilon();
  if (std::is_same_v<T, float>) return double{std::numeric_limits<float>::epsilon()};
  return std::is_same_v<T, Eigen::half> ? 0x1p-10 : 0x1p-7;
}

template <class T>
class RmsNormOf : public testing::Test {};
using Types = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(RmsNormOf, Types);

TYPED_TEST(RmsNormOf, FollowsTheFormula) {
  using T = TypeParam;
  for (const Index size : {1, 2, 7, 64, 511, 512, 513, 1100}) {
    RmsNorm<T> norm(size, 1e-3);
    Tensor<T, 1> weight(size);
    Tensor<T, 2> x(3, size);
    fill(weight);
    fill(x);
    norm.set_weight(weight);
    const Tensor<T, 2> y = norm(x);
    // Rounded once to T; the mean, its root and two products add some roundings of the accumulator.
    const double bar = 0.5 * step_of<T>() + 8.0 * step_of<Accumulator<T>>();
    for (Index r = 0; r < 3; ++r)
      for (Index i = 0; i < size; ++i) {
        const double right = expected(x.data() + r * size, weight.data(), size, i, 1e-3);
        EXPECT_NEAR(static_cast<double>(y(r, i)), right, bar * std::fabs(right) + 1e-7) << size << ' ' << r << ' ' << i;
      }
  }
}

TYPED_TEST(RmsNormOf, HasAWeightOfOneAtFirst) {
  RmsNorm<TypeParam> norm(3, 0.0);
  Tensor<TypeParam, 1> x(3);
  x.setConstant(TypeParam(4));
  const Tensor<TypeParam, 1> y = norm.forward(x);
  for (Index i = 0; i < 3; ++i) {
    EXPECT_EQ(static_cast<double>(norm.weight()(i)), 1.0);
    EXPECT_EQ(static_cast<double>(y(i)), 1.0);
  }
}

TYPED_TEST(RmsNormOf, WithOnePlusWeightIsTheNormOfTheSumOfBoth) {
  using T = TypeParam;
  constexpr Index size = 600;
  RmsNorm<T> plus(size, 1e-6, attn::NormFactor::one_plus_weight), plain(size, 1e-6);
  Tensor<T, 2> x(3, size), grad(3, size);
  fill(x);
  for (Index i = 0; i < grad.size(); ++i) grad.data()[i] = static_cast<T>(std::cos(0.3 * static_cast<double>(i)));
  const auto same = [](const auto& a, const auto& b) {
    for (Index i = 0; i < static_cast<Index>(a.size()); ++i)
      EXPECT_EQ(static_cast<double>(a.data()[i]), static_cast<double>(b.data()[i])) << i;
  };
  same(plus.forward(x), plain.forward(x));  // 1 + 0
  Tensor<T, 1> weight(size), sum(size);
  for (Index i = 0; i < size; ++i) {
    weight(i) = static_cast<T>(static_cast<double>(i % 5 - 2) / 8);  // exact in every type
    sum(i) = static_cast<T>(1 + static_cast<double>(i % 5 - 2) / 8);
  }
  plus.set_weight(weight), plain.set_weight(sum);
  same(plus.weight(), weight);
  same(plus.forward(x), plain.forward(x));
  same(plus.backward(grad, x), plain.backward(grad, x));
  same(plus.weight_gradient(), plain.weight_gradient());
}

TYPED_TEST(RmsNormOf, MayWriteOverItsInput) {
  RmsNorm<TypeParam> norm(130);
  Tensor<TypeParam, 3> x(2, 3, 130);
  fill(x);
  const Tensor<TypeParam, 3> y = norm(x);
  norm.forward_into(x, x);
  for (Index i = 0; i < x.size(); ++i) EXPECT_EQ(static_cast<double>(x.data()[i]), static_cast<double>(y.data()[i]));
}

TEST(RmsNorm, GivesARowTheSameInAnyBatch) {
  RmsNorm<float> norm(700);
  Tensor<float, 2> x(40, 700);
  fill(x);
  const Tensor<float, 2> y = norm(x);
  for (Index r = 0; r < 40; ++r) {
    const Tensor<float, 1> alone = norm(attn::TensorMap<const float, 1>(x.data() + r * 700, 700));
    for (Index i = 0; i < 700; ++i) EXPECT_EQ(alone(i), y(r, i));
  }
}

TEST(RmsNorm, KeepsNanInItsOwnRow) {
  RmsNorm<float> norm(8);
  Tensor<float, 2> x(3, 8);
  fill(x);
  x(1, 2) = std::numeric_limits<float>::quiet_NaN();
  const Tensor<float, 2> y = norm(x);
  for (Index i = 0; i < 8; ++i) {
    EXPECT_FALSE(std::isnan(y(0, i)));
    EXPECT_TRUE(std::isnan(y(1, i)));
    EXPECT_FALSE(std::isnan(y(2, i)));
  }
}

TEST(RmsNorm, StaysExactOverAWideRow) {
  constexpr Index size = Index{1} << 20;
  RmsNorm<float> norm(size, 0.0);
  Tensor<float, 1> x(size);
  for (Index i = 0; i < size; ++i) x(i) = 1.0F + 0x1p-10F * static_cast<float>(i % 7);
  const Tensor<float, 1> y = norm(x), one = norm.weight();
  for (const Index i : {Index{0}, Index{5}, size - 1})
    EXPECT_NEAR(double{y(i)}, expected(x.data(), one.data(), size, i, 0.0), 3e-7);
}

TEST(RmsNorm, GivesNoRowsForNoRows) {
  RmsNorm<float> norm(8);
  EXPECT_EQ(norm(Tensor<float, 2>(0, 8)).size(), 0);
}

// PyTorch gives 0 / 0 as well.
TEST(RmsNorm, GivesNanForZerosWithoutAnEpsilon) {
  RmsNorm<float> norm(4, 0.0);
  Tensor<float, 1> x(4);
  x.setZero();
  EXPECT_TRUE(std::isnan(norm(x)(0)));
  EXPECT_EQ(RmsNorm<float>(4)(x)(0), 0.0F);
}

template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const attn::Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(RmsNorm, RefusesBadInput) {
  EXPECT_EQ(error_of([] { static_cast<void>(RmsNorm<float>(0)); }), "[attn::RmsNorm] size, expected at least 1, got 0");
  EXPECT_EQ(error_of([] { static_cast<void>(RmsNorm<float>(4, -1.0)); }),
            "[attn::RmsNorm] epsilon, expected a number from 0 on, got -1");
  EXPECT_NE(error_of([] { static_cast<void>(RmsNorm<float>(4, std::numeric_limits<double>::quiet_NaN())); }),
            "no error");
  EXPECT_NE(error_of([] { static_cast<void>(RmsNorm<double>(std::numeric_limits<Index>::max())); }), "no error");
  RmsNorm<float> norm(4);
  EXPECT_EQ(error_of([&] { static_cast<void>(norm(Tensor<float, 2>(2, 5))); }),
            "[attn::RmsNorm::forward] input, expected a last dimension of 4, got [2,5]");
  EXPECT_EQ(error_of([&] { norm.set_weight(Tensor<float, 1>(3)); }),
            "[attn::RmsNorm::set_weight] weight [size], expected [4], got [3]");
  Tensor<float, 2> x(2, 4), y(3, 4);
  EXPECT_EQ(error_of([&] { norm.forward_into(y, x); }), "[attn::RmsNorm::forward] output, expected [2,4], got [3,4]");
  Tensor<float, 2> wide(2, 8);
  const attn::View<float, 2> gaps(wide.data(), {2, 4}, {8, 1});
  EXPECT_EQ(error_of([&] { norm.forward_into(gaps, x); }), "[attn::RmsNorm::forward] views, expected packed tensors");
  Tensor<float, 1> buffer(12);
  EXPECT_NE(error_of([&] {
              norm.forward_into(attn::TensorMap<float, 2>(buffer.data() + 4, 2, 4),
                                attn::TensorMap<float, 2>(buffer.data(), 2, 4));
            }),
            "no error");
}

TEST(RmsNorm, RefusesToRunOnceMovedFrom) {
  RmsNorm<float> norm(4);
  const RmsNorm<float> taken(std::move(norm));
  EXPECT_EQ(taken.size(), 4);
  EXPECT_EQ(norm.size(), 0);  // NOLINT: what is promised of it
  EXPECT_EQ(error_of([&] { static_cast<void>(norm(Tensor<float, 1>(4))); }),
            "[attn::RmsNorm::forward] module, expected one with a weight, got one moved from");
}

/// PyTorch's formula, in double, of elements as they are stored.
struct Gradients {
  Tensor<double, 2> x;
  Tensor<double, 1> weight;
};
template <class T>
Gradients expected_gradients(const Tensor<T, 2>& grad_y, const Tensor<T, 2>& x, const Tensor<T, 1>& weight,
                             double epsilon) {
  const Index rows = x.dimension(0), size = x.dimension(1);
  Gradients result{Tensor<double, 2>(rows, size), Tensor<double, 1>(size)};
  result.weight.setZero();
  for (Index r = 0; r < rows; ++r) {
    double squares = 0.0, products = 0.0;
    for (Index i = 0; i < size; ++i) {
      squares += static_cast<double>(x(r, i)) * static_cast<double>(x(r, i));
      products += static_cast<double>(grad_y(r, i)) * static_cast<double>(weight(i)) * static_cast<double>(x(r, i));
    }
    const double root = 1.0 / std::sqrt(squares / static_cast<double>(size) + epsilon);
    for (Index i = 0; i < size; ++i) {
      result.x(r, i) = root * static_cast<double>(grad_y(r, i)) * static_cast<double>(weight(i)) -
                       static_cast<double>(x(r, i)) * root * root * root * products / static_cast<double>(size);
      result.weight(i) += static_cast<double>(grad_y(r, i)) * static_cast<double>(x(r, i)) * root;
    }
  }
  return result;
}

TYPED_TEST(RmsNormOf, HasTheGradientsOfTheFormula) {
  using T = TypeParam;
  for (const Index size : {1, 2, 7, 64, 511, 513, 1100}) {
    RmsNorm<T> norm(size, 1e-3);
    Tensor<T, 1> weight(size);
    Tensor<T, 2> x(70, size), grad_y(70, size);
    fill(weight);
    fill(x);
    for (Index i = 0; i < grad_y.size(); ++i) grad_y.data()[i] = static_cast<T>(std::cos(0.3 * static_cast<double>(i)));
    norm.set_weight(weight);
    const Tensor<T, 2> grad_x = norm.backward(grad_y, x);
    const Gradients right = expected_gradients(grad_y, x, weight, 1e-3);
    const double bar = 64.0 * step_of<Accumulator<T>>();
    for (Index i = 0; i < right.x.size(); ++i)
      ASSERT_NEAR(static_cast<double>(grad_x.data()[i]), right.x.data()[i],
                  0.5 * step_of<T>() * std::fabs(right.x.data()[i]) + bar)
          << size << ' ' << i;
    const Tensor<Accumulator<T>, 1> gradient = norm.weight_gradient();
    for (Index i = 0; i < size; ++i)
      ASSERT_NEAR(static_cast<double>(gradient(i)), right.weight(i), 4.0 * bar) << size << ' ' << i;
  }
}

TEST(RmsNormBackward, AgreesWithCentralDifferences) {
  RmsNorm<double> norm(5, 1e-3);
  Tensor<double, 2> x(3, 5), grad_y(3, 5);
  fill(x);
  for (Index i = 0; i < 15; ++i) grad_y.data()[i] = std::cos(2.0 * static_cast<double>(i));
  const auto loss = [&] {
    const Tensor<double, 2> y = norm(x);
    double sum = 0.0;
    for (Index i = 0; i < y.size(); ++i) sum += y.data()[i] * grad_y.data()[i];
    return sum;
  };
  const auto expect = [&](double& value, double gradient) {
    const double before = value;
    value = before + 1e-5;
    const double above = loss();
    value = before - 1e-5;
    const double below = loss();
    value = before;
    EXPECT_NEAR((above - below) / 2e-5, gradient, 1e-6 * std::max(1.0, std::fabs(gradient)));
  };
  const Tensor<double, 2> grad_x = norm.backward(grad_y, x);
  for (Index i = 0; i < 15; ++i) expect(x.data()[i], grad_x.data()[i]);
  const auto weight = norm.parameters().at(0);
  EXPECT_EQ(weight.name(), "weight");
  for (std::size_t i = 0; i < 5; ++i) expect(weight.values()[i], weight.gradient()[i]);
}

TEST(RmsNormBackward, HasTheSameBitsForAnyNumberOfThreads) {
  Tensor<float, 2> x(1000, 600), grad_y(1000, 600);
  fill(x);
  for (Index i = 0; i < grad_y.size(); ++i) grad_y.data()[i] = static_cast<float>(std::cos(0.3 * double(i)));
  const auto on = [&](int threads) {
    attn::ThreadPool pool(threads);
    const attn::UseExecutor use(pool);
    RmsNorm<float> norm(600);
    return std::pair(Tensor<float, 2>(norm.backward(grad_y, x)), norm.weight_gradient());
  };
  const auto [grad_x, gradient] = on(1);
  for (const int threads : {2, 3, 5, 16}) {
    const auto [other_x, other] = on(threads);
    EXPECT_EQ(std::memcmp(grad_x.data(), other_x.data(), 600000 * sizeof(float)), 0) << threads;
    EXPECT_EQ(std::memcmp(gradient.data(), other.data(), 600 * sizeof(float)), 0) << threads;
  }
}

TEST(RmsNormBackward, LosesNothingOverManyRows) {
  constexpr Index rows = 100000;
  RmsNorm<float> norm(4);
  Tensor<float, 2> x(rows, 4), grad_y(rows, 4);
  for (Index i = 0; i < x.size(); ++i)
    x.data()[i] = 1.F + static_cast<float>(i % 7) * 0.1F, grad_y.data()[i] = 1.F + static_cast<float>(i % 11) * 0.1F;
  (void)norm.backward(grad_y, x);
  const Gradients right = expected_gradients(grad_y, x, norm.weight(), norm.epsilon());
  for (Index i = 0; i < 4; ++i) EXPECT_NEAR(norm.weight_gradient()(i), right.weight(i), 2e-7 * right.weight(i));
}

TEST(RmsNormBackward, AddsToTheGradientUntilItIsZeroed) {
  RmsNorm<float> norm(6);
  Tensor<float, 2> x(3, 6);
  fill(x);
  EXPECT_EQ(norm.weight_gradient()(2), 0.F);
  (void)norm.backward(x, x);
  const float once = norm.weight_gradient()(2);
  RmsNorm<float> copy = norm;
  (void)norm.backward(x, x);
  EXPECT_EQ(norm.weight_gradient()(2), 2.F * once);
  EXPECT_EQ(copy.weight_gradient()(2), once);
  norm.zero_gradients();
  EXPECT_EQ(norm.weight_gradient()(2), 0.F);
}

TEST(RmsNormBackward, MayWriteOverEitherInput) {
  RmsNorm<float> norm(700);
  Tensor<float, 2> x(3, 700), grad_y(3, 700);
  fill(x);
  for (Index i = 0; i < grad_y.size(); ++i) grad_y.data()[i] = x.data()[(i * 5) % 700];
  const Tensor<float, 2> right = norm.backward(grad_y, x);
  Tensor<float, 2> over_x = x, over_y = grad_y;
  norm.backward_into(over_x, grad_y, over_x);
  norm.backward_into(over_y, over_y, x);
  EXPECT_EQ(std::memcmp(over_x.data(), right.data(), 2100 * sizeof(float)), 0);
  EXPECT_EQ(std::memcmp(over_y.data(), right.data(), 2100 * sizeof(float)), 0);
}

TEST(RmsNormBackward, RefusesBadInputAndChangesNothing) {
  RmsNorm<float> norm(4);
  Tensor<float, 2> x(2, 4), bad(2, 5), few(1, 4);
  fill(x);
  (void)norm.backward(x, x);
  const float before = norm.weight_gradient()(1);
  EXPECT_EQ(error_of([&] { (void)norm.backward(bad, bad); }),
            "[attn::RmsNorm::backward] input, expected a last dimension of 4, got [2,5]");
  EXPECT_EQ(error_of([&] { (void)norm.backward(few, x); }),
            "[attn::RmsNorm::backward] grad_y, expected [2,4], got [1,4]");
  EXPECT_EQ(error_of([&] { norm.backward_into(few, x, x); }),
            "[attn::RmsNorm::backward] grad_x, expected [2,4], got [1,4]");
  EXPECT_EQ(norm.weight_gradient()(1), before);
  const RmsNorm<float> taken(std::move(norm));
  EXPECT_EQ(error_of([&] { (void)norm.parameters(); }),  // NOLINT: what is promised of it
            "[attn::RmsNorm::parameters] module, expected one with a weight, got one moved from");
}

}  // namespace
