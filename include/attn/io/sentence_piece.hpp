// Floor 1. Tokenizers of SentencePiece's byte pair encoding: pieces with scores.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../error.hpp"
#include "../math.hpp"
#include "unicode_classes.hpp"
#include "vocabulary.hpp"

namespace attn {

/// What a piece is for. The values are those of GGUF files and of SentencePiece's own.
enum class PieceKind : std::uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

/// What a SentencePieceTokenizer is made of. It need not live longer than the call.
struct SentencePieceVocabulary {
  std::span<const std::string_view> pieces{};
  std::span<const float> scores{};  ///< of each piece; the largest merges first
  /// Of each piece. None: those that read "<0x00>" to "<0xFF>" are bytes, all others normal.
  std::span<const PieceKind> kinds{};
  std::string_view space = " ";                ///< how pieces write a space: "\u2581" in SentencePiece's own files
  TokenId begin_of_text = 1, end_of_text = 2;  ///< -1: there is none
  bool add_begin = true;                       ///< encode() puts begin_of_text first
  bool add_space = true;                       ///< a text is read as if a space stood before it
};

/// Text to tokens and back. A text is cut into its characters, and neighbours that are a piece together merge, the
/// piece with the best score first. What is no piece then becomes the bytes it consists of. A vocabulary of characters
/// needs no byte pieces, but then refuses what it lacks. Any bytes are a text: those that are not UTF-8 become byte
/// pieces. For n bytes of text and pieces of bounded length it takes n log n steps.
/// Source: Kudo and Richardson, "SentencePiece", 2018; llama2.c.
class SentencePieceTokenizer {
 public:
  /// Errors: no pieces, lists of unlike lengths, a score that is NaN, ids outside of the vocabulary.
  explicit SentencePieceTokenizer(const SentencePieceVocabulary& from)
      : pieces_(fn, from.pieces.size()),
        scores_(from.scores.begin(), from.scores.end()),
        begin_(from.begin_of_text),
        end_(from.end_of_text),
        add_begin_(from.add_begin && begin_ >= 0) {
    const std::size_t n = from.pieces.size();
    detail::require(n > 0, fn, "pieces, expected one or more, got none");
    detail::require(scores_.size() == n, fn, "scores, expected ", n, ", one for each piece, got ", scores_.size());
    detail::require(from.kinds.empty() || from.kinds.size() == n, fn, "kinds, expected ", n,
                    ", one for each piece, got ", from.kinds.size());
    for (const float score : scores_) detail::require(!detail::is_nan(score), fn, "scores, expected numbers, got NaN");
    for (std::size_t i = 0; i < n; ++i) add_piece(from, i);
    for (const TokenId id : {begin_, end_})
      if (id != detail::no_token) pieces_.require_token(fn, "token that begins or ends a text", id);
    const auto all_of = [&](std::initializer_list<PieceKind> kinds) {
      std::vector<TokenId> ids;
      for (std::size_t i = 0; i < n; ++i)
        if (std::find(kinds.begin(), kinds.end(), kinds_[i]) != kinds.end()) ids.push_back(static_cast<TokenId>(i));
      return detail::SpecialTable(fn, pieces_, std::move(ids));
    };
    special_ = all_of({PieceKind::control, PieceKind::user_defined});
    user_defined_ = all_of({PieceKind::user_defined});
    add_space_ = from.add_space && (pieces_.find(" ") >= 0 || bytes_[' '] >= 0);
  }

  [[nodiscard]] Index size() const { return static_cast<Index>(pieces_.size()); }
  [[nodiscard]] TokenId begin_of_text() const { return begin_; }
  [[nodiscard]] TokenId end_of_text() const { return end_; }
  /// A piece as it is written, with " " for a space. Errors: an id outside of the vocabulary.
  [[nodiscard]] std::string_view piece(TokenId id) const {
    pieces_.require_token("SentencePieceTokenizer::piece", "token", id);
    return pieces_[id];
  }

  /// The tokens of a text. User-defined pieces are taken whole wherever they come; control pieces are special tokens.
  /// The space before a text is left out where it begins with one of either.
  /// Errors: a character that is neither a piece nor bytes that are; 2^31 bytes or more.
  [[nodiscard]] std::vector<TokenId> encode(std::string_view text, SpecialTokens special = SpecialTokens::keep) const {
    constexpr auto function = "SentencePieceTokenizer::encode";
    detail::require(text.size() < std::size_t{1} << 31, function, "text, expected less than 2^31 bytes, got ",
                    text.size());
    std::vector<TokenId> tokens;
    if (add_begin_) tokens.push_back(begin_);
    const detail::SpecialTable& table = special == SpecialTokens::keep ? special_ : user_defined_;
    for (std::size_t at = 0; at < text.size();) {
      const auto [end, id] = table.find(pieces_, text, at);
      if (end > at) encode_plain(at == 0 && add_space_, text.substr(at, end - at), tokens);
      at = end;
      if (id == detail::no_token) continue;
      tokens.push_back(id);
      at += pieces_[id].size();
    }
    return tokens;
  }

  /// The text of tokens: what encode() was given, also if that was no UTF-8. Without the token that begins a text, if
  /// encode() adds it, and without the space before the text.
  /// Errors: ids outside of the vocabulary.
  [[nodiscard]] std::string decode(std::span<const TokenId> tokens, SpecialTokens special = SpecialTokens::keep) const {
    std::string text;
    const std::size_t first = add_begin_ && !tokens.empty() && tokens[0] == begin_ ? 1 : 0;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      pieces_.require_token("SentencePieceTokenizer::decode", "token", tokens[i]);
      if (i >= first && (special == SpecialTokens::keep || !is_special(tokens[i]))) append(text, tokens[i], i == first);
    }
    return text;
  }
  /// The text of one token, given the one before it: after begin_of_text a space in front goes.
  /// Errors: an id outside of the vocabulary.
  [[nodiscard]] std::string decode(TokenId previous, TokenId token) const {
    pieces_.require_token("SentencePieceTokenizer::decode", "token", token);
    std::string text;
    append(text, token, previous == begin_);
    return text;
  }

 private:
  static constexpr auto fn = "SentencePieceTokenizer";

  [[nodiscard]] PieceKind kind_of(TokenId id) const { return kinds_[static_cast<std::size_t>(id)]; }
  [[nodiscard]] bool is_special(TokenId id) const {
    return kind_of(id) == PieceKind::control || kind_of(id) == PieceKind::unknown;
  }

  void add_piece(const SentencePieceVocabulary& from, std::size_t i) {
    const std::string_view piece = from.pieces[i];
    const int byte = byte_of(piece);
    PieceKind kind = byte >= 0 ? PieceKind::byte : PieceKind::normal;
    if (!from.kinds.empty()) kind = from.kinds[i];
    detail::require(kind >= PieceKind::normal && kind <= PieceKind::byte, fn, "kind of piece ", i,
                    ", expected 1 to 6, got ", static_cast<int>(kind));
    detail::require(kind != PieceKind::byte || byte >= 0, fn, "piece ", i,
                    ", expected a byte as <0x00> to <0xFF>, got ", piece);
    kinds_.push_back(kind);
    const bool is_text = kind == PieceKind::normal || kind == PieceKind::user_defined;
    const std::string text = is_text ? with_spaces(piece, from.space) : std::string(piece);
    pieces_.add(text, kind == PieceKind::normal);  // those that users have defined do not come from merges
    TokenId& id = bytes_[static_cast<std::size_t>(std::max(byte, 0))];
    if (kind == PieceKind::byte && id == detail::no_token) id = static_cast<TokenId>(i);
  }
  /// The byte that a piece stands for, or -1.
  [[nodiscard]] static int byte_of(std::string_view piece) {
    if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return -1;
    const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; };
    const int high = digit(piece[3]), low = digit(piece[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
  }
  [[nodiscard]] static std::string with_spaces(std::string_view piece, std::string_view space) {
    std::string text;
    while (!piece.empty()) {
      const std::size_t at = space == " " || space.empty() ? std::string_view::npos : piece.find(space);
      text += piece.substr(0, at);
      if (at == std::string_view::npos) break;
      text += ' ';
      piece.remove_prefix(at + space.size());
    }
    return text;
  }

  void encode_plain(bool with_space, std::string_view plain, std::vector<TokenId>& tokens) const {
    std::string with;
    if (with_space) plain = with.append(" ").append(plain);
    std::vector<detail::MergePart> parts = characters_of(plain);
    detail::merge_parts<float>(parts, [&](const detail::MergePart& left, const detail::MergePart& right) {
      const TokenId id = pieces_.find(plain.substr(left.begin, right.end - left.begin));
      return detail::MergeInto<float>{id, id < 0 ? 0.F : -scores_[static_cast<std::size_t>(id)]};
    });
    for (std::uint32_t i = parts.empty() ? detail::no_part : 0; i != detail::no_part; i = parts[i].next) {
      if (parts[i].id != detail::no_token)
        tokens.push_back(parts[i].id);
      else
        encode_bytes(plain.substr(parts[i].begin, parts[i].end - parts[i].begin), tokens);
    }
  }
  /// One part for each character, in llama2.c's way: a byte that begins one takes those that continue it, up to four in
  /// all.
  [[nodiscard]] std::vector<detail::MergePart> characters_of(std::string_view text) const {
    std::vector<detail::MergePart> parts;
    const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
    for (std::size_t at = 0, length = 0; at < text.size(); at += length) {
      for (length = 1; byte(at) >= 0xC0U && length < 4 && (byte(at + length) & 0xC0U) == 0x80U;) ++length;
      parts.push_back({static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(at + length), 0, 0,
                       pieces_.find(text.substr(at, length))});
    }
    detail::link_parts(parts);
    return parts;
  }
  void encode_bytes(std::string_view character, std::vector<TokenId>& tokens) const {
    for (const char c : character) {
      const TokenId id = bytes_[static_cast<unsigned char>(c)];
      detail::require(id != detail::no_token, "SentencePieceTokenizer::encode",
                      "text, expected characters of the vocabulary, got ", character);
      tokens.push_back(id);
    }
  }
  void append(std::string& text, TokenId token, bool is_first) const {
    std::string_view piece = pieces_[token];
    if (kind_of(token) == PieceKind::byte) {
      const auto byte = static_cast<char>(byte_of(piece));
      if (!(is_first && add_space_ && byte == ' ')) text += byte;
    } else {
      const bool is_text = kind_of(token) == PieceKind::normal;
      if (is_first && add_space_ && is_text && piece.starts_with(' ')) piece.remove_prefix(1);
      text += piece;
    }
  }

  detail::PieceTable pieces_;
  std::vector<float> scores_;
  std::vector<PieceKind> kinds_;
  std::array<TokenId, 256> bytes_ = filled();  // their tokens, or no_token
  detail::SpecialTable special_, user_defined_;
  TokenId begin_, end_;
  bool add_begin_, add_space_ = false;

  [[nodiscard]] static constexpr std::array<TokenId, 256> filled() {
    std::array<TokenId, 256> none{};
    none.fill(detail::no_token);
    return none;
  }
};

}  // namespace attn
