// Edge. Byte-level tokenizers from the tokenizer.json of Hugging Face's tokenizers.
#pragma once

#if !__has_include(<nlohmann/json.hpp>)
#error "attn: tokenizer_json.hpp needs nlohmann-json 3.11 (Debian: nlohmann-json3-dev)"
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../error.hpp"
#include "byte_pair.hpp"
#include "json_object.hpp"
#include "mapped_file.hpp"

namespace attn::detail {

/// The expressions by which files cut texts, to the letter, and the rule that each one is.
inline constexpr std::array<std::pair<std::string_view, WordRule>, 4> word_expressions{{
    {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", WordRule::gpt2},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     WordRule::llama3},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     WordRule::qwen2},
    {R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
     R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
     R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     WordRule::gpt4o},
}};

/// Reads the parts of a file, and refuses by name what they have that is not done here.
class TokenizerJson {
 public:
  using Json = nlohmann::json;

  explicit TokenizerJson(std::string_view text) : root_(parse(text)), model_(root_.at("model")) {
    check_model();
    check_normalizer(part("normalizer"));
    words_ = word_rule(part("pre_tokenizer"));
    read_tokens();
    read_merges();
    if (const Json* const processor = part("post_processor")) read_processor(*processor);
  }
  [[nodiscard]] BytePairTokenizer tokenizer(TokenId end_of_text) const {
    const std::vector<std::string_view> tokens(tokens_.begin(), tokens_.end()), merges(merges_.begin(), merges_.end());
    return BytePairTokenizer(BytePairVocabulary{.tokens = tokens,
                                                .merges = merges,
                                                .special = special_,
                                                .words = words_,
                                                .whole_words = flag(model_, "ignore_merges"),
                                                .begin_of_text = begin_,
                                                .end_of_text = end_of_text,
                                                .add_begin = begin_ != no_token});
  }

 private:
  static constexpr std::string_view fn = "tokenizer_from_json";

  /// Errors: no JSON, nested more than any such file is.
  [[nodiscard]] static Json parse(std::string_view text) {
    constexpr int deepest = 16;
    return Json::parse(text, [](int depth, Json::parse_event_t, const Json&) {
      require(depth <= deepest, fn, "JSON, expected at most 16 levels, got more");
      return true;
    });
  }
  [[nodiscard]] const Json* part(const char* name) const { return field(root_, name); }
  /// Null where there is no such field, or it is null.
  [[nodiscard]] static const Json* field(const Json& object, const char* name) {
    const auto found = object.find(name);
    return found == object.end() || found->is_null() ? nullptr : &*found;
  }
  [[nodiscard]] static bool flag(const Json& object, const char* name, bool otherwise = false) {
    const Json* const found = field(object, name);
    return found != nullptr ? found->get<bool>() : otherwise;
  }
  [[nodiscard]] static std::string type_of(const Json& object) { return object.at("type").get<std::string>(); }
  /// The parts of a sequence, or the part itself.
  [[nodiscard]] static std::vector<Json> parts_of(const Json* part, const char* list) {
    if (part == nullptr) return {};
    if (type_of(*part) != "Sequence") return {*part};
    std::vector<Json> parts;
    for (const Json& inner : part->at(list)) parts.push_back(inner);
    return parts;
  }
  [[noreturn]] static void refuse(std::string_view what, std::string_view expected, const std::string& got) {
    fail(fn, what, ", expected ", expected, ", got ", std::string_view(got));
  }

  void check_model() const {
    if (field(model_, "type") != nullptr && type_of(model_) != "BPE") refuse("model", "BPE", type_of(model_));
    if (flag(model_, "byte_fallback")) refuse("model", "one of bytes, without byte_fallback", "byte_fallback");
    for (const char* const name : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (const Json* const affix = field(model_, name); affix != nullptr && !affix->get<std::string>().empty())
        refuse(name, "none", affix->get<std::string>());
    if (const Json* const dropout = field(model_, "dropout"); dropout != nullptr && dropout->get<double>() > 0)
      refuse("dropout", "none", dropout->dump());
  }
  static void check_normalizer(const Json* normalizer) {
    for (const Json& part : parts_of(normalizer, "normalizers"))
      if (type_of(part) != "NFC") refuse("normalizer", "none or NFC", type_of(part));
  }

  [[nodiscard]] static WordRule word_rule(const Json* pre_tokenizer) {
    std::optional<WordRule> split;
    bool digits = false, bytes = false;
    for (const Json& part : parts_of(pre_tokenizer, "pretokenizers")) {
      const std::string type = type_of(part);
      if (type == "Split" && !split) {
        split = split_rule(part);
      } else if (type == "Digits" && flag(part, "individual_digits") && !split) {
        digits = true;
      } else if (type == "ByteLevel" && !bytes) {
        if (flag(part, "add_prefix_space", true)) refuse("pre_tokenizer", "no space before texts", "add_prefix_space");
        bytes = true;
        if (flag(part, "use_regex", true) && !split) split = WordRule::gpt2;
      } else {
        refuse("pre_tokenizer", "Split, Digits and ByteLevel, each once", type);
      }
    }
    if (!bytes || !split) refuse("pre_tokenizer", "ByteLevel, and an expression that cuts texts", "neither or one");
    if (digits && *split != WordRule::gpt2) refuse("pre_tokenizer", "GPT-2's expression after Digits", "another");
    return digits ? WordRule::gpt2_digits : *split;
  }
  [[nodiscard]] static WordRule split_rule(const Json& part) {
    const std::string behavior = part.at("behavior").get<std::string>(),
                      wanted = flag(part, "invert") ? "Removed" : "Isolated";
    if (behavior != wanted) refuse("Split", "behavior " + wanted, behavior);
    const std::string expression = part.at("pattern").at("Regex").get<std::string>();
    for (const auto& [known, rule] : word_expressions)
      if (known == expression) return rule;
    refuse("pattern of Split", "that of GPT-2, Llama 3, Qwen 2 or GPT-4o", expression);
  }

  /// Ids need not follow each other; what is left out is an empty token.
  void read_tokens() {
    const Json& vocabulary = model_.at("vocab");
    for (const auto& [text, id] : vocabulary.items()) set_token(id_of(text, id), text);
    const Json* const added = part("added_tokens");
    if (added == nullptr) return;
    for (const Json& token : *added) {
      const std::string text = token.at("content").get<std::string>();
      for (const char* const name : {"lstrip", "rstrip", "single_word"})
        if (flag(token, name)) refuse("added token " + text, "one that is taken as it is", name);
      const std::int64_t id = id_of(text, token.at("id"));
      set_token(id, text);
      special_.push_back(static_cast<TokenId>(id));
    }
  }
  [[nodiscard]] static std::int64_t id_of(const std::string& text, const Json& value) {
    constexpr auto most = static_cast<std::int64_t>(PieceTable::most);
    return integer_of<std::int64_t>(fn, "id of " + text, value, 0, most - 1);
  }
  void set_token(std::int64_t id, const std::string& text) {
    const auto i = static_cast<std::size_t>(id);
    if (i >= tokens_.size()) tokens_.resize(i + 1);
    require(tokens_[i].empty() || tokens_[i] == text, fn, "id ", id, ", expected one token, got ",
            std::string_view(tokens_[i]), " and ", std::string_view(text));
    tokens_[i] = text;
  }
  void read_merges() {
    for (const Json& merge : model_.at("merges")) {
      if (merge.is_string()) {
        merges_.push_back(merge.get<std::string>());
        continue;
      }
      const auto pair = merge.get<std::array<std::string, 2>>();
      if (merge.size() != 2) refuse("merge", "two tokens", merge.dump());
      merges_.push_back(pair[0] + ' ' + pair[1]);
    }
  }

  /// The token that a template puts before a text.
  void read_processor(const Json& processor) {
    for (const Json& part : parts_of(&processor, "processors")) {
      if (type_of(part) == "ByteLevel") continue;
      if (type_of(part) != "TemplateProcessing")
        refuse("post_processor", "ByteLevel or TemplateProcessing", type_of(part));
      bool text_seen = false;
      for (const Json& item : part.at("single")) {
        const Json* const token = field(item, "SpecialToken");
        if (token == nullptr) {
          text_seen = true;
          continue;
        }
        const std::string name = token->at("id").get<std::string>();
        if (text_seen || begin_ != no_token) refuse("post_processor", "one token before the text at most", name);
        const auto found = std::find_if(special_.begin(), special_.end(),
                                        [&](TokenId id) { return tokens_[static_cast<std::size_t>(id)] == name; });
        if (found == special_.end()) refuse("post_processor", "one of the added tokens", name);
        begin_ = *found;
      }
    }
  }

  Json root_;
  const Json& model_;
  std::vector<std::string> tokens_, merges_;
  std::vector<TokenId> special_;
  WordRule words_ = WordRule::gpt2;
  TokenId begin_ = no_token;
};

}  // namespace attn::detail

namespace attn {

/// The tokenizer in the text of a tokenizer.json: BPE over bytes, cut by one of the expressions of GPT-2, Llama 3, Qwen
/// 2 or GPT-4o. The file does not say which token ends a text. Where its normalizer is NFC, texts are expected to be in
/// that form. Memory in proportion to the text, some ten times as much.
/// Errors: no JSON, and by name whatever a file asks for that is none of this.
[[nodiscard]] inline BytePairTokenizer tokenizer_from_json(std::string_view text, TokenId end_of_text = -1) {
  constexpr auto fn = "tokenizer_from_json";
  try {
    return detail::TokenizerJson(text).tokenizer(end_of_text);
  } catch (const nlohmann::json::exception& error) {
    detail::fail(fn, "text, expected a tokenizer.json, got ", std::string_view(error.what()));
  }
}

/// The same, from a file. Errors: besides, a file that cannot be read.
[[nodiscard]] inline BytePairTokenizer read_tokenizer_json(const std::filesystem::path& path,
                                                           TokenId end_of_text = -1) {
  const MappedFile file(path);
  const auto* const text = reinterpret_cast<const char*>(file.bytes().data());
  return tokenizer_from_json({text, file.bytes().size()}, end_of_text);
}

}  // namespace attn
