#include "module_support.hpp"

namespace {

using attn_test::error_of;

TEST(Error, IsAnInvalidArgument) {
  EXPECT_THROW(attn::detail::fail("fn", "what"), std::invalid_argument);
  EXPECT_THROW(attn::detail::fail("fn", "what"), attn::Error);
}

TEST(Error, TextNamesTheFunctionWhatWasExpectedAndWhatCame) {
  const std::array<attn::Index, 3> shape{2, 7, 48};
  EXPECT_EQ(error_of([&] { attn::detail::fail("fn", "input, expected ", 32, ", got ", attn::Shape(shape)); }),
            "[attn::fn] input, expected 32, got [2,7,48]");
}

TEST(Error, ShapesOfAnyRankArePrinted) {
  const std::array<attn::Index, 1> one{-3};
  EXPECT_EQ(error_of([&] { attn::detail::fail("f", attn::Shape(), attn::Shape(one)); }), "[attn::f] [][-3]");
}

TEST(Error, NumbersReadWell) {
  const auto text = [](auto number) { return error_of([&] { attn::detail::fail("f", number); }); };
  EXPECT_EQ(text(0.5), "[attn::f] 0.5");
  EXPECT_EQ(text(1.0), "[attn::f] 1");
  EXPECT_EQ(text(-1.25F), "[attn::f] -1.25");
  EXPECT_EQ(text(100), "[attn::f] 100");
  EXPECT_EQ(text(attn::Index{-7}), "[attn::f] -7");
  EXPECT_NE(text(std::numeric_limits<double>::quiet_NaN()).find("nan"), std::string::npos);
  EXPECT_EQ(text(std::numeric_limits<double>::infinity()), "[attn::f] inf");
}

TEST(Error, RequireThrowsOnlyWhereItDoesNotHold) {
  EXPECT_NO_THROW(attn::detail::require(true, "f", "x"));
  EXPECT_EQ(error_of([] { attn::detail::require(false, "f", "x"); }), "[attn::f] x");
}

}  // namespace
