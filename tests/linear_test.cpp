#include "module_support.hpp"

#include <set>
#include <thread>

namespace {

using attn::Index;
using attn::Linear;
using attn::Tensor;
using attn::TensorMap;
using attn_test::cast;
using attn_test::expect_error;
using attn_test::largest;
using attn_test::max_difference;
using attn_test::random_tensor;
using attn_test::same_bits;

/// y = x WT + b by two loops, summed in type A: forwards, backwards, or from the middle on.
enum class Order { forwards, backwards, from_the_middle };
template <class A, class T>
Tensor<A, 2> plain(const Linear<T>& layer, const Tensor<T, 2>& x, Order order = Order::forwards) {
  Tensor<A, 2> y(x.dimension(0), layer.out_features());
  const auto weight = cast<A>(layer.weight());
  const auto bias = cast<A>(layer.bias());
  const auto input = cast<A>(x);
  const Index n = layer.in_features();
  for (Index r = 0; r < x.dimension(0); ++r)
    for (Index o = 0; o < layer.out_features(); ++o) {
      A sum = 0;
      for (Index i = 0; i < n; ++i) {
        const Index at = order == Order::forwards ? i : order == Order::backwards ? n - 1 - i : (i + n / 2) % n;
        sum += input(r, at) * weight(o, at);
      }
      y(r, o) = layer.has_bias() ? sum + bias(o) : sum;
    }
  return y;
}

/// Our float error, against double, is at most twice that of a plain float loop: of the worst of its three orders,
/// since the largest error of a few sums is much luck. The floor, where these happen to be exact: 1 ulp of the largest
/// output.
void expect_as_good_as_plain(Index in, Index out, Index rows, bool bias) {
  const Linear<float> layer(in, out, bias, static_cast<std::uint64_t>(in * 1000 + out));
  const auto x = random_tensor<float, 2>({rows, in}, static_cast<unsigned>(rows));
  const auto exact = plain<double>(layer, x);
  double bar = attn_test::float_epsilon * largest(exact);
  for (const Order order : {Order::forwards, Order::backwards, Order::from_the_middle})
    bar = std::max(bar, 2.0 * max_difference(plain<float>(layer, x, order), exact));
  EXPECT_LE(max_difference(layer(x), exact), bar)
      << "in " << in << ", out " << out << ", rows " << rows << ", bias " << bias;
}

TEST(Linear, IsAsExactAsAPlainLoopForEveryInputSizeTo130) {
  for (Index n = 1; n <= 130; ++n) expect_as_good_as_plain(n, 17, 5, n % 2 == 0);
}

TEST(Linear, IsAsExactAsAPlainLoopForEveryOutputSizeTo130) {
  for (Index n = 1; n <= 130; ++n) expect_as_good_as_plain(19, n, 5, n % 2 == 1);
}

TEST(Linear, IsAsExactAsAPlainLoopForEveryNumberOfRowsTo130) {
  for (Index n = 1; n <= 130; ++n) expect_as_good_as_plain(21, 18, n, true);
}

TEST(Linear, IsAsExactAsAPlainLoopForLargerSizes) {
  expect_as_good_as_plain(300, 530, 70, true);
  expect_as_good_as_plain(1030, 97, 33, true);
  expect_as_good_as_plain(2049, 65, 1, false);
  expect_as_good_as_plain(5, 1037, 3, true);
  expect_as_good_as_plain(47, 49, 403, true);
  expect_as_good_as_plain(2048, 100, 210,
                          true);  // rows of x 8 KB apart, several stretches of inputs and blocks of rows
  expect_as_good_as_plain(1101, 150, 400, false);
}

TEST(Linear, SumsInDoubleForDouble) {
  for (const auto& [in, out, rows] :
       {std::array<Index, 3>{1, 1, 1}, {3, 5, 2}, {33, 17, 9}, {300, 131, 20}, {64, 64, 64}}) {
    const Linear<double> layer(in, out, true, 3);
    const auto x = random_tensor<double, 2>({rows, in}, 4);
    EXPECT_LE(max_difference(layer(x), plain<double>(layer, x)), 1e-14) << in << " to " << out;
  }
}

template <class T>
class LinearStoredLow : public testing::Test {};
using Low = testing::Types<Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(LinearStoredLow, Low);

TYPED_TEST(LinearStoredLow, SumsInFloatAndRoundsOnce) {
  for (const auto& [in, out, rows] :
       {std::array<Index, 3>{1, 1, 1}, {7, 5, 3}, {48, 33, 1}, {129, 34, 11}, {1000, 20, 8}}) {
    const Linear<TypeParam> layer(in, out, true, 3);
    const auto x = random_tensor<TypeParam, 2>({rows, in}, 4);
    const auto y = layer(x);
    const auto exact = plain<double>(layer, x);
    for (Index i = 0; i < y.size(); ++i)
      EXPECT_NEAR(static_cast<double>(y.data()[i]), exact.data()[i],
                  attn_test::storage_error<TypeParam> * std::abs(exact.data()[i]) + 2e-6);
  }
}

// There are several blocks of inputs, and several panels of outputs in each task.
TYPED_TEST(LinearStoredLow, SumsManyInputsForManyOutputs) {
  attn::SerialExecutor serial;
  const attn::UseExecutor use(serial);
  for (const auto& [in, out, rows] :
       {std::array<Index, 3>{600, 150, 20}, {1101, 97, 1}, {530, 49, 200}, {2049, 240, 3}}) {
    const Linear<TypeParam> layer(in, out, true, 5);
    const auto x = random_tensor<TypeParam, 2>({rows, in}, 6);
    const auto y = layer(x);
    const auto exact = plain<double>(layer, x);
    for (Index i = 0; i < y.size(); ++i)
      ASSERT_NEAR(static_cast<double>(y.data()[i]), exact.data()[i],
                  attn_test::storage_error<TypeParam> * std::abs(exact.data()[i]) + 2e-6)
          << in << " to " << out << ", row " << i / out << ", output " << i % out;
  }
}

TEST(Linear, TakesTheLastAxisOfAnyRankTo4) {
  const Linear<float> layer(5, 3, true, 1);
  const auto x = random_tensor<float, 2>({24, 5}, 1);
  const Tensor<float, 2> y = layer(x);
  const Tensor<float, 3> y3 = layer.forward(Tensor<float, 3>(x.reshape(Eigen::array<Index, 3>{4, 6, 5})));
  const Tensor<float, 4> y4 = layer.forward(Tensor<float, 4>(x.reshape(Eigen::array<Index, 4>{2, 3, 4, 5})));
  EXPECT_EQ(y4.dimension(2), 4);
  EXPECT_EQ(y4.dimension(3), 3);
  EXPECT_EQ(std::memcmp(y3.data(), y.data(), sizeof(float) * 72), 0);
  EXPECT_EQ(std::memcmp(y4.data(), y.data(), sizeof(float) * 72), 0);
  for (Index r = 0; r < 24; ++r) {
    const Tensor<float, 1> one = layer(TensorMap<const float, 1>(x.data() + r * 5, 5));
    ASSERT_EQ(one.dimension(0), 3);
    for (Index o = 0; o < 3; ++o) EXPECT_NEAR(one(o), y(r, o), 4 * attn_test::float_epsilon);
  }
}

TEST(Linear, WritesIntoTheCallersMemoryAndNothingBesideIt) {
  for (const auto& [in, out, rows] : {std::array<Index, 3>{5, 3, 4}, {17, 21, 1}, {33, 50, 13}}) {
    const Linear<float> layer(in, out, true, 1);
    auto x = random_tensor<float, 2>({rows, in}, 1);
    const auto expected = layer(x);
    std::vector<float> memory(static_cast<std::size_t>(rows * out + 64), 77.F);
    TensorMap<float, 2> y(memory.data() + 32, rows, out);
    layer.forward_into(y, TensorMap<float, 2>(x.data(), rows, in));
    EXPECT_EQ(std::memcmp(y.data(), expected.data(), sizeof(float) * static_cast<std::size_t>(rows * out)), 0);
    for (std::size_t i = 0; i < 32; ++i) EXPECT_EQ(memory[i] + memory[memory.size() - 1 - i], 154.F);
  }
}

// A NaN in one row of x must not reach another row of the same tile.
TEST(Linear, KeepsNanInItsOwnRow) {
  const Linear<float> layer(33, 19, true, 1);
  auto x = random_tensor<float, 2>({21, 33}, 1);
  const auto clean = layer(x);
  x(10, 32) = std::numeric_limits<float>::quiet_NaN();
  const auto y = layer(x);
  for (Index r = 0; r < 21; ++r)
    for (Index o = 0; o < 19; ++o) {
      if (r == 10) {
        EXPECT_TRUE(std::isnan(y(r, o)));
      } else {
        EXPECT_EQ(y(r, o), clean(r, o));
      }
    }
}

TEST(Linear, WeightAndBiasComeBackAsTheyWereSet) {
  for (const auto& [in, out] : {std::array<Index, 2>{1, 1}, {7, 5}, {16, 16}, {33, 47}, {5, 100}}) {
    Linear<float> layer(in, out);
    const auto weight = random_tensor<float, 2>({out, in}, 1);
    const auto bias = random_tensor<float, 1>({out}, 2);
    layer.set_weight(weight);
    layer.set_bias(TensorMap<const float, 1>(bias.data(), out));
    EXPECT_TRUE(same_bits(layer.weight(), weight));
    EXPECT_TRUE(same_bits(layer.bias(), bias));
  }
}

TEST(Linear, MayHaveNoBias) {
  const Linear<float> layer(4, 3, false);
  EXPECT_FALSE(layer.has_bias());
  EXPECT_EQ(layer.bias().size(), 0);
  Tensor<float, 1> zero(4);
  zero.setZero();
  EXPECT_EQ(largest(layer(zero)), 0.0);
  EXPECT_TRUE(Linear<float>(4, 3).has_bias());
}

TEST(Linear, GivesTheBiasForAnInputOfZeros) {
  const Linear<float> layer(4, 37, true, 5);
  Tensor<float, 1> zero(4);
  zero.setZero();
  EXPECT_TRUE(same_bits(layer(zero), layer.bias()));
}

TEST(Linear, GivesNoRowsForNoRows) {
  const Linear<float> layer(4, 3);
  const Tensor<float, 3> y = layer(Tensor<float, 3>(2, 0, 4));
  EXPECT_EQ(y.dimension(0), 2);
  EXPECT_EQ(y.dimension(1), 0);
  EXPECT_EQ(y.dimension(2), 3);
  EXPECT_EQ(layer(Tensor<float, 2>(0, 4)).size(), 0);
}

// U(-1/sqrt(in), 1/sqrt(in)): 120000 draws; the mean within five standard deviations, the variance within 2 percent.
TEST(Linear, IsDrawnFromPyTorchsDefaultDistribution) {
  const Linear<double> layer(400, 300, true, 7);
  const auto weight = layer.weight();
  const double bound = 1.0 / 20.0;
  double sum = 0.0, squares = 0.0, least = 1.0, most = -1.0;
  std::set<double> distinct;
  for (Index i = 0; i < weight.size(); ++i) {
    const double w = weight.data()[i];
    sum += w, squares += w * w, least = std::min(least, w), most = std::max(most, w);
    distinct.insert(w);
  }
  const auto n = static_cast<double>(weight.size());
  EXPECT_GE(least, -bound);
  EXPECT_LE(most, bound);
  EXPECT_LT(least, -0.999 * bound);
  EXPECT_GT(most, 0.999 * bound);
  EXPECT_NEAR(sum / n, 0.0, 5.0 * bound / std::sqrt(3.0 * n));
  EXPECT_NEAR(squares / n, bound * bound / 3.0, 0.02 * bound * bound / 3.0);
  EXPECT_GT(distinct.size(), 119900U);  // no part of it is drawn twice
  const auto bias = layer.bias();
  double bias_squares = 0.0;
  for (Index o = 0; o < 300; ++o) {
    EXPECT_LE(std::abs(bias(o)), bound);
    bias_squares += bias(o) * bias(o);
  }
  EXPECT_NEAR(bias_squares / 300.0, bound * bound / 3.0, 0.3 * bound * bound / 3.0);
}

TEST(Linear, InitialWeightsStayInRangeForEveryType) {
  const auto within = [](auto layer) {
    return std::max(largest(layer.weight()), largest(layer.bias())) <= 1.0 / 3.0 + 0.002;
  };
  EXPECT_TRUE(within(Linear<float>(9, 40)));
  EXPECT_TRUE(within(Linear<Eigen::half>(9, 40)));
  EXPECT_TRUE(within(Linear<Eigen::bfloat16>(9, 40)));
}

TEST(Linear, DrawsItsWeightsFromItsSeed) {
  const Linear<float> a(30, 20, true, 5), same(30, 20, true, 5), other(30, 20, true, 6);
  EXPECT_TRUE(same_bits(a.weight(), same.weight()));
  EXPECT_TRUE(same_bits(a.bias(), same.bias()));
  EXPECT_FALSE(same_bits(a.weight(), other.weight()));
  EXPECT_FALSE(same_bits(a.bias(), other.bias()));
}

TEST(Linear, ACopyIsIndependent) {
  Linear<float> a(6, 5);
  const Linear<float> b = a;
  const auto before = b.weight();
  EXPECT_FALSE(a.shares_with(b));
  a.set_weight(random_tensor<float, 2>({5, 6}, 9));
  EXPECT_TRUE(same_bits(b.weight(), before));
  Linear<float> c(1, 1);
  c = a;
  EXPECT_TRUE(same_bits(c.weight(), a.weight()));
  EXPECT_FALSE(c.shares_with(a));
}

TEST(Linear, DoesNotDependOnTheNumberOfThreads) {
  for (const auto& [in, out, rows] :
       {std::array<Index, 3>{700, 900, 1}, {700, 130, 3}, {170, 190, 37}, {200, 19, 430}}) {
    const Linear<float> layer(in, out, true, 1);
    const auto x = random_tensor<float, 2>({rows, in}, 1);
    attn::SerialExecutor serial;
    attn::ThreadPool two(2), five(5);
    const auto on = [&](attn::Executor& executor) {
      const attn::UseExecutor use(executor);
      return layer(x);
    };
    const auto expected = on(serial);
    EXPECT_TRUE(same_bits(on(two), expected));
    EXPECT_TRUE(same_bits(on(five), expected));
  }
}

TEST(Linear, MayBeCalledFromSeveralThreadsAtOnce) {
  const Linear<float> layer(65, 50, true, 1);
  const auto x = random_tensor<float, 2>({9, 65}, 1);
  const auto expected = layer(x);
  std::vector<Tensor<float, 2>> results(4);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 4; ++t) threads.emplace_back([&, t] { results[t] = layer(x); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& y : results) EXPECT_TRUE(same_bits(y, expected));
}

TEST(Linear, RefusesSizesBelowOne) {
  expect_error([] { Linear<float> layer(0, 3); }, {"[attn::Linear]", "0 in and 3 out"});
  expect_error([] { Linear<float> layer(3, -1); }, {"[attn::Linear]", "3 in and -1 out"});
}

TEST(Linear, RefusesAnotherLastDimension) {
  const Linear<float> layer(4, 3);
  expect_error([&] { return layer(Tensor<float, 3>(2, 7, 5)); },
               {"[attn::Linear::forward]", "expected a last dimension of 4", "got [2,7,5]"});
  Tensor<float, 3> y(2, 7, 4);
  expect_error([&] { layer.forward_into(y, Tensor<float, 3>(2, 7, 4)); },
               {"[attn::Linear::forward]", "expected [2,7,3]", "got [2,7,4]"});
}

/// A view of the columns from `first` on of a tensor [rows, columns].
template <class T>
attn::View<T, 3> columns_of(Tensor<T, 2>& x, Index first, Index count) {
  const Index rows = x.dimension(0), row = x.dimension(1);
  return {x.data() + first, {2, rows / 2, count}, {rows / 2 * row, row, 1}};
}

TEST(Linear, TakesRowsThatAreEquallyFarApart) {
  for (const auto& [in, out, rows] : {std::array<Index, 3>{4, 3, 6}, {70, 100, 24}, {1, 1, 2}}) {
    const Linear<float> layer(in, out, true, 5);
    auto x = random_tensor<float, 2>({rows, in + 9}, 1), y = random_tensor<float, 2>({rows, out + 7}, 2);
    const Tensor<float, 2> before = y;
    layer.forward_into(columns_of(y, 3, out), columns_of(x, 5, in));
    Tensor<float, 2> packed(rows, in);
    for (Index r = 0; r < rows; ++r)
      for (Index i = 0; i < in; ++i) packed(r, i) = x(r, 5 + i);
    const Tensor<float, 2> expected = layer(packed);
    for (Index r = 0; r < rows; ++r)
      for (Index o = 0; o < out + 7; ++o)
        EXPECT_EQ(y(r, o), o >= 3 && o < 3 + out ? expected(r, o - 3) : before(r, o)) << r << ", " << o;
  }
}

TEST(Linear, RefusesRowsThatAreNotEquallyFarApart) {
  const Linear<float> layer(4, 3);
  const auto x = random_tensor<float, 3>({2, 3, 8}, 1);
  Tensor<float, 4> y(2, 2, 3, 3);
  expect_error([&] { layer.forward_into(y, attn::split_heads(x, 2)); }, {"[attn::Linear::forward]", "packed"});
  Tensor<float, 2> z(2, 3);
  const attn::View<const float, 2> overlapping(x.data(), {2, 4}, {2, 1}), apart(x.data(), {2, 4}, {8, 2});
  expect_error([&] { layer.forward_into(z, overlapping); }, {"[attn::Linear::forward]", "packed"});
  expect_error([&] { layer.forward_into(z, apart); }, {"[attn::Linear::forward]", "packed"});
}

TEST(Linear, InputAndOutputRowsMayAlternateInOneBuffer) {
  const Linear<float> layer(6, 5, true, 3);
  auto buffer = random_tensor<float, 2>({8, 11}, 1);
  Tensor<float, 2> x(8, 6);
  for (Index r = 0; r < 8; ++r)
    for (Index i = 0; i < 6; ++i) x(r, i) = buffer(r, i);
  const Tensor<float, 2> expected = layer(x);
  layer.forward_into(columns_of(buffer, 6, 5), columns_of(buffer, 0, 6));
  for (Index r = 0; r < 8; ++r) {
    for (Index i = 0; i < 6; ++i) EXPECT_EQ(buffer(r, i), x(r, i));
    for (Index o = 0; o < 5; ++o) EXPECT_EQ(buffer(r, 6 + o), expected(r, o));
  }
}

TEST(Linear, RefusesAnOutputThatSharesMemoryWithTheInput) {
  const Linear<float> layer(6, 6, true, 3);
  auto x = random_tensor<float, 2>({8, 11}, 1);
  const Tensor<float, 2> before = x;
  for (const Index first : {0, 5})
    expect_error([&] { layer.forward_into(columns_of(x, first, 6), columns_of(x, 0, 6)); },
                 {"[attn::Linear::forward]", "output", "memory of its own", "also input"});
  Tensor<float, 1> row(12);
  row.setZero();
  const attn::View<float, 1> tail(row.data() + 5, {6}), head(row.data(), {6});
  expect_error([&] { layer.forward_into(tail, head); }, {"[attn::Linear::forward]", "memory of its own"});
  EXPECT_TRUE(same_bits(x, before));
}

TEST(Linear, ReadsWeightRowsIntoAnyStrideButZero) {
  const Linear<float> layer(4, 3);
  Tensor<float, 1> row(8);
  row.setConstant(7.F);
  layer.weight_row(2, attn::View<float, 1>(row.data(), {4}, {2}));
  const auto weight = layer.weight();
  for (Index i = 0; i < 8; ++i) EXPECT_EQ(row(i), i % 2 == 0 ? weight(2, i / 2) : 7.F);
  expect_error([&] { layer.weight_row(2, attn::View<float, 1>(row.data(), {4}, {0})); },
               {"[attn::Linear::weight_row]", "row", "each element once", "got [0]"});
}

TEST(Linear, TakesWeightAndBiasThroughAnyStrides) {
  auto turned = random_tensor<float, 2>({4, 6}, 1);  // [in, 2 * out]
  const attn::View<const float, 2> weight(turned.data(), {3, 4}, {2, 6});
  const attn::View<const float, 1> bias(turned.data(), {3}, {5});
  const Linear<float> layer(weight, bias);
  for (Index o = 0; o < 3; ++o) {
    for (Index i = 0; i < 4; ++i) EXPECT_EQ(layer.weight()(o, i), turned(i, 2 * o));
    EXPECT_EQ(layer.bias()(o), turned.data()[5 * o]);
  }
}

TEST(Linear, RefusesAWeightOfNegativeSizes) {
  const auto x = random_tensor<float, 1>({4}, 1);
  expect_error([&] { Linear<float> layer(attn::View<const float, 2>(x.data(), {-1, -2})); }, {"negative", "[-1,-2]"});
  expect_error([&] { Linear<float> layer(attn::TensorMap<const float, 2>(x.data(), -1, -2)); },
               {"negative", "[-1,-2]"});
}

TEST(Linear, RefusesWeightsOfTheWrongShapeAndStaysAsItWas) {
  Linear<float> layer(4, 3), plain_layer(4, 3, false);
  const auto weight = layer.weight();
  expect_error([&] { layer.set_weight(Tensor<float, 2>(4, 3)); },
               {"[attn::Linear::set_weight]", "expected [3,4]", "got [4,3]"});
  expect_error([&] { layer.set_bias(Tensor<float, 1>(4)); }, {"[attn::Linear::set_bias]", "expected [3]", "got [4]"});
  expect_error([&] { plain_layer.set_bias(Tensor<float, 1>(3)); }, {"[attn::Linear::set_bias]", "no bias", "got [3]"});
  EXPECT_TRUE(same_bits(layer.weight(), weight));
}

TEST(Linear, RefusesSizesThatOverflow) {
  constexpr Index huge = Index{1} << 62;
  expect_error([] { Linear<float> layer(huge, 1); },
               {"[attn::Linear] weight [out,in]", "memory can hold", "got [1,4611686018427387904]"});
  expect_error([] { Linear<float> layer(1, huge); }, {"[attn::Linear] weight [out,in]", "memory can hold"});
  expect_error([] { Linear<float> layer(huge, huge); }, {"[attn::Linear] weight [out,in]", "memory can hold"});
  expect_error([] { Linear<float> layer(Index{1} << 60, 1); },
               {"[attn::Linear] weight [out,in]", "memory can hold"});  // once padded
  const float one = 1.F;
  expect_error(
      [&] {
        Linear<float> layer(attn::View<const float, 2>(&one, {huge, huge}, {0, 0}));
      },
      {"[attn::View] shape", "memory can hold"});
  expect_error(
      [&] {
        Linear<float> layer(attn::View<const float, 2>(&one, {-1, -1}));
      },
      {"[attn::View] shape", "no negative size", "got [-1,-1]"});
  expect_error(
      [&] {
        Linear<float> layer(attn::View<const float, 2>(&one, {0, 3}));
      },
      {"[attn::Linear] weight", "at least 1", "got [0,3]"});
}

TEST(Linear, IsEmptyOnceMovedFromAndCanBeAssignedTo) {
  Linear<float> layer(6, 5, true, 1);
  const auto weight = layer.weight();
  Linear<float> moved = std::move(layer);
  EXPECT_TRUE(same_bits(moved.weight(), weight));
  EXPECT_EQ(layer.in_features(), 0);
  EXPECT_EQ(layer.out_features(), 0);
  EXPECT_FALSE(layer.has_bias());
  EXPECT_EQ(layer.weight().size(), 0);
  EXPECT_EQ(layer.bias().size(), 0);
  for (const Index width : {Index{6}, Index{0}})
    expect_error([&] { return layer(Tensor<float, 2>(3, width)); }, {"[attn::Linear::forward]", "moved from"});
  expect_error([&] { layer.share(moved); }, {"[attn::Linear::share]", "0 in and 0 out"});
  expect_error([&] { moved.share(layer); }, {"[attn::Linear::share]", "got 0 in and 0 out"});
  Tensor<float, 1> row(0);
  expect_error([&] { layer.weight_row(0, row); }, {"[attn::Linear::weight_row]"});
  expect_error([&] { layer.set_weight(weight); }, {"[attn::Linear::set_weight]", "expected [0,0]"});
  expect_error([&] { layer.set_bias(Tensor<float, 1>(5)); }, {"[attn::Linear::set_bias]"});
  const Linear<float> copy = layer;
  EXPECT_EQ(copy.in_features(), 0);
  EXPECT_FALSE(copy.shares_with(layer));
  layer = moved;
  EXPECT_TRUE(same_bits(layer.weight(), weight));
  moved = std::move(layer);
  EXPECT_TRUE(same_bits(moved.weight(), weight));
}

TEST(Linear, DrawsWeightsOfItsOwnWithoutASeed) {
  const Linear<float> a(30, 20), b(30, 20), seeded(30, 20, true, 0), same(30, 20, true, 0);
  EXPECT_FALSE(same_bits(a.weight(), b.weight()));
  EXPECT_FALSE(same_bits(a.bias(), b.bias()));
  EXPECT_TRUE(same_bits(seeded.weight(), same.weight()));  // 0 is a seed like any other
}

TEST(Linear, ChecksWithoutRunning) {
  const Linear<float> layer(4, 3);
  const attn::View<const float, 2> x(nullptr, {2, 4});
  const attn::View<float, 2> y(nullptr, {2, 3}), other(nullptr, {2, 4}), gaps(nullptr, {2, 3}, {6, 2});
  EXPECT_NO_THROW(layer.check(y, x));
  expect_error([&] { layer.check(other, x); }, {"[attn::Linear::forward] output", "expected [2,3]", "got [2,4]"});
  expect_error([&] { layer.check(gaps, x); }, {"[attn::Linear::forward] views"});
  expect_error([&] { layer.check(y, attn::View<const float, 2>(y)); }, {"[attn::Linear::forward] input", "got [2,3]"});
}

TEST(Linear, DrawsBiasAndWeightIndependently) {
  const Linear<float> layer(20, 20, true, 1);
  const auto weight = layer.weight();
  const auto bias = layer.bias();
  int equal = 0;
  for (Index i = 0; i < 20; ++i) equal += bias(i) == weight(0, i);
  EXPECT_EQ(equal, 0);
}

}  // namespace
