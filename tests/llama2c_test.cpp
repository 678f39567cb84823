// examples/llama2c.hpp: a small Llama written here as a file (so these tests need no data), held against llama2.c's
// formulas in double; and stories260K, where it is at hand, held against what is published for it.
#include "../examples/llama2c.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace {

using attn::Index;
using attn::RotaryLayout;
using attn::Tensor;
using attn::View;
using attn::examples::begin_of_text;
using attn::examples::Llama;
using attn::examples::LlamaCache;
using attn::examples::load_checkpoint;
using attn::examples::Sampler;
using attn::examples::Token;
using attn::examples::Tokenizer;
using Tokens = std::vector<Token>;

constexpr Token first_byte = 3;  // of the tokenizers below, as of llama2.c's

/// `function` throws attn::Error, and its text holds all the parts.
template <class F>
void expect_error(const F& function, std::initializer_list<std::string> parts) {
  try {
    function();
    ADD_FAILURE() << "no attn::Error, expected one with: " << *parts.begin();
  } catch (const attn::Error& error) {
    for (const std::string& part : parts)
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
          << "'" << part << "' is not in: " << error.what();
  }
}

/// The largest difference, infinite where the shapes differ or anything is NaN.
template <class X, class Y>
double max_difference(const X& x, const Y& y) {
  const double infinity = std::numeric_limits<double>::infinity();
  if (attn::detail::shape_of(x) != attn::detail::shape_of(y)) return infinity;
  double result = 0.0;
  for (Index i = 0; i < x.size(); ++i) {
    const double difference = std::abs(static_cast<double>(x.data()[i]) - static_cast<double>(y.data()[i]));
    result = std::isnan(difference) ? infinity : std::max(result, difference);
  }
  return result;
}

Tensor<float, 3> logits_of(const Llama& model, const Tokens& tokens, LlamaCache* cache = nullptr) {
  return model.forward({tokens.data(), {1, std::ssize(tokens)}}, cache);
}

// One token a call, through a cache.
Tensor<float, 3> one_by_one(const Llama& model, const Tokens& tokens) {
  const Index V = model.config.vocabulary;
  LlamaCache cache = model.make_cache(1, std::ssize(tokens));
  Tensor<float, 3> result(1, std::ssize(tokens), V);
  for (Index s = 0; s < std::ssize(tokens); ++s) {
    const Tensor<float, 3> row = logits_of(model, {tokens[static_cast<std::size_t>(s)]}, &cache);
    std::copy_n(row.data(), V, &result(0, s, 0));
  }
  return result;
}

std::string text_of(const Llama& model, const Tokenizer& tokenizer, Sampler sampler, Index steps,
                    const std::string& prompt = "") {
  std::string text;
  attn::examples::generate(model, tokenizer, sampler, prompt, steps, [&](const std::string& piece) { text += piece; });
  return text;
}

// ---- A checkpoint of our own ----------------------------------------------------------------------------------------

using Header = std::array<std::int32_t, 7>;
constexpr Header tiny_header{16, 20, 2, 4, 2, 263, 24};  // dim, hidden, layers, heads, kv heads, vocabulary, length

struct TinyCheckpoint {
  Header header = tiny_header;
  std::vector<float> floats;

  explicit TinyCheckpoint(bool tied = true, std::int32_t vocabulary = 263) {
    header[5] = vocabulary;
    if (!tied) header[5] = -header[5];
    std::mt19937 words(7);
    const auto draw = [&](Index n, double mean, double spread) {
      for (Index i = 0; i < n; ++i)
        floats.push_back(static_cast<float>(mean + spread * (static_cast<double>(words()) * 0x1p-31 - 1.0)));
    };
    const Index E = header[0], F = header[1], L = header[2], D = E / header[3], K = header[4] * D, V = vocabulary;
    draw(V * E, 0.0, 1.5);
    draw(L * E, 1.0, 0.5);
    draw(L * (2 * E * E + 2 * K * E), 0.0, 0.6);
    draw(L * E, 1.0, 0.5);
    draw(L * 3 * E * F, 0.0, 0.6);
    draw(E, 1.0, 0.5);
    floats.insert(floats.end(), static_cast<std::size_t>(header[6] * D), std::numeric_limits<float>::quiet_NaN());
    if (!tied) draw(V * E, 0.0, 1.0);
  }
  [[nodiscard]] std::string bytes() const {
    std::string result(sizeof(header) + floats.size() * sizeof(float), '\0');
    std::memcpy(result.data(), header.data(), sizeof(header));
    std::memcpy(result.data() + sizeof(header), floats.data(), floats.size() * sizeof(float));
    return result;
  }
};

// A tokenizer file of these pieces, the shorter ones with the higher scores.
std::string tokenizer_of(const std::vector<std::string>& pieces) {
  std::string result;
  const auto append = [&](auto number) { result.append(reinterpret_cast<const char*>(&number), sizeof(number)); };
  append(std::int32_t{7});
  for (const std::string& piece : pieces) {
    append(-static_cast<float>(piece.size()));
    append(static_cast<std::int32_t>(piece.size()));
    result += piece;
  }
  return result;
}

// 259 pieces that most tokenizers have, a space, letters, and one pair.
std::string tiny_tokenizer(const std::vector<std::string>& more = {" ", "a", "b", "ab"}) {
  std::vector<std::string> pieces{"<unk>", "\n<s>\n", "\n</s>\n"};
  for (int byte = 0; byte < 256; ++byte) {
    char text[7];
    std::snprintf(text, sizeof(text), "<0x%02X>", static_cast<unsigned>(byte));
    pieces.emplace_back(text);
  }
  pieces.insert(pieces.end(), more.begin(), more.end());
  return tokenizer_of(pieces);
}

class Llama2c : public testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::path(testing::TempDir()) / ("attn_llama2c_" + std::to_string(std::random_device()()) +
                                                     testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  [[nodiscard]] std::filesystem::path file(const std::string& bytes) const {
    std::filesystem::path path = folder_ / "file.bin";
    std::ofstream(path, std::ios::binary).write(bytes.data(), std::ssize(bytes));
    return path;
  }
  [[nodiscard]] Llama model(const TinyCheckpoint& checkpoint, RotaryLayout layout = RotaryLayout::interleaved) const {
    return load_checkpoint(file(checkpoint.bytes()), layout);
  }

 private:
  std::filesystem::path folder_;
};

// llama2.c's forward pass in double, straight from the file's numbers: logits [1,S,V].
Tensor<double, 3> by_hand(const TinyCheckpoint& c, const Tokens& tokens) {
  const auto n = [](std::int32_t i) { return static_cast<std::size_t>(i); };
  const std::size_t E = n(c.header[0]), F = n(c.header[1]), L = n(c.header[2]), H = n(c.header[3]), G = n(c.header[4]);
  const std::size_t V = n(std::abs(c.header[5])), D = E / H, K = G * D, S = tokens.size();
  using Vector = std::vector<double>;
  const float* at = c.floats.data();
  const auto next = [&](std::size_t size) { return std::exchange(at, at + size); };
  const float *embedding = next(V * E), *norm1 = next(L * E), *wq = next(L * E * E), *wk = next(L * K * E);
  const float *wv = next(L * K * E), *wo = next(L * E * E), *norm2 = next(L * E), *w1 = next(L * F * E);
  const float *w2 = next(L * E * F), *w3 = next(L * F * E), *norm = next(E);
  next(n(c.header[6]) * D);
  const float* output = c.header[5] > 0 ? embedding : at;

  const auto times = [](const float* w, std::size_t rows, const Vector& x) {
    Vector y(rows, 0.0);
    for (std::size_t o = 0; o < rows; ++o)
      for (std::size_t i = 0; i < x.size(); ++i) y[o] += static_cast<double>(w[o * x.size() + i]) * x[i];
    return y;
  };
  const auto normed = [&](const Vector& x, const float* w) {
    double squares = 0.0;
    for (const double v : x) squares += v * v;
    Vector y(E);
    for (std::size_t e = 0; e < E; ++e)
      y[e] = x[e] * static_cast<double>(w[e]) / std::sqrt(squares / static_cast<double>(E) + 1e-5);
    return y;
  };
  const auto rotate = [&](Vector& x, std::size_t position) {
    for (std::size_t i = 0; i < x.size(); i += 2) {
      const double angle =
          static_cast<double>(position) * std::pow(10000.0, -static_cast<double>(i % D) / static_cast<double>(D));
      const double a = x[i], b = x[i + 1];
      x[i] = a * std::cos(angle) - b * std::sin(angle);
      x[i + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
  };

  std::vector<std::vector<Vector>> keys(L), values(L);
  Tensor<double, 3> logits(1, static_cast<Index>(S), static_cast<Index>(V));
  for (std::size_t s = 0; s < S; ++s) {
    Vector x(embedding + n(tokens[s]) * E, embedding + n(tokens[s]) * E + E);
    for (std::size_t l = 0; l < L; ++l) {
      Vector y = normed(x, norm1 + l * E), q = times(wq + l * E * E, E, y), k = times(wk + l * K * E, K, y);
      rotate(q, s), rotate(k, s);
      keys[l].push_back(k), values[l].push_back(times(wv + l * K * E, K, y));
      Vector context(E, 0.0);
      for (std::size_t h = 0; h < H; ++h) {
        const std::size_t g = h / (H / G);
        Vector p(s + 1, 0.0);
        double sum = 0.0;
        for (std::size_t t = 0; t <= s; ++t) {
          for (std::size_t d = 0; d < D; ++d) p[t] += q[h * D + d] * keys[l][t][g * D + d];
          sum += p[t] = std::exp(p[t] / std::sqrt(static_cast<double>(D)));
        }
        for (std::size_t t = 0; t <= s; ++t)
          for (std::size_t d = 0; d < D; ++d) context[h * D + d] += p[t] / sum * values[l][t][g * D + d];
      }
      y = times(wo + l * E * E, E, context);
      for (std::size_t e = 0; e < E; ++e) x[e] += y[e];
      y = normed(x, norm2 + l * E);
      Vector gate = times(w1 + l * F * E, F, y);
      const Vector up = times(w3 + l * F * E, F, y);
      for (std::size_t f = 0; f < F; ++f) gate[f] *= up[f] / (1.0 + std::exp(-gate[f]));
      y = times(w2 + l * E * F, E, gate);
      for (std::size_t e = 0; e < E; ++e) x[e] += y[e];
    }
    const Vector row = times(output, V, normed(x, norm));
    std::copy(row.begin(), row.end(), &logits(0, static_cast<Index>(s), 0));
  }
  return logits;
}

const Tokens some_tokens{1, 260, 17, 5, 262, 0, 99, 99, 3, 261, 200, 42};
constexpr double same = 3e-5;  // two ways to the same logits; these reach 10

TEST_F(Llama2c, MatchesLlama2csFormula) {
  for (const bool tied : {true, false}) {
    const TinyCheckpoint checkpoint(tied);
    EXPECT_LT(max_difference(logits_of(model(checkpoint), some_tokens), by_hand(checkpoint, some_tokens)), 1e-4)
        << (tied ? "tied" : "untied");
  }
}

TEST_F(Llama2c, GivesTheSameLogitsTokenByTokenAndInOnePrefill) {
  const Llama llama = model(TinyCheckpoint());
  const Tensor<float, 3> without = logits_of(llama, some_tokens);
  LlamaCache cache = llama.make_cache(1, 12);
  EXPECT_LT(max_difference(logits_of(llama, some_tokens, &cache), without), same);
  EXPECT_LT(max_difference(one_by_one(llama, some_tokens), without), same);
}

TEST_F(Llama2c, GivesTheSameLogitsForAPrefillInTwoParts) {
  const Llama llama = model(TinyCheckpoint());
  LlamaCache cache = llama.make_cache(1, 12);
  const Tensor<float, 3> all = logits_of(llama, some_tokens);
  (void)logits_of(llama, Tokens(some_tokens.begin(), some_tokens.begin() + 5), &cache);
  const Tensor<float, 3> rest = logits_of(llama, Tokens(some_tokens.begin() + 5, some_tokens.end()), &cache);
  const Index V = llama.config.vocabulary;
  EXPECT_LT(max_difference(rest, View<const float, 3>(&all(0, 5, 0), {1, 7, V})), same);
}

TEST_F(Llama2c, GivesTheSameLogitsInTheHalfSplitLayout) {
  const TinyCheckpoint checkpoint;
  const Llama interleaved = model(checkpoint), half_split = model(checkpoint, RotaryLayout::half_split);
  EXPECT_LT(max_difference(logits_of(interleaved, some_tokens), logits_of(half_split, some_tokens)), same);
  EXPECT_GT(
      max_difference(interleaved.layers[0].attention.query().weight(), half_split.layers[0].attention.query().weight()),
      0.0F);
}

TEST_F(Llama2c, TakesPromptsOfDifferentLengthInOneBatch) {
  const Llama llama = model(TinyCheckpoint());
  const std::vector<Tokens> prompts{{1, 260, 17, 5, 262}, {1, 99}, {1, 3, 261}};
  const Tokens follow{7, 8, 9, 10};
  const Index B = 3, S = 5, V = llama.config.vocabulary;

  Tensor<Token, 2> padded(B, S);
  padded.setZero();
  for (Index b = 0; b < B; ++b) {
    const Tokens& prompt = prompts[static_cast<std::size_t>(b)];
    std::copy(prompt.begin(), prompt.end(), &padded(b, 0));
  }
  LlamaCache cache = llama.make_cache(B, S + std::ssize(follow));
  const Tensor<float, 3> prefill = llama.forward(padded, &cache);
  for (auto& layer : cache)
    for (Index b = 0; b < B; ++b) layer.roll_back(b, S - std::ssize(prompts[static_cast<std::size_t>(b)]));
  std::vector<Tensor<float, 3>> steps;
  for (const Token token : follow) {
    Tensor<Token, 2> next(B, 1);
    for (Index b = 0; b < B; ++b) next(b, 0) = token + static_cast<Token>(b);
    steps.push_back(llama.forward(next, &cache));
  }

  for (Index b = 0; b < B; ++b) {
    Tokens alone = prompts[static_cast<std::size_t>(b)];
    const Index length = std::ssize(alone);
    for (const Token token : follow) alone.push_back(token + static_cast<Token>(b));
    const Tensor<float, 3> expected = logits_of(llama, alone);
    for (Index v = 0; v < V; ++v) {
      for (Index s = 0; s < length; ++s) ASSERT_NEAR(prefill(b, s, v), expected(0, s, v), same);
      for (std::size_t s = 0; s < steps.size(); ++s)
        ASSERT_NEAR(steps[s](b, 0, v), expected(0, length + static_cast<Index>(s), v), same);
    }
  }
}

TEST_F(Llama2c, RefusesTokensOutsideTheVocabulary) {
  const Llama llama = model(TinyCheckpoint());
  expect_error([&] { (void)logits_of(llama, {1, 263}); }, {"[attn::examples::Llama::forward]", "0 to 262", "got 263"});
  expect_error([&] { (void)logits_of(llama, {-1}); }, {"got -1"});
}

TEST_F(Llama2c, RefusesCachesOfAnotherModel) {
  const Llama llama = model(TinyCheckpoint());
  LlamaCache none;
  expect_error([&] { (void)logits_of(llama, {1}, &none); }, {"expected one for each of 2 layers, got 0"});
}

// ---- Bad checkpoints ------------------------------------------------------------------------------------------------

TEST_F(Llama2c, RefusesAMissingFile) {
  expect_error(
      [&] { (void)load_checkpoint("no/such/file.bin"); },
      {"[attn::examples::load_checkpoint] ", "no/such/file.bin", "expected a file that can be read, got none"});
}

TEST_F(Llama2c, RefusesAFolder) {
  expect_error([&] { (void)load_checkpoint(testing::TempDir()); }, {"expected a file that can be read"});
}

TEST_F(Llama2c, RefusesATruncatedFile) {
  const std::string bytes = TinyCheckpoint().bytes();
  for (std::size_t length = 0; length < 28; ++length)
    expect_error([&] { (void)load_checkpoint(file(bytes.substr(0, length))); },
                 {"[attn::examples::load_checkpoint] ", "is truncated, expected at least ",
                  (" bytes, got " + std::to_string(length))});
  for (const std::size_t length :
       {std::size_t{28}, std::size_t{29}, std::size_t{31}, bytes.size() / 2, bytes.size() - 1})
    expect_error([&] { (void)load_checkpoint(file(bytes.substr(0, length))); },
                 {"is truncated, expected ", (std::to_string(bytes.size()) + " bytes, got "), std::to_string(length)});
}

TEST_F(Llama2c, RefusesAFileThatIsTooLong) {
  const std::string bytes = TinyCheckpoint().bytes();
  expect_error(
      [&] { (void)load_checkpoint(file(bytes + "x")); },
      {"is too long, expected ", (std::to_string(bytes.size()) + " bytes, got "), std::to_string(bytes.size() + 1)});
}

TEST_F(Llama2c, RefusesTheWrongSignOfTheVocabulary) {
  TinyCheckpoint tied, untied(false);
  tied.header[5] = -263;
  untied.header[5] = 263;
  expect_error([&] { (void)model(tied); }, {"is truncated, expected "});
  expect_error([&] { (void)model(untied); }, {"is too long, expected "});
}

TEST_F(Llama2c, RefusesSizesOutsideTheirRange) {
  const char* const names[] = {"dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len"};
  constexpr std::int32_t huge = std::numeric_limits<std::int32_t>::max(),
                         least = std::numeric_limits<std::int32_t>::min();
  for (std::size_t field = 0; field < 7; ++field)
    for (const std::int32_t bad : {0, -1, huge, least}) {
      if (field == 5 && bad == -1) continue;  // an untied vocabulary of one
      TinyCheckpoint checkpoint;
      checkpoint.header[field] = bad;
      expect_error([&] { (void)model(checkpoint); }, {names[field], "expected 1 to ", std::to_string(bad)});
    }
}

TEST_F(Llama2c, RefusesTheLargestSizesWithoutOverflow) {
  TinyCheckpoint checkpoint;
  constexpr std::int32_t most = 1 << 24;
  checkpoint.header = {most, most, 1024, 1, 1, -most, most};
  expect_error([&] { (void)model(checkpoint); }, {"is truncated, expected 80", " bytes, got "});
}

TEST_F(Llama2c, RefusesHeadsThatDoNotDivide) {
  TinyCheckpoint checkpoint;
  checkpoint.header[3] = 3;
  expect_error([&] { (void)model(checkpoint); }, {"dim", "3 heads, got 16"});
  checkpoint.header[3] = 16;  // head size 1, which rotary cannot turn
  expect_error([&] { (void)model(checkpoint); }, {"an even head size for each of 16 heads, got 16"});
  checkpoint.header[3] = 4, checkpoint.header[4] = 3;
  expect_error([&] { (void)model(checkpoint); }, {"n_heads", "expected a multiple of 3 key/value heads, got 4"});
  checkpoint.header[4] = 8;
  expect_error([&] { (void)model(checkpoint); }, {"n_kv_heads", "expected 1 to 4, got 8"});
}

// ---- The tokenizer --------------------------------------------------------------------------------------------------

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

std::string round_trip(const Tokenizer& tokenizer, const std::string& text) {
  const Tokens tokens = tokenizer.encode(text);
  std::string result;
  for (std::size_t i = 1; i < tokens.size(); ++i) result += tokenizer.decode(tokens[i - 1], tokens[i]);
  return result;
}
const std::vector<std::string> texts{"",
                                     "a",
                                     " ",
                                     "  two  spaces ",
                                     "ab abba",
                                     "line\nline\ttab",
                                     "Z\xC3\xA9"
                                     "bre \xF0\x9F\x98\x80 \xE2\x82\xAC",
                                     "\x80\x80\x80\x80\x80\x80 stray",
                                     "\xC3",
                                     "<0x41> <s>",
                                     std::string("nul\0nul", 7)};

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
                 {"[attn::examples::Tokenizer::encode]", "expected characters of the vocabulary, got " + bad});
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

// ---- Sampling and writing -------------------------------------------------------------------------------------------

Token draw(Sampler& sampler, const std::vector<float>& logits) {
  return sampler({logits.data(), {std::ssize(logits)}});
}

TEST(Llama2cSampler, TakesTheFirstOfTheLikeliestAtTemperatureZero) {
  Sampler sampler(0.0F);
  EXPECT_EQ(draw(sampler, {1.0F, 3.0F, -2.0F, 3.0F}), 1);
}

TEST(Llama2cSampler, DrawsByProbability) {
  Sampler sampler(2.0F, 1.0F, 5);
  std::vector<int> count(3);
  const auto logit = [](double p) { return static_cast<float>(2.0 * std::log(p)); };
  for (int i = 0; i < 20000; ++i)
    ++count[static_cast<std::size_t>(draw(sampler, {logit(0.2), logit(0.7), logit(0.1)}))];
  EXPECT_NEAR(count[0], 4000, 300);  // five standard deviations
  EXPECT_NEAR(count[1], 14000, 330);
  EXPECT_NEAR(count[2], 2000, 220);
}

TEST(Llama2cSampler, LeavesOutTheUnlikelyWithTopP) {
  Sampler sampler(1.0F, 0.8F, 5);
  std::vector<int> count(3);
  const auto logit = [](double p) { return static_cast<float>(std::log(p)); };
  for (int i = 0; i < 9000; ++i) ++count[static_cast<std::size_t>(draw(sampler, {logit(0.3), logit(0.1), logit(0.6)}))];
  EXPECT_EQ(count[1], 0);
  EXPECT_NEAR(count[0], 3000, 230);
}

TEST(Llama2cSampler, DrawsTheSameFromTheSameSeed) {
  const std::vector<float> logits(50, 0.0F);
  Sampler a(1.0F, 0.9F, 3), b(1.0F, 0.9F, 3), c(1.0F, 0.9F, 4);
  int differences = 0;
  for (int i = 0; i < 50; ++i) {
    const Token token = draw(a, logits);
    EXPECT_EQ(token, draw(b, logits));
    if (token != draw(c, logits)) ++differences;
  }
  EXPECT_GT(differences, 10);
}

TEST(Llama2cSampler, TakesTheLikeliestAtAVerySmallTemperature) {
  Sampler sampler(1e-38F);
  EXPECT_EQ(draw(sampler, {1e30F, 3e30F, -2e30F}), 1);
}

TEST(Llama2cSampler, RefusesBadValues) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {-1.0F, nan, infinity})
    expect_error([&] { (void)Sampler(bad); }, {"[attn::examples::Sampler] temperature, expected "});
  for (const float bad : {-0.1F, 1.1F, nan}) expect_error([&] { (void)Sampler(1.0F, bad); }, {"top_p, expected "});
  expect_error([] { (void)Sampler(1.0F, 1.0F, 0); }, {"seed, expected "});
  Sampler sampler(1.0F, 0.9F);
  expect_error([&] { (void)draw(sampler, {1.0F, nan, 2.0F}); }, {"logits, expected numbers, got NaN"});
}

TEST_F(Llama2c, WritesTheSameWithAndWithoutACache) {
  const Llama llama = model(TinyCheckpoint(false));
  const Tokenizer tokenizer(file(tiny_tokenizer()));
  Sampler sampler(1.0F, 1.0F, 13);  // no draw of this seed is within 1e-4 of the next token's
  Tokens tokens = tokenizer.encode("abba");
  std::string text = "abba";
  while (std::ssize(tokens) <= 20) {
    const Tensor<float, 3> logits = logits_of(llama, tokens);
    const Token next = sampler({&logits(0, std::ssize(tokens) - 1, 0), {263}});
    if (next == 1 || next == 2) break;
    text += tokenizer.decode(tokens.back(), next);
    tokens.push_back(next);
  }
  EXPECT_EQ(text_of(llama, tokenizer, Sampler(1.0F, 1.0F, 13), 20, "abba"), text);
  EXPECT_GT(text.size(), 10U);
}

TEST_F(Llama2c, RefusesAnotherVocabularyAndTooManySteps) {
  const Llama llama = model(TinyCheckpoint());
  const Tokenizer fits(file(tiny_tokenizer())), other(file(tiny_tokenizer({" ", "a"})));
  const auto run = [&](const Tokenizer& tokenizer, Index steps, const char* prompt) {
    return [&llama, &tokenizer, steps, prompt] { (void)text_of(llama, tokenizer, Sampler(0.0F), steps, prompt); };
  };
  expect_error(run(other, 5, ""), {"[attn::examples::generate]", "expected the model's 263, got 261"});
  expect_error(run(fits, 0, ""), {"steps, expected 1 to the model's 24, got 0"});
  expect_error(run(fits, 25, ""), {"steps, expected 1 to the model's 24, got 25"});
  expect_error(run(fits, 3, "abba"), {"tokens in the prompt, expected at most 3, got 5"});
}

// ---- stories260K ----------------------------------------------------------------------------------------------------

class Stories260K : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(folder / "checkpoint_legacy.bin"))
      GTEST_SKIP() << "stories260K is not at hand: no " << folder / "checkpoint_legacy.bin";
  }
  [[nodiscard]] static Llama model(RotaryLayout layout = RotaryLayout::interleaved) {
    return load_checkpoint(folder / "checkpoint_legacy.bin", layout);
  }
  [[nodiscard]] static Tokenizer tokenizer() { return Tokenizer(folder / "tokenizer.bin"); }

  inline static const std::filesystem::path folder = std::filesystem::path(ATTN_SHARED_DATA_DIR) / "stories260K";
  // What llama2.c prints at temperature 0. Source: the page it is published on.
  static constexpr const char* published =
      "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
      "big, red ball. She wanted to play with it, but it was too high.\n"
      "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She said, \"I want to "
      "play with your ball, but I can't find it.\"\n"
      "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\n"
      "Lily didn't want to help her mom, so she said, \"I'm sorry, mom. I didn't know what to do.\" Her mom said, "
      "\"Don't worry, Lily. We can help you.";
};

TEST_F(Stories260K, HasThePublishedSizes) {
  const Llama llama = model();
  const attn::examples::LlamaConfig& c = llama.config;
  EXPECT_EQ((std::vector<Index>{c.hidden_size, c.feed_forward_size, c.layers, c.heads, c.key_value_heads, c.vocabulary,
                                c.max_length}),
            (std::vector<Index>{64, 172, 5, 8, 4, 512, 512}));
}

TEST_F(Stories260K, GivesThePublishedFirstLogits) {
  const Tensor<float, 3> logits = logits_of(model(), {begin_of_text});
  EXPECT_NEAR(logits(0, 0, 0), -6.222914, 1e-4);
  EXPECT_NEAR(logits(0, 0, 1), 8.404342, 1e-4);
  EXPECT_NEAR(logits(0, 0, 2), -6.223739, 1e-4);
}

TEST_F(Stories260K, TellsThePublishedStory) { EXPECT_EQ(text_of(model(), tokenizer(), Sampler(0.0F), 256), published); }

TEST_F(Stories260K, TellsThePublishedStoryWithHalfSplitRotary) {
  EXPECT_EQ(text_of(model(RotaryLayout::half_split), tokenizer(), Sampler(0.0F), 256), published);
}

TEST_F(Stories260K, ContinuesThePublishedStory) {
  EXPECT_EQ(text_of(model(), tokenizer(), Sampler(0.0F), 256, std::string(published, 150)), published);
}

// Each token from all tokens before it, without a cache. The beginning of the story will do: this is cubic.
TEST_F(Stories260K, TellsThePublishedStoryWithoutCache) {
  const Llama llama = model();
  const Tokenizer tokenizer_ = tokenizer();
  Tokens tokens{begin_of_text};
  std::string text;
  while (tokens.size() <= 80) {
    const Tensor<float, 3> logits = logits_of(llama, tokens);
    const Token next = Sampler(0.0F)({&logits(0, std::ssize(tokens) - 1, 0), {512}});
    text += tokenizer_.decode(tokens.back(), next);
    tokens.push_back(next);
  }
  EXPECT_EQ(text, std::string(published, text.size()));
}

// From the same seeds, the stories that llama2.c tells. Sources: the model's page; the tests of llama2.zig.
TEST_F(Stories260K, TellsLlama2csStoriesFromItsSeeds) {
  const Llama llama = model();
  EXPECT_EQ(text_of(llama, tokenizer(), Sampler(1.0F, 1.0F, 42), 200),
            "Once upon a time, there was a big roof. The fox was ready to look for people inside. He saw a big rock "
            "near a big tree. The roof was very small and fun! He ate the roof too. He got a shiny stool, so he sicked "
            "the roof with his friend, the girl named Mia.\n\"Help, Mia. Why are you sad, Mia?\" she asked.\n\"I want "
            "to try us,\" Mia said. \"It is cute. We have to find one of smells!\"\nMia felt proud of");
  EXPECT_EQ(
      text_of(llama, tokenizer(), Sampler(1.0F, 0.95F, 42), 200),
      "Once upon a time, there was a little boy named Timmy. Timmy loved going to the park with his mom. One day, "
      "Lily went outside to play outside in her pocket. He was scared and didn't know where to buy some colorful "
      "animals.\nLater that day, Timmy's mom came outside and saw Timmy just playing in the shore. She didn't see "
      "that made him happy, but Timmy's mom said he had to sort his cobwebs and write cold colors. Timmy asked his "
      "mom if he was amazed! His mom");
  EXPECT_EQ(
      text_of(llama, tokenizer(), Sampler(1.0F, 0.9F, 133742), 256),
      "Once upon a time, there was a little boy named Timmy. Timmy loved to play with his toys and eat sandwiches. "
      "One day, Timmy's mom told him it was time to rest for a while. Timmy's friend Billy came over and took him "
      "a down.\nTimmy's mom saw that Timmy was sad, but Timmy said, \"I didn't understand what is it! We need to "
      "find some leafs.\" Timmy thought about it and took a deep breath on a spoon. He hoped it was important to "
      "be kind and continued to find its image next time.\nAfter they finished getting, Timmy's dad came up to his "
      "house and promised to help Timmy.");
}

TEST_F(Stories260K, GivesTheSameLogitsWithACacheAndHalfSplit) {
  const Llama llama = model();
  const Tokens tokens = tokenizer().encode(std::string(published, 300));
  const Tensor<float, 3> without = logits_of(llama, tokens);
  LlamaCache cache = llama.make_cache(1, 512);
  EXPECT_LT(max_difference(logits_of(llama, tokens, &cache), without), 1e-4);
  EXPECT_LT(max_difference(one_by_one(llama, tokens), without), 1e-4);
  EXPECT_LT(max_difference(logits_of(model(RotaryLayout::half_split), tokens), without), 1e-4);
}

TEST_F(Stories260K, DecodesWhatItEncodes) {
  const Tokenizer tokenizer_ = tokenizer();
  EXPECT_EQ(tokenizer_.size(), 512);
  for (const std::string& text : texts) EXPECT_EQ(round_trip(tokenizer_, text), text);
  EXPECT_EQ(round_trip(tokenizer_, published), published);
}

}  // namespace
