// Half and bfloat16 to float and back, on each instruction set: every bit pattern, and every rounding between two.
#include <attn/attn.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

using attn::Index;
namespace kernel = attn::kernel;

constexpr Index patterns = 1 << 16;

template <class Stored>
std::vector<Stored> all_patterns() {
  std::vector<Stored> all;
  for (Index i = 0; i < patterns; ++i) all.push_back({static_cast<std::uint16_t>(i)});
  return all;
}
template <class Stored>
std::vector<float> widened(const std::vector<Stored>& x, attn::Isa isa) {
  std::vector<float> y(x.size());
  const Index n = std::ssize(x);
  kernel::codec_of<Stored>(isa).load(y.data(), n, x.data(), n, 1, n);
  return y;
}
template <class Stored>
std::vector<Stored> narrowed(const std::vector<float>& x, attn::Isa isa) {
  std::vector<Stored> y(x.size());
  const Index n = std::ssize(x);
  kernel::codec_of<Stored>(isa).store(y.data(), n, x.data(), n, 1, n);
  return y;
}

/// The number that 16 bits stand for, by the definition of the format: sign, exponent, mantissa.
double value_of(std::uint16_t bits, int mantissa_bits, int bias) {
  const int mantissa = bits & ((1 << mantissa_bits) - 1), exponent = (bits & 0x7FFF) >> mantissa_bits;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == (0x7FFF >> mantissa_bits))
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  return sign * (exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1.0 + fraction, exponent - bias));
}
double value_of(kernel::Half x) { return value_of(x.bits, 10, 15); }
double value_of(kernel::Bfloat16 x) { return value_of(x.bits, 7, 127); }

template <class Stored>
class Conversion : public testing::Test {};
using Formats = testing::Types<kernel::Half, kernel::Bfloat16>;
TYPED_TEST_SUITE(Conversion, Formats);

TYPED_TEST(Conversion, EveryPatternBecomesItsNumber) {
  const auto x = all_patterns<TypeParam>();
  for (const attn::Isa isa : attn::supported_isas()) {
    const auto y = widened(x, isa);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double expected = value_of(x[i]);
      if (std::isnan(expected))
        ASSERT_TRUE(std::isnan(y[i])) << i;
      else
        ASSERT_EQ(static_cast<double>(y[i]), expected) << i;
      ASSERT_EQ(std::signbit(y[i]), (x[i].bits & 0x8000) != 0) << i;
    }
  }
}

TYPED_TEST(Conversion, EveryPatternComesBack) {
  const auto x = all_patterns<TypeParam>();
  for (const attn::Isa isa : attn::supported_isas()) {
    const auto y = narrowed<TypeParam>(widened(x, isa), isa);
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (std::isnan(value_of(x[i])))
        ASSERT_TRUE(std::isnan(value_of(y[i]))) << i;
      else
        ASSERT_EQ(x[i].bits, y[i].bits) << i;
    }
  }
}

// Between two neighbours: the middle goes to the even one, what is beside it to the nearer one. Above the largest number
// the middle to the next power of two becomes infinity.
TYPED_TEST(Conversion, RoundsToNearestAndTiesToEven) {
  std::vector<float> x;
  std::vector<std::uint16_t> expected;
  const auto add = [&](double number, unsigned bits) {
    for (const unsigned sign : {0U, 0x8000U}) {
      x.push_back(static_cast<float>(sign != 0 ? -number : number));
      expected.push_back(static_cast<std::uint16_t>(bits | sign));
    }
  };
  for (std::uint16_t bits = 0; std::isfinite(value_of(TypeParam{bits})); ++bits) {
    const auto above = static_cast<std::uint16_t>(bits + 1);
    const double low = value_of(TypeParam{bits}), high = value_of(TypeParam{above});
    const double middle = std::isfinite(high)
                              ? (low + high) / 2
                              : low + (low - value_of(TypeParam{static_cast<std::uint16_t>(bits - 1)})) / 2;
    const auto even = static_cast<unsigned>(bits % 2 == 0 ? bits : above);
    const float tie = static_cast<float>(middle);
    if (static_cast<double>(tie) != middle) continue;  // bfloat16's smallest, whose halves are no floats
    add(middle, even);
    add(static_cast<double>(std::nextafter(tie, 0.F)), bits);
    add(static_cast<double>(std::nextafter(tie, std::numeric_limits<float>::infinity())), above);
  }
  for (const attn::Isa isa : attn::supported_isas()) {
    const auto y = narrowed<TypeParam>(x, isa);
    for (std::size_t i = 0; i < x.size(); ++i)
      ASSERT_EQ(y[i].bits, expected[i]) << "of " << static_cast<double>(x[i]) << ", " << isa_name(isa);
  }
}

TYPED_TEST(Conversion, NanStaysNan) {
  std::vector<float> x;
  for (const std::uint32_t mantissa : {1U, 0x1FFFU, 0x2000U, 0xFFFFU, 0x400000U, 0x7FFFFFU})
    for (const std::uint32_t sign : {0U, 0x80000000U})
      x.push_back(__builtin_bit_cast(float, sign | 0x7F800000U | mantissa));
  for (const attn::Isa isa : attn::supported_isas())
    for (const TypeParam y : narrowed<TypeParam>(x, isa)) ASSERT_TRUE(std::isnan(value_of(y))) << y.bits;
}

}  // namespace
