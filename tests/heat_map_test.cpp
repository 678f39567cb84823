// The drawing code of the examples: text of any kind in, aligned columns and well-formed XML out.
#include "../examples/heat_map.hpp"

#include <gtest/gtest.h>

#include <sstream>

namespace {

using heat_map::Figure;

Figure figure(std::vector<std::string> words, int heads) {
  Figure result{"a & b", "note <1>", std::move(words), {}};
  const std::size_t n = result.words.size();
  for (int h = 0; h < heads; ++h) {
    heat_map::Panel panel{"head " + std::to_string(h), std::vector<float>(n * n, 0.F)};
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j <= i; ++j) panel.weights[i * n + j] = 1.F / static_cast<float>(i + 1);
    result.panels.push_back(panel);
  }
  return result;
}

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> result;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) result.push_back(line);
  return result;
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++n;
  return n;
}

/// Every tag closed in its order, every & the start of an entity.
bool well_formed(const std::string& xml) {
  std::vector<std::string> open;
  for (std::size_t at = 0; (at = xml.find('<', at)) != std::string::npos;) {
    const std::size_t end = xml.find('>', at);
    if (end == std::string::npos) return false;
    const std::string tag = xml.substr(at + 1, end - at - 1);
    at = end;
    if (tag.front() == '?' || tag.back() == '/') continue;
    if (tag.front() != '/') {
      open.push_back(tag.substr(0, tag.find(' ')));
    } else {
      if (open.empty() || open.back() != tag.substr(1)) return false;
      open.pop_back();
    }
  }
  return open.empty() &&
         count(xml, "&") == count(xml, "&amp;") + count(xml, "&lt;") + count(xml, "&gt;") + count(xml, "&quot;");
}

TEST(HeatMap, SplitsWordsAtSpacesAndChineseIntoCharacters) {
  EXPECT_EQ(heat_map::split_words("  the cat\tsat\n"), (std::vector<std::string>{"the", "cat", "sat"}));
  EXPECT_EQ(heat_map::split_words("a 注意 b"), (std::vector<std::string>{"a", "注", "意", "b"}));
  EXPECT_EQ(heat_map::split_words("ab注意cd"), (std::vector<std::string>{"ab", "注", "意", "cd"}));
  EXPECT_TRUE(heat_map::split_words(" \n ").empty());
  EXPECT_TRUE(heat_map::split_words("").empty());
}

TEST(HeatMap, CountsColumnsNotBytes) {
  EXPECT_EQ(heat_map::width("cat"), 3);
  EXPECT_EQ(heat_map::width("café"), 4);
  EXPECT_EQ(heat_map::width("cafe\xCC\x81"), 4);  // e and a combining accent
  EXPECT_EQ(heat_map::width("注意"), 4);
  EXPECT_EQ(heat_map::shorten("internationalization", 8), "interna…");
  EXPECT_EQ(heat_map::shorten("cat", 3), "cat");
}

TEST(HeatMap, ReplacesMalformedUtf8AndDropsControls) {
  const std::string bad = "\xEF\xBF\xBD";  // U+FFFD
  EXPECT_EQ(heat_map::escape("\xFFok"), bad + "ok");
  EXPECT_EQ(heat_map::escape("\xC3"), bad);                      // cut short
  EXPECT_EQ(heat_map::escape("\xC0\xAF"), bad + bad);            // overlong
  EXPECT_EQ(heat_map::escape("\xED\xA0\x80"), bad + bad + bad);  // half a surrogate pair
  EXPECT_EQ(heat_map::escape("a\x01"
                             "b\x7F"),
            "ab");
  EXPECT_EQ(heat_map::escape("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
}

TEST(HeatMap, RampsRunFromEndToEndAndGrowDarkerOrLighter) {
  for (const auto& ramp : {heat_map::paper, heat_map::screen}) {
    EXPECT_EQ(heat_map::colour(ramp, -1.F).luma(), ramp.front().luma());
    EXPECT_EQ(heat_map::colour(ramp, 2.F).luma(), ramp.back().luma());
    const bool lighter = ramp.back().luma() > ramp.front().luma();
    for (int i = 0; i < 100; ++i) {
      const int a = heat_map::colour(ramp, static_cast<float>(i) / 100.F).luma();
      const int b = heat_map::colour(ramp, static_cast<float>(i + 1) / 100.F).luma();
      EXPECT_TRUE(lighter ? b >= a : b <= a) << i;
    }
  }
}

TEST(HeatMap, ScaleEndsAtTheLargestWeightRoundedUp) {
  Figure f = figure({"a", "b"}, 1);
  EXPECT_FLOAT_EQ(f.top(), 1.F);
  f.panels[0].weights.assign(4, 0.31F);
  EXPECT_FLOAT_EQ(f.top(), 0.4F);
  f.panels[0].weights.assign(4, 0.F);
  EXPECT_FLOAT_EQ(f.top(), 0.1F);
}

TEST(HeatMap, TextFitsTheScreenAndHoldsNoEscapeCodesWhenPlain) {
  for (const int columns : {60, 80, 200})
    for (const int words : {1, 5, 20}) {
      std::vector<std::string> names;
      for (int i = 0; i < words; ++i) names.push_back(i % 3 == 0 ? "注" : "word" + std::to_string(i));
      const std::string text = heat_map::to_text(figure(names, 5), {heat_map::Ink::plain, columns});
      EXPECT_EQ(text.find('\033'), std::string::npos);
      for (const std::string& line : lines(text))
        if (!line.starts_with("weight")) {
          EXPECT_LE(heat_map::width(line), columns) << line;
        }
      EXPECT_EQ(count(text, "head "), 5U);
    }
}

TEST(HeatMap, ColouredTextPrintsPercentAndMarksZero) {
  for (const auto ink : {heat_map::Ink::colours256, heat_map::Ink::colours24bit}) {
    const std::string text = heat_map::to_text(figure({"a", "b"}, 1), {ink, 80});
    EXPECT_EQ(count(text, "100\033[0m"), 1U);  // a sees itself
    EXPECT_EQ(count(text, "50 \033[0m"), 2U);
    EXPECT_EQ(count(text, "·"), 2U);  // one zero, and the legend
  }
}

TEST(HeatMap, SvgIsWellFormedAndNamesEverySquare) {
  for (const int heads : {1, 2, 7}) {
    const std::string svg = heat_map::to_svg(figure({"<a>", "\"b\"", "c&d", "\xFF"}, heads));
    EXPECT_TRUE(well_formed(svg));
    const auto squares = static_cast<std::size_t>(10 * heads);  // 4 + 3 + 2 + 1: zeros are left blank
    EXPECT_EQ(count(svg, "<title>"), squares + 1);
    EXPECT_EQ(count(svg, "<rect"), squares + static_cast<std::size_t>(heads) + 2);
    EXPECT_EQ(count(svg, "nan") + count(svg, "inf"), 0U);
  }
  EXPECT_TRUE(well_formed(heat_map::to_svg(figure(std::vector<std::string>(40, "word"), 3))));
}

}  // namespace
