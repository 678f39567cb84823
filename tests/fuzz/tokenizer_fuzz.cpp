// Tokenizers of any vocabulary over any text: what is encoded comes back to the byte, or is refused with attn::Error.
//
// An input is a byte of choices; then pieces, each with a byte for its length and kind and one for its score; a piece
// of length 0 ends them; the rest is the text.
#include <attn/io/tokenizer.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

namespace {

using attn::PieceKind;
using attn::SpecialTokens;
using attn::TokenId;

struct Input {
  unsigned choices = 0;
  std::vector<std::string> pieces;
  std::vector<float> scores;
  std::vector<PieceKind> kinds;
  std::string_view text;

  explicit Input(std::string_view bytes) {
    const auto take = [&]() -> unsigned {
      if (bytes.empty()) return 0;
      const unsigned byte = static_cast<unsigned char>(bytes[0]);
      bytes.remove_prefix(1);
      return byte;
    };
    choices = take();
    for (unsigned head = take(); head % 32 != 0 && pieces.size() < 1000; head = take()) {
      constexpr PieceKind all[] = {PieceKind::normal,  PieceKind::normal, PieceKind::normal,  PieceKind::user_defined,
                                   PieceKind::control, PieceKind::unused, PieceKind::unknown, PieceKind::normal};
      kinds.push_back(all[head / 32]);
      scores.push_back(static_cast<float>(take()) - 128);
      const std::size_t length = std::min<std::size_t>(head % 32, bytes.size());
      pieces.emplace_back(bytes.substr(0, length));
      bytes.remove_prefix(length);
    }
    text = bytes;
  }
};

/// Which bytes the text and the pieces have, so that vocabularies need not list all 256: that took most of the time.
std::vector<bool> bytes_in(const Input& input) {
  std::vector<bool> bytes(256);
  const auto mark = [&](std::string_view text) {
    for (const char c : text) bytes[static_cast<unsigned char>(c)] = true;
  };
  mark(input.text);
  for (const std::string& piece : input.pieces) mark(piece);
  bytes[' '] = true;
  return bytes;
}

template <class Tokenizer>
void check_round_trip(const Tokenizer& tokenizer, std::string_view text) {
  for (const SpecialTokens special : {SpecialTokens::keep, SpecialTokens::drop}) {
    std::vector<TokenId> tokens;
    try {
      tokens = tokenizer.encode(text, special);
    } catch (const attn::Error&) {  // a character that the vocabulary lacks
      continue;
    }
    if (tokenizer.decode(tokens) != text) std::abort();
    if (tokens.size() > text.size() + 2) std::abort();
    (void)tokenizer.decode(tokens, SpecialTokens::drop);
  }
}

void sentence_piece(Input& input) {
  const bool with_bytes = (input.choices & 2U) != 0;
  const std::vector<bool> present = bytes_in(input);
  for (unsigned byte = 0; with_bytes && byte < 256; ++byte) {
    if (!present[byte]) continue;
    constexpr char digits[] = "0123456789ABCDEF";
    input.pieces.push_back({'<', '0', 'x', digits[byte / 16], digits[byte % 16], '>'});
    input.scores.push_back(0);
    input.kinds.push_back(PieceKind::byte);
  }
  const std::vector<std::string_view> pieces(input.pieces.begin(), input.pieces.end());
  const auto begin = static_cast<TokenId>(input.choices / 32) - 1;
  check_round_trip(attn::SentencePieceTokenizer({.pieces = pieces,
                                                 .scores = input.scores,
                                                 .kinds = input.kinds,
                                                 .begin_of_text = begin,
                                                 .end_of_text = -1,
                                                 .add_begin = (input.choices & 4U) != 0,
                                                 .add_space = (input.choices & 8U) != 0}),
                   input.text);
}

/// Every piece is two bytes or more that merge at some byte; its score says where.
void byte_pairs(const Input& input) {
  std::vector<std::string> tokens, merges;
  const auto characters = [](std::string_view bytes) {
    std::string text;
    for (const char c : bytes)
      attn::detail::append_utf8(text, attn::detail::byte_characters[static_cast<unsigned char>(c)]);
    return text;
  };
  const std::vector<bool> present = bytes_in(input);
  for (unsigned byte = 0; byte < 256; ++byte)
    if (present[byte]) tokens.push_back(characters(std::string(1, static_cast<char>(byte))));
  std::unordered_set<std::string> all(tokens.begin(), tokens.end());
  std::vector<TokenId> special;
  for (std::size_t i = 0; i < input.pieces.size(); ++i) {
    const std::string& piece = input.pieces[i];
    if (input.kinds[i] == PieceKind::control) special.push_back(static_cast<TokenId>(tokens.size()));
    tokens.push_back(input.kinds[i] == PieceKind::control ? piece : characters(piece));
    if (input.kinds[i] == PieceKind::normal) all.insert(tokens.back());
    if (input.kinds[i] != PieceKind::normal || piece.size() < 2) continue;
    const std::size_t cut = 1 + static_cast<std::size_t>(input.scores[i] + 128) % (piece.size() - 1);
    const std::string left = characters(piece.substr(0, cut)), right = characters(piece.substr(cut));
    const auto known = [&](const std::string& text) { return all.contains(text); };
    if ((known(left) && known(right)) || (input.choices & 64U) != 0) merges.push_back(left + ' ' + right);
  }
  const std::vector<std::string_view> token_views(tokens.begin(), tokens.end()),
      merge_views(merges.begin(), merges.end());
  check_round_trip(attn::BytePairTokenizer({.tokens = token_views,
                                            .merges = merge_views,
                                            .special = special,
                                            .words = static_cast<attn::WordRule>((input.choices >> 1 & 7U) % 5),
                                            .whole_words = (input.choices & 16U) != 0,
                                            .begin_of_text = 0,
                                            .add_begin = (input.choices & 32U) != 0}),
                   input.text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input({reinterpret_cast<const char*>(data), size});
  try {
    if ((input.choices & 1U) != 0)
      sentence_piece(input);
    else
      byte_pairs(input);
  } catch (const attn::Error&) {  // a vocabulary that is refused
  }
  return 0;
}
