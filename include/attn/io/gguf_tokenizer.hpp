// Edge. The tokenizers inside of GGUF files.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "gguf.hpp"
#include "tokenizer.hpp"

namespace attn::detail {

/// How the tokenizer called `pre` in a file cuts texts, and what else follows from the name.
struct GgufPreTokenizer {
  std::string_view name;
  WordRule words;
  bool whole_words = false, add_begin = false;
};
/// Source: llama.cpp, src/llama-vocab.cpp.
inline constexpr std::array<GgufPreTokenizer, 26> gguf_pre_tokenizers{{
    {"gpt-2", WordRule::gpt2},
    {"phi-2", WordRule::gpt2},
    {"jina-es", WordRule::gpt2},
    {"jina-de", WordRule::gpt2},
    {"jina-v2-es", WordRule::gpt2},
    {"jina-v2-de", WordRule::gpt2},
    {"gigachat", WordRule::gpt2},
    {"mellum", WordRule::gpt2},
    {"exaone4", WordRule::gpt2},
    {"olmo", WordRule::gpt2},
    {"starcoder", WordRule::gpt2_digits},
    {"refact", WordRule::gpt2_digits},
    {"command-r", WordRule::gpt2_digits},
    {"smollm", WordRule::gpt2_digits},
    {"codeshell", WordRule::gpt2_digits},
    {"llama3", WordRule::llama3, true, true},
    {"llama-v3", WordRule::llama3, true, true},
    {"llama-bpe", WordRule::llama3, true, true},
    {"falcon3", WordRule::llama3, true, true},
    {"pixtral", WordRule::llama3, true, true},
    {"lfm2", WordRule::llama3, true, true},
    {"qwen2", WordRule::qwen2},
    {"deepseek-r1-qwen", WordRule::qwen2},
    {"megrez", WordRule::qwen2},
    {"gpt-4o", WordRule::gpt4o},
    {"llama4", WordRule::gpt4o},
}};

/// Errors: a tokenizer of another model.
inline void require_tokenizer(std::string_view fn, const GgufFile& file, std::string_view model,
                              std::string_view what) {
  constexpr auto key = "tokenizer.ggml.model";
  require(file.has(key), fn, key, ", expected ", model, " (", what, "), got a file without a tokenizer");
  const auto got = file.get<std::string_view>(key);
  require(got == model, fn, key, ", expected ", model, " (", what, "), got ", got);
}
/// A token that the file names, or the one that such files mean without naming it, if the vocabulary has that.
[[nodiscard]] inline TokenId token_of(const GgufFile& file, std::string_view key, TokenId otherwise,
                                      std::size_t tokens) {
  if (!file.has(key)) return otherwise >= 0 && static_cast<std::size_t>(otherwise) < tokens ? otherwise : no_token;
  const auto id = file.get<std::int64_t>(key);
  require(id >= 0 && static_cast<std::size_t>(id) < tokens, "GgufFile", key, ", expected 0 to ",
          static_cast<std::int64_t>(tokens) - 1, ", got ", id);
  return static_cast<TokenId>(id);
}
/// The kinds of all pieces; empty where the file does not say them. 0 is what files say of ordinary ones, too.
[[nodiscard]] inline std::vector<PieceKind> kinds_of(std::string_view fn, const GgufFile& file, std::size_t tokens) {
  constexpr auto key = "tokenizer.ggml.token_type";
  std::vector<PieceKind> kinds;
  if (!file.has(key)) return kinds;
  const auto numbers = file.array<std::uint8_t>(key);
  require(numbers.size() == tokens, fn, key, ", expected ", tokens, ", one for each token, got ", numbers.size());
  kinds.reserve(numbers.size());
  for (const std::uint8_t number : numbers)
    kinds.push_back(number == 0 ? PieceKind::normal : static_cast<PieceKind>(number));
  return kinds;
}

}  // namespace attn::detail

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// The tokenizer of a file whose tokenizer.ggml.model is "llama": SentencePiece with scores.
/// Errors: another model, missing lists, what SentencePieceTokenizer refuses.
[[nodiscard]] inline SentencePieceTokenizer sentence_piece_tokenizer(const GgufFile& file) {
  constexpr auto fn = "sentence_piece_tokenizer";
  detail::require_tokenizer(fn, file, "llama", "SentencePiece");
  const auto pieces = file.array<std::string_view>("tokenizer.ggml.tokens");
  const auto scores = file.array<float>("tokenizer.ggml.scores");
  const std::vector<PieceKind> kinds = detail::kinds_of(fn, file, pieces.size());
  return SentencePieceTokenizer(
      SentencePieceVocabulary{.pieces = pieces,
                              .scores = scores,
                              .kinds = kinds,
                              .space = "\xE2\x96\x81",
                              .begin_of_text = detail::token_of(file, "tokenizer.ggml.bos_token_id", 1, pieces.size()),
                              .end_of_text = detail::token_of(file, "tokenizer.ggml.eos_token_id", 2, pieces.size()),
                              .add_begin = file.get_or<bool>("tokenizer.ggml.add_bos_token", true),
                              .add_space = file.get_or<bool>("tokenizer.ggml.add_space_prefix", true)});
}

/// The tokenizer of a file whose tokenizer.ggml.model is "gpt2": byte-level byte pairs. tokenizer.ggml.pre says how a
/// text is cut. Control and user-defined tokens are special.
/// Errors: another model, an unknown way of cutting, missing lists, what BytePairTokenizer refuses.
[[nodiscard]] inline BytePairTokenizer byte_pair_tokenizer(const GgufFile& file) {
  constexpr auto fn = "byte_pair_tokenizer", key = "tokenizer.ggml.pre";
  detail::require_tokenizer(fn, file, "gpt2", "byte-level byte pairs");
  detail::require(file.has(key), fn, key, ", expected the name of a rule for cutting texts, got a file without");
  const auto name = file.get<std::string_view>(key);
  const auto* const pre = std::find_if(detail::gguf_pre_tokenizers.begin(), detail::gguf_pre_tokenizers.end(),
                                       [&](const detail::GgufPreTokenizer& p) { return p.name == name; });
  detail::require(pre != detail::gguf_pre_tokenizers.end(), fn, key,
                  ", expected gpt-2, llama-bpe, qwen2, gpt-4o, smollm or another known rule for cutting texts, got ",
                  name);
  const auto tokens = file.array<std::string_view>("tokenizer.ggml.tokens");
  const auto merges = file.array<std::string_view>("tokenizer.ggml.merges");
  const std::vector<PieceKind> kinds = detail::kinds_of(fn, file, tokens.size());
  std::vector<TokenId> special;
  for (std::size_t i = 0; i < kinds.size(); ++i)
    if (kinds[i] == PieceKind::control || kinds[i] == PieceKind::user_defined)
      special.push_back(static_cast<TokenId>(i));
  return BytePairTokenizer(
      BytePairVocabulary{.tokens = tokens,
                         .merges = merges,
                         .special = special,
                         .words = pre->words,
                         .whole_words = pre->whole_words,
                         .begin_of_text = detail::token_of(file, "tokenizer.ggml.bos_token_id", -1, tokens.size()),
                         .end_of_text = detail::token_of(file, "tokenizer.ggml.eos_token_id", -1, tokens.size()),
                         .add_begin = file.get_or<bool>("tokenizer.ggml.add_bos_token", pre->add_begin)});
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
