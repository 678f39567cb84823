// Tokenizers from tokenizer.json.
#include <attn/io/tokenizer_json.hpp>

#include "file_support.hpp"
#include "module_support.hpp"

#include <string>
#include <string_view>
#include <vector>

namespace {

using attn::BytePairTokenizer;
using attn::TokenId;
using attn::tokenizer_from_json;
using attn_test::expect_error;
using attn_test::TemporaryFolder;
using Ids = std::vector<TokenId>;
using Json = nlohmann::json;

const std::string llama3(attn::detail::word_expressions[1].first), qwen2(attn::detail::word_expressions[2].first);

/// As Llama 3's, in small.
Json small() {
  return Json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
    "added_tokens": [
      {"id": 8, "content": "<|begin|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
      {"id": 10, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated", "invert": false},
      {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
    "post_processor": {"type": "Sequence", "processors": [
      {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
      {"type": "TemplateProcessing",
       "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
       "pair": [], "special_tokens": {}}]},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
      "vocab": {"a": 0, "1": 1, "2": 2, "\u0120": 3, "12": 4, "\u0120a": 5, "a12": 6, "b": 7},
      "merges": ["1 2", "\u0120 a"]}})");
}
Json with_expression(const std::string& expression) {
  Json file = small();
  file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = expression;
  return file;
}
Json llama() { return with_expression(llama3); }

TEST(TokenizerJson, ReadsByteLevelPairs) {
  const BytePairTokenizer tokenizer = tokenizer_from_json(llama().dump(), 10);
  EXPECT_EQ(tokenizer.size(), 11);
  EXPECT_EQ(tokenizer.encode("a a12121<|end|>b"), (Ids{8, 0, 5, 4, 1, 2, 1, 10, 7}));  // three digits, then two
  EXPECT_EQ(tokenizer.decode(Ids{8, 0, 5, 4, 1, 2, 1, 10, 7}), "a a12121<|end|>b");
  EXPECT_EQ(tokenizer.begin_of_text(), 8);
  EXPECT_EQ(tokenizer.end_of_text(), 10);
}

TEST(TokenizerJson, ReadsMergesAsPairs) {
  Json file = llama();
  file["model"]["merges"] = Json::array({Json::array({"1", "2"}), Json::array({"\u0120", "a"})});
  EXPECT_EQ(tokenizer_from_json(file.dump()).encode("12 a"), (Ids{8, 4, 5}));
}

TEST(TokenizerJson, CutsTextsByTheExpressionInTheFile) {
  EXPECT_EQ(tokenizer_from_json(with_expression(qwen2).dump()).encode("12"), (Ids{8, 1, 2}));
  for (const auto& [expression, rule] : attn::detail::word_expressions)
    EXPECT_NO_THROW((void)tokenizer_from_json(with_expression(std::string(expression)).dump()));
  Json file = small();
  file["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  EXPECT_EQ(tokenizer_from_json(file.dump()).encode("1212"), (Ids{8, 4, 4}));  // GPT-2
  file["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Digits"}, {"individual_digits", true}},
                             {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}}}};
  EXPECT_EQ(tokenizer_from_json(file.dump()).encode("12"), (Ids{8, 1, 2}));  // SmolLM
}

TEST(TokenizerJson, TakesWholeWordsWhereTheFileSaysSo) {
  Json file = llama();
  file["model"]["vocab"]["aa"] = 9;
  EXPECT_EQ(tokenizer_from_json(file.dump()).encode("aa"), (Ids{8, 0, 0}));
  file["model"]["ignore_merges"] = true;
  EXPECT_EQ(tokenizer_from_json(file.dump()).encode("aa"), (Ids{8, 9}));
}

TEST(TokenizerJson, PutsNothingFirstWithoutATemplate) {
  Json file = llama();
  file["post_processor"] = {{"type", "ByteLevel"}};
  EXPECT_EQ(tokenizer_from_json(file.dump()).encode("a"), (Ids{0}));
  file["normalizer"] = {{"type", "NFC"}};
  file.erase("post_processor");
  EXPECT_EQ(tokenizer_from_json(file.dump()).encode("a"), (Ids{0}));
}

TEST(TokenizerJson, RefusesByNameWhatItDoesNotDo) {
  const auto refused = [](const std::string& pointer, const Json& value,
                          std::initializer_list<std::string_view> parts) {
    Json file = llama();
    file[Json::json_pointer(pointer)] = value;
    expect_error([&] { (void)tokenizer_from_json(file.dump()); }, parts);
  };
  refused("/model/type", "Unigram", {"[attn::tokenizer_from_json] model, expected BPE, got Unigram"});
  refused("/model/byte_fallback", true, {"got byte_fallback"});
  refused("/model/continuing_subword_prefix", "##", {"continuing_subword_prefix, expected none, got ##"});
  refused("/model/dropout", 0.1, {"dropout, expected none, got 0.1"});
  refused("/normalizer", {{"type", "Lowercase"}}, {"normalizer, expected none or NFC, got Lowercase"});
  refused("/pre_tokenizer/pretokenizers/0/pattern/Regex", "\\w+", {"pattern of Split", "got \\w+"});
  refused("/pre_tokenizer/pretokenizers/0/behavior", "Removed", {"Split, expected behavior Isolated, got Removed"});
  refused("/pre_tokenizer/pretokenizers/0", {{"type", "Metaspace"}}, {"ByteLevel, each once, got Metaspace"});
  refused("/pre_tokenizer/pretokenizers/1/add_prefix_space", true, {"got add_prefix_space"});
  refused("/pre_tokenizer", nullptr, {"pre_tokenizer, expected ByteLevel, and an expression"});
  refused("/added_tokens/0/lstrip", true, {"added token <|begin|>", "got lstrip"});
  refused("/post_processor/processors/0/type", "BertProcessing", {"post_processor", "got BertProcessing"});
  refused("/post_processor/processors/1/single/0/SpecialToken/id", "<x>", {"one of the added tokens, got <x>"});
  refused("/post_processor/processors/1/single/2", {{"SpecialToken", {{"id", "<|end|>"}}}},
          {"before the text at most, got <|end|>"});
}

TEST(TokenizerJson, RefusesBrokenFiles) {
  const auto refused = [](const std::string& text, std::initializer_list<std::string_view> parts) {
    expect_error([&] { (void)tokenizer_from_json(text); }, parts);
  };
  for (const char* const text : {"", "{", "[]", "7", "{}", "{\"model\": 3}", "{\"model\": {\"vocab\": 1}}", "\xFF"})
    refused(text, {"[attn::tokenizer_from_json] ", "expected "});
  refused(std::string(100'000, '['), {"expected at most 16 levels"});
  const std::string whole = llama().dump();
  for (std::size_t length = 0; length < whole.size(); length += 7)
    refused(whole.substr(0, length), {"text, expected a tokenizer.json, got "});
  const auto changed = [](const std::string& pointer, const Json& value) {
    Json file = llama();
    file[Json::json_pointer(pointer)] = value;
    return file.dump();
  };
  refused(changed("/model/vocab/b", -1), {"id of b, expected an integer from 0 to 2097151, got -1"});
  refused(changed("/model/vocab/b", std::int64_t{1} << 40), {"got 1099511627776"});
  refused(changed("/model/vocab/b", 0), {"id 0, expected one token, got a and b"});
  refused(changed("/model/vocab/b", "0"), {"id of b, expected an integer from 0 to 2097151, got string"});
  refused(changed("/model/vocab/b", 1.5), {"id of b, expected an integer from 0 to 2097151, got 1.5"});
  refused(changed("/model/vocab/b", 1e95), {"id of b, expected an integer from 0 to 2097151, got 1e+95"});
  refused(changed("/model/vocab/b", ~std::uint64_t{0}), {"got 18446744073709551615"});
  refused(changed("/added_tokens/1/id", 1e95), {"id of <|end|>, expected an integer"});
  refused(changed("/model/merges/0", "1 3"), {"merge 0, expected tokens of the vocabulary"});
  refused(changed("/model/merges/0", Json::array({"1"})), {"expected a tokenizer.json"});
  refused(changed("/model/merges/0", Json::array({"1", "2", "1"})), {"merge, expected two tokens"});
  refused(changed("/added_tokens/1/id", 8), {"id 8, expected one token, got <|begin|> and <|end|>"});
}

TEST(TokenizerJson, ReadsAFile) {
  const TemporaryFolder folder;
  const auto path = folder.write("tokenizer.json", llama().dump(2));
  EXPECT_EQ(attn::read_tokenizer_json(path).encode("b"), (Ids{8, 7}));
  std::filesystem::remove(path);
  expect_error([&] { (void)attn::read_tokenizer_json(path); }, {"expected a file that exists"});
}

}  // namespace
