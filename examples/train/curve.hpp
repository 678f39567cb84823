// The loss curve, in a terminal and as an SVG picture.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "files.hpp"

namespace attn::examples {

/// The scale of a picture: the logarithm of the loss, from a little below the least to the first.
class LossScale {
 public:
  LossScale(const std::vector<LossPoint>& curve, std::optional<double> entropy) {
    double least = entropy.value_or(1e9), most = 0.0;
    for (const LossPoint& point : curve) {
      least = std::min(least, point.training);
      most = std::max(most, point.training);
    }
    low_ = std::log(least * 0.9), high_ = std::log(std::max(most, least * 1.1));
  }
  /// 0 at the bottom, 1 at the top.
  [[nodiscard]] double operator()(double loss) const {
    return std::clamp((std::log(loss) - low_) / (high_ - low_), 0.0, 1.0);
  }

 private:
  double low_ = 0.0, high_ = 1.0;
};

/// Draws the curve with Braille dots, the entropy as a dotted line.
[[nodiscard]] inline std::string draw_in_terminal(const std::vector<LossPoint>& curve, std::optional<double> entropy) {
  constexpr int columns = 60, rows = 12;
  if (curve.empty()) return {};
  const LossScale scale(curve, entropy);
  std::array<std::array<unsigned, columns>, rows> cells{};
  const auto set = [&](int x, double height) {
    const int y = std::clamp(static_cast<int>((1.0 - height) * (rows * 4 - 1) + 0.5), 0, rows * 4 - 1);
    constexpr unsigned dots[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    cells[static_cast<std::size_t>(y / 4)][static_cast<std::size_t>(x / 2)] |= dots[y % 4][x % 2];
  };
  const double last = static_cast<double>(std::max<std::int64_t>(curve.back().step, 1));
  for (const LossPoint& point : curve)
    set(static_cast<int>(static_cast<double>(point.step) / last * (columns * 2 - 1)), scale(point.training));
  for (int x = 0; entropy && x < columns * 2; x += 3) set(x, scale(*entropy));
  std::string text;
  for (const auto& row : cells) {
    text += "  ";
    for (const unsigned cell : row) {
      const unsigned code = 0x2800U + cell;
      text += {static_cast<char>(0xE0U | code >> 12), static_cast<char>(0x80U | (code >> 6 & 0x3FU)),
               static_cast<char>(0x80U | (code & 0x3FU))};
    }
    text += '\n';
  }
  return text;
}

/// Writes the curve as a picture, with the entropy as a line. Errors: a file that could not be written.
inline void write_svg(const std::vector<LossPoint>& curve, std::optional<double> entropy, const std::string& path) {
  constexpr double left = 60, top = 40, width = 620, height = 300;
  const LossScale scale(curve, entropy);
  const double last = static_cast<double>(curve.empty() ? 1 : std::max<std::int64_t>(curve.back().step, 1));
  const auto y_of = [&](double loss) { return top + (1.0 - scale(loss)) * height; };
  std::ofstream file(path);
  char text[200];
  const auto put = [&](const char* form, auto... values) {
    std::snprintf(text, sizeof text, form, values...);
    file << text;
  };
  put("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n",
      left + width + 80, top + height + 50);
  put("<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/><text x=\"%.0f\" y=\"22\" font-size=\"15\">", left);
  file << "Loss of a small Llama, trained on attn (nats per character)</text>\n";
  for (const double loss : {4.0, 2.0, 1.0, 0.5, 0.25, 0.125}) {
    if (scale(loss) <= 0.0 || scale(loss) >= 1.0) continue;
    put("<line x1=\"%.0f\" x2=\"%.0f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>", left, left + width, y_of(loss),
        y_of(loss));
    put("<text x=\"%.0f\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", left - 6, y_of(loss) + 4, loss);
  }
  if (entropy) {
    put("<line x1=\"%.0f\" x2=\"%.0f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#c33\" stroke-dasharray=\"5 4\"/>", left,
        left + width, y_of(*entropy), y_of(*entropy));
    put("<text x=\"%.0f\" y=\"%.1f\" fill=\"#c33\">entropy</text>\n", left + width + 6, y_of(*entropy) + 4);
  }
  const auto line = [&](const char* colour, auto value) {
    file << "<polyline fill=\"none\" stroke=\"" << colour << "\" stroke-width=\"1.5\" points=\"";
    for (const LossPoint& point : curve)
      if (value(point) > 0.0)
        put("%.1f,%.1f ", left + static_cast<double>(point.step) / last * width, y_of(value(point)));
    file << "\"/>\n";
  };
  line("#8ab", [](const LossPoint& point) { return point.training; });
  line("#036", [](const LossPoint& point) { return point.validation; });
  put("<text x=\"%.0f\" y=\"%.0f\">step 0</text>", left, top + height + 20);
  put("<text x=\"%.0f\" y=\"%.0f\" text-anchor=\"end\">step %.0f</text>\n</svg>\n", left + width, top + height + 20,
      last);
  file.close();
  if (!file) fail("write_svg", path, ", expected a file that can be written, got an error");
}

}  // namespace attn::examples
