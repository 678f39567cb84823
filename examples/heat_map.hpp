// Heat maps of attention weights, for the examples: in a terminal and as an SVG picture. Standard library only.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

namespace heat_map {

/// One head: weights[i * words + j] says how much word i attends to word j.
struct Panel {
  std::string title;
  std::vector<float> weights;
};

struct Figure {
  std::string title, note;
  std::vector<std::string> words;
  std::vector<Panel> panels;

  /// Where the colour scale ends: the largest weight, rounded up to a tenth.
  [[nodiscard]] float top() const {
    float largest = 0.F;
    for (const Panel& panel : panels)
      for (const float weight : panel.weights) largest = std::max(largest, weight);
    return std::clamp(std::ceil(largest * 10.F - 1e-4F) / 10.F, 0.1F, 1.F);
  }
};

// ---------------------------------------------------------------------------------------------------------- 1. Text

/// What a terminal shows as one sign: its UTF-8 bytes, its first code point, the columns it takes.
struct Letter {
  std::string bytes;
  char32_t code;
  int width;
};

/// Splits UTF-8 into letters. Malformed bytes become U+FFFD, control characters are dropped, accents that combine stay
/// with their letter: the result can be printed and put into XML.
inline std::vector<Letter> letters(std::string_view text) {
  std::vector<Letter> result;
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = [&](std::size_t at) { return static_cast<unsigned char>(at < text.size() ? text[at] : 0); };
    const unsigned first = byte(i);
    const std::size_t length = first < 0x80                    ? 1
                               : first >= 0xC2 && first < 0xE0 ? 2
                               : first >= 0xE0 && first < 0xF0 ? 3
                               : first >= 0xF0 && first < 0xF5 ? 4
                                                               : 0;
    char32_t code = length <= 1 ? first : first & (0x7FU >> length);
    bool valid = length > 0;
    for (std::size_t k = 1; valid && k < length; ++k) {
      valid = (byte(i + k) & 0xC0U) == 0x80U;
      code = code << 6 | (byte(i + k) & 0x3FU);
    }
    constexpr std::array<char32_t, 5> smallest{0, 0, 0x80, 0x800, 0x10000};
    valid = valid && code >= smallest[length] && code <= 0x10FFFF && !(code >= 0xD800 && code < 0xE000);
    std::string bytes = valid ? std::string(text.substr(i, length)) : "\xEF\xBF\xBD";
    i += valid ? length : 1;
    if (valid && (code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0xFFFE || code == 0xFFFF)) continue;
    const bool combines = (code >= 0x300 && code < 0x370) || code == 0x200D || (code >= 0xFE00 && code < 0xFE10);
    if (valid && combines && !result.empty()) {
      result.back().bytes += bytes;
      continue;
    }
    const bool wide = (code >= 0x1100 && code < 0x1160) || (code >= 0x2E80 && code < 0xA4D0) ||
                      (code >= 0xAC00 && code < 0xD7A4) || (code >= 0xF900 && code < 0xFB00) ||
                      (code >= 0xFF00 && code < 0xFF61) || (code >= 0x1F300 && code < 0x1FB00) || code >= 0x20000;
    result.push_back({std::move(bytes), valid ? code : U'\xFFFD', valid && wide ? 2 : 1});
  }
  return result;
}

/// Columns that a text takes in a terminal.
inline int width(std::string_view text) {
  int columns = 0;
  for (const Letter& letter : letters(text)) columns += letter.width;
  return columns;
}

/// The text in at most `columns` columns, cut with an ellipsis.
inline std::string shorten(std::string_view text, int columns) {
  const bool fits = width(text) <= columns;
  std::string result;
  int used = fits ? 0 : 1;
  for (const Letter& letter : letters(text)) {
    used += letter.width;
    if (used > columns) break;
    result += letter.bytes;
  }
  return fits ? result : result + "…";
}

/// The words of a sentence: what stands between spaces. Chinese, Japanese and Korean signs are words by themselves.
inline std::vector<std::string> split_words(std::string_view sentence) {
  std::string spaced;  // control characters separate words, too
  for (const char c : sentence) spaced += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  std::vector<std::string> words;
  bool open = false;
  for (const Letter& letter : letters(spaced)) {
    const bool space = letter.code == U' ' || letter.code == 0xA0 || letter.code == 0x3000;
    const bool alone = letter.width == 2 && letter.code < 0x1F000;
    if (!space && (alone || !open)) words.emplace_back();
    if (!space) words.back() += letter.bytes;
    open = !space && !alone;
  }
  return words;
}

/// Text as XML shows it.
inline std::string escape(std::string_view text) {
  std::string result;
  for (const Letter& letter : letters(text)) {
    if (letter.bytes == "&")
      result += "&amp;";
    else if (letter.bytes == "<")
      result += "&lt;";
    else if (letter.bytes == ">")
      result += "&gt;";
    else if (letter.bytes == "\"")
      result += "&quot;";
    else
      result += letter.bytes;
  }
  return result;
}

inline std::string decimal(double number, int digits) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.*f", digits, number);
  return text.data();
}
inline std::string percent(float weight) { return decimal(100.0 * static_cast<double>(weight), 0); }

// -------------------------------------------------------------------------------------------------------- 2. Colour

struct Colour {
  int red, green, blue;
  /// Perceived brightness, 0 to 255.
  [[nodiscard]] constexpr int luma() const { return (299 * red + 587 * green + 114 * blue) / 1000; }
};

using Ramp = std::array<Colour, 6>;
/// For light paper: from nearly white to dark blue.
inline constexpr Ramp paper{
    {{247, 250, 244}, {199, 233, 220}, {112, 200, 204}, {47, 148, 190}, {32, 92, 163}, {10, 37, 92}}};
/// For terminals, dark or light: from dark violet to bright yellow.
inline constexpr Ramp screen{
    {{46, 18, 68}, {69, 58, 131}, {49, 104, 142}, {32, 150, 138}, {94, 201, 98}, {249, 229, 60}}};

/// The colour at `share`, from 0 to 1, of a ramp.
inline Colour colour(const Ramp& ramp, float share) {
  const float at = std::clamp(share, 0.F, 1.F) * static_cast<float>(ramp.size() - 1);
  const std::size_t low = std::min(static_cast<std::size_t>(at), ramp.size() - 2);
  const auto mix = [&](int a, int b) {
    return static_cast<int>(
        std::lround(static_cast<float>(a) + (at - static_cast<float>(low)) * static_cast<float>(b - a)));
  };
  const Colour &a = ramp[low], &b = ramp[low + 1];
  return {mix(a.red, b.red), mix(a.green, b.green), mix(a.blue, b.blue)};
}

// ------------------------------------------------------------------------------------------------------ 3. Terminal

enum class Ink { plain, colours256, colours24bit };

struct Screen {
  Ink ink = Ink::plain;
  int columns = 80;
};

namespace detail {

inline std::string escape_code(Ink ink, float share) {  // background, and a foreground that can be read on it
  if (ink == Ink::colours256) {                         // the same ramp, of the colours that these terminals have
    constexpr std::array<int, 11> ramp{17, 18, 24, 30, 36, 71, 77, 113, 149, 185, 227};
    const auto step = static_cast<std::size_t>(std::lround(10.F * std::clamp(share, 0.F, 1.F)));
    return (step > 4 ? "\033[38;5;16m" : "\033[38;5;231m") + ("\033[48;5;" + std::to_string(ramp[step])) + 'm';
  }
  const Colour c = colour(screen, share);
  const std::string front = c.luma() > 125 ? "\033[38;5;16m" : "\033[38;5;231m";
  return front + "\033[48;2;" + std::to_string(c.red) + ';' + std::to_string(c.green) + ';' + std::to_string(c.blue) +
         'm';
}

inline constexpr std::array<std::string_view, 5> shades{" ", "░", "▒", "▓", "█"};
inline constexpr std::array<float, 5> shade_ends{0.08F, 0.25F, 0.5F, 0.75F, 1.F};  // shares of the scale

inline std::string repeat(std::string_view text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

/// `text` in the middle or at the right of `columns`.
inline std::string pad(const std::string& text, int columns, bool right) {
  const int room = std::max(0, columns - width(text)), left = right ? room : room / 2;
  return std::string(static_cast<std::size_t>(left), ' ') + text +
         std::string(static_cast<std::size_t>(room - left), ' ');
}

inline std::string cell(const Screen& screen_, float weight, float top, int columns) {
  if (weight == 0.F) return pad("·", columns, false);
  const float share = weight / top;
  if (screen_.ink == Ink::plain) {
    std::size_t shade = 0;
    while (shade + 1 < shades.size() && share > shade_ends[shade]) ++shade;
    return repeat(shades[shade], columns);
  }
  const std::string number = columns >= 3 ? percent(weight) : "";
  return escape_code(screen_.ink, share) + pad(number, columns, false) + "\033[0m";
}

}  // namespace detail

/// The figure as text: panels side by side as far as the screen is wide, words from top to bottom over the columns.
inline std::string to_text(const Figure& figure, const Screen& screen_) {
  const int n = static_cast<int>(figure.words.size());
  int label = 1, tallest = 0;
  std::vector<std::vector<Letter>> heads;
  for (const std::string& word : figure.words) {
    label = std::max(label, width(shorten(word, 14)));
    heads.push_back(letters(shorten(word, 14)));
    tallest = std::max(tallest, static_cast<int>(heads.back().size()));
  }
  int cell = 3;
  while (cell > 1 && label + 1 + n * cell > screen_.columns) --cell;
  int panel_width = label + 1 + n * cell;
  for (const Panel& panel : figure.panels) panel_width = std::max(panel_width, width(panel.title));
  panel_width = std::max(std::min(panel_width, screen_.columns), label + 1 + n * cell);
  const std::string rest(static_cast<std::size_t>(panel_width - label - 1 - n * cell), ' ');
  const int gap = 3, most = std::max(1, (screen_.columns + gap) / (panel_width + gap));
  const int count = static_cast<int>(figure.panels.size());
  const int rows = (count + most - 1) / most,
            across = rows == 0 ? 1 : (count + rows - 1) / rows;  // rows alike in length
  const bool ansi = screen_.ink != Ink::plain;
  const float top = figure.top();

  std::string out;
  for (int first = 0; first < count; first += across) {
    const int last = std::min(count, first + across);
    const auto line = [&](const auto& part) {
      for (int p = first; p < last; ++p)
        out += part(figure.panels[static_cast<std::size_t>(p)]) + std::string(gap, ' ');
      while (out.ends_with(' ')) out.pop_back();
      out += '\n';
    };
    line([&](const Panel& panel) {
      const std::string title = shorten(panel.title, panel_width);
      const std::string space(static_cast<std::size_t>(panel_width - width(title)), ' ');
      return (ansi ? "\033[1m" + title + "\033[0m" : title) + space;
    });
    for (int y = 0; y < tallest; ++y)
      line([&](const Panel&) {
        std::string text(static_cast<std::size_t>(label + 1), ' ');
        for (const std::vector<Letter>& word : heads) {
          const int at = y - tallest + static_cast<int>(word.size());
          text += detail::pad(at < 0 ? "" : word[static_cast<std::size_t>(at)].bytes, cell, false);
        }
        return text + rest;
      });
    for (int i = 0; i < n; ++i)
      line([&](const Panel& panel) {
        std::string text = detail::pad(shorten(figure.words[static_cast<std::size_t>(i)], 14), label, true) + ' ';
        for (int j = 0; j < n; ++j)
          text += detail::cell(screen_, panel.weights[static_cast<std::size_t>(i * n + j)], top, cell);
        return text + rest;
      });
    out += '\n';
  }

  // The legend.
  if (ansi) {
    out += "weight  0 ";
    for (int i = 0; i < 24; ++i) out += detail::escape_code(screen_.ink, static_cast<float>(i) / 23.F) + ' ';
    out += "\033[0m " + percent(top) + " %   · exactly 0\n";
  } else {
    out += "weight  · exactly 0";
    for (std::size_t i = 0; i < detail::shades.size(); ++i)
      out += "   [" + detail::repeat(detail::shades[i], 2) + "] to " + percent(detail::shade_ends[i] * top) + " %";
    out += '\n';
  }
  return out;
}

// ----------------------------------------------------------------------------------------------------------- 4. SVG

namespace detail {

inline std::string css(Colour c) {
  std::array<char, 8> text{};
  std::snprintf(text.data(), text.size(), "#%02x%02x%02x", static_cast<unsigned>(c.red) & 255U,
                static_cast<unsigned>(c.green) & 255U, static_cast<unsigned>(c.blue) & 255U);
  return text.data();
}
inline std::string attribute(std::string_view name, double value) {
  std::string digits = decimal(value, 1);
  if (digits.ends_with(".0")) digits.resize(digits.size() - 2);
  return ' ' + std::string(name) + "=\"" + digits + '"';
}
inline std::string text(double x, double y, std::string_view style, std::string_view content) {
  return "<text" + attribute("x", x) + attribute("y", y) + ' ' + std::string(style) + '>' + escape(content) +
         "</text>\n";
}

}  // namespace detail

/// The figure as an SVG document: one panel per head, words on both axes, the colour scale at the right of the title.
/// Each square names itself when pointed at, where there are not too many.
inline std::string to_svg(const Figure& figure) {
  using detail::attribute;
  using detail::text;
  const int n = static_cast<int>(figure.words.size()), count = static_cast<int>(figure.panels.size());
  const double size = n <= 12 ? 32 : n <= 24 ? 22 : n <= 48 ? 14 : 9, font = std::min(13.0, size * 0.75);
  const bool numbers = n <= 16, named = n <= 24;  // more would only make the file large
  const float top = figure.top();

  int longest = 1;
  for (const std::string& word : figure.words) longest = std::max(longest, width(shorten(word, 14)));
  const double label = longest * font * 0.6 + 8, slant = 0.766 * label + 0.3 * size;  // labels lean by 50 degrees
  std::size_t title = 0;
  for (const Panel& panel : figure.panels) title = std::max(title, panel.title.size());
  const double panel_width = label + std::max(n * size + 0.64 * label, 9.0 * static_cast<double>(title));
  const double panel_height = 30 + slant + n * size;
  int across = 1;
  while (across * across < count) ++across;
  while (across > 1 && (across * panel_width > 3600)) --across;
  const int down = (count + across - 1) / across;
  const double margin = 28, gap = 28, head = 92;
  const double wide = std::max(across * panel_width + (across - 1) * gap + 2 * margin, 760.0);
  const double high = head + down * panel_height + std::max(0, down - 1) * gap + margin;

  std::string out =
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\"" +
      attribute("width", wide) + attribute("height", high) + " viewBox=\"0 0 " + decimal(wide, 1) + ' ' +
      decimal(high, 1) + "\" font-family=\"system-ui, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif\"" +
      " fill=\"#1d2733\">\n<title>" + escape(figure.title) + "</title>\n<desc>" + escape(figure.note) + "</desc>\n";
  out += "<defs><linearGradient id=\"scale\">";
  for (std::size_t i = 0; i < paper.size(); ++i)
    out += "<stop offset=\"" + percent(static_cast<float>(i) / static_cast<float>(paper.size() - 1)) +
           "%\" stop-color=\"" + detail::css(paper[i]) + "\"/>";
  out += "</linearGradient></defs>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";

  // Title, and the legend beside it.
  const double bar = 180, bar_x = wide - margin - bar;
  const int room = static_cast<int>((bar_x - 2 * margin) / 10.2);
  out += text(margin, 42, "font-size=\"19\" font-weight=\"600\"", shorten(figure.title, room));
  out += text(margin, 66, "font-size=\"13\" fill=\"#5b6775\"", shorten(figure.note, room * 3 / 2));
  out += text(bar_x, 28, "font-size=\"12\" fill=\"#5b6775\"", "attention weight");
  out += "<rect" + attribute("x", bar_x) + " y=\"36\"" + attribute("width", bar) +
         " height=\"12\" fill=\"url(#scale)\" stroke=\"#c3cbd4\" stroke-width=\"0.5\"/>\n";
  for (int tick = 0; tick <= 2; ++tick)
    out += text(bar_x + bar * tick / 2, 64,
                tick == 0   ? "font-size=\"12\""
                : tick == 1 ? "font-size=\"12\" text-anchor=\"middle\""
                            : "font-size=\"12\" text-anchor=\"end\"",
                percent(top * static_cast<float>(tick) / 2.F) + (tick == 2 ? " %" : ""));

  for (int p = 0; p < count; ++p) {
    const Panel& panel = figure.panels[static_cast<std::size_t>(p)];
    const double x = margin + (p % across) * (panel_width + gap) + label,
                 y = head + (p / across) * (panel_height + gap);
    const double grid = y + 30 + slant, side = n * size;
    out += "<g>\n" + text(x, y + 14, "font-size=\"15\" font-weight=\"600\"", panel.title);
    out += "<g" + attribute("font-size", font) + ">\n";
    for (int i = 0; i < n; ++i) {
      const std::string word = shorten(figure.words[static_cast<std::size_t>(i)], 14);
      out += text(x - 7, grid + (i + 0.5) * size + 0.36 * font, "text-anchor=\"end\"", word);
      const std::string turn = "transform=\"translate(" + decimal(x + (i + 0.5) * size + 0.25 * font, 1) + ' ' +
                               decimal(grid - 7, 1) + ") rotate(-50)\"";
      out += "<text " + turn + '>' + escape(word) + "</text>\n";
    }
    out += "</g>\n<g text-anchor=\"middle\"" + attribute("font-size", size * 0.36) + ">\n";
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) {
        const float weight = panel.weights[static_cast<std::size_t>(i * n + j)];
        const Colour fill = colour(paper, weight / top);
        const double left = x + j * size, above = grid + i * size;
        if (weight == 0.F) continue;  // never attended: left blank
        out += "<g>";
        if (named)
          out += "<title>" + escape(figure.words[static_cast<std::size_t>(i)]) + " → " +
                 escape(figure.words[static_cast<std::size_t>(j)]) + ": " +
                 decimal(100.0 * static_cast<double>(weight), 1) + " %</title>";
        out += "<rect" + attribute("x", left + 0.5) + attribute("y", above + 0.5) + attribute("width", size - 1) +
               attribute("height", size - 1) + " fill=\"" + detail::css(fill) + "\"/>";
        if (numbers)
          out += "<text" + attribute("x", left + size / 2) + attribute("y", above + size / 2 + 0.13 * size) +
                 " fill=\"" + (fill.luma() < 125 ? "#ffffff" : "#16212c") + "\">" + percent(weight) + "</text>";
        out += "</g>\n";
      }
    out += "</g>\n<rect" + attribute("x", x) + attribute("y", grid) + attribute("width", side) +
           attribute("height", side) + " fill=\"none\" stroke=\"#c3cbd4\"/>\n</g>\n";
  }
  return out + "</svg>\n";
}

}  // namespace heat_map
