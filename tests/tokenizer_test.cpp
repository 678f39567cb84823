// Tokenizers: merging by score and by rank, splitting into words, special tokens, and what is refused.
#include <attn/io/tokenizer.hpp>

#include "module_support.hpp"

#include <chrono>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace {

using attn::BytePairTokenizer;
using attn::BytePairVocabulary;
using attn::PieceKind;
using attn::SentencePieceTokenizer;
using attn::SentencePieceVocabulary;
using attn::SpecialTokens;
using attn::TokenId;
using attn::WordRule;
using attn_test::expect_error;
using Ids = std::vector<TokenId>;

// ---- Vocabularies
// -----------------------------------------------------------------------------------------------------

/// Strings, and views of them that vocabularies take.
struct Texts {
  std::vector<std::string> strings;
  std::vector<std::string_view> views;

  void add(std::string text) { strings.push_back(std::move(text)); }
  std::span<const std::string_view> all() {
    views.assign(strings.begin(), strings.end());
    return views;
  }
};

/// <unk>, <s>, </s>, 256 bytes, and more pieces from 259 on, of which the first scores best.
struct Pieces : Texts {
  std::vector<float> scores;
  std::vector<PieceKind> kinds;

  explicit Pieces(std::initializer_list<const char*> more, bool bytes = true) {
    add("<unk>", PieceKind::unknown);
    add("<s>", PieceKind::control);
    add("</s>", PieceKind::control);
    for (unsigned byte = 0; bytes && byte < 256; ++byte) {
      char text[7];
      std::snprintf(text, sizeof text, "<0x%02X>", byte);
      add(text, PieceKind::byte);
    }
    for (const char* piece : more) add(piece, PieceKind::normal);
  }
  void add(const std::string& piece, PieceKind kind) {
    Texts::add(piece);
    kinds.push_back(kind);
    scores.push_back(-static_cast<float>(strings.size()));
  }
  SentencePieceVocabulary vocabulary() { return {.pieces = all(), .scores = scores, .kinds = kinds}; }
  SentencePieceTokenizer tokenizer() { return SentencePieceTokenizer(vocabulary()); }
};

/// The characters that stand for bytes, as tokens 0 to 255; more tokens from 256 on.
struct Bytes : Texts {
  Texts merges;
  std::vector<TokenId> special;

  explicit Bytes(std::initializer_list<const char*> merges_in = {},
                 std::initializer_list<const char*> special_in = {}) {
    for (const std::uint16_t point : attn::detail::byte_characters) {
      std::string text;
      attn::detail::append_utf8(text, point);
      add(text);
    }
    for (const std::string merge : merges_in) {
      merges.add(merge);
      const std::size_t space = merge.find(' ');
      add(merge.substr(0, space) + merge.substr(space + 1));
    }
    for (const char* text : special_in) {
      special.push_back(static_cast<TokenId>(strings.size()));
      add(text);
    }
  }
  BytePairVocabulary vocabulary(WordRule words = WordRule::gpt2) {
    return {.tokens = all(), .merges = merges.all(), .special = special, .words = words};
  }
  BytePairTokenizer tokenizer(WordRule words = WordRule::gpt2) { return BytePairTokenizer(vocabulary(words)); }
};

const std::vector<std::string> any_texts{"",
                                         "a",
                                         " ",
                                         "   ",
                                         "Hello, world! It's 2024.\n\n  Don't\tpanic\r\n",
                                         "\xC3\xA9\xF0\x9F\x98\x80 \xE2\x96\x81 \xE4\xB8\xAD\xE6\x96\x87",
                                         "\x80\xFF\xC3",
                                         "\xF0\x9F\x98",
                                         "\xED\xA0\x80 surrogate, \xC0\x80 overlong",
                                         std::string("nul\0nul", 7),
                                         "<s> <0x41> </s>",
                                         "<|end|>x<|en"};

std::string random_text(std::mt19937& words, std::size_t longest, std::string_view alphabet) {
  std::string text(words() % (longest + 1), ' ');
  for (char& c : text) c = alphabet.empty() ? static_cast<char>(words() & 255U) : alphabet[words() % alphabet.size()];
  return text;
}

// ---- SentencePiece
// ----------------------------------------------------------------------------------------------------

TEST(SentencePiece, MergesTheBestScoreFirst) {
  Pieces pieces({" ", "a", "b", "ab", "bb", "abb"});
  const SentencePieceTokenizer tokenizer = pieces.tokenizer();
  EXPECT_EQ(tokenizer.encode(""), Ids{1});
  EXPECT_EQ(tokenizer.encode("abb"), (Ids{1, 259, 264}));       // "ab", then "abb"
  EXPECT_EQ(tokenizer.encode("bbb"), (Ids{1, 259, 263, 261}));  // of equals, the leftmost
}

/// Against the plain algorithm: look at all pairs, merge the best, begin anew.
TEST(SentencePiece, MergesAsTheQuadraticAlgorithmDoes) {
  std::mt19937 words(1);
  for (int round = 0; round < 200; ++round) {
    Pieces pieces({"a", "b", "c"});
    for (int i = 0; i < 12; ++i) pieces.add(random_text(words, 4, "abc") + "a", PieceKind::normal);
    for (float& score : pieces.scores) score = static_cast<float>(words() % 4);  // many are equal
    SentencePieceVocabulary vocabulary = pieces.vocabulary();
    vocabulary.add_space = false;
    const SentencePieceTokenizer tokenizer(vocabulary);
    const auto find = [&](const std::string& text) {
      for (std::size_t i = 259; i < pieces.strings.size(); ++i)
        if (pieces.strings[i] == text) return static_cast<TokenId>(i);
      return TokenId{-1};
    };
    for (int i = 0; i < 20; ++i) {
      const std::string text = random_text(words, 20, "abc");
      std::vector<std::string> parts;
      for (const char c : text) parts.emplace_back(1, c);
      for (;;) {
        std::size_t best = 0;
        TokenId merged = -1;
        for (std::size_t j = 0; j + 1 < parts.size(); ++j) {
          const TokenId id = find(parts[j] + parts[j + 1]);
          const auto score = [&](TokenId of) { return pieces.scores[static_cast<std::size_t>(of)]; };
          if (id >= 0 && (merged < 0 || score(id) > score(merged))) best = j, merged = id;
        }
        if (merged < 0) break;
        parts[best] += parts[best + 1];
        parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
      }
      Ids expected{1};
      for (const std::string& part : parts) expected.push_back(find(part));
      ASSERT_EQ(tokenizer.encode(text), expected) << text;
    }
  }
}

TEST(SentencePiece, DecodesWhatItEncodes) {
  std::mt19937 words(2);
  Pieces pieces({" ", "a", "b", "ab", "bb", " a", "  ", "\xC3\xA9"});
  pieces.add("\n\n", PieceKind::user_defined);
  pieces.add(" b", PieceKind::user_defined);
  for (const bool add_space : {true, false})
    for (const bool add_begin : {true, false}) {
      SentencePieceVocabulary vocabulary = pieces.vocabulary();
      vocabulary.add_space = add_space, vocabulary.add_begin = add_begin;
      const SentencePieceTokenizer tokenizer(vocabulary);
      for (const std::string& text : any_texts) EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
      for (int i = 0; i < 500; ++i) {
        const std::string text = random_text(words, 20, i % 2 == 0 ? "ab \n<s/>" : "");
        EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
        EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, SpecialTokens::drop)), text);
      }
    }
}

TEST(SentencePiece, TakesSpecialTokensWholeOnlyIfAsked) {
  Pieces pieces({" ", "a"});
  pieces.add("<turn>", PieceKind::user_defined);
  const SentencePieceTokenizer tokenizer = pieces.tokenizer();
  EXPECT_EQ(tokenizer.encode("a</s>a"), (Ids{1, 259, 260, 2, 260}));
  EXPECT_EQ(tokenizer.encode("<turn>a"), (Ids{1, 261, 260}));  // and no space before it
  EXPECT_EQ(tokenizer.encode("</s>", SpecialTokens::drop).size(), 6U);
  EXPECT_EQ(tokenizer.encode("<turn>", SpecialTokens::drop), (Ids{1, 261}));  // a piece of the user's
  EXPECT_EQ(tokenizer.decode(Ids{1, 259, 260, 2, 261}), "a</s><turn>");
  EXPECT_EQ(tokenizer.decode(Ids{1, 259, 260, 2, 261}, SpecialTokens::drop), "a<turn>");
}

TEST(SentencePiece, ReadsAnotherCharacterForSpaces) {
  Pieces pieces({"\xE2\x96\x81", "a",
                 "\xE2\x96\x81"
                 "a",
                 "\xE2\x96\x81\xE2\x96\x81"});
  SentencePieceVocabulary vocabulary = pieces.vocabulary();
  vocabulary.space = "\xE2\x96\x81";
  const SentencePieceTokenizer tokenizer(vocabulary);
  EXPECT_EQ(tokenizer.piece(261), " a");
  EXPECT_EQ(tokenizer.encode("a"), (Ids{1, 261}));
  EXPECT_EQ(tokenizer.encode("   a"), (Ids{1, 262, 259, 261}));  // " a" scores above "  "
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(" a \xE2\x96\x81")), " a \xE2\x96\x81");
}

TEST(SentencePiece, NeedsNoBytePiecesForACharacterVocabulary) {
  Pieces pieces({"a", "b", "\xC3\xA9", "ab"}, false);
  const SentencePieceTokenizer tokenizer = pieces.tokenizer();  // nor a space, and then puts none before a text
  EXPECT_EQ(tokenizer.encode("b\xC3\xA9"
                             "ab"),
            (Ids{1, 4, 5, 6}));
  expect_error([&] { (void)tokenizer.encode("ac"); },
               {"[attn::SentencePieceTokenizer::encode] text, expected characters of the vocabulary, got c"});
}

TEST(SentencePiece, TakesBytesForWhatTheirNamesSay) {
  Pieces pieces({});
  SentencePieceVocabulary vocabulary = pieces.vocabulary();
  vocabulary.kinds = {};  // then names tell
  const SentencePieceTokenizer tokenizer(vocabulary);
  EXPECT_EQ(tokenizer.encode("A"), (Ids{1, 3 + ' ', 3 + 'A'}));
  EXPECT_EQ(tokenizer.decode(Ids{1, 3 + ' ', 3 + 'A', 3 + 0xFF}), "A\xFF");
}

TEST(SentencePiece, DecodesTokenByToken) {
  Pieces pieces({" a", "a"});
  const SentencePieceTokenizer tokenizer = pieces.tokenizer();
  EXPECT_EQ(tokenizer.decode(1, 259), "a");
  EXPECT_EQ(tokenizer.decode(260, 259), " a");
  EXPECT_EQ(tokenizer.decode(260, 3 + 0x0A), "\n");
}

TEST(SentencePiece, RefusesVocabulariesThatDoNotFit) {
  Pieces pieces({"a"});
  const SentencePieceVocabulary good = pieces.vocabulary();
  const auto refused = [&](const auto& change, std::initializer_list<std::string_view> parts) {
    SentencePieceVocabulary vocabulary = good;
    change(vocabulary);
    expect_error([&] { SentencePieceTokenizer{vocabulary}; }, parts);
  };
  refused([](auto& v) { v.pieces = {}; }, {"[attn::SentencePieceTokenizer] pieces, expected one or more"});
  refused([](auto& v) { v.scores = v.scores.first(5); }, {"scores, expected 260, one for each piece, got 5"});
  refused([](auto& v) { v.kinds = v.kinds.first(5); }, {"kinds, expected 260, one for each piece, got 5"});
  refused([](auto& v) { v.begin_of_text = 260; }, {"expected 0 to 259, got 260"});
  refused([](auto& v) { v.end_of_text = -2; }, {"expected 0 to 259, got -2"});
  std::vector<float> scores = pieces.scores;
  scores[7] = std::numeric_limits<float>::quiet_NaN();
  refused([&](auto& v) { v.scores = scores; }, {"scores, expected numbers, got NaN"});
  std::vector<PieceKind> kinds = pieces.kinds;
  kinds[259] = PieceKind::byte;
  refused([&](auto& v) { v.kinds = kinds; }, {"piece 259, expected a byte as <0x00> to <0xFF>, got a"});
  kinds[259] = static_cast<PieceKind>(0);
  refused([&](auto& v) { v.kinds = kinds; }, {"kind of piece 259, expected 1 to 6, got 0"});
}

TEST(SentencePiece, RefusesTokensOutsideItsVocabulary) {
  Pieces pieces({"a"});
  const SentencePieceTokenizer tokenizer = pieces.tokenizer();
  for (const TokenId bad : {-1, 260, std::numeric_limits<TokenId>::min()}) {
    expect_error([&] { (void)tokenizer.decode(Ids{bad}); },
                 {"SentencePieceTokenizer::decode", "expected 0 to 259, got "});
    expect_error([&] { (void)tokenizer.piece(bad); }, {"SentencePieceTokenizer::piece"});
  }
}

// ---- Words
// ------------------------------------------------------------------------------------------------------------

std::vector<std::string_view> words_of(WordRule rule, std::string_view text) {
  std::vector<std::string_view> words;
  attn::detail::WordCutter cutter(rule, text);
  for (std::string_view word = cutter.next(); !word.empty(); word = cutter.next()) words.push_back(word);
  return words;
}
using Words = std::vector<std::string_view>;

TEST(WordCutter, CutsAsGpt2Does) {
  EXPECT_EQ(words_of(WordRule::gpt2, "Hello world, it's 2024!! I'LL"),
            (Words{"Hello", " world", ",", " it", "'s", " 2024", "!!", " I", "'", "LL"}));
  EXPECT_EQ(words_of(WordRule::gpt2, "a  b\n\nc   "), (Words{"a", " ", " b", "\n", "\n", "c", "   "}));
  EXPECT_EQ(words_of(WordRule::gpt2, "\xC3\xA9t\xC3\xA9 \xD9\xA3"), (Words{"\xC3\xA9t\xC3\xA9", " \xD9\xA3"}));
}

TEST(WordCutter, CutsDigitsApart) {
  EXPECT_EQ(words_of(WordRule::gpt2_digits, "in 2024  7"), (Words{"in", " ", "2", "0", "2", "4", "  ", "7"}));
}

TEST(WordCutter, CutsAsLlama3Does) {
  EXPECT_EQ(words_of(WordRule::llama3, "Hello world, I'LL pay $12345!\n\n  \n\tx"),
            (Words{"Hello", " world", ",", " I", "'LL", " pay", " $", "123", "45", "!\n\n", "  \n", "\tx"}));
  EXPECT_EQ(words_of(WordRule::llama3, "(ab)  \xC2\xA0z"), (Words{"(ab", ")", "  ", "\xC2\xA0z"}));
  EXPECT_EQ(words_of(WordRule::llama3, "a   b  "), (Words{"a", "  ", " b", "  "}));
}

TEST(WordCutter, CutsAsQwen2Does) {
  EXPECT_EQ(words_of(WordRule::qwen2, "pay 123 we'Re"), (Words{"pay", " ", "1", "2", "3", " we", "'Re"}));
}

TEST(WordCutter, CutsAsGpt4oDoes) {
  EXPECT_EQ(words_of(WordRule::gpt4o, "HelloWorld HTTPServer don't 1234/\n"),
            (Words{"Hello", "World", " HTTPServer", " don't", " ", "123", "4", "/\n"}));
  EXPECT_EQ(words_of(WordRule::gpt4o,
                     "\xE4\xB8\xAD"
                     "ABC a\xCC\x81x"),
            (Words{"\xE4\xB8\xAD", "ABC", " a\xCC\x81x"}));
}

TEST(WordCutter, TakesBytesThatAreNoUtf8ForSymbols) {
  for (const WordRule rule :
       {WordRule::gpt2, WordRule::gpt2_digits, WordRule::llama3, WordRule::qwen2, WordRule::gpt4o})
    EXPECT_EQ(words_of(rule, "a\x80\xFF!\xC3"), (Words{"a", "\x80\xFF!\xC3"}));
}

TEST(WordCutter, LosesNothing) {
  std::mt19937 words(3);
  for (const WordRule rule :
       {WordRule::gpt2, WordRule::gpt2_digits, WordRule::llama3, WordRule::qwen2, WordRule::gpt4o})
    for (int i = 0; i < 2000; ++i) {
      const std::string text = random_text(words, 30, i % 2 == 0 ? "aAsSlL' \n\r12!/\xCC\x81\xE4\xB8\xAD" : "");
      std::string joined;
      for (const std::string_view word : words_of(rule, text)) joined += word;
      ASSERT_EQ(joined, text);
    }
}

TEST(CharClass, TellsCodePointsApart) {
  using attn::detail::CharClass;
  using attn::detail::class_of;
  EXPECT_EQ(class_of('a'), CharClass::lower);
  EXPECT_EQ(class_of(0x17D), CharClass::upper);  // in a run in which both alternate
  EXPECT_EQ(class_of(0x17E), CharClass::lower);
  EXPECT_EQ(class_of(0x4E2D), CharClass::letter);
  EXPECT_EQ(class_of(0x301), CharClass::mark);
  EXPECT_EQ(class_of(0xBD), CharClass::number);
  EXPECT_EQ(class_of(0x3000), CharClass::space);
  EXPECT_EQ(class_of(0x1F600), CharClass::other);
  EXPECT_EQ(class_of(0x10FFFF), CharClass::other);
}

// ---- Byte pairs
// -------------------------------------------------------------------------------------------------------

TEST(BytePair, HasTheCharactersThatStandForBytes) {
  EXPECT_EQ(attn::detail::byte_characters['A'], 'A');
  EXPECT_EQ(attn::detail::byte_characters[' '], 0x120);
  EXPECT_EQ(attn::detail::byte_characters['\n'], 0x10A);
  EXPECT_EQ(attn::detail::byte_characters[0xAD], 0x143);
  EXPECT_EQ(attn::detail::byte_characters[0xFF], 0xFF);
  for (std::size_t byte = 0; byte < 256; ++byte)
    EXPECT_EQ(attn::detail::character_bytes[attn::detail::byte_characters[byte]], static_cast<int>(byte));
}

TEST(BytePair, MergesByRank) {
  Bytes bytes({"b c", "a b", "a bc", "\xC4\xA0 a"});
  const BytePairTokenizer tokenizer = bytes.tokenizer();
  EXPECT_EQ(tokenizer.encode("abc"), (Ids{258}));  // "bc" before "ab"
  EXPECT_EQ(tokenizer.encode("ab"), (Ids{257}));
  EXPECT_EQ(tokenizer.encode("abab"), (Ids{257, 257}));
  EXPECT_EQ(tokenizer.encode(" ab"), (Ids{' ', 257}));  // "ab" before " a"
  EXPECT_EQ(tokenizer.encode(" a"), (Ids{259}));
  EXPECT_EQ(tokenizer.encode("a b"), (Ids{'a', ' ', 'b'}));  // words do not merge
}

/// Against the plain algorithm over a word of its own.
TEST(BytePair, MergesAsTheQuadraticAlgorithmDoes) {
  std::mt19937 words(4);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::pair<std::string, std::string>> ranked;
    std::vector<std::string> known{"a", "b", "c"};
    Bytes bytes;
    for (int i = 0; i < 12; ++i) {
      const std::string left = known[words() % known.size()], right = known[words() % known.size()];
      if (std::find(known.begin(), known.end(), left + right) != known.end()) continue;
      known.push_back(left + right);
      ranked.emplace_back(left, right);
      bytes.merges.add(left + ' ' + right);
      bytes.add(left + right);
    }
    const BytePairTokenizer tokenizer = bytes.tokenizer();
    for (int i = 0; i < 20; ++i) {
      const std::string text = random_text(words, 20, "abc");
      std::vector<std::string> parts;
      for (const char c : text) parts.emplace_back(1, c);
      for (;;) {
        std::size_t best = 0, rank = ranked.size();
        for (std::size_t j = 0; j + 1 < parts.size(); ++j)
          for (std::size_t r = 0; r < rank; ++r)
            if (ranked[r].first == parts[j] && ranked[r].second == parts[j + 1]) best = j, rank = r;
        if (rank == ranked.size()) break;
        parts[best] += parts[best + 1];
        parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
      }
      std::vector<std::string> got;
      for (const TokenId id : tokenizer.encode(text)) got.emplace_back(tokenizer.piece(id));
      ASSERT_EQ(got, parts) << text;
    }
  }
}

TEST(BytePair, DecodesWhatItEncodes) {
  std::mt19937 words(5);
  Bytes bytes({"a b", "\xC4\xA0 a", "\xC3\x83 \xC2\xA9"}, {"<|end|>", "<|begin|>", "<|"});
  for (const WordRule rule :
       {WordRule::gpt2, WordRule::gpt2_digits, WordRule::llama3, WordRule::qwen2, WordRule::gpt4o})
    for (const bool add_begin : {false, true}) {
      BytePairVocabulary vocabulary = bytes.vocabulary(rule);
      vocabulary.begin_of_text = bytes.special[1], vocabulary.add_begin = add_begin;
      const BytePairTokenizer tokenizer(vocabulary);
      for (const std::string& text : any_texts) EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
      for (int i = 0; i < 200; ++i) {
        const std::string text = random_text(words, 20, i % 2 == 0 ? "ab \n<|end>" : "");
        EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
        EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, SpecialTokens::drop)), text);
      }
    }
}

TEST(BytePair, TakesSpecialTokensWhole) {
  Bytes bytes({}, {"<|end|>", "<|end|>more", "<|", "\xE2\x96\x81 any"});
  const BytePairTokenizer tokenizer = bytes.tokenizer();
  const TokenId end = bytes.special[0];
  EXPECT_EQ(tokenizer.encode("a<|end|>b"), (Ids{'a', end, 'b'}));
  EXPECT_EQ(tokenizer.encode("<|end|>mor<|end|>more"), (Ids{end, 'm', 'o', 'r', end + 1}));  // the longest counts
  EXPECT_EQ(tokenizer.encode("<|en"), (Ids{end + 2, 'e', 'n'}));
  EXPECT_EQ(tokenizer.encode("\xE2\x96\x81 any"), (Ids{end + 3}));
  EXPECT_EQ(tokenizer.encode("<|", SpecialTokens::drop), (Ids{'<', '|'}));
  EXPECT_EQ(tokenizer.decode(Ids{'a', end, 'b'}), "a<|end|>b");
  EXPECT_EQ(tokenizer.decode(Ids{'a', end, 'b'}, SpecialTokens::drop), "ab");
}

TEST(BytePair, TakesWholeWordsWhereLlama3Does) {
  Bytes bytes({"a b"});
  bytes.add("abc");  // no merges lead there
  BytePairVocabulary vocabulary = bytes.vocabulary();
  EXPECT_EQ(BytePairTokenizer(vocabulary).encode("abc"), (Ids{256, 'c'}));
  vocabulary.whole_words = true;
  EXPECT_EQ(BytePairTokenizer(vocabulary).encode("abc"), (Ids{257}));
}

TEST(BytePair, PutsTheBeginningFirst) {
  Bytes bytes({}, {"<s>"});
  BytePairVocabulary vocabulary = bytes.vocabulary();
  vocabulary.begin_of_text = 256, vocabulary.add_begin = true;
  const BytePairTokenizer tokenizer(vocabulary);
  EXPECT_EQ(tokenizer.encode("a"), (Ids{256, 'a'}));
  EXPECT_EQ(tokenizer.encode(""), (Ids{256}));
  EXPECT_EQ(tokenizer.encode("<s>"), (Ids{256, 256}));
  EXPECT_EQ(tokenizer.decode(Ids{256, 256}), "<s>");
}

TEST(BytePair, KeepsTokensThatAreNoBytes) {
  Bytes bytes;
  bytes.add("\xE4\xB8\xAD");  // a character that stands for no byte
  const BytePairTokenizer tokenizer = bytes.tokenizer();
  EXPECT_EQ(tokenizer.piece(256), "\xE4\xB8\xAD");
  EXPECT_EQ(tokenizer.encode("\xE4\xB8\xAD").size(), 3U);
}

TEST(BytePair, RefusesVocabulariesThatDoNotFit) {
  Bytes bytes({"a b"}, {"<s>"});
  const BytePairVocabulary good = bytes.vocabulary();
  const auto refused = [&](const auto& change, std::initializer_list<std::string_view> parts) {
    BytePairVocabulary vocabulary = good;
    change(vocabulary);
    expect_error([&] { BytePairTokenizer{vocabulary}; }, parts);
  };
  refused([](auto& v) { v.tokens = {}, v.special = {}; }, {"[attn::BytePairTokenizer] tokens, expected one or more"});
  refused([](auto& v) { v.begin_of_text = 258; }, {"expected 0 to 257, got 258"});
  const std::vector<TokenId> special{0, 300};
  refused([&](auto& v) { v.special = special; }, {"special tokens, expected 0 to 257, got 300"});
  for (const std::string_view merge : {"", "a", "a ", " a", "ab"}) {
    const std::vector<std::string_view> merges{"a b", merge};
    refused([&](auto& v) { v.merges = merges; }, {"merge 1, expected two tokens with a space between, got \"", merge});
  }
  for (const std::string_view merge : {"a c", "zz a", "a b c", "\xE4\xB8\xAD a"}) {
    const std::vector<std::string_view> merges{merge};
    refused([&](auto& v) { v.merges = merges; }, {"merge 0, expected tokens of the vocabulary", merge});
  }
  const std::string long_special(257, 'x');
  Bytes with_long({}, {long_special.c_str()});
  expect_error([&] { (void)with_long.tokenizer(); }, {"special token 256, expected at most 256 bytes, got 257"});
}

TEST(BytePair, RefusesBytesThatItsVocabularyLacks) {
  const std::vector<std::string_view> tokens{"a", "b", "ab"}, merges{"a b"};
  const BytePairTokenizer tokenizer(BytePairVocabulary{.tokens = tokens, .merges = merges});
  EXPECT_EQ(tokenizer.encode("abb"), (Ids{2, 1}));
  expect_error([&] { (void)tokenizer.encode("abc"); },
               {"[attn::BytePairTokenizer::encode]", "bytes of the vocabulary, got 99"});
  expect_error([&] { (void)tokenizer.decode(Ids{3}); },
               {"[attn::BytePairTokenizer::decode]", "expected 0 to 2, got 3"});
}

// ---- Long texts
// -------------------------------------------------------------------------------------------------------

/// Texts that a quadratic algorithm would take minutes for, in any order of merges. Half a second each, on a slow
/// machine.
TEST(Tokenizers, ReadAMegabyteInTimeThatGrowsWithIt) {
  const std::size_t length = 1 << 20;
  std::vector<std::string> texts{std::string(length, 'a'), std::string(length, ' '), std::string(length, '\n'),
                                 std::string(length, '<')};
  for (const std::string part : {"ab", "a ", " \n",
                                 "\xE4\xB8\xAD"
                                 "A",
                                 "<|en", "'"}) {
    std::string text;
    while (text.size() < length) text += part;
    texts.push_back(text);
  }
  Pieces pieces({" ", "a", "b", "aa", "aaaa", "aaaaaaaa", "  ", "    ", "ab", "abab"});
  Bytes bytes({"a a", "aa aa", "aaaa aaaa", "\xC4\xA0 \xC4\xA0", "a b", "ab ab"}, {"<|end|>", "<<<<<<<<<<<<<<<<<<>"});
  const SentencePieceTokenizer by_score = pieces.tokenizer();
  const auto seconds_of = [](const auto& run) {
    const auto start = std::chrono::steady_clock::now();
    run();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  for (const std::string& text : texts) {
    EXPECT_LT(seconds_of([&] { EXPECT_EQ(by_score.decode(by_score.encode(text)), text); }), 20) << text.substr(0, 8);
    for (const WordRule rule : {WordRule::llama3, WordRule::gpt4o}) {
      const BytePairTokenizer by_rank = bytes.tokenizer(rule);
      EXPECT_LT(seconds_of([&] { EXPECT_EQ(by_rank.decode(by_rank.encode(text)), text); }), 20) << text.substr(0, 8);
    }
  }
}

}  // namespace
