// Conversion of elements of files: exact where possible, else rounded once, to nearest, ties to even.
#include <attn/io/elements.hpp>

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace {

using attn::Index;
using attn::detail::to_scalar;

/// The neighbours of a number of 16 bits, by its bits.
template <class T>
double at(std::uint16_t bits) {
  return static_cast<double>(static_cast<float>(std::bit_cast<T>(bits)));
}

/// Expects the nearest number of 16 bits, found among y and its neighbours without any conversion that rounds.
template <class T>
void expect_nearest(long double x, T y) {
  const auto bits = std::bit_cast<std::uint16_t>(y);
  const long double value = at<T>(bits);
  ASSERT_TRUE(std::isfinite(value)) << static_cast<double>(x);
  const long double distance = std::abs(value - x);
  for (const int step : {-1, 1}) {
    const auto other_bits = static_cast<std::uint16_t>(bits + step);
    if (((other_bits ^ bits) & 0x8000) != 0) continue;  // beside zero
    const long double other = at<T>(other_bits);
    if (!std::isfinite(other)) continue;
    const long double apart = std::abs(other - x);
    EXPECT_TRUE(distance < apart || (distance == apart && bits % 2 == 0)) << static_cast<double>(x);
  }
}

/// Numbers that lie on ties between numbers of 16 bits, and just beside them.
template <class T, class From, class Nudge>
void expect_ties_rounded(int lowest, int highest, const Nudge& nudge) {
  const int digits = std::is_same_v<T, Eigen::half> ? 11 : 8;
  std::mt19937 random(1);
  for (int exponent = lowest; exponent <= highest; ++exponent)
    for (int trial = 0; trial < 50; ++trial) {
      const double whole = static_cast<double>((1U << (digits - 1)) + random() % (1U << (digits - 1))) + 0.5;
      const auto tie = static_cast<From>(std::ldexp(whole, exponent - digits + 1));
      for (const From x : {nudge(tie, -1), tie, nudge(tie, 1)}) {
        expect_nearest<T>(static_cast<long double>(x), to_scalar<T>(x));
        expect_nearest<T>(-static_cast<long double>(x), to_scalar<T>(static_cast<From>(-x)));
      }
    }
}
double next_double(double x, int way) { return std::nextafter(x, way * std::numeric_limits<double>::infinity()); }
std::int64_t next_integer(std::int64_t x, int way) { return x + way; }

TEST(Elements, DoublesBesideTiesAreRoundedOnce) {
  expect_ties_rounded<Eigen::half, double>(-12, 14, next_double);
  expect_ties_rounded<Eigen::bfloat16, double>(-120, 120, next_double);
}

TEST(Elements, IntegersBesideTiesAreRoundedOnce) {
  expect_ties_rounded<Eigen::half, std::int64_t>(12, 15, next_integer);
  expect_ties_rounded<Eigen::bfloat16, std::int64_t>(9, 62, next_integer);
}

TEST(Elements, UnsignedIntegersAreRoundedOnce) {
  const std::uint64_t tie = (std::uint64_t{1} << 63) + (std::uint64_t{1} << 55);
  EXPECT_EQ(static_cast<float>(to_scalar<Eigen::bfloat16>(tie)), 0x1p63F);
  EXPECT_EQ(static_cast<float>(to_scalar<Eigen::bfloat16>(tie + 1)), 0x1.02p63F);
  EXPECT_EQ(static_cast<float>(to_scalar<Eigen::bfloat16>(~std::uint64_t{0})), 0x1p64F);
  EXPECT_EQ(to_scalar<float>(~std::uint64_t{0}), 0x1p64F);
}

TEST(Elements, SmallDoublesBecomeSubnormalNumbersRoundedOnce) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 2000; ++trial) {
    const double tie = std::ldexp(static_cast<double>(random() % 1023) + 0.5, -24);
    for (const double x : {next_double(tie, -1), tie, next_double(tie, 1)})
      expect_nearest<Eigen::half>(static_cast<long double>(x), to_scalar<Eigen::half>(x));
  }
}

TEST(Elements, EveryHalfAndBfloat16IsExactInFloatAndDouble) {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const auto low = static_cast<std::uint16_t>(bits);
    const int exponent = low >> 10 & 31, fraction = low & 1023;
    const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    if (exponent < 31) {
      const double value = (low & 0x8000) != 0 ? -magnitude : magnitude;
      ASSERT_EQ(to_scalar<double>(std::bit_cast<Eigen::half>(low)), value) << bits;
      ASSERT_EQ(to_scalar<float>(std::bit_cast<Eigen::half>(low)), static_cast<float>(value)) << bits;
    }
    const auto wide = std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
    if (std::isfinite(wide)) {
      ASSERT_EQ(to_scalar<float>(std::bit_cast<Eigen::bfloat16>(low)), wide) << bits;
      ASSERT_EQ(to_scalar<double>(std::bit_cast<Eigen::bfloat16>(low)), static_cast<double>(wide)) << bits;
    }
  }
}

TEST(Elements, InfinitiesStayAndNumbersBeyondTheRangeBecomeThem) {
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(to_scalar<float>(-infinity), -infinity);
  EXPECT_EQ(static_cast<double>(static_cast<float>(to_scalar<Eigen::half>(infinity))), infinity);
  EXPECT_EQ(static_cast<double>(static_cast<float>(to_scalar<Eigen::half>(65520.0))), infinity);
  EXPECT_EQ(static_cast<float>(to_scalar<Eigen::half>(65519.999)), 65504.F);
  EXPECT_EQ(static_cast<double>(static_cast<float>(to_scalar<Eigen::half>(-1e300))), -infinity);
  EXPECT_EQ(static_cast<double>(static_cast<float>(to_scalar<Eigen::bfloat16>(1e300))), infinity);
  EXPECT_TRUE(std::isnan(static_cast<float>(to_scalar<Eigen::bfloat16>(std::nan("")))));
  EXPECT_TRUE(std::signbit(static_cast<float>(to_scalar<Eigen::half>(-0.0))));
}

TEST(Elements, EqualTypesAreCopiedToTheBit) {
  const std::vector<std::uint32_t> bits{0x7FA12345, 0xFF800001, 0x80000000, 1};  // signalling NaN, -0, the least number
  std::vector<float> to(bits.size());
  attn::detail::convert_elements("F32", std::as_bytes(std::span(bits)), to.data(), std::ssize(to));
  for (std::size_t i = 0; i < bits.size(); ++i) EXPECT_EQ(std::bit_cast<std::uint32_t>(to[i]), bits[i]);
}

TEST(Elements, TypesOfLessThanAByteAndOfEightBitsAreNotRead) {
  for (const char* dtype : {"F4", "F6_E2M3", "F8_E4M3", "F8_E5M2", "F8_E8M0", "C64", "F31", ""})
    EXPECT_FALSE(attn::detail::is_readable(dtype)) << dtype;
  for (const char* dtype : {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"})
    EXPECT_TRUE(attn::detail::is_readable(dtype)) << dtype;
}

}  // namespace
