#include "module_support.hpp"

#include <clocale>

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
  EXPECT_EQ(text_of("input, expected ", 32, ", got ", attn::Shape(shape)),
            "[attn::fn] input, expected 32, got [2,7,48]");
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
  EXPECT_EQ(text_of(1e300), "[attn::fn] 1e+300");
  EXPECT_EQ(text_of(123456.0), "[attn::fn] 123456");
}

TEST(Error, NumbersHaveAsFewDigitsAsTellThemApart) {
  EXPECT_EQ(text_of(0.1), "[attn::fn] 0.1");
  EXPECT_EQ(text_of(0.1F), "[attn::fn] 0.1");
  EXPECT_EQ(text_of(double{0.1F}), "[attn::fn] 0.10000000149011612");
  EXPECT_EQ(text_of(1.000000001), "[attn::fn] 1.000000001");
  EXPECT_EQ(text_of(16777215.F), "[attn::fn] 16777215");
  for (const double x : {1.0 / 3.0, -0x1.fffffffffffffp1023, 5e-324, std::nextafter(1.0, 2.0)})
    EXPECT_EQ(std::strtod(text_of(x).c_str() + std::string_view("[attn::fn] ").size(), nullptr), x);
}

TEST(Error, NumbersReadTheSameInEveryLanguage) {
  const std::string before = std::setlocale(LC_NUMERIC, nullptr);
  for (const char* name : {"de_DE.UTF-8", "fr_FR.UTF-8", "C.UTF-8"}) {  // those that this machine has
    std::setlocale(LC_NUMERIC, name);
    EXPECT_EQ(text_of(-2.5), "[attn::fn] -2.5") << name;
  }
  std::setlocale(LC_NUMERIC, before.c_str());
}

}  // namespace
