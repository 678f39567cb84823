#include "module_support.hpp"

namespace {

/// The text of the error with these parts.
template <class... Parts>
std::string text_of(const Parts&... parts) {
  return attn_test::error_of([&] { attn::detail::require(false, "fn", parts...); });
}

TEST(Error, IsAnInvalidArgument) {
  EXPECT_THROW(attn::detail::require(false, "fn", "what"), attn::Error);
  EXPECT_THROW(attn::detail::require(false, "fn", "what"), std::invalid_argument);
}

TEST(Error, IsThrownOnlyWhereWhatIsRequiredDoesNotHold) { EXPECT_NO_THROW(attn::detail::require(true, "fn", "what")); }

TEST(Error, TextNamesTheFunctionWhatWasExpectedAndWhatCame) {
  const std::array<attn::Index, 3> shape{2, 7, 48};
  EXPECT_EQ(text_of("input, expected ", 32, ", got ", attn::Shape(shape)), "[attn::fn] input, expected 32, got [2,7,48]");
}

TEST(Error, ShapesOfAnyRankArePrinted) {
  const std::array<attn::Index, 1> one{-3};
  EXPECT_EQ(text_of(attn::Shape(), attn::Shape(one)), "[attn::fn] [][-3]");
}

TEST(Error, NumbersReadWell) {
  EXPECT_EQ(text_of(0.5), "[attn::fn] 0.5");
  EXPECT_EQ(text_of(1.0), "[attn::fn] 1");
  EXPECT_EQ(text_of(-1.25F), "[attn::fn] -1.25");
  EXPECT_EQ(text_of(100), "[attn::fn] 100");
  EXPECT_EQ(text_of(attn::Index{-7}), "[attn::fn] -7");
  EXPECT_EQ(text_of(attn_test::infinity), "[attn::fn] inf");
  EXPECT_NE(text_of(attn_test::not_a_number).find("nan"), std::string::npos);
}

}  // namespace
