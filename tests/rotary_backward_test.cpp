// Rotary::backward: the transpose of the rotation.
#include "module_support.hpp"

namespace {

using attn::Index;
using attn::Rotary;
using attn::RotaryConfig;
using attn::RotaryLayout;
using attn::Tensor;
using attn_test::expect_error;
using attn_test::max_difference;
using attn_test::random_tensor;
using attn_test::same_bits;

constexpr auto half_split = RotaryLayout::half_split, interleaved = RotaryLayout::interleaved;

/// The sum of products of gradients and outputs does not change when both are turned back.
template <class T>
void expect_transpose(const RotaryConfig& config, double bar) {
  const Rotary rotary(16, config);
  const std::array<Index, 2> start{3, 40}, lengths{19, 61};
  const auto x = random_tensor<T, 4>({2, 3, 11, 16}, 1), grad_y = random_tensor<T, 4>({2, 3, 11, 16}, 2);
  auto y = x, grad_x = grad_y;
  rotary.apply(y, start, lengths);
  rotary.backward(grad_x, start, lengths);
  double of_outputs = 0.0, of_inputs = 0.0;
  for (Index i = 0; i < x.size(); ++i) {
    of_outputs += static_cast<double>(grad_y.data()[i]) * static_cast<double>(y.data()[i]);
    of_inputs += static_cast<double>(grad_x.data()[i]) * static_cast<double>(x.data()[i]);
  }
  EXPECT_NEAR(of_outputs, of_inputs, bar);
  EXPECT_GT(max_difference(grad_x, grad_y), 0.1);
}

TEST(RotaryBackward, IsTheTransposeOfTheRotation) {
  for (const auto layout : {half_split, interleaved}) {
    expect_transpose<float>({.layout = layout}, 1e-4);
    expect_transpose<double>({.layout = layout}, 1e-12);
    expect_transpose<Eigen::half>({.layout = layout}, 0.1);
    expect_transpose<Eigen::bfloat16>({.layout = layout}, 1.0);
  }
}

TEST(RotaryBackward, AgreesWithCentralDifferences) {
  const Rotary rotary(6, {.layout = interleaved, .theta = 100.0});
  const std::array<Index, 1> start{5};
  const auto grad_y = random_tensor<double, 4>({1, 2, 3, 6}, 2);
  auto x = random_tensor<double, 4>({1, 2, 3, 6}, 1);
  const auto loss = [&] {
    auto y = x;
    rotary.apply(y, start);
    double sum = 0.0;
    for (Index i = 0; i < y.size(); ++i) sum += y.data()[i] * grad_y.data()[i];
    return sum;
  };
  auto grad_x = grad_y;
  rotary.backward(grad_x, start);
  for (Index i = 0; i < x.size(); ++i) {
    const double before = x.data()[i];
    x.data()[i] = before + 1e-3;
    const double above = loss();
    x.data()[i] = before - 1e-3;
    const double below = loss();
    x.data()[i] = before;
    EXPECT_NEAR((above - below) / 2e-3, grad_x.data()[i], 1e-6);
  }
}

TEST(RotaryBackward, TurnsAPairAsTwoCallsDo) {
  const Rotary rotary(8);
  const std::array<Index, 2> start{0, 40};
  auto q = random_tensor<float, 4>({2, 3, 21, 8}, 1), k = random_tensor<float, 4>({2, 1, 21, 8}, 2);
  auto q_alone = q, k_alone = k;
  rotary.backward(q_alone, start);
  rotary.backward(k_alone, start);
  rotary.backward(q, k, start);
  EXPECT_TRUE(same_bits(q, q_alone));
  EXPECT_TRUE(same_bits(k, k_alone));
}

TEST(RotaryBackward, RefusesWhatApplyRefuses) {
  const Rotary rotary(8);
  const std::array<Index, 1> start{0};
  Tensor<float, 4> narrow(1, 1, 2, 6);
  expect_error([&] { rotary.backward(narrow, start); }, {"Rotary::backward", "last dimension, expected 8"});
}

}  // namespace
