// Floor 1. Tokenizers of byte-level byte pair encoding: GPT-2, Llama 3, Qwen and most after them.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "../error.hpp"
#include "pre_tokenizer.hpp"
#include "unicode_classes.hpp"
#include "vocabulary.hpp"

namespace attn::detail {

/// The character that stands for a byte in vocabularies: itself where it is printable, else one from 256 on.
/// Source: GPT-2, encoder.py, bytes_to_unicode.
inline constexpr std::array<std::uint16_t, 256> byte_characters = [] {
  std::array<std::uint16_t, 256> characters{};
  std::uint16_t next = 256;
  for (std::uint16_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    characters[byte] = printable ? byte : next++;
  }
  return characters;
}();
/// The byte that a character stands for, or -1.
inline constexpr std::array<std::int16_t, 324> character_bytes = [] {
  std::array<std::int16_t, 324> bytes{};
  bytes.fill(-1);
  for (std::int16_t byte = 0; byte < 256; ++byte) bytes[byte_characters[static_cast<std::size_t>(byte)]] = byte;
  return bytes;
}();
/// The bytes that a token of a vocabulary stands for; nothing where a character stands for none.
[[nodiscard]] inline std::optional<std::string> bytes_of_token(std::string_view token) {
  std::string bytes;
  for (std::size_t at = 0; at < token.size();) {
    const Char c = char_at(token, at);
    if (c.point >= character_bytes.size() || character_bytes[c.point] < 0) return std::nullopt;
    bytes += static_cast<char>(character_bytes[c.point]);
    at += c.size;
  }
  return bytes;
}

}  // namespace attn::detail

namespace attn {

/// What a BytePairTokenizer is made of. It need not live longer than the call.
struct BytePairVocabulary {
  std::span<const std::string_view> tokens{};  ///< by id, in characters that stand for bytes; special ones as they read
  std::span<const std::string_view> merges{};  ///< "left right", the first merges first
  std::span<const TokenId> special{};          ///< tokens that are taken whole wherever a text spells them
  WordRule words = WordRule::gpt2;             ///< how a text is cut before merging
  bool whole_words = false;                    ///< a word that is a token becomes it, whatever the merges say: Llama 3
  TokenId begin_of_text = -1, end_of_text = -1;  ///< -1: there is none
  bool add_begin = false;                        ///< encode() puts begin_of_text first
};

/// Text to tokens and back. A text is cut at special tokens, then into words; in a word, its bytes merge by rank. Any
/// bytes are a text, UTF-8 or not. For n bytes of text it takes n log n steps.
/// Source: Sennrich et al., "Neural machine translation of rare words with subword units", 2016; Radford et al.,
/// "Language models are unsupervised multitask learners", 2019.
class BytePairTokenizer {
 public:
  /// Errors: no tokens, ids outside of the vocabulary, a merge that is not two tokens with a space between, or whose
  /// tokens or result the vocabulary lacks.
  explicit BytePairTokenizer(const BytePairVocabulary& from)
      : tokens_(fn, from.tokens.size()),
        words_(from.words),
        begin_(from.begin_of_text),
        end_(from.end_of_text),
        whole_words_(from.whole_words),
        add_begin_(from.add_begin && begin_ >= 0) {
    detail::require(!from.tokens.empty(), fn, "tokens, expected one or more, got none");
    is_special_.assign(from.tokens.size(), false);
    for (const TokenId id : from.special) {
      detail::require(id >= 0 && static_cast<std::size_t>(id) < from.tokens.size(), fn,
                      "special tokens, expected 0 to ", from.tokens.size() - 1, ", got ", id);
      is_special_[static_cast<std::size_t>(id)] = true;
    }
    for (std::size_t i = 0; i < from.tokens.size(); ++i) {
      // A token that is no string of bytes cannot come from merges; it is kept as it reads.
      const auto bytes = is_special_[i] ? std::nullopt : detail::bytes_of_token(from.tokens[i]);
      tokens_.add(bytes ? std::string_view(*bytes) : from.tokens[i], bytes.has_value());
    }
    for (const TokenId id : {begin_, end_})
      if (id != detail::no_token) tokens_.require_token(fn, "token that begins or ends a text", id);
    special_ = detail::SpecialTable(fn, tokens_, {from.special.begin(), from.special.end()});
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const char text = static_cast<char>(byte);
      bytes_[byte] = tokens_.find({&text, 1});
    }
    add_merges(from.merges);
  }

  [[nodiscard]] Index size() const { return static_cast<Index>(tokens_.size()); }
  [[nodiscard]] TokenId begin_of_text() const { return begin_; }
  [[nodiscard]] TokenId end_of_text() const { return end_; }
  /// The bytes of a token. Errors: an id outside of the vocabulary.
  [[nodiscard]] std::string_view piece(TokenId id) const {
    tokens_.require_token("BytePairTokenizer::piece", "token", id);
    return tokens_[id];
  }

  /// The tokens of a text. Errors: a byte that the vocabulary lacks; 2^31 bytes or more.
  [[nodiscard]] std::vector<TokenId> encode(std::string_view text, SpecialTokens special = SpecialTokens::keep) const {
    constexpr auto function = "BytePairTokenizer::encode";
    detail::require(text.size() < std::size_t{1} << 31, function, "text, expected less than 2^31 bytes, got ",
                    text.size());
    std::vector<TokenId> tokens;
    if (add_begin_) tokens.push_back(begin_);
    std::vector<detail::MergePart> parts;
    for (std::size_t at = 0; at < text.size();) {
      const auto [end, id] =
          special == SpecialTokens::keep ? special_.find(tokens_, text, at) : std::pair(text.size(), detail::no_token);
      detail::WordCutter cutter(words_, text.substr(at, end - at));
      for (std::string_view word = cutter.next(); !word.empty(); word = cutter.next()) encode_word(word, parts, tokens);
      at = end;
      if (id == detail::no_token) continue;
      tokens.push_back(id);
      at += tokens_[id].size();
    }
    return tokens;
  }

  /// The text of tokens: what encode() was given, also if that was no UTF-8. Without the token that begins a text, if
  /// encode() adds it. Errors: ids outside of the vocabulary.
  [[nodiscard]] std::string decode(std::span<const TokenId> tokens, SpecialTokens special = SpecialTokens::keep) const {
    std::string text;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const TokenId id = tokens[i];
      tokens_.require_token("BytePairTokenizer::decode", "token", id);
      if (i == 0 && add_begin_ && id == begin_) continue;
      if (special == SpecialTokens::keep || !is_special_[static_cast<std::size_t>(id)]) text += tokens_[id];
    }
    return text;
  }

 private:
  static constexpr auto fn = "BytePairTokenizer";

  /// Two tokens that merge: in the order of the left one, then of the right one.
  struct Merge {
    TokenId left, right, merged;
    std::int32_t rank;
  };

  void add_merges(std::span<const std::string_view> merges) {
    detail::require(merges.size() < std::size_t{1} << 30, fn, "merges, expected at most 2^30, got ", merges.size());
    merges_.reserve(merges.size());
    for (std::size_t rank = 0; rank < merges.size(); ++rank)
      merges_.push_back(merge_of(merges[rank], static_cast<std::int32_t>(rank)));
    const auto place = [](const Merge& m) { return std::tuple(m.left, m.right, m.rank); };
    std::sort(merges_.begin(), merges_.end(), [&](const Merge& a, const Merge& b) { return place(a) < place(b); });
    firsts_.assign(tokens_.size() + 1, 0);
    for (const Merge& merge : merges_) ++firsts_[static_cast<std::size_t>(merge.left) + 1];
    for (std::size_t i = 1; i < firsts_.size(); ++i) firsts_[i] += firsts_[i - 1];
  }
  [[nodiscard]] Merge merge_of(std::string_view merge, std::int32_t rank) const {
    const std::size_t space = merge.find(' ');
    detail::require(space != std::string_view::npos && space > 0 && space + 1 < merge.size(), fn, "merge ", rank,
                    ", expected two tokens with a space between, got \"", merge, "\"");
    const std::string_view left = merge.substr(0, space), right = merge.substr(space + 1);
    const auto a = detail::bytes_of_token(left), b = detail::bytes_of_token(right);
    const TokenId l = a ? tokens_.find(*a) : detail::no_token, r = b ? tokens_.find(*b) : detail::no_token;
    const TokenId merged = a && b ? tokens_.find(*a + *b) : detail::no_token;
    detail::require(l >= 0 && r >= 0 && merged >= 0, fn, "merge ", rank,
                    ", expected tokens of the vocabulary, which make another one, got \"", merge, "\"");
    return {l, r, merged, rank};
  }
  [[nodiscard]] detail::MergeInto<std::int32_t> merged(TokenId left, TokenId right) const {
    const auto first = merges_.begin() + firsts_[static_cast<std::size_t>(left)];
    const auto end = merges_.begin() + firsts_[static_cast<std::size_t>(left) + 1];
    const auto found = std::lower_bound(first, end, right, [](const Merge& m, TokenId id) { return m.right < id; });
    if (found == end || found->right != right) return {};
    return {found->merged, found->rank};
  }

  void encode_word(std::string_view word, std::vector<detail::MergePart>& parts, std::vector<TokenId>& tokens) const {
    if (whole_words_)
      if (const TokenId id = tokens_.find(word); id != detail::no_token) return tokens.push_back(id);
    parts.clear();
    for (std::size_t i = 0; i < word.size(); ++i) {
      const auto byte = static_cast<unsigned char>(word[i]);
      detail::require(bytes_[byte] != detail::no_token, "BytePairTokenizer::encode",
                      "text, expected bytes of the vocabulary, got ", static_cast<int>(byte));
      parts.push_back({static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(i + 1), 0, 0, bytes_[byte]});
    }
    detail::link_parts(parts);
    detail::merge_parts<std::int32_t>(parts, [&](const detail::MergePart& left, const detail::MergePart& right) {
      return merged(left.id, right.id);
    });
    for (std::uint32_t i = 0; i != detail::no_part; i = parts[i].next) tokens.push_back(parts[i].id);
  }

  detail::PieceTable tokens_;     // as bytes
  std::vector<bool> is_special_;  // by id
  detail::SpecialTable special_;
  std::array<TokenId, 256> bytes_{};    // their tokens, or no_token
  std::vector<Merge> merges_;           // sorted
  std::vector<std::ptrdiff_t> firsts_;  // where in merges_ those of a left token begin; one more for the end
  WordRule words_;
  TokenId begin_, end_;
  bool whole_words_, add_begin_;
};

}  // namespace attn
