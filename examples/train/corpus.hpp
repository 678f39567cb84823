// What a model learns from: rows of characters as tokens, out of generated stories or a text of the user's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "stories.hpp"
#include "trainable_llama.hpp"

namespace attn::examples {

/// Splits UTF-8 into its code points; bytes that are none stand alone.
inline std::vector<std::string> code_points(std::string_view text) {
  std::vector<std::string> points;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t length = 1;
    const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
    while (byte(at) >= 0xC0U && length < 4 && (byte(at + length) & 0xC0U) == 0x80U) ++length;
    points.emplace_back(text.substr(at, length));
    at += length;
  }
  return points;
}

/// A source of rows. Rows depend on a number alone, so that training goes on after a break as if there had been none.
class Corpus {
 public:
  /// Stories of the generator, each after begin_of_text, as many as fit a row; what is left of the row does not count.
  Corpus() {
    std::string all;
    Random random(1);
    for (int i = 0; i < 2000; ++i) all += stories_.draw(random);  // each of its characters, by far
    make_pieces(all);
  }
  /// Pieces of a file; its last twentieth is kept for validation. Errors: a file that cannot be read or is too short.
  Corpus(const std::filesystem::path& path, Index S) {
    std::ifstream file(path, std::ios::binary);
    if (!file) fail("Corpus", path.string(), ", expected a text that can be read, got none");
    const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    make_pieces(text);
    for (const std::string& point : code_points(text)) text_.push_back(token_of_.at(point));
    if (std::ssize(text_) < 40 * S)
      fail("Corpus", path.string(), ", expected at least ", 40 * S, " characters, got ", text_.size());
  }

  /// The pieces of the vocabulary: three that llama2.c has, then characters.
  [[nodiscard]] const std::vector<std::string>& pieces() const { return pieces_; }
  /// In nats for each token; none for a text of the user's.
  [[nodiscard]] std::optional<double> entropy() const {
    return text_.empty() ? std::optional(stories_.entropy_per_token()) : std::nullopt;
  }
  [[nodiscard]] const Stories& stories() const { return stories_; }

  [[nodiscard]] Rows training_rows(Index B, Index S, std::uint64_t number) const { return rows(B, S, number, false); }
  [[nodiscard]] Rows validation_rows(Index B, Index S, std::uint64_t number) const { return rows(B, S, number, true); }

 private:
  void make_pieces(const std::string& text) {
    pieces_ = {"<unk>", "\n<s>\n", "\n</s>\n"};
    for (const std::string& point : code_points(text)) token_of_.emplace(point, 0);
    for (auto& [point, token] : token_of_) {
      token = static_cast<Token>(pieces_.size());
      pieces_.push_back(point);
    }
  }

  [[nodiscard]] Rows rows(Index B, Index S, std::uint64_t number, bool validation) const {
    Rows rows{Tensor<Token, 2>(B, S), Tensor<Token, 2>(B, S)};
    Random random(number * 2 + (validation ? 1 : 0) + 0x5EED);
    for (Index b = 0; b < B; ++b) {
      const std::vector<Token> row = text_.empty() ? stories_row(S, random) : text_row(S, random, validation);
      for (Index s = 0; s < S; ++s) {
        const auto i = static_cast<std::size_t>(s);
        rows.tokens(b, s) = i < row.size() ? row[i] : end_of_text;
        rows.targets(b, s) = i + 1 < row.size() ? row[i + 1] : -1;
      }
    }
    return rows;
  }
  [[nodiscard]] std::vector<Token> stories_row(Index S, Random& random) const {
    std::vector<Token> row{begin_of_text};
    for (;;) {
      const std::vector<std::string> story = code_points(stories_.draw(random));
      if (std::ssize(row) + std::ssize(story) > S) break;
      for (const std::string& point : story) row.push_back(token_of_.at(point));
      row.push_back(begin_of_text);  // the end of one is the beginning of the next
    }
    return row;
  }
  [[nodiscard]] std::vector<Token> text_row(Index S, Random& random, bool validation) const {
    const std::size_t size = static_cast<std::size_t>(S) + 1, split = text_.size() / 20 * 19;
    const std::size_t begin = validation ? split : 0, end = (validation ? text_.size() : split) - size;
    const auto first = text_.begin() + static_cast<std::ptrdiff_t>(begin + random.below(end - begin));
    return {first, first + static_cast<std::ptrdiff_t>(size)};
  }

  Stories stories_;
  std::vector<Token> text_;  // of the user's
  std::vector<std::string> pieces_;
  std::map<std::string, Token> token_of_;
};

}  // namespace attn::examples
