#include <attn/math.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <initializer_list>
#include <limits>

namespace {

using attn::Index;
namespace detail = attn::detail;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

Index size_of(std::initializer_list<Index> shape) {
  return detail::checked_size<float>("f", "x", attn::Shape(shape.begin(), shape.size()));
}

TEST(Math, RoundsUp) {
  EXPECT_EQ(detail::ceil_div(0, 4), 0);
  EXPECT_EQ(detail::ceil_div(8, 4), 2);
  EXPECT_EQ(detail::ceil_div(9, 4), 3);
  EXPECT_EQ(detail::round_up(9, 4), 12);
}

TEST(Math, SizeIsTheProductOfTheShape) {
  EXPECT_EQ(size_of({}), 1);
  EXPECT_EQ(size_of({3, 4, 5}), 60);
  EXPECT_EQ(size_of({3, 0, 5}), 0);
}

TEST(Math, SizeThatOverflowsIsRefused) {
  constexpr Index most = std::numeric_limits<Index>::max();
  EXPECT_THROW(size_of({most / 2, 3}), attn::Error);
  EXPECT_THROW(size_of({most}), attn::Error);  // elements can be counted, their bytes cannot
  EXPECT_THROW(size_of({most / 4 + 1}), attn::Error);
  EXPECT_EQ(size_of({most / 4}), most / 4);
  EXPECT_EQ(size_of({most, 0, most}), 0);
}

TEST(Math, NegativeSizeIsRefused) {
  EXPECT_THROW(size_of({2, -1}), attn::Error);
  EXPECT_THROW(size_of({0, -1}), attn::Error);
  EXPECT_THROW(size_of({-2, -2}), attn::Error);
}

TEST(Math, NumbersAreToldApart) {
  EXPECT_TRUE(detail::is_nan(nan));
  EXPECT_TRUE(detail::is_nan(-std::numeric_limits<float>::quiet_NaN()));
  EXPECT_FALSE(detail::is_nan(infinity));
  EXPECT_TRUE(detail::is_finite(-std::numeric_limits<float>::max()));
  EXPECT_FALSE(detail::is_finite(-infinity));
  EXPECT_FALSE(detail::is_finite(nan));
  EXPECT_TRUE(detail::is_positive(1e-320));
  for (const double x : {0.0, -0.0, -1.0, infinity, nan}) EXPECT_FALSE(detail::is_positive(x)) << x;
}

TEST(Math, ProbabilitiesGoFromZeroToOne) {
  for (const double p : {0.0, -0.0, 1e-320, 0.5, 1.0}) EXPECT_TRUE(detail::is_probability(p)) << p;
  for (const double p : {-1e-320, std::nextafter(1.0, 2.0), infinity, -infinity, nan, -nan})
    EXPECT_FALSE(detail::is_probability(p)) << p;
}

}  // namespace
