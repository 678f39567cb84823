#include "module_support.hpp"

namespace {

using attn::Index;
using attn::Softmax;
using attn::Tensor;
using attn::TensorMap;
using attn::View;
using attn_test::cast;
using attn_test::expect_error;
using attn_test::max_difference;
using attn_test::random_tensor;
using attn_test::same_bits;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

/// The definition, in type A: exp(x - max) / sum of these.
template <class A, class T>
Tensor<A, 2> plain_softmax(const Tensor<T, 2>& x) {
  auto y = cast<A>(x);
  const Index columns = x.dimension(1);
  for (Index r = 0; r < x.dimension(0); ++r) {
    A top = y(r, 0), sum = 0;
    for (Index c = 0; c < columns; ++c) top = std::max(top, y(r, c));
    for (Index c = 0; c < columns; ++c) sum += y(r, c) = std::exp(y(r, c) - top);
    for (Index c = 0; c < columns; ++c) y(r, c) /= sum;
  }
  return y;
}

TEST(Softmax, IsAsExactAsThePlainFormulaForWidthsTo1000) {
  for (Index columns = 1; columns <= 1000; columns += columns < 140 ? 1 : 43) {
    const auto x = random_tensor<float, 2>({6, columns}, static_cast<unsigned>(columns), 8.0);
    const auto exact = plain_softmax<double>(x);
    const double plain = max_difference(plain_softmax<float>(x), exact);
    // The floor: 2 ulps of the largest output, where the plain formula happens to be better than its exp can promise
    // (1 ulp: one width in 150 missed it, whatever the instruction set).
    const double bar = std::max(2.0 * plain, 2.0 * attn_test::largest(exact) * attn_test::float_epsilon);
    EXPECT_LE(max_difference(Softmax<float>()(x), exact), bar) << columns << " columns";
  }
}

TEST(Softmax, ComputesInDoubleForDouble) {
  for (const Index columns : {1, 2, 7, 8, 9, 33, 100, 777}) {
    const auto x = random_tensor<double, 2>({5, columns}, static_cast<unsigned>(columns), 8.0);
    EXPECT_LE(max_difference(Softmax<double>()(x), plain_softmax<double>(x)), 1e-15) << columns << " columns";
  }
}

template <class T>
class SoftmaxStoredLow : public testing::Test {};
using Low = testing::Types<Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(SoftmaxStoredLow, Low);

TYPED_TEST(SoftmaxStoredLow, RoundsOnceAtTheEnd) {
  for (const Index columns : {1, 5, 16, 31, 100}) {
    const auto x = random_tensor<TypeParam, 2>({7, columns}, static_cast<unsigned>(columns), 8.0);
    const auto y = Softmax<TypeParam>()(x);
    const auto exact = plain_softmax<double>(x);
    for (Index i = 0; i < y.size(); ++i) {  // half an ulp, a little for the float before it, and half's subnormal step
      const double bar = std::abs(exact.data()[i]) * (attn_test::storage_error<TypeParam> + 1e-5) + 0x1p-25;
      EXPECT_NEAR(static_cast<double>(y.data()[i]), exact.data()[i], bar);
    }
  }
}

TEST(Softmax, TakesTheLastAxisOfAnyRankTo4) {
  const auto x = random_tensor<float, 2>({24, 5}, 1, 4.0);
  const Tensor<float, 2> y = Softmax<float>()(x);
  const Softmax<float> softmax;
  const auto same = [&](const auto& tensor) { return std::memcmp(tensor.data(), y.data(), sizeof(float) * 120) == 0; };
  EXPECT_TRUE(same(softmax.forward(Tensor<float, 3>(x.reshape(Eigen::array<Index, 3>{4, 6, 5})))));
  EXPECT_TRUE(same(softmax.forward(Tensor<float, 4>(x.reshape(Eigen::array<Index, 4>{2, 3, 4, 5})))));
  for (Index r = 0; r < 24; ++r) {
    const Tensor<float, 1> row = softmax(TensorMap<const float, 1>(x.data() + r * 5, 5));
    EXPECT_EQ(std::memcmp(row.data(), y.data() + r * 5, sizeof(float) * 5), 0);
  }
}

TEST(Softmax, SumsToOneAndDoesNotDependOnAShift) {
  const auto x = random_tensor<double, 2>({9, 77}, 2, 10.0);
  Tensor<double, 2> shifted = x + x.constant(1024.0);
  const auto y = Softmax<double>()(x);
  for (Index r = 0; r < 9; ++r) {
    double sum = 0.0;
    for (Index c = 0; c < 77; ++c) sum += y(r, c);
    EXPECT_NEAR(sum, 1.0, 1e-14);
  }
  EXPECT_LE(max_difference(Softmax<double>()(shifted), y), 1e-12);
}

TEST(Softmax, HandlesLargeMagnitudes) {
  constexpr float most = std::numeric_limits<float>::max();
  Tensor<float, 2> x(4, 3);
  x.setValues({{most, -most, most}, {-most, -most, -most}, {1e30F, 0.F, -1e30F}, {-1000.F, -1000.F, -2000.F}});
  Tensor<float, 2> expected(4, 3);
  expected.setValues({{.5F, 0.F, .5F}, {1.F / 3.F, 1.F / 3.F, 1.F / 3.F}, {1.F, 0.F, 0.F}, {.5F, .5F, 0.F}});
  EXPECT_LE(max_difference(Softmax<float>()(x), expected), attn_test::float_epsilon);
}

TEST(Softmax, TakesTheLowestDoubleAsANumber) {
  constexpr double lowest = std::numeric_limits<double>::lowest();
  const auto row = [](double first, double others) {
    Tensor<double, 1> x(11);
    x.setConstant(others);
    x(0) = first;
    return Softmax<double>()(x);
  };
  const auto equal = row(lowest, lowest), above = row(lowest, -attn_test::infinity), below = row(lowest, -1e300);
  for (Index c = 0; c < 11; ++c) {
    EXPECT_DOUBLE_EQ(equal(c), 1.0 / 11.0);
    EXPECT_EQ(above(c), c == 0 ? 1.0 : 0.0);
    EXPECT_NEAR(below(c), c == 0 ? 0.0 : 0.1, 1e-15);
  }
}

TEST(Softmax, GivesZerosForARowOfMinusInfinity) {
  for (const Index columns : {1, 3, 16, 17, 100}) {
    Tensor<float, 2> x = random_tensor<float, 2>({3, columns}, 3);
    x.chip(1, 0).setConstant(-infinity);
    const auto y = Softmax<float>()(x);
    for (Index c = 0; c < columns; ++c) EXPECT_EQ(y(1, c), 0.F);
    EXPECT_GT(y(0, 0), 0.F);
    EXPECT_GT(y(2, 0), 0.F);
  }
}

TEST(Softmax, GivesMinusInfinityNoWeight) {
  for (const Index columns : {2, 9, 40}) {
    Tensor<float, 2> x = random_tensor<float, 2>({1, columns}, 3);
    x(0, columns - 1) = -infinity;
    Tensor<float, 2> rest(1, columns - 1);
    for (Index c = 0; c + 1 < columns; ++c) rest(0, c) = x(0, c);
    const auto y = Softmax<float>()(x), of_rest = Softmax<float>()(rest);
    EXPECT_EQ(y(0, columns - 1), 0.F);
    for (Index c = 0; c + 1 < columns; ++c) EXPECT_NEAR(y(0, c), of_rest(0, c), attn_test::float_epsilon);
  }
}

TEST(Softmax, KeepsNanInItsRow) {
  for (const Index columns : {1, 5, 16, 33})
    for (const Index at : {Index{0}, columns / 2, columns - 1}) {
      Tensor<float, 2> x = random_tensor<float, 2>({5, columns}, 4);
      const auto clean = Softmax<float>()(x);
      x(2, at) = nan;
      if (columns > 1) x(4, at) = nan, x(4, (at + 1) % columns) = -infinity;
      const auto y = Softmax<float>()(x);
      for (Index c = 0; c < columns; ++c) {
        for (const Index r : {0, 1, 3}) EXPECT_EQ(y(r, c), clean(r, c));
        EXPECT_TRUE(std::isnan(y(2, c))) << columns << " columns, NaN at " << at;
        EXPECT_TRUE(columns == 1 || std::isnan(y(4, c)));
      }
    }
}

// A long tail of small weights follows a large one.
TEST(Softmax, SumsToOneOverAWideRow) {
  for (const Index columns : {262144, 1048576}) {
    Tensor<float, 2> x(1, columns);
    x.setConstant(std::log(0.1F));
    x(0, 0) = 0.F;
    const auto y = Softmax<float>()(x);
    double sum = 0;
    for (Index c = 0; c < columns; ++c) sum += static_cast<double>(y(0, c));
    EXPECT_NEAR(sum, 1.0, 1e-6) << columns;
  }
}

TEST(Softmax, WritesIntoTheCallersMemoryAndInPlace) {
  auto x = random_tensor<float, 3>({2, 3, 19}, 5, 4.0);
  const Softmax<float> softmax;
  const auto expected = softmax.forward(x);
  std::vector<float> memory(2 * 3 * 19 + 1, 77.F);
  softmax.forward_into(TensorMap<float, 3>(memory.data(), 2, 3, 19), x);
  EXPECT_EQ(std::memcmp(memory.data(), expected.data(), sizeof(float) * 114), 0);
  EXPECT_EQ(memory.back(), 77.F);
  softmax.forward_into(x, x);
  EXPECT_TRUE(same_bits(x, expected));
}

TEST(Softmax, RefusesAnOutputThatSharesSomeMemoryWithTheInput) {
  auto x = random_tensor<float, 2>({4, 5}, 5);
  const Tensor<float, 2> before = x;
  const attn::View<float, 2> upper(x.data(), {3, 5}), lower(x.data() + 5, {3, 5}), last(x.data() + 15, {1, 5});
  for (const auto& pair : {std::pair{upper, lower}, {lower, upper}})
    expect_error([&] { Softmax<float>().forward_into(pair.first, pair.second); },
                 {"[attn::Softmax", "output", "memory of its own", "input"});
  EXPECT_TRUE(same_bits(x, before));
  Softmax<float>().forward_into(last, attn::View<float, 2>(x.data() + 10, {1, 5}));  // beside it
  EXPECT_FALSE(same_bits(x, before));
}

TEST(Softmax, RefusesRowsTooLongForScratchMemory) {
  const Eigen::half x[1] = {};
  const attn::View<const Eigen::half, 1> wide(x, {(Index{1} << 62) - 1});
  Eigen::half y[1];
  expect_error(
      [&] { Softmax<Eigen::half>().forward_into(attn::View<Eigen::half, 1>(y, {(Index{1} << 62) - 1}), wide); },
      {"[attn::Softmax"});
}

TEST(Softmax, DoesNotDependOnTheNumberOfThreads) {
  const auto x = random_tensor<float, 2>({301, 65}, 6, 4.0);
  attn::SerialExecutor serial;
  attn::ThreadPool pool(3);
  const auto on = [&](attn::Executor& executor) {
    const attn::UseExecutor use(executor);
    return Softmax<float>()(x);
  };
  EXPECT_TRUE(same_bits(on(serial), on(pool)));
}

TEST(Softmax, GivesNothingForNothing) {
  EXPECT_EQ(Softmax<float>()(Tensor<float, 2>(0, 5)).size(), 0);
  EXPECT_EQ(Softmax<float>()(Tensor<float, 2>(5, 0)).size(), 0);
}

TEST(Softmax, RefusesAnotherOutputShapeAndGapsBetweenRows) {
  const auto x = random_tensor<float, 3>({2, 3, 8}, 7);
  Tensor<float, 3> y(2, 8, 3);
  expect_error([&] { Softmax<float>().forward_into(y, x); }, {"[attn::Softmax", "expected [2,3,8]", "got [2,8,3]"});
  expect_error([&] { Softmax<float>().forward_into(Tensor<float, 4>(2, 2, 3, 4), attn::split_heads(x, 2)); },
               {"[attn::Softmax", "packed"});
}

/// y (grad_y - sum of grad_y y) in double.
Tensor<double, 2> plain_gradient(const Tensor<double, 2>& grad_y, const Tensor<double, 2>& y) {
  Tensor<double, 2> grad_x(y.dimensions());
  for (Index r = 0; r < y.dimension(0); ++r) {
    double sum = 0.0;
    for (Index c = 0; c < y.dimension(1); ++c) sum += grad_y(r, c) * y(r, c);
    for (Index c = 0; c < y.dimension(1); ++c) grad_x(r, c) = y(r, c) * (grad_y(r, c) - sum);
  }
  return grad_x;
}

template <class T>
class SoftmaxBackwardOf : public testing::Test {};
using Stored = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(SoftmaxBackwardOf, Stored);

TYPED_TEST(SoftmaxBackwardOf, FollowsTheFormula) {
  using T = TypeParam;
  for (const Index columns : {1, 2, 7, 64, 511, 513, 1500}) {
    const Tensor<T, 2> y = Softmax<T>()(random_tensor<T, 2>({5, columns}, 1, 3.0));
    const auto grad_y = random_tensor<T, 2>({5, columns}, 2);
    const auto right = plain_gradient(cast<double>(grad_y), cast<double>(y));
    const Tensor<T, 2> grad_x = Softmax<T>().backward(grad_y, y);
    const double rounding = attn::kernel::is_converted<attn::kernel::Stored<T>> ? attn_test::storage_error<T> : 0.0;
    const double bar = (std::is_same_v<T, double> ? 1e-15 : 5e-7) * attn_test::largest(cast<double>(y)) * 4.0;
    for (Index i = 0; i < right.size(); ++i)
      ASSERT_NEAR(static_cast<double>(grad_x.data()[i]), right.data()[i],
                  rounding * std::abs(right.data()[i]) + bar + (rounding > 0.0 ? 6e-8 : 0.0))
          << columns << ' ' << i;
  }
}

TEST(SoftmaxBackward, AgreesWithCentralDifferences) {
  auto x = random_tensor<double, 2>({3, 9}, 1);
  const auto grad_y = random_tensor<double, 2>({3, 9}, 2);
  const Tensor<double, 2> grad_x = Softmax<double>().backward(grad_y, Softmax<double>()(x));
  const auto loss = [&] {
    const Tensor<double, 2> y = Softmax<double>()(x);
    double sum = 0.0;
    for (Index i = 0; i < y.size(); ++i) sum += y.data()[i] * grad_y.data()[i];
    return sum;
  };
  constexpr double step = 1e-5;
  for (Index i = 0; i < x.size(); ++i) {
    const double before = x.data()[i];
    x.data()[i] = before + step;
    const double above = loss();
    x.data()[i] = before - step;
    const double below = loss();
    x.data()[i] = before;
    EXPECT_NEAR((above - below) / (2.0 * step), grad_x.data()[i], 1e-6 * attn_test::largest(grad_x));
  }
}

TEST(SoftmaxBackward, GivesZeroForARowWithoutKeys) {
  Tensor<float, 2> x(1, 5);
  x.setConstant(-infinity);
  const Tensor<float, 2> grad_x = Softmax<float>().backward(random_tensor<float, 2>({1, 5}, 1), Softmax<float>()(x));
  EXPECT_TRUE(same_bits(Tensor<float, 2>(grad_x.abs()), attn_test::filled<float, 2>({1, 5}, 0.F)));
}

TEST(SoftmaxBackward, MayWriteOverEitherInput) {
  const Tensor<float, 2> y = Softmax<float>()(random_tensor<float, 2>({4, 700}, 1));
  const auto grad_y = random_tensor<float, 2>({4, 700}, 2);
  const Tensor<float, 2> right = Softmax<float>().backward(grad_y, y);
  Tensor<float, 2> over_y = y, over_grad_y = grad_y;
  Softmax<float>().backward_into(over_y, grad_y, over_y);
  Softmax<float>().backward_into(over_grad_y, over_grad_y, y);
  EXPECT_TRUE(same_bits(over_y, right));
  EXPECT_TRUE(same_bits(over_grad_y, right));
}

TEST(SoftmaxBackward, RefusesOtherShapes) {
  const Tensor<float, 2> y(2, 3), grad_y(2, 4);
  Tensor<float, 2> grad_x(3, 3);
  expect_error([&] { (void)Softmax<float>().backward(grad_y, y); },
               {"Softmax::backward", "grad_y, expected [2,3], got [2,4]"});
  expect_error([&] { Softmax<float>().backward_into(grad_x, y, y); },
               {"Softmax::backward", "grad_x, expected [2,3], got [3,3]"});
}

}  // namespace
