#pragma once
// What the tests of examples/llama2c.hpp share: a small Llama written as a file, so that they need no data.
#include "../examples/llama2c.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "file_support.hpp"

namespace attn_test::llama2c {

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

inline constexpr Token first_byte = 3;  // of the tokenizers below, as of llama2.c's

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
inline std::string tokenizer_of(const std::vector<std::string>& pieces) {
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
inline std::string tiny_tokenizer(const std::vector<std::string>& more = {" ", "a", "b", "ab"}) {
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
  [[nodiscard]] std::filesystem::path file(const std::string& bytes) const { return folder_.write("file.bin", bytes); }
  [[nodiscard]] Llama model(const TinyCheckpoint& checkpoint, RotaryLayout layout = RotaryLayout::interleaved) const {
    return load_checkpoint(file(checkpoint.bytes()), layout);
  }

 private:
  TemporaryFolder folder_;
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

/// A text, encoded and decoded again.
inline std::string round_trip(const Tokenizer& tokenizer, const std::string& text) {
  const Tokens tokens = tokenizer.encode(text);
  std::string result;
  for (std::size_t i = 1; i < tokens.size(); ++i) result += tokenizer.decode(tokens[i - 1], tokens[i]);
  return result;
}
inline const std::vector<std::string> texts{"",
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

}  // namespace attn_test::llama2c
