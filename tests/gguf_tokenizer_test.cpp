// Tokenizers inside of GGUF files.
#include <attn/io/gguf_tokenizer.hpp>

#include "gguf_support.hpp"
#include "module_support.hpp"

#include <string>
#include <vector>

namespace {

using attn::GgufFile;
using attn::TokenId;
using attn_test::expect_error;
using attn_test::gguf::Writer;
using Ids = std::vector<TokenId>;
using Strings = std::vector<std::string>;

Writer sentence_piece() {
  Writer writer;
  writer.add("tokenizer.ggml.model", "llama")
      .add_array("tokenizer.ggml.tokens", Strings{"<unk>", "<s>", "</s>", "<0x0A>", "\xE2\x96\x81", "a",
                                                  "\xE2\x96\x81"
                                                  "a",
                                                  "<turn>"})
      .add_array("tokenizer.ggml.scores", std::vector<float>{0, 0, 0, 0, -3, -2, -1, 0})
      .add_array("tokenizer.ggml.token_type", std::vector<std::int32_t>{2, 3, 3, 6, 1, 1, 1, 4});
  return writer;
}
Writer byte_pairs(const std::string& pre) {
  Writer writer;
  writer.add("tokenizer.ggml.model", "gpt2")
      .add("tokenizer.ggml.pre", pre.c_str())
      .add_array("tokenizer.ggml.tokens", Strings{"a", "1", "2", "\xC4\xA0", "12", "a1", "a12", "<|end|>"})
      .add_array("tokenizer.ggml.merges", Strings{"1 2"})
      .add_array("tokenizer.ggml.token_type", std::vector<std::int32_t>{1, 1, 1, 1, 1, 1, 1, 3})
      .add("tokenizer.ggml.eos_token_id", std::uint32_t{7});
  return writer;
}

TEST(GgufTokenizer, ReadsSentencePiece) {
  const auto bytes = sentence_piece().bytes();
  const auto tokenizer = sentence_piece_tokenizer(GgufFile(bytes));  // which need not outlive the call
  EXPECT_EQ(tokenizer.size(), 8);
  EXPECT_EQ(tokenizer.encode("a a\n<turn></s>"), (Ids{1, 6, 6, 3, 7, 2}));
  EXPECT_EQ(tokenizer.decode(Ids{1, 6, 6, 3, 7, 2}), "a a\n<turn></s>");
  EXPECT_EQ(tokenizer.begin_of_text(), 1);
  EXPECT_EQ(tokenizer.end_of_text(), 2);
}

TEST(GgufTokenizer, PutsNothingFirstWhereTheFileSaysSo) {
  Writer writer = sentence_piece();
  writer.add("tokenizer.ggml.add_bos_token", false).add("tokenizer.ggml.add_space_prefix", false);
  writer.add("tokenizer.ggml.eos_token_id", std::uint32_t{5});
  const auto bytes = writer.bytes();
  const auto tokenizer = sentence_piece_tokenizer(GgufFile(bytes));
  EXPECT_EQ(tokenizer.encode("a"), (Ids{5}));
  EXPECT_EQ(tokenizer.end_of_text(), 5);
}

TEST(GgufTokenizer, ReadsBytePairs) {
  const auto bytes = byte_pairs("qwen2").bytes();
  const auto tokenizer = byte_pair_tokenizer(GgufFile(bytes));
  EXPECT_EQ(tokenizer.encode("12 a<|end|>"), (Ids{1, 2, 3, 0, 7}));  // each digit is a word
  EXPECT_EQ(tokenizer.end_of_text(), 7);
  EXPECT_EQ(tokenizer.begin_of_text(), -1);
}

TEST(GgufTokenizer, CutsTextsAsTheFileSays) {
  const auto ids = [](const std::string& pre, std::string_view text) {
    const auto bytes = byte_pairs(pre).bytes();
    return byte_pair_tokenizer(GgufFile(bytes)).encode(text);
  };
  EXPECT_EQ(ids("gpt-2", "12"), (Ids{4}));
  EXPECT_EQ(ids("smollm", "12"), (Ids{1, 2}));
  EXPECT_EQ(ids("llama-bpe", "1212"), (Ids{4, 1, 2}));  // three digits at most
  EXPECT_EQ(ids("gpt-4o", "1212"), (Ids{4, 1, 2}));
}

TEST(GgufTokenizer, TakesAModelsBeginningFromItsName) {
  Writer writer = byte_pairs("llama-bpe");
  writer.add("tokenizer.ggml.bos_token_id", std::uint32_t{7});
  const auto bytes = writer.bytes();
  EXPECT_EQ(byte_pair_tokenizer(GgufFile(bytes)).encode("a"), (Ids{7, 0}));
  writer.add("tokenizer.ggml.add_bos_token", false);
  const auto without = writer.bytes();
  EXPECT_EQ(byte_pair_tokenizer(GgufFile(without)).encode("a"), (Ids{0}));
}

TEST(GgufTokenizer, RefusesOtherTokenizersByName) {
  const auto refused = [](const Writer& writer, std::initializer_list<std::string_view> parts, bool pieces) {
    const auto bytes = writer.bytes();
    const GgufFile file(bytes);
    if (pieces)
      expect_error([&] { (void)sentence_piece_tokenizer(file); }, parts);
    else
      expect_error([&] { (void)byte_pair_tokenizer(file); }, parts);
  };
  refused(byte_pairs("gpt-2"), {"[attn::sentence_piece_tokenizer]", "expected llama (SentencePiece), got gpt2"}, true);
  refused(sentence_piece(), {"[attn::byte_pair_tokenizer]", "expected gpt2 (byte-level byte pairs), got llama"}, false);
  refused(Writer(), {"got a file without a tokenizer"}, true);
  refused(byte_pairs("deepseek-llm"), {"tokenizer.ggml.pre, expected gpt-2, llama-bpe", "got deepseek-llm"}, false);
  refused(Writer().add("tokenizer.ggml.model", "llama"), {"got tokenizer.ggml.tokens"}, true);
}

TEST(GgufTokenizer, RefusesListsThatDoNotFit) {
  Writer writer;
  writer.add("tokenizer.ggml.model", "llama")
      .add_array("tokenizer.ggml.tokens", Strings{"<unk>", "<s>", "</s>"})
      .add_array("tokenizer.ggml.scores", std::vector<float>{0, 0, 0});
  const auto with = [&](auto change) {
    Writer changed = writer;
    change(changed);
    const auto bytes = changed.bytes();
    return [bytes] { (void)sentence_piece_tokenizer(GgufFile(bytes)); };
  };
  EXPECT_NO_THROW(with([](Writer&) {})());
  const auto types = [](std::vector<std::int32_t> of) {
    return [of](Writer& w) { w.add_array("tokenizer.ggml.token_type", of); };
  };
  expect_error(with(types({1, 1})), {"token_type, expected 3, one for each token, got 2"});
  expect_error(with(types({1, 1, 9})), {"kind of piece 2, expected 1 to 6, got 9"});
  expect_error(with(types({1, 1, 257})), {"integer of 8 bits, unsigned, got 257"});
  for (const std::int32_t id : {-1, 3})
    expect_error(with([id](Writer& w) { w.add("tokenizer.ggml.bos_token_id", id); }),
                 {"bos_token_id, expected 0 to 2, got " + std::to_string(id)});
}

}  // namespace
