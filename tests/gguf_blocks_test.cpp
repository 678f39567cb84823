// Quantised types of GGUF: blocks worked out by hand, and random ones against the formula of each type, bit by bit.
#include <attn/io/gguf.hpp>

#include "gguf_support.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace {

using attn::GgufFile;
using attn::GgufType;
using attn::Index;
using attn_test::gguf::Bytes;
using attn_test::gguf::put;
using attn_test::gguf::Writer;

constexpr std::uint16_t half_one = 0x3C00, half_two = 0x4000, half_quarter = 0x3400;

std::vector<float> read(GgufType type, const Bytes& blocks, std::int64_t numbers) {
  const Bytes file = Writer().add_tensor("x", type, {numbers}, blocks).bytes();
  const auto x = GgufFile(file).read<float, 1>("x");
  return {x.data(), x.data() + x.size()};
}
/// A block of some halves and then bytes that count up.
Bytes counting(std::initializer_list<std::uint16_t> halves, std::size_t bytes) {
  Bytes block;
  for (const std::uint16_t half : halves) put(block, half);
  for (std::size_t i = 0; i < bytes; ++i) put(block, static_cast<std::uint8_t>(i));
  return block;
}

// ---- By hand
// ----------------------------------------------------------------------------------------------------------

TEST(GgufBlocks, OfQ4_0CountFromMinusEight) {
  Bytes block = counting({half_two}, 0);
  for (int j = 0; j < 16; ++j) put(block, static_cast<std::uint8_t>(j | (15 - j) << 4));
  const auto x = read(GgufType::q4_0, block, 32);
  for (int j = 0; j < 16; ++j) {
    EXPECT_EQ(x[static_cast<std::size_t>(j)], 2.F * static_cast<float>(j - 8));
    EXPECT_EQ(x[static_cast<std::size_t>(j) + 16], 2.F * static_cast<float>(7 - j));
  }
}

TEST(GgufBlocks, OfQ8_0HaveSigns) {
  Bytes block = counting({half_quarter}, 0);
  for (const int q : {0, 1, -1, 127, -127, -128}) put(block, static_cast<std::int8_t>(q));
  block.resize(34);
  const auto x = read(GgufType::q8_0, block, 32);
  const std::vector<float> expected{0, 0.25F, -0.25F, 31.75F, -31.75F, -32, 0};
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(x[i], expected[i]);
}

TEST(GgufBlocks, OfQ4_1AddTheirMinimum) {
  const auto x = read(GgufType::q4_1, counting({half_two, half_one}, 16), 32);
  EXPECT_EQ(x[0], 1.F);    // byte 0x00
  EXPECT_EQ(x[15], 31.F);  // byte 0x0F
  EXPECT_EQ(x[16], 1.F);   // upper half of 0x00
}

TEST(GgufBlocks, OfQ5_0TakeTheirFifthBitFromAWord) {
  Bytes block = counting({half_one}, 0);
  put(block, std::uint32_t{1U << 0 | 1U << 31});
  for (int j = 0; j < 16; ++j) put(block, std::uint8_t{0xA3});
  const auto x = read(GgufType::q5_0, block, 32);
  EXPECT_EQ(x[0], 3.F);
  EXPECT_EQ(x[1], 3.F - 16);
  EXPECT_EQ(x[16], 10.F - 16);
  EXPECT_EQ(x[31], 10.F);
}

TEST(GgufBlocks, OfQ5_1TakeTheirFifthBitFromAWord) {
  Bytes block = counting({half_one, half_two}, 0);
  put(block, std::uint32_t{1U << 2 | 1U << 17});
  for (int j = 0; j < 16; ++j) put(block, std::uint8_t{0xA3});
  const auto x = read(GgufType::q5_1, block, 32);
  EXPECT_EQ(x[1], 5.F);
  EXPECT_EQ(x[2], 21.F);
  EXPECT_EQ(x[16], 12.F);
  EXPECT_EQ(x[17], 28.F);
}

TEST(GgufBlocks, OfQ4_KScaleEachGroup) {
  Bytes block = counting({half_one, half_two}, 0);
  // Groups 0 to 3: scale 1, 2, 3, 63, minimum 4, 5, 6, 7, with upper bits 1, 2, 3, 0 for scales 4 to 7 and 3, 2, 1, 0.
  for (const int byte : {1 | 1 << 6, 2 | 2 << 6, 3 | 3 << 6, 63, 4 | 3 << 6, 5 | 2 << 6, 6 | 1 << 6, 7})
    put(block, static_cast<std::uint8_t>(byte));
  for (const int byte : {0x21, 0x43, 0x65, 0x87}) put(block, static_cast<std::uint8_t>(byte));
  for (int i = 0; i < 128; ++i) put(block, std::uint8_t{0x94});
  const auto x = read(GgufType::q4_k, block, 256);
  const float scales[] = {1, 2, 3, 63, 1 + 16, 3 + 32, 5 + 48, 7}, minima[] = {4, 5, 6, 7, 2 + 48, 4 + 32, 6 + 16, 8};
  for (std::size_t i = 0; i < 256; ++i) {
    const std::size_t group = i / 32;
    EXPECT_EQ(x[i], scales[group] * (group % 2 == 0 ? 4.F : 9.F) - 2 * minima[group]) << i;
  }
}

TEST(GgufBlocks, OfQ5_KAddABitOfTheirOwn) {
  Bytes block = counting({half_one, 0}, 0);
  for (int i = 0; i < 12; ++i) put(block, static_cast<std::uint8_t>(i < 4 ? 1 : i < 8 ? 0 : 1));  // all scales 1
  for (int i = 0; i < 32; ++i) put(block, static_cast<std::uint8_t>(1U << (i % 8)));
  for (int i = 0; i < 128; ++i) put(block, std::uint8_t{0x94});
  const auto x = read(GgufType::q5_k, block, 256);
  for (std::size_t i = 0; i < 256; ++i)
    EXPECT_EQ(x[i], (i / 32 % 2 == 0 ? 4.F : 9.F) + (i % 32 % 8 == i / 32 ? 16.F : 0.F)) << i;
}

TEST(GgufBlocks, OfQ6_KPutTogetherFourBitsAndTwo) {
  Bytes block(128, std::byte{0x21});                            // lower bits: 1 and 2
  for (int i = 0; i < 64; ++i) put(block, std::uint8_t{0xE4});  // upper bits: 0, 1, 2, 3
  for (int i = 0; i < 16; ++i) put(block, static_cast<std::int8_t>(i - 8));
  put(block, half_two);
  const auto x = read(GgufType::q6_k, block, 256);
  for (std::size_t i = 0; i < 256; ++i) {
    const std::size_t quarter = i / 32 % 4;
    const float number = (quarter < 2 ? 1.F : 2.F) + 16.F * static_cast<float>(quarter) - 32.F;
    EXPECT_EQ(x[i], 2.F * (static_cast<float>(i / 16) - 8.F) * number) << i;
  }
}

TEST(GgufBlocks, OfIq4_NlLookNumbersUp) {
  Bytes block = counting({half_one}, 0);
  for (int j = 0; j < 16; ++j) put(block, static_cast<std::uint8_t>(j));
  const auto x = read(GgufType::iq4_nl, block, 32);
  EXPECT_EQ(x[0], -127.F);
  EXPECT_EQ(x[7], -10.F);
  EXPECT_EQ(x[8], 1.F);
  EXPECT_EQ(x[15], 113.F);
  EXPECT_EQ(x[16], -127.F);
}

TEST(GgufBlocks, OfMxfp4AreSmallFloatsTimesAPowerOfTwo) {
  for (const int exponent : {0, 1, 127, 130, 254}) {
    Bytes block;
    put(block, static_cast<std::uint8_t>(exponent));
    for (int j = 0; j < 16; ++j) put(block, static_cast<std::uint8_t>(j));
    const auto x = read(GgufType::mxfp4, block, 32);
    const float scale = static_cast<float>(std::ldexp(1.0, exponent - 127));
    const float expected[] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
    for (std::size_t j = 0; j < 8; ++j) {
      EXPECT_EQ(x[j], expected[j] * scale) << exponent;
      EXPECT_EQ(x[j + 8], -expected[j] * scale) << exponent;
    }
  }
  Bytes nan(17, std::byte{0xFF});
  EXPECT_TRUE(std::isnan(read(GgufType::mxfp4, nan, 32)[3]));
}

// ---- Random blocks against the formula, a number at a time, in double
// -------------------------------------------------

double half_at(const Bytes& b, std::size_t at) {
  const unsigned bits = std::to_integer<unsigned>(b[at]) | std::to_integer<unsigned>(b[at + 1]) << 8;
  const int exponent = static_cast<int>(bits >> 10 & 31U);
  const double fraction = static_cast<double>(bits & 1023U) / 1024, sign = (bits & 0x8000U) != 0 ? -1 : 1;
  return sign * (exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15));
}
int bits_at(const Bytes& b, std::size_t bit, int count) {  // of a string of bits, the lowest of a byte first
  int result = 0;
  for (int i = 0; i < count; ++i, ++bit) result |= (std::to_integer<int>(b[bit / 8]) >> (bit % 8) & 1) << i;
  return result;
}
/// Number i of a block that begins at byte `at`, of the super-blocks with scales and minima.
double formula_of_k(GgufType type, const Bytes& b, std::size_t at, std::size_t i) {
  const std::size_t group = i / 32, j = i % 32;
  const auto byte = [&](std::size_t k) { return std::to_integer<int>(b[at + k]); };
  if (type == GgufType::q6_k) {
    const std::size_t half = i / 128, quarter = i / 32 % 4;
    const int low = byte(half * 64 + quarter % 2 * 32 + j) >> (quarter / 2 * 4) & 15;
    const int high = byte(128 + half * 32 + j) >> (2 * quarter) & 3;
    return half_at(b, at + 208) * static_cast<std::int8_t>(byte(192 + i / 16)) * (low + 16 * high - 32);
  }
  const auto s = [&](std::size_t k) { return byte(4 + k); };
  const int scale = group < 4 ? s(group) & 63 : (s(group + 4) & 15) | (s(group - 4) >> 6) << 4;
  const int minimum = group < 4 ? s(group + 4) & 63 : (s(group + 4) >> 4) | (s(group) >> 6) << 4;
  const std::size_t numbers = type == GgufType::q4_k ? 16 : 48;
  int number = byte(numbers + i / 64 * 32 + j) >> (group % 2 * 4) & 15;
  if (type == GgufType::q5_k) number += 16 * (byte(16 + j) >> group & 1);
  return half_at(b, at) * scale * number - half_at(b, at + 2) * minimum;
}
double formula(GgufType type, const Bytes& b, std::size_t at, std::size_t i) {
  const auto nibble = [&](std::size_t from) { return bits_at(b, 8 * (at + from + i % 16) + i / 16 * 4, 4); };
  const auto fifth = [&](std::size_t from) { return 16 * bits_at(b, 8 * (at + from) + i, 1); };
  const int table[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  if (type == GgufType::q4_0) return half_at(b, at) * (nibble(2) - 8);
  if (type == GgufType::q4_1) return half_at(b, at) * nibble(4) + half_at(b, at + 2);
  if (type == GgufType::q5_0) return half_at(b, at) * (nibble(6) + fifth(2) - 16);
  if (type == GgufType::q5_1) return half_at(b, at) * (nibble(8) + fifth(4)) + half_at(b, at + 2);
  if (type == GgufType::q8_0) return half_at(b, at) * static_cast<std::int8_t>(std::to_integer<int>(b[at + 2 + i]));
  if (type == GgufType::iq4_nl) return half_at(b, at) * table[nibble(2)];
  return formula_of_k(type, b, at, i);
}

TEST(GgufBlocks, AgreeWithTheFormulaOfTheirType) {
  const struct {
    GgufType type;
    std::size_t numbers, bytes;
    std::vector<std::size_t> halves;  // where in a block
  } cases[] = {
      {GgufType::q4_0, 32, 18, {0}},      {GgufType::q4_1, 32, 20, {0, 2}},   {GgufType::q5_0, 32, 22, {0}},
      {GgufType::q5_1, 32, 24, {0, 2}},   {GgufType::q8_0, 32, 34, {0}},      {GgufType::iq4_nl, 32, 18, {0}},
      {GgufType::q4_k, 256, 144, {0, 2}}, {GgufType::q5_k, 256, 176, {0, 2}}, {GgufType::q6_k, 256, 210, {208}}};
  std::mt19937 words(5);
  for (const auto& [type, numbers, bytes, halves] : cases) {
    constexpr std::size_t count = 700;  // several stretches of threads
    Bytes blocks(count * bytes);
    for (std::byte& byte : blocks) byte = static_cast<std::byte>(words() & 255U);
    for (std::size_t block = 0; block < count; ++block)  // scales that are finite and neither large nor tiny
      for (const std::size_t at : halves) {
        std::byte& high = blocks[block * bytes + at + 1];
        high = (high & std::byte{0x83}) | std::byte{0x28} | (static_cast<std::byte>(words() & 0x14U));
      }
    const auto x = read(type, blocks, static_cast<std::int64_t>(count * numbers));
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double expected = formula(type, blocks, i / numbers * bytes, i % numbers);
      const double size = std::abs(half_at(blocks, i / numbers * bytes + halves[0])) * 127 * 63;
      ASSERT_NEAR(double{x[i]}, expected, 0x1p-23 * size) << gguf_type_name(type) << ", " << i;
    }
  }
}

TEST(GgufBlocks, HaveTheLengthsOfTheirTypes) {
  for (const attn::detail::GgufTypeFacts& facts : attn::detail::gguf_types) {
    const Bytes file = Writer().add_tensor("x", facts.type, {2, 512}, Bytes(1024 / facts.block * facts.bytes)).bytes();
    EXPECT_EQ(GgufFile(file).tensor("x").bytes.size(), 1024 / facts.block * facts.bytes) << facts.name;
    EXPECT_EQ(gguf_type_name(facts.type), facts.name);
  }
  EXPECT_EQ(gguf_type_name(static_cast<GgufType>(77)), "unknown");
}

}  // namespace
