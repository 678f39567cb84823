// How weights are rounded to fewer bits, and how blocks of GGUF's are taken over.
#include <attn/stored_weight.hpp>

#include "support.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace {

using attn::Index;
using attn::StoredWeight;
using attn::WeightFormat;

std::vector<float> normal_numbers(Index n, unsigned seed, float size = 1) {
  std::mt19937 words(seed);
  std::normal_distribution<float> normal(0, size);
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& value : x) value = normal(words);
  return x;
}
std::vector<float> stored_and_read(WeightFormat format, const std::vector<float>& row) {
  const auto in = static_cast<Index>(row.size());
  StoredWeight weight(format, 1, in);
  weight.set_row(0, row.data());
  std::vector<float> got(row.size());
  weight.get_row(0, got.data());
  return got;
}

TEST(StoredWeight, RoundsToTheNearestNumberOfItsFormat) {
  const struct {
    WeightFormat format;
    double bar;  // of the largest weight of a group, or of each weight
  } cases[] = {{WeightFormat::bfloat16, 0x1p-8},
               {WeightFormat::half, 0x1p-11},
               {WeightFormat::int8, 0.5 / 127 * 1.001},
               {WeightFormat::int4, 2.0 / 9 * 1.001}};  // of its largest steps, whose 7th may stand for its 9th
  for (const auto& [format, bar] : cases)
    for (const Index in : {1, 31, 32, 33, 200}) {
      const auto row = normal_numbers(in, 1, 0.02F), got = stored_and_read(format, row);
      for (std::size_t i = 0; i < row.size(); ++i) {
        double largest = std::abs(double{row[i]});
        const bool grouped = format == WeightFormat::int8 || format == WeightFormat::int4;
        for (std::size_t j = i / 32 * 32; grouped && j < std::min(row.size(), i / 32 * 32 + 32); ++j)
          largest = std::max(largest, std::abs(double{row[j]}));
        ASSERT_LE(std::abs(double{got[i]} - double{row[i]}), bar * largest)
            << weight_format_name(format) << ", " << i << " of " << in;
      }
    }
}

TEST(StoredWeight, KeepsWholeNumbersOfStepsExactly) {
  std::vector<float> eight, four;
  for (int i = 0; i < 32; ++i) eight.push_back(static_cast<float>(i == 0 ? 127 : i * 8 - 127) / 64);
  for (int i = 0; i < 32; ++i) four.push_back(static_cast<float>(i % 16 - 8) / 4);
  EXPECT_EQ(stored_and_read(WeightFormat::int8, eight), eight);
  EXPECT_EQ(stored_and_read(WeightFormat::int4, four), four);
}

/// The scale that maps the largest weight to -8 is one of several that are tried.
TEST(StoredWeight, ErrsLessInInt4ThanWithTheLargestWeightsScale) {
  double better = 0;
  for (unsigned seed = 0; seed < 100; ++seed) {
    const auto row = normal_numbers(32, seed), got = stored_and_read(WeightFormat::int4, row);
    const float extreme =
        *std::max_element(row.begin(), row.end(), [](float a, float b) { return std::abs(a) < std::abs(b); });
    const auto scale = static_cast<double>(Eigen::half(extreme / -8));
    double error = 0, plain_error = 0;
    for (std::size_t i = 0; i < 32; ++i) {
      const double number = std::clamp(std::nearbyint(double{row[i]} / scale), -8.0, 7.0);
      error += std::pow(double{got[i]} - double{row[i]}, 2);
      plain_error += std::pow(number * scale - double{row[i]}, 2);
    }
    ASSERT_LE(error, plain_error * 1.0001) << "seed " << seed;
    better += error < 0.9 * plain_error ? 1 : 0;
  }
  EXPECT_GT(better, 30);
}

TEST(StoredWeight, KeepsZeros) {
  const std::vector<float> zeros(40, 0.F);
  for (const auto format : {WeightFormat::bfloat16, WeightFormat::half, WeightFormat::int8, WeightFormat::int4})
    EXPECT_EQ(stored_and_read(format, zeros), zeros);
}

TEST(StoredWeight, SetsOneRowWithoutTouchingOthers) {
  for (const auto format : {WeightFormat::bfloat16, WeightFormat::half, WeightFormat::int8, WeightFormat::int4}) {
    constexpr Index out = 101, in = 70;
    StoredWeight weight(format, out, in);
    std::vector<std::vector<float>> rows;
    for (Index o = 0; o < out; ++o) rows.push_back(normal_numbers(in, static_cast<unsigned>(o)));
    for (Index o = out; o-- > 0;) weight.set_row(o, rows[static_cast<std::size_t>(o)].data());
    std::vector<float> got(static_cast<std::size_t>(in));
    for (Index o = 0; o < out; ++o) {
      weight.get_row(o, got.data());
      ASSERT_EQ(got, stored_and_read(format, rows[static_cast<std::size_t>(o)])) << "row " << o;
    }
  }
}

TEST(StoredWeight, TakesFewerBytes) {
  constexpr Index out = 96, in = 64, n = out * in;
  EXPECT_EQ(StoredWeight(WeightFormat::half, out, in).bytes(), n * 2);
  EXPECT_EQ(StoredWeight(WeightFormat::int8, out, in).bytes(), n + n / 32 * 2);
  EXPECT_EQ(StoredWeight(WeightFormat::int4, out, in).bytes(), n / 2 + n / 32 * 2);
}

TEST(StoredWeight, NamesWhatItCannotHold) {
  constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const auto first = [](WeightFormat format, float number) {
    const float row[] = {1, number, 1};
    return StoredWeight::first_unstorable(format, row, 3);
  };
  for (const auto format : {WeightFormat::int8, WeightFormat::int4}) {
    EXPECT_EQ(first(format, infinity), 1);
    EXPECT_EQ(first(format, nan), 1);
    EXPECT_EQ(first(format, 1e9F), 1);  // its scale would be infinite in half precision
    EXPECT_EQ(first(format, -6e4F), 3);
  }
  EXPECT_EQ(first(WeightFormat::half, 65504), 3);
  EXPECT_EQ(first(WeightFormat::half, 65520), 1);
  EXPECT_EQ(first(WeightFormat::half, infinity), 3);
  EXPECT_EQ(first(WeightFormat::bfloat16, 3.3e38F), 3);
  EXPECT_EQ(first(WeightFormat::bfloat16, 3.4e38F), 1);
  EXPECT_EQ(first(WeightFormat::bfloat16, nan), 3);
}

/// Blocks written from the definition of the formats, of every number that they can hold.
TEST(StoredWeight, TakesOverBlocksOfGguf) {
  constexpr Index out = 50, in = 64;
  std::mt19937 words(3);
  for (const auto format : {WeightFormat::int8, WeightFormat::int4}) {
    std::vector<std::byte> blocks;
    std::vector<float> expected(out * in);
    for (std::size_t block = 0; block < out * in / 32; ++block) {
      const Eigen::half scale(static_cast<float>(static_cast<int>(words() % 2001) - 1000) / 512);
      std::byte bits[2];
      std::memcpy(bits, static_cast<const void*>(&scale), 2);
      blocks.insert(blocks.end(), {bits[0], bits[1]});
      for (std::size_t j = 0; j < (format == WeightFormat::int8 ? 32U : 16U); ++j) {
        const unsigned byte = words() % 256U;
        blocks.push_back(static_cast<std::byte>(byte));
        if (format == WeightFormat::int8) {
          expected[block * 32 + j] = static_cast<float>(scale) * static_cast<float>(static_cast<std::int8_t>(byte));
        } else {
          expected[block * 32 + j] = static_cast<float>(scale) * static_cast<float>(static_cast<int>(byte % 16) - 8);
          expected[block * 32 + j + 16] =
              static_cast<float>(scale) * static_cast<float>(static_cast<int>(byte / 16) - 8);
        }
      }
    }
    const StoredWeight weight = StoredWeight::of_rows(format, out, in, blocks.data());
    std::vector<float> row(in);
    for (Index o = 0; o < out; ++o) {
      weight.get_row(o, row.data());
      for (Index i = 0; i < in; ++i)
        ASSERT_EQ(row[static_cast<std::size_t>(i)], expected[static_cast<std::size_t>(o * in + i)]) << o << ", " << i;
    }
  }
}

/// Whole panels and parts of them: what no output fills is zeros.
TEST(StoredWeight, LoadsPartsOfPanelsAsIfTheRestWereZeros) {
  constexpr Index in = 96;
  std::mt19937 words(4);
  for (const auto format : {WeightFormat::int8, WeightFormat::int4})
    for (const Index out : {1, 15, 16, 17, 47, 48, 49, 64, 100, 200}) {
      const Index row = StoredWeight::row_bytes(format, in), block = StoredWeight::block_bytes(format);
      const Index whole = attn::detail::round_up(out, 48);
      std::vector<std::byte> rows(static_cast<std::size_t>(whole * row));
      for (Index i = 0; i < out * row; ++i) rows[static_cast<std::size_t>(i)] = static_cast<std::byte>(words() & 255U);
      for (Index i = out * row; i < whole * row; ++i)  // scales and numbers of 0
        rows[static_cast<std::size_t>(i)] = std::byte(i % block < 2 || format == WeightFormat::int8 ? 0 : 0x88);
      const StoredWeight expected = StoredWeight::of_rows(format, whole, in, rows.data());
      const StoredWeight loaded = StoredWeight::of_rows(format, out, in, rows.data());
      ASSERT_EQ(loaded.bytes(), expected.bytes());
      const Index scales = whole * in / 32 * 2, values = loaded.bytes() - scales;
      EXPECT_EQ(std::memcmp(loaded.part().values, expected.part().values, static_cast<std::size_t>(values)), 0) << out;
      EXPECT_EQ(std::memcmp(loaded.part().scales, expected.part().scales, static_cast<std::size_t>(scales)), 0) << out;
    }
}

}  // namespace
