#include <attn/attn.hpp>

#include <gtest/gtest.h>

#include <array>
#include <cmath>
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

}  // namespace
