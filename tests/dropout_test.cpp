#include "module_support.hpp"

#include <optional>
#include <set>
#include <thread>

namespace {

using attn::Dropout;
using attn::Index;
using attn::Tensor;
using attn::TensorMap;
using attn_test::expect_error;
using attn_test::random_tensor;
using attn_test::same_bits;

Tensor<float, 1> ones(Index n) {
  Tensor<float, 1> x(n);
  x.setConstant(1.F);
  return x;
}

/// Which elements are kept, as text.
template <class T>
std::string pattern(const Tensor<T, 1>& y) {
  std::string text;
  for (Index i = 0; i < y.size(); ++i) text += static_cast<float>(y(i)) == 0.F ? '0' : '1';
  return text;
}

// 200000 elements; five standard deviations allowed.
TEST(Dropout, DropsAtItsRateAndScalesTheRest) {
  for (const double p : {0.1, 0.3, 0.5, 0.75}) {
    const Index n = 200000;
    const auto y = Dropout<float>(p, 9)(ones(n));
    Index dropped = 0;
    for (Index i = 0; i < n; ++i) {
      dropped += y(i) == 0.F;
      ASSERT_TRUE(y(i) == 0.F || y(i) == static_cast<float>(1.0 / (1.0 - p)));
    }
    EXPECT_NEAR(static_cast<double>(dropped) / static_cast<double>(n), p,
                5.0 * std::sqrt(p * (1 - p) / static_cast<double>(n)));
  }
}

TEST(Dropout, DropsNeighboursAndRowsIndependently) {
  const std::string kept = pattern(Dropout<float>(0.5, 10)(ones(1 << 16)));
  for (const std::size_t lag : {1U, 2U, 3U, 4U, 16U, 64U, 128U, 1000U}) {
    int agree = 0;
    for (std::size_t i = 0; i < 60000; ++i) agree += kept[i] == kept[i + lag];
    EXPECT_NEAR(agree, 30000, 5 * 122.5) << "lag " << lag;
  }
}

TEST(Dropout, FollowsThePublishedRule) {
  const attn::DropoutRule first(0.4, 77, 0), second(0.4, 77, 1);
  const Dropout<float> dropout(0.4, 77);
  const auto a = dropout(ones(5000)), b = dropout(ones(5000));
  for (Index i = 0; i < 5000; ++i) {
    EXPECT_EQ(a(i) != 0.F, first.keep(static_cast<std::uint32_t>(i), 0, 0));
    EXPECT_EQ(b(i) != 0.F, second.keep(static_cast<std::uint32_t>(i), 0, 0));
  }
}

TEST(Dropout, ChangesNothingAtPZero) {
  const auto x = random_tensor<float, 2>({5, 7}, 1);
  EXPECT_TRUE(same_bits(Dropout<float>(0.0)(x), x));
}

TEST(Dropout, GivesZerosAtPOneForAnyInput) {
  Tensor<float, 1> x = ones(1000);
  x(3) = std::numeric_limits<float>::infinity();
  x(4) = std::numeric_limits<float>::quiet_NaN();
  const auto y = Dropout<float>(1.0)(x);
  for (Index i = 0; i < 1000; ++i) EXPECT_EQ(y(i), 0.F);
}

TEST(Dropout, RefusesAPThatIsNoProbability) {
  for (const double p : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    expect_error([&] { Dropout<float> dropout(p); }, {"[attn::Dropout]", "[0,1]", "got "});
  expect_error([&] { Dropout<float> dropout(std::nan("")); }, {"got ", "nan"});
}

TEST(Dropout, DropsInTrainingAndDoesNothingInEvaluation) {
  Dropout<float> dropout(0.5, 1);
  const auto x = random_tensor<float, 3>({3, 4, 5}, 2);
  EXPECT_TRUE(dropout.is_training());
  EXPECT_FALSE(same_bits(dropout(x), x));
  dropout.eval();
  EXPECT_FALSE(dropout.is_training());
  EXPECT_TRUE(same_bits(dropout(x), x));
  dropout.train();
  EXPECT_TRUE(dropout.is_training());
  EXPECT_FALSE(same_bits(dropout(x), x));
  dropout.train(false);
  EXPECT_FALSE(dropout.is_training());
}

TEST(Dropout, DropsOtherElementsWithAnotherSeed) {
  const auto x = ones(256);
  EXPECT_EQ(pattern(Dropout<float>(0.5, 5)(x)), pattern(Dropout<float>(0.5, 5)(x)));
  EXPECT_NE(pattern(Dropout<float>(0.5, 5)(x)), pattern(Dropout<float>(0.5, 6)(x)));
  EXPECT_NE(pattern(Dropout<float>(0.5, 5)(x)), pattern(Dropout<float>(0.5, 5 + (std::uint64_t{1} << 32))(x)));
}

TEST(Dropout, DropsOthersInEveryCallUntilReseeded) {
  Dropout<float> dropout(0.5, 5);
  const auto x = ones(256);
  const std::string first = pattern(dropout(x)), second = pattern(dropout(x)), third = pattern(dropout(x));
  EXPECT_EQ((std::set<std::string>{first, second, third}.size()), 3U);
  dropout.reseed(5);
  EXPECT_EQ(pattern(dropout(x)), first);
  EXPECT_EQ(pattern(dropout(x)), second);
  dropout.reseed(6);
  EXPECT_EQ(pattern(dropout(x)), pattern(Dropout<float>(0.5, 6)(x)));
}

TEST(Dropout, DoesNotCountCallsInEvaluation) {
  Dropout<float> dropout(0.5, 5), other(0.5, 5);
  const auto x = ones(256);
  dropout.eval();
  (void)dropout(x);
  dropout.train();
  EXPECT_EQ(pattern(dropout(x)), pattern(other(x)));
}

TEST(Dropout, CopiesContinueFromTheOriginalIndependently) {
  Dropout<float> dropout(0.5, 5);
  const auto x = ones(256);
  (void)dropout(x);
  Dropout<float> copy = dropout;
  EXPECT_EQ(copy.p(), 0.5);
  EXPECT_EQ(pattern(copy(x)), pattern(dropout(x)));
  copy.eval();
  EXPECT_TRUE(dropout.is_training());
}

TEST(Dropout, DropsTheSameForAnyNumberOfThreads) {
  const auto x = random_tensor<float, 2>({501, 333}, 3);  // several chunks of work, the last one short
  attn::SerialExecutor serial;
  attn::ThreadPool two(2), five(5);
  const auto on = [&](attn::Executor& executor) {
    const attn::UseExecutor use(executor);
    return Dropout<float>(0.3, 8)(x);
  };
  const auto expected = on(serial);
  EXPECT_TRUE(same_bits(on(two), expected));
  EXPECT_TRUE(same_bits(on(five), expected));
}

TEST(Dropout, DropsTheSameForEveryTypeAndRank) {
  const std::string expected = pattern(Dropout<float>(0.3, 8)(ones(720)));
  const auto of = [&]<class T>(T) {
    Tensor<T, 4> x(2, 3, 4, 30);
    x.setConstant(T(1));
    const Tensor<T, 4> y = Dropout<T>(0.3, 8)(x);
    return pattern(Tensor<T, 1>(y.reshape(Eigen::array<Index, 1>{720})));
  };
  EXPECT_EQ(of(float{}), expected);
  EXPECT_EQ(of(double{}), expected);
  EXPECT_EQ(of(Eigen::half{}), expected);
  EXPECT_EQ(of(Eigen::bfloat16{}), expected);
}

TEST(Dropout, ScalesInDoubleForDoubleAndRoundsOnceForHalf) {
  const auto x = random_tensor<double, 1>({100}, 4);
  const auto y = Dropout<double>(0.3, 8)(x);
  const double scale = 0x1p32 / (0x1p32 - std::floor(0.3 * 0x1p32));  // p as the 32-bit threshold has it
  for (Index i = 0; i < 100; ++i) EXPECT_DOUBLE_EQ(y(i), y(i) == 0.0 ? 0.0 : x(i) * scale);
  const auto low = attn_test::cast<Eigen::half>(x);
  const auto dropped = Dropout<Eigen::half>(0.3, 8)(low);
  for (Index i = 0; i < 100; ++i) {
    const float product = y(i) == 0.0 ? 0.F : static_cast<float>(low(i)) * static_cast<float>(scale);
    EXPECT_EQ(static_cast<float>(dropped(i)), static_cast<float>(static_cast<Eigen::half>(product)));
  }
}

TEST(Dropout, WritesIntoTheCallersMemoryAndInPlace) {
  auto x = random_tensor<float, 3>({3, 5, 7}, 5);
  const auto expected = Dropout<float>(0.4, 3)(x);
  std::vector<float> memory(106, 77.F);
  Dropout<float>(0.4, 3).forward_into(TensorMap<float, 3>(memory.data(), 3, 5, 7), x);
  EXPECT_EQ(std::memcmp(memory.data(), expected.data(), sizeof(float) * 105), 0);
  EXPECT_EQ(memory.back(), 77.F);
  Dropout<float>(0.4, 3).forward_into(x, x);
  EXPECT_TRUE(same_bits(x, expected));
}

TEST(Dropout, CopiesIntoTheCallersMemoryInEvaluation) {
  const auto x = random_tensor<float, 2>({3, 5}, 5);
  Tensor<float, 2> y(3, 5);
  Dropout<float> dropout(0.4);
  dropout.eval();
  dropout.forward_into(y, x);
  EXPECT_TRUE(same_bits(x, y));
}

TEST(Dropout, NumbersCallsFromSeveralThreadsApart) {
  const auto x = ones(256);
  std::set<std::string> expected, got;
  const Dropout<float> one(0.5, 5), shared(0.5, 5);
  for (int i = 0; i < 8; ++i) expected.insert(pattern(one(x)));
  std::vector<std::string> patterns(8);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      patterns[2 * t] = pattern(shared(x));
      patterns[2 * t + 1] = pattern(shared(x));
    });
  for (std::thread& thread : threads) thread.join();
  got.insert(patterns.begin(), patterns.end());
  EXPECT_EQ(got, expected);
}

TEST(Dropout, GivesNothingForNothing) { EXPECT_EQ(Dropout<float>()(Tensor<float, 3>(0, 4, 5)).size(), 0); }

TEST(Dropout, RefusesAnotherOutputShapeAndGapsBetweenRows) {
  const auto x = random_tensor<float, 3>({2, 3, 8}, 7);
  Tensor<float, 3> y(2, 8, 3);
  expect_error([&] { Dropout<float>().forward_into(y, x); }, {"[attn::Dropout", "expected [2,3,8]", "got [2,8,3]"});
  expect_error([&] { Dropout<float>().forward_into(Tensor<float, 4>(2, 2, 3, 4), attn::split_heads(x, 2)); },
               {"[attn::Dropout", "packed"});
}

TEST(Dropout, DropsElementsOfItsOwnWithoutASeed) {
  const auto x = ones(256);
  const Dropout<float> a(0.5), b(0.5), copy = a;
  std::set<std::string> patterns{pattern(a(x)), pattern(b(x)), pattern(copy(x))};
  std::vector<Dropout<float>> grown, filled(3, a);
  for (int i = 0; i < 5; ++i) grown.emplace_back(0.5);
  for (const auto& layers : {&grown, &filled})
    for (const Dropout<float>& layer : *layers) patterns.insert(pattern(layer(x)));
  Dropout<float> assigned(0.5, 7);
  assigned = a;
  patterns.insert(pattern(assigned(x)));
  EXPECT_EQ(patterns.size(), 12U);
}

TEST(Dropout, CopiesAGivenSeed) {
  const auto x = ones(256);
  const Dropout<float> a(0.5, 5);
  (void)a(x);
  Dropout<float> assigned(0.5), reseeded(0.5);
  assigned = a;
  reseeded.reseed(9);
  const Dropout<float> copy = a, of_reseeded = reseeded;
  const std::string second = pattern(a(x));
  EXPECT_EQ(pattern(copy(x)), second);
  EXPECT_EQ(pattern(assigned(x)), second);
  EXPECT_EQ(pattern(of_reseeded(x)), pattern(Dropout<float>(0.5, 9)(x)));
}

TEST(Dropout, MovesItsRandomNumbersAlong) {
  const auto x = ones(256);
  for (const std::optional<std::uint64_t> seed : {std::optional<std::uint64_t>(), std::optional<std::uint64_t>(5)}) {
    Dropout<float> a(0.5, seed);
    const std::string first = pattern(a(x));
    const attn::DropoutRule next = a.next_rule();
    a.give_back(next);
    Dropout<float> moved = std::move(a), assigned(0.1);
    assigned = std::move(moved);
    EXPECT_EQ(assigned.p(), 0.5);
    const attn::DropoutRule rule = assigned.next_rule();
    EXPECT_EQ(rule.seed, next.seed);
    EXPECT_EQ(rule.call, 1U);
    if (!seed) {
      EXPECT_NE(a.next_rule().seed, next.seed);
    }
    a = assigned;  // what was moved from can be used and assigned to
    EXPECT_EQ(a(x).size(), 256);
  }
}

TEST(Dropout, IsUnchangedByAssignmentToItself) {
  Dropout<float> a(0.5);
  const attn::DropoutRule first = a.next_rule();
  const Dropout<float>& same = a;
  a = same;
  const attn::DropoutRule second = a.next_rule();
  EXPECT_EQ(second.seed, first.seed);
  EXPECT_EQ(second.call, 1U);
}

TEST(Dropout, ChecksWithoutRunning) {
  const Dropout<float> dropout(0.5, 1);
  const attn::View<const float, 2> x(nullptr, {2, 4});
  EXPECT_NO_THROW(dropout.check(attn::View<float, 2>(nullptr, {2, 4}), x));
  expect_error(
      [&] {
        dropout.check(attn::View<float, 2>(nullptr, {2, 3}), x);
      },
      {"[attn::Dropout::forward] output", "expected [2,4]", "got [2,3]"});
  expect_error(
      [&] {
        dropout.check(attn::View<float, 2>(nullptr, {2, 4}, {8, 1}), x);
      },
      {"[attn::Dropout::forward] views"});
  EXPECT_EQ(dropout.next_rule().call, 0U);
}

TEST(DropoutBackward, DropsWhatForwardDropped) {
  const auto of = []<class T>(T) {
    const auto x = random_tensor<T, 2>({30, 1000}, 1), grad_y = random_tensor<T, 2>({30, 1000}, 2);
    const Dropout<T> dropout(0.3, 8);
    (void)dropout(x);  // another call comes before
    attn::DropoutRule saved;
    const Tensor<T, 2> y = dropout.forward(x, saved);
    (void)dropout(x);  // and after
    const Tensor<T, 2> grad_x = dropout.backward(grad_y, saved);
    Index dropped = 0;
    for (Index i = 0; i < x.size(); ++i) {
      const bool kept = static_cast<float>(y.data()[i]) != 0.F;
      dropped += kept ? 0 : 1;
      const auto scale = static_cast<attn::Accumulator<T>>(saved.scale);
      EXPECT_EQ(grad_x.data()[i],
                kept ? static_cast<T>(static_cast<attn::Accumulator<T>>(grad_y.data()[i]) * scale) : T(0));
    }
    EXPECT_NEAR(static_cast<double>(dropped), 9000.0, 500.0);
  };
  of(float{});
  of(double{});
  of(Eigen::half{});
  of(Eigen::bfloat16{});
}

TEST(DropoutBackward, LeavesTheGradientOfEvaluationAlone) {
  Dropout<float> dropout(0.3, 8);
  dropout.eval();
  const auto x = random_tensor<float, 1>({100}, 1);
  attn::DropoutRule saved(0.5, 1, 1);
  EXPECT_TRUE(same_bits(dropout.forward(x, saved), x));
  dropout.train();
  EXPECT_TRUE(same_bits(dropout.backward(x, saved), x));
}

TEST(DropoutBackward, GivesTheSameInPlaceAndForAnyNumberOfThreads) {
  const auto grad_y = random_tensor<float, 2>({501, 333}, 3);
  const attn::DropoutRule saved(0.3, 8, 5);
  const Tensor<float, 2> expected = Dropout<float>().backward(grad_y, saved);
  for (const int threads : {1, 2, 3, 5, 16}) {
    attn::ThreadPool pool(threads);
    const attn::UseExecutor use(pool);
    Tensor<float, 2> grad_x = grad_y;
    Dropout<float>().backward_into(grad_x, grad_x, saved);
    EXPECT_TRUE(same_bits(grad_x, expected)) << threads;
  }
}

TEST(DropoutBackward, LeavesWhatWasSavedWhereForwardFails) {
  const Dropout<float> dropout(0.3, 8);
  const Tensor<float, 1> x(3);
  Tensor<float, 1> y(4);
  attn::DropoutRule saved(0.5, 1, 7);
  expect_error([&] { dropout.forward_into(y, x, saved); }, {"Dropout::forward", "output, expected [3], got [4]"});
  expect_error([&] { dropout.backward_into(y, x, saved); }, {"Dropout::backward", "grad_x, expected [3], got [4]"});
  EXPECT_EQ(saved.call, 7U);
}

}  // namespace
