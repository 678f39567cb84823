// The tokenizer of examples/llama2c.hpp.
#include "llama2c_support.hpp"

namespace {

using namespace attn_test::llama2c;

TEST_F(Llama2c, MergesTheBestPairFirst) {
  const Tokenizer tokenizer(
      file(tiny_tokenizer({" ", "a", "b", "ab", " a", "bb", "abb"})));  // the shorter score higher
  EXPECT_EQ(tokenizer.encode(""), Tokens{begin_of_text});
  EXPECT_EQ(tokenizer.encode("b"), (Tokens{1, 259, 261}));
  EXPECT_EQ(tokenizer.encode("ab"), (Tokens{1, 263, 261}));         // " a" + "b": of equals, the first
  EXPECT_EQ(tokenizer.encode("bab"), (Tokens{1, 259, 261, 262}));   // no "ba"
  EXPECT_EQ(tokenizer.encode("babb"), (Tokens{1, 259, 261, 265}));  // "ab", then "abb"
}

TEST_F(Llama2c, FallsBackToBytes) {
  const Tokenizer tokenizer(file(tiny_tokenizer()));
  EXPECT_EQ(tokenizer.encode("\xC3\xA9"), (Tokens{1, 259, first_byte + 0xC3, first_byte + 0xA9}));
  EXPECT_EQ(tokenizer.encode("a\n"), (Tokens{1, 259, 260, first_byte + 0x0A}));
  EXPECT_EQ(tokenizer.decode(260, first_byte + 0x0A), "\n");
  EXPECT_EQ(tokenizer.decode(260, first_byte + 0xFF), "\xFF");
  EXPECT_EQ(tokenizer.decode(260, first_byte), std::string(1, '\0'));
}

TEST_F(Llama2c, KnowsCodePoints) {
  const Tokenizer tokenizer(file(tiny_tokenizer({" ", "\xC3\xA9", "\xF0\x9F\x98\x80"})));
  EXPECT_EQ(tokenizer.encode("\xC3\xA9\xF0\x9F\x98\x80"), (Tokens{1, 259, 260, 261}));
}

TEST_F(Llama2c, StripsTheSpaceAfterTheBeginningOnly) {
  const Tokenizer tokenizer(file(tiny_tokenizer({" ", "a", "b", " a"})));
  EXPECT_EQ(tokenizer.decode(begin_of_text, 262), "a");
  EXPECT_EQ(tokenizer.decode(260, 262), " a");
  EXPECT_EQ(tokenizer.decode(begin_of_text, 260), "a");
}

TEST_F(Llama2c, DecodesWhatItEncodes) {
  const Tokenizer tokenizer(file(tiny_tokenizer()));
  for (const std::string& text : texts) EXPECT_EQ(round_trip(tokenizer, text), text);
}

TEST_F(Llama2c, ATokenizerRefusesAMissingFile) {
  expect_error([] { Tokenizer("no/such/file.bin"); },
               {"[attn::examples::Tokenizer] ", "expected a file that can be read"});
}

TEST_F(Llama2c, ATokenizerRefusesATruncatedFile) {
  const std::string bytes = tiny_tokenizer();
  for (std::size_t length = 0; length < 4; ++length)
    expect_error([&] { Tokenizer(file(bytes.substr(0, length))); }, {"is truncated, expected at least 4 bytes, got "});
  for (std::size_t length = 45; length + 37 < bytes.size(); length += 11)  // 37 bytes are the last four pieces
    if ((length - 44) % 14 != 0)  // before each of the bytes, 4 + 4 + 6 bytes, one could end
      expect_error([&] { Tokenizer(file(bytes.substr(0, length))); }, {"is truncated, expected ", ", got "});
  for (std::size_t cut = 1; cut < 10; ++cut)  // of the last piece, 4 + 4 + 2 bytes
    expect_error([&] { Tokenizer(file(bytes.substr(0, bytes.size() - cut))); },
                 {"is truncated, expected ", ", got " + std::to_string(bytes.size() - cut)});
}

// Between two pieces the file itself cannot tell, but its size is no longer the model's vocabulary.
TEST_F(Llama2c, ATokenizerTruncatedBetweenPiecesHasAnotherSize) {
  const std::string bytes = tiny_tokenizer();
  EXPECT_EQ(Tokenizer(file(bytes.substr(0, bytes.size() - 10))).size(), 262);
}

TEST_F(Llama2c, RefusesPieceLengthsOutsideTheirRange) {
  std::string bytes = tiny_tokenizer();
  for (const std::int32_t bad : {-1, 8, std::numeric_limits<std::int32_t>::max()}) {
    std::memcpy(bytes.data() + 8, &bad, 4);
    expect_error([&] { Tokenizer(file(bytes)); }, {"length of piece 0", "expected 0 to 7, got ", std::to_string(bad)});
  }
  const std::int32_t huge = std::numeric_limits<std::int32_t>::max();
  std::memcpy(bytes.data(), &huge, 4);  // a longest piece that lies as well: nothing of that size is allocated
  expect_error([&] { Tokenizer(file(bytes)); }, {"is truncated, expected "});
}

TEST_F(Llama2c, NeedsNoBytePiecesForACharacterVocabulary) {
  const Tokenizer tokenizer(file(tokenizer_of({"<unk>", "<s>", "</s>", " ", "a", "b", "\xC3\xA9", "ab"})));
  EXPECT_EQ(tokenizer.encode("b\xC3\xA9"), (Tokens{1, 3, 5, 6}));
  EXPECT_EQ(tokenizer.encode("ab"), (Tokens{1, 3, 7}));
  EXPECT_EQ(round_trip(tokenizer, "ab b\xC3\xA9"), "ab b\xC3\xA9");
}

TEST_F(Llama2c, ReadsATextAsItIsIfTheVocabularyHasNoSpace) {
  const Tokenizer tokenizer(file(tokenizer_of({"<unk>", "<s>", "</s>", "a", "b"})));
  EXPECT_EQ(tokenizer.encode("ba"), (Tokens{1, 4, 3}));
}

TEST_F(Llama2c, RefusesCharactersOutsideTheVocabulary) {
  const Tokenizer tokenizer(file(tokenizer_of({"<unk>", "<s>", "</s>", " ", "a", "<0xC3>"})));
  EXPECT_EQ(tokenizer.encode("a\xC3"), (Tokens{1, 3, 4, 5}));
  for (const std::string bad : {"b", "\xC3\xA9"})
    expect_error([&] { (void)tokenizer.encode("a" + bad); },
                 {"[attn::SentencePieceTokenizer::encode]", "expected characters of the vocabulary, got " + bad});
}

TEST_F(Llama2c, WritesWithACharacterVocabulary) {
  const Llama llama = model(TinyCheckpoint(true, 6));
  const Tokenizer tokenizer(file(tokenizer_of({"<unk>", "<s>", "</s>", " ", "a", "b"})));
  Sampler sampler(1.0F, 1.0F, 3);
  std::string text;
  const auto done =
      attn::examples::generate(llama, tokenizer, sampler, "ab", 20, [&](const std::string& piece) { text += piece; });
  EXPECT_EQ(done.prompt_tokens, 4);
  EXPECT_GT(done.new_tokens, 0);
  EXPECT_TRUE(text.starts_with("ab")) << text;
}

TEST_F(Llama2c, RefusesTokensOutsideItsVocabulary) {
  const Tokenizer tokenizer(file(tiny_tokenizer()));
  for (const Token bad : {-1, 263})
    expect_error([&] { (void)tokenizer.decode(1, bad); }, {"Tokenizer::decode", "expected 0 to 262, got "});
}

}  // namespace
