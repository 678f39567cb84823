#include "module_support.hpp"

#include <numeric>
#include <utility>

namespace {

using attn::Accumulator;
using attn::Index;
using attn::Linear;
using attn::Tensor;
using attn::View;
using attn_test::expect_error;
using attn_test::max_difference;
using attn_test::random_tensor;
using attn_test::same_bits;

/// The gradients by plain loops in double; `sizes` hold the sums of the magnitudes of what was added.
struct Plain {
  Tensor<double, 2> x, weight, x_sizes, weight_sizes;
  Tensor<double, 1> bias, bias_sizes;
};
template <class T>
Plain plain(const Linear<T>& layer, const Tensor<T, 2>& grad_y, const Tensor<T, 2>& x) {
  const Index rows = x.dimension(0), in = layer.in_features(), out = layer.out_features();
  Plain result;
  result.x = result.x_sizes = attn_test::filled<double, 2>({rows, in}, 0.0);
  result.weight = result.weight_sizes = attn_test::filled<double, 2>({out, in}, 0.0);
  result.bias = result.bias_sizes = attn_test::filled<double, 1>({out}, 0.0);
  const auto w = attn_test::cast<double>(layer.weight());
  const auto g = attn_test::cast<double>(grad_y);
  const auto input = attn_test::cast<double>(x);
  for (Index r = 0; r < rows; ++r)
    for (Index o = 0; o < out; ++o) {
      result.bias(o) += g(r, o), result.bias_sizes(o) += std::abs(g(r, o));
      for (Index i = 0; i < in; ++i) {
        result.x(r, i) += g(r, o) * w(o, i), result.x_sizes(r, i) += std::abs(g(r, o) * w(o, i));
        result.weight(o, i) += g(r, o) * input(r, i), result.weight_sizes(o, i) += std::abs(g(r, o) * input(r, i));
      }
    }
  return result;
}

/// Each element is off by at most `bar` of the magnitudes that were added, and by `rounding` of itself.
template <class T, int Rank>
void expect_near(const char* what, const Tensor<T, Rank>& got, const Tensor<double, Rank>& right,
                 const Tensor<double, Rank>& sizes, double bar, double rounding = 0.0) {
  ASSERT_EQ(got.dimensions(), right.dimensions()) << what;
  for (Index i = 0; i < got.size(); ++i)
    ASSERT_LE(std::abs(static_cast<double>(got.data()[i]) - right.data()[i]),
              bar * sizes.data()[i] + rounding * std::abs(right.data()[i]) + (rounding > 0.0 ? 1e-7 : 0.0))
        << what << ", element " << i;
}

template <class T>
inline constexpr double rounding_of_sums = std::is_same_v<T, double> ? 1e-15 : 5e-7;
template <class T>
inline constexpr double rounding_of_elements =
    attn::kernel::is_converted<attn::kernel::Stored<T>> ? attn_test::storage_error<T> : 0.0;

template <class T>
void expect_plain(Index in, Index out, Index rows, bool bias = true) {
  SCOPED_TRACE(std::to_string(in) + " to " + std::to_string(out) + ", rows " + std::to_string(rows));
  Linear<T> layer(in, out, bias, static_cast<std::uint64_t>(in * 1000 + out));
  const auto x = random_tensor<T, 2>({rows, in}, static_cast<unsigned>(rows));
  const auto grad_y = random_tensor<T, 2>({rows, out}, static_cast<unsigned>(rows + 1));
  const auto grad_x = layer.backward(grad_y, x);
  const Plain right = plain(layer, grad_y, x);
  expect_near("grad_x", grad_x, right.x, right.x_sizes, rounding_of_sums<T>, rounding_of_elements<T>);
  expect_near("weight", layer.weight_gradient(), right.weight, right.weight_sizes, rounding_of_sums<T>);
  if (bias)
    expect_near("bias", layer.bias_gradient(), right.bias, right.bias_sizes, rounding_of_sums<T>);
  else
    EXPECT_EQ(layer.bias_gradient().size(), 0);
}

template <class T>
class LinearBackwardOf : public testing::Test {};
using Types = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(LinearBackwardOf, Types);

TYPED_TEST(LinearBackwardOf, FollowsTheFormulaForSmallSizes) {
  for (Index n = 1; n <= 100; ++n) {
    expect_plain<TypeParam>(n, 1 + n * 7 % 60, 1 + n * 3 % 20, n % 2 == 0);
    expect_plain<TypeParam>(1 + n * 11 % 60, n, 1 + n * 5 % 20);
    expect_plain<TypeParam>(5, 50, n);
  }
}

// There are several parts of rows and of outputs, blocks of inputs, and panels of a group.
TYPED_TEST(LinearBackwardOf, FollowsTheFormulaForLargerSizes) {
  expect_plain<TypeParam>(70, 530, 1100);
  expect_plain<TypeParam>(1030, 97, 200);
  expect_plain<TypeParam>(2048, 31, 1, false);
  expect_plain<TypeParam>(1101, 150, 400);
  expect_plain<TypeParam>(49, 2048, 210);
}

/// Bfloat16 in pairs, where the CPU has them, and without: odd numbers of rows and of outputs leave half a pair.
TEST(LinearBackward, FollowsTheFormulaInPairsAndWithout) {
  const bool before = attn::bf16_dots();
  for (const bool in_pairs : {true, false}) {
    attn::set_bf16_dots(in_pairs);
    for (const Index rows : {1, 2, 7, 33, 1027})
      for (const Index out : {1, 47, 50, 97}) expect_plain<Eigen::bfloat16>(37, out, rows);
    expect_plain<Eigen::bfloat16>(130, 1001, 300);
  }
  attn::set_bf16_dots(before);
}

TYPED_TEST(LinearBackwardOf, HasTheSameBitsForAnyNumberOfThreads) {
  using T = TypeParam;
  const Index in = 1100, out = 290, rows = 530;
  const auto x = random_tensor<T, 2>({rows, in}, 1), grad_y = random_tensor<T, 2>({rows, out}, 2);
  std::vector<Tensor<T, 2>> grad_x;
  std::vector<Linear<T>> layers;
  for (const int threads : {1, 2, 3, 5, 16}) {
    attn::ThreadPool pool(threads);
    const attn::UseExecutor use(pool);
    layers.emplace_back(in, out, true, 7);
    grad_x.push_back(layers.back().backward(grad_y, x));
    EXPECT_TRUE(same_bits(grad_x.back(), grad_x.front())) << threads;
    EXPECT_TRUE(same_bits(layers.back().weight_gradient(), layers.front().weight_gradient())) << threads;
    EXPECT_TRUE(same_bits(layers.back().bias_gradient(), layers.front().bias_gradient())) << threads;
  }
}

TYPED_TEST(LinearBackwardOf, GivesARowTheSameBitsAloneAndAmongOthers) {
  using T = TypeParam;
  Linear<T> layer(70, 1000);
  const auto x = random_tensor<T, 2>({500, 70}, 1), grad_y = random_tensor<T, 2>({500, 1000}, 2);
  const auto all = layer.backward(grad_y, x);
  for (const Index row : {0, 3, 191, 384, 499}) {
    const View<const T, 2> one_x(x.data() + row * 70, {1, 70}), one_y(grad_y.data() + row * 1000, {1, 1000});
    const Tensor<T, 2> alone = layer.backward(one_y, one_x);
    for (Index i = 0; i < 70; ++i) EXPECT_EQ(static_cast<float>(alone(0, i)), static_cast<float>(all(row, i)));
  }
}

/// Sum of y weighted by grad_y, in double.
double loss(const Linear<double>& layer, const Tensor<double, 2>& grad_y, const Tensor<double, 2>& x) {
  const Tensor<double, 2> y = layer.forward(x);
  return std::inner_product(y.data(), y.data() + y.size(), grad_y.data(), 0.0);
}

TEST(LinearBackward, AgreesWithCentralDifferences) {
  Linear<double> layer(7, 53, true, 1);
  auto x = random_tensor<double, 2>({9, 7}, 1);
  const auto grad_y = random_tensor<double, 2>({9, 53}, 2);
  const Tensor<double, 2> grad_x = layer.backward(grad_y, x);
  constexpr double step = 1e-3;  // the loss is linear in each number
  const auto expect = [&](double& value, double gradient) {
    const double before = value;
    value = before + step;
    const double above = loss(layer, grad_y, x);
    value = before - step;
    const double below = loss(layer, grad_y, x);
    value = before;
    EXPECT_NEAR((above - below) / (2.0 * step), gradient, 1e-6 * std::max(1.0, std::abs(gradient)));
  };
  for (Index i = 0; i < x.size(); ++i) expect(x.data()[i], grad_x.data()[i]);
  for (const attn::Parameter<double>& parameter : layer.parameters())
    for (std::size_t i = 0; i < parameter.values().size(); i += 3)
      if (parameter.values()[i] != 0.0) expect(parameter.values()[i], parameter.gradient()[i]);
}

/// Small integers, whose sums are exact in float.
Tensor<float, 2> integers(Index rows, Index columns, Index seed) {
  Tensor<float, 2> x(rows, columns);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>((i * 7 + seed) % 5 - 2);
  return x;
}

/// A layer whose weight is small integers as well.
Linear<float> integer_layer(Index in, Index out) {
  Linear<float> layer(in, out);
  const auto weight = integers(out, in, 3);
  layer.set_weight(weight);
  return layer;
}

TEST(LinearBackward, AddsToTheGradientsUntilTheyAreZeroed) {
  auto layer = integer_layer(20, 60);
  const auto x = integers(9, 20, 1), grad_y = integers(9, 60, 2);
  const Tensor<float, 2> grad_x = layer.backward(grad_y, x), weight = layer.weight_gradient();
  const Tensor<float, 1> bias = layer.bias_gradient();
  EXPECT_TRUE(same_bits(layer.backward(grad_y, x), grad_x));
  EXPECT_TRUE(same_bits(layer.weight_gradient(), Tensor<float, 2>(weight * 2.F)));
  EXPECT_TRUE(same_bits(layer.bias_gradient(), Tensor<float, 1>(bias * 2.F)));
  layer.zero_gradients();
  (void)layer.backward(grad_y, x);
  EXPECT_TRUE(same_bits(layer.weight_gradient(), weight));
  EXPECT_TRUE(same_bits(layer.bias_gradient(), bias));
}

TEST(LinearBackward, AddsToGradXWhereAsked) {
  auto layer = integer_layer(50, 600);
  const auto x = integers(9, 50, 1), grad_y = integers(9, 600, 2), before = integers(9, 50, 4);
  const Tensor<float, 2> grad_x = layer.backward(grad_y, x);
  Tensor<float, 2> sum = before;
  layer.backward_add(sum, grad_y, x);
  EXPECT_TRUE(same_bits(sum, Tensor<float, 2>(before + grad_x)));
}

TEST(LinearBackward, AddsToGradXOfHalvesInFloat) {
  Linear<Eigen::half> layer(50, 60);
  const auto x = random_tensor<Eigen::half, 2>({9, 50}, 1), grad_y = random_tensor<Eigen::half, 2>({9, 60}, 2);
  auto sum = random_tensor<Eigen::half, 2>({9, 50}, 3);
  Plain right = plain(layer, grad_y, x);
  for (Index i = 0; i < sum.size(); ++i) {
    right.x.data()[i] += static_cast<double>(sum.data()[i]);
    right.x_sizes.data()[i] += std::abs(static_cast<double>(sum.data()[i]));
  }
  layer.backward_add(sum, grad_y, x);
  expect_near("grad_x", sum, right.x, right.x_sizes, 5e-7, attn_test::storage_error<Eigen::half>);
}

TEST(LinearBackward, AddsGradientsAloneWithTheSameBits) {
  Linear<float> one(70, 90, true, 1), other(70, 90, true, 1);
  const auto x = random_tensor<float, 2>({100, 70}, 1), grad_y = random_tensor<float, 2>({100, 90}, 2);
  (void)one.backward(grad_y, x);
  other.add_gradients(grad_y, x);
  EXPECT_TRUE(same_bits(one.weight_gradient(), other.weight_gradient()));
  EXPECT_TRUE(same_bits(one.bias_gradient(), other.bias_gradient()));
}

TEST(LinearBackward, HasOneGradientForSharedParameters) {
  auto key = integer_layer(20, 60);
  Linear<float> value(20, 60);
  value.share(key);
  const auto x = integers(9, 20, 1), grad_y = integers(9, 60, 2);
  (void)key.backward(grad_y, x);
  const Tensor<float, 2> once = key.weight_gradient();
  EXPECT_TRUE(same_bits(value.weight_gradient(), once));
  (void)value.backward(grad_y, x);
  EXPECT_TRUE(same_bits(key.weight_gradient(), Tensor<float, 2>(once * 2.F)));
  EXPECT_EQ(key.parameters()[0].gradient().data(), value.parameters()[0].gradient().data());
}

TEST(LinearBackward, GivesACopyGradientsOfItsOwn) {
  auto layer = integer_layer(20, 60);
  const auto x = integers(9, 20, 1), grad_y = integers(9, 60, 2);
  (void)layer.backward(grad_y, x);
  Linear<float> copy = layer;
  EXPECT_TRUE(same_bits(copy.weight_gradient(), layer.weight_gradient()));
  const Tensor<float, 2> before = layer.weight_gradient();
  copy.zero_gradients();
  EXPECT_TRUE(same_bits(layer.weight_gradient(), before));
}

TEST(LinearBackward, HasZeroGradientsBeforeTheFirstPass) {
  const Linear<float> layer(3, 5);
  EXPECT_TRUE(same_bits(layer.weight_gradient(), attn_test::filled<float, 2>({5, 3}, 0.F)));
  EXPECT_TRUE(same_bits(layer.bias_gradient(), attn_test::filled<float, 1>({5}, 0.F)));
}

TEST(LinearBackward, LeavesThePaddingOfPanelsZero) {
  Linear<float> layer(10, 50);
  auto x = random_tensor<float, 2>({20, 10}, 1);
  x(3, 4) = std::numeric_limits<float>::infinity();
  (void)layer.backward(random_tensor<float, 2>({20, 50}, 2), x);
  const auto gradient = layer.parameters()[0].gradient();
  ASSERT_EQ(gradient.size(), 2U * 48 * 10);
  for (std::size_t i = 0; i < 10; ++i)
    for (std::size_t o = 2; o < 48; ++o) EXPECT_EQ(gradient[(10 + i) * 48 + o], 0.F) << i << ' ' << o;
}

TEST(LinearBackward, SumsABiasOfManyRowsExactly) {
  constexpr Index rows = 100000;
  Linear<float> layer(1, 3);
  const auto x = random_tensor<float, 2>({rows, 1}, 1);
  auto grad_y = random_tensor<float, 2>({rows, 3}, 2);
  for (Index i = 0; i < grad_y.size(); ++i) grad_y.data()[i] += 1.F;  // a sum that grows
  layer.add_gradients(grad_y, x);
  const Plain right = plain(layer, grad_y, x);
  for (Index o = 0; o < 3; ++o) EXPECT_NEAR(layer.bias_gradient()(o), right.bias(o), 2e-7 * std::abs(right.bias(o)));
}

TEST(LinearBackward, TakesRowsThatLieEquallyFarApart) {
  Linear<float> layer(20, 60, true, 1), apart(20, 60, true, 1);
  const auto x = random_tensor<float, 3>({2, 3, 20}, 1), grad_y = random_tensor<float, 3>({2, 3, 60}, 2);
  const Tensor<float, 3> right = layer.backward(grad_y, x);
  std::vector<float> buffer(6 * 200, 5.F);  // rows of all three alternate in it
  const View<float, 3> wide_x(buffer.data(), {2, 3, 20}, {600, 200, 1});
  const View<float, 3> wide_y(buffer.data() + 30, {2, 3, 60}, {600, 200, 1});
  const View<float, 3> wide_grad(buffer.data() + 100, {2, 3, 20}, {600, 200, 1});
  for (Index b = 0; b < 2; ++b)
    for (Index s = 0; s < 3; ++s) {
      for (Index i = 0; i < 20; ++i) wide_x(b, s, i) = x(b, s, i);
      for (Index o = 0; o < 60; ++o) wide_y(b, s, o) = grad_y(b, s, o);
    }
  apart.backward_into(wide_grad, wide_y, wide_x);
  for (Index b = 0; b < 2; ++b)
    for (Index s = 0; s < 3; ++s)
      for (Index i = 0; i < 20; ++i) EXPECT_EQ(wide_grad(b, s, i), right(b, s, i));
  EXPECT_TRUE(same_bits(apart.weight_gradient(), layer.weight_gradient()));
  EXPECT_EQ(buffer[99], 5.F);
  EXPECT_EQ(buffer[120], 5.F);
}

TEST(LinearBackward, TakesTensorsOfRank1To4) {
  Linear<float> layer(4, 6);
  EXPECT_EQ(layer.backward(Tensor<float, 1>(6).setZero(), Tensor<float, 1>(4).setZero()).dimension(0), 4);
  const Tensor<float, 4> grad_x =
      layer.backward(random_tensor<float, 4>({2, 1, 3, 6}, 1), random_tensor<float, 4>({2, 1, 3, 4}, 1));
  EXPECT_EQ(grad_x.dimension(2), 3);
}

TEST(LinearBackward, TakesNoRows) {
  Linear<float> layer(4, 6);
  EXPECT_EQ(layer.backward(Tensor<float, 2>(0, 6), Tensor<float, 2>(0, 4)).size(), 0);
  EXPECT_TRUE(same_bits(layer.weight_gradient(), attn_test::filled<float, 2>({6, 4}, 0.F)));
}

TEST(LinearBackward, RefusesWhatDoesNotFitAndChangesNothing) {
  Linear<float> layer(4, 6);
  auto x = random_tensor<float, 2>({3, 4}, 1), grad_y = random_tensor<float, 2>({3, 6}, 2);
  (void)layer.backward(grad_y, x);
  const Tensor<float, 2> weight = layer.weight_gradient(), bad_y(3, 5), few(2, 6), bad_x(3, 5);
  Tensor<float, 2> grad_x(3, 4), short_grad_x(3, 3);
  const View<const float, 2> columns(grad_y.data(), {3, 4}, {1, 3});
  expect_error([&] { (void)layer.backward(bad_y, x); }, {"Linear::backward", "grad_y, expected [3,6], got [3,5]"});
  expect_error([&] { (void)layer.backward(few, x); }, {"Linear::backward", "grad_y, expected [3,6], got [2,6]"});
  expect_error([&] { (void)layer.backward(grad_y, bad_x); }, {"Linear::backward", "input", "4, got [3,5]"});
  expect_error([&] { layer.backward_into(short_grad_x, grad_y, x); }, {"Linear::backward", "grad_x, expected [3,4]"});
  expect_error([&] { layer.backward_into(x, grad_y, x); }, {"Linear::backward", "grad_x, expected memory of its own"});
  expect_error([&] { layer.add_gradients(grad_y, columns); }, {"Linear::backward", "views, expected packed ones"});
  EXPECT_TRUE(same_bits(layer.weight_gradient(), weight));
  const Linear<float> moved = std::move(layer);
  expect_error([&] { (void)layer.backward(grad_y, x); }, {"Linear::backward", "layer", "moved from"});  // NOLINT
  expect_error([&] { (void)layer.parameters(); }, {"Linear::parameters", "layer", "moved from"});       // NOLINT
}

TEST(LinearParameters, AreTheWeightInPanelsAndTheBias) {
  Linear<float> layer(4, 50), plain_layer(4, 50, false);
  const auto parameters = layer.parameters();
  ASSERT_EQ(parameters.size(), 2U);
  EXPECT_EQ(parameters[0].name(), "weight");
  EXPECT_EQ(parameters[1].name(), "bias");
  EXPECT_EQ(parameters[1].within("query").name(), "query.bias");
  EXPECT_EQ(parameters[0].values().size(), 2U * 48 * 4);
  EXPECT_EQ(parameters[0].gradient().size(), 2U * 48 * 4);
  parameters[0].values()[1] = 9.F;  // output 1, input 0
  EXPECT_EQ(layer.weight()(1, 0), 9.F);
  EXPECT_EQ(plain_layer.parameters().size(), 1U);
}

TEST(LinearParameters, TakeARoundedMasterCopy) {
  Linear<Eigen::bfloat16> layer(1, 2);
  const auto bias = layer.parameters()[1];
  const std::vector<float> master{1.F + 0x1p-12F, -3.F}, wrong(3);
  bias.assign(master);
  EXPECT_EQ(static_cast<float>(layer.bias()(0)), 1.F);
  EXPECT_EQ(static_cast<float>(layer.bias()(1)), -3.F);
  expect_error([&] { bias.assign(wrong); }, {"Parameter::assign", "expected 2, got 3"});
}

}  // namespace
