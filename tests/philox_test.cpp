#include "module_support.hpp"

#include <set>
#include <thread>

namespace {

using Words = std::array<std::uint32_t, 4>;

// The known answers of Random123 1.14, kat_vectors: philox4x32 10.
TEST(Philox, GivesTheKnownAnswersOfRandom123) {
  EXPECT_EQ(attn::philox4x32({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint32_t ones = 0xffffffff;
  EXPECT_EQ(attn::philox4x32({ones, ones, ones, ones}, {ones, ones}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(attn::philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, IsAConstantExpression) { static_assert(attn::philox4x32({0, 0, 0, 0}, {0, 0})[0] == 0x6627e8d5); }

TEST(DropoutRule, IsInactiveByDefaultAndForPZero) {
  EXPECT_FALSE(attn::DropoutRule().active());
  EXPECT_FALSE(attn::DropoutRule(0.0, 1, 2).active());
  EXPECT_TRUE(attn::DropoutRule(0.1, 1, 2).active());
}

TEST(DropoutRule, KeepsAllForPZeroAndNoneForPOne) {
  const attn::DropoutRule all(0.0, 3, 0), none(1.0, 3, 0);
  for (std::uint32_t i = 0; i < 1000; ++i) {
    EXPECT_TRUE(all.keep(i, 0, 0));
    EXPECT_FALSE(none.keep(i, 0, 0));
  }
  EXPECT_EQ(none.scale, 0.0);
  EXPECT_EQ(attn::DropoutRule(0.75, 3, 0).scale, 4.0);
}

TEST(DropoutRule, KeepsAnElementWhereItsWordIsNotBelowTheThreshold) {
  const attn::DropoutRule rule(0.5, 0xfedcba9876543210u, 7);
  for (std::uint32_t column : {0U, 1U, 2U, 3U, 4U, 1001U}) {
    const Words words = attn::philox4x32({column / 4, 11, 13, 7}, {0x76543210, 0xfedcba98});
    EXPECT_EQ(rule.keep(column, 11, 13), words[column % 4] >= 0x80000000U);
  }
}

// What is kept times its scale is 1 on average, also where the threshold rounds p.
TEST(DropoutRule, ScalesByWhatTheThresholdKeeps) {
  for (const double p : {0.0, 0.1, 0.9999, 1 - 0x1p-20, 1 - 3 * 0x1p-33, 1 - 0x1p-34, 1 - 0x1p-50, 1.0}) {
    const attn::DropoutRule rule(p, 1, 0);
    const double kept = 1.0 - static_cast<double>(rule.threshold) * 0x1p-32;
    EXPECT_NEAR(rule.scale * kept, kept > 0 ? 1.0 : 0.0, 1e-12) << p;
  }
}

// 20000 elements, standard deviation of the rate at most 0.0036; five of them allowed.
TEST(DropoutRule, DropsAtTheRateAskedFor) {
  for (const double p : {0.01, 0.1, 0.5, 0.9}) {
    const attn::DropoutRule rule(p, 42, 1);
    int dropped = 0;
    for (std::uint32_t row = 0; row < 100; ++row)
      for (std::uint32_t column = 0; column < 200; ++column) dropped += !rule.keep(column, row, 5);
    EXPECT_NEAR(dropped / 20000.0, p, 5.0 * std::sqrt(p * (1 - p) / 20000.0));
  }
}

TEST(DropoutRule, DependsOnEveryArgument) {
  const auto pattern = [](std::uint64_t seed, std::uint32_t call, std::uint32_t row, std::uint32_t plane,
                          std::uint32_t first) {
    const attn::DropoutRule rule(0.5, seed, call);
    std::string text;
    for (std::uint32_t i = 0; i < 64; ++i) text += rule.keep(first + i, row, plane) ? '1' : '0';
    return text;
  };
  const std::set<std::string> patterns{
      pattern(1, 0, 0, 0, 0), pattern(2, 0, 0, 0, 0), pattern(1 + (std::uint64_t{1} << 32), 0, 0, 0, 0),
      pattern(1, 1, 0, 0, 0), pattern(1, 0, 1, 0, 0), pattern(1, 0, 0, 1, 0),
      pattern(1, 0, 0, 0, 64)};
  EXPECT_EQ(patterns.size(), 7U);
  EXPECT_EQ(pattern(1, 0, 0, 0, 0), pattern(1, 0, 0, 0, 0));
}

// The first outputs of the published generator with state 0.
TEST(Seeds, SplitMix64GivesItsPublishedNumbers) {
  constexpr std::uint64_t step = 0x9E3779B97F4A7C15U;
  EXPECT_EQ(attn::splitmix64(0), 0xE220A8397B1DCDAFU);
  EXPECT_EQ(attn::splitmix64(step), 0x6E789E6AA1B965F4U);
  EXPECT_EQ(attn::splitmix64(2 * step), 0x06C45D188009454FU);
}

TEST(Seeds, DifferAcrossThreads) {
  std::vector<std::vector<std::uint64_t>> drawn(4);
  std::vector<std::thread> threads;
  for (auto& seeds : drawn)
    threads.emplace_back([&seeds] {
      for (int i = 0; i < 500; ++i) seeds.push_back(attn::fresh_seed());
    });
  for (std::thread& thread : threads) thread.join();
  std::set<std::uint64_t> all;
  for (const auto& seeds : drawn) all.insert(seeds.begin(), seeds.end());
  EXPECT_EQ(all.size(), 2000U);
}

}  // namespace
