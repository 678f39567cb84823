// A Llama on attn::LlamaAttention, and what it takes to let it write: the model, llama2.c's checkpoint and tokenizer
// files, sampling, and the generating loop. From top to bottom this is how to build a decoder on attn.
// Letters: B batch, S tokens of this call, E hidden size, F feed-forward size, H heads, G key/value heads, D head size,
// V vocabulary.
#pragma once

#include <attn/attn.hpp>
#include <attn/io/tokenizer.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace attn::examples {

using Token = TokenId;
inline constexpr Token begin_of_text = 1, end_of_text = 2;

template <class... Parts>
[[noreturn]] void fail(std::string_view function, const Parts&... parts) {
  std::ostringstream text;
  text << "[attn::examples::" << function << "] ";
  (text << ... << parts);
  throw Error(text.str());
}

// ---- The model ------------------------------------------------------------------------------------------------------

struct LlamaConfig {
  Index hidden_size = 0;        ///< E
  Index feed_forward_size = 0;  ///< F
  Index layers = 0;
  Index heads = 0;            ///< H, head size D = E / H
  Index key_value_heads = 0;  ///< G
  Index vocabulary = 0;       ///< V
  Index max_length = 0;       ///< how many tokens the model was trained to see
  RotaryLayout rotary = RotaryLayout::interleaved;
  double norm_epsilon = 1e-5;
  std::vector<LlamaAttentionConfig> attention = {};  ///< of each layer; where empty, plain grouped heads with rotary

  /// The attention of a layer.
  [[nodiscard]] LlamaAttentionConfig attention_of(Index layer) const {
    if (!attention.empty()) return attention[static_cast<std::size_t>(layer)];
    return {.hidden_size = hidden_size,
            .num_attention_heads = heads,
            .num_key_value_heads = key_value_heads,
            .bias = false,
            .attention_dropout = 0.0,
            .projection_dropout = 0.0,
            .rotary = RotaryConfig{.layout = rotary, .theta = 10000.0}};
  }
};

/// down(silu(gate(x)) * up(x)), with silu(g) = g sigmoid(g). Source: Shazeer, "GLU variants", 2020.
struct SwiGlu {
  Linear<float> gate, up, down;

  SwiGlu(Index E, Index F) : gate(E, F, false), up(E, F, false), down(F, E, false) {}

  [[nodiscard]] Tensor<float, 3> operator()(const Tensor<float, 3>& x) const {
    Tensor<float, 3> g = gate(x);
    g = g * g.sigmoid() * up(x);
    return down(g);
  }
};

struct LlamaLayer {
  RmsNorm<float> attention_norm;
  LlamaAttention<float> attention;
  RmsNorm<float> feed_forward_norm;
  SwiGlu feed_forward;

  LlamaLayer(const LlamaConfig& c, Index layer)
      : attention_norm(c.hidden_size, c.norm_epsilon),
        attention(c.attention_of(layer)),
        feed_forward_norm(c.hidden_size, c.norm_epsilon),
        feed_forward(c.hidden_size, c.feed_forward_size) {
    attention.eval();
  }
};

/// The tokens so far, one cache for each layer.
using LlamaCache = std::vector<KvCache<float>>;

struct Llama {
  LlamaConfig config;
  Tensor<float, 2> embedding;  // [V,E]; where the checkpoint ties them, `output` holds the same numbers, packed
  std::vector<LlamaLayer> layers;
  RmsNorm<float> final_norm;
  Linear<float> output;  // [V,E]
  CacheFormat cache_format = CacheFormat::native;

  explicit Llama(const LlamaConfig& c)
      : config(c),
        embedding(c.vocabulary, c.hidden_size),
        final_norm(c.hidden_size, c.norm_epsilon),
        output(c.hidden_size, c.vocabulary, false) {
    embedding.setZero();
    for (Index l = 0; l < c.layers; ++l) layers.emplace_back(c, l);
  }

  [[nodiscard]] LlamaCache make_cache(Index B, Index capacity) const {
    LlamaCache cache;
    for (const LlamaLayer& layer : layers) cache.push_back(layer.attention.make_cache(B, capacity, cache_format));
    return cache;
  }

  /// Stores the weights of all layers in a format; the embedding stays as it is.
  void store_weights(WeightFormat format) {
    for (LlamaLayer& layer : layers) {
      layer.attention.store_weights(format);
      SwiGlu& feed_forward = layer.feed_forward;
      for (Linear<float>* linear : {&feed_forward.gate, &feed_forward.up, &feed_forward.down})
        linear->store_weights(format);
    }
    output.store_weights(format);
  }

  /// Logits [B,S,V] of tokens [B,S]; with a cache these follow the tokens that it holds, and are added to it.
  [[nodiscard]] Tensor<float, 3> forward(View<const Token, 2> tokens, LlamaCache* cache = nullptr) const {
    const Index B = tokens.dimension(0), S = tokens.dimension(1), E = config.hidden_size;
    if (cache != nullptr && cache->size() != layers.size())
      fail("Llama::forward", "caches, expected one for each of ", layers.size(), " layers, got ", cache->size());

    Tensor<float, 3> x(B, S, E);
    for (Index b = 0; b < B; ++b)
      for (Index s = 0; s < S; ++s) {
        const Token token = tokens(b, s);
        if (token < 0 || token >= config.vocabulary)
          fail("Llama::forward", "token, expected 0 to ", config.vocabulary - 1, ", got ", token);
        std::copy_n(&embedding(token, 0), E, &x(b, s, 0));
      }

    for (std::size_t l = 0; l < layers.size(); ++l) {
      const LlamaLayer& layer = layers[l];
      const Tensor<float, 3> n = layer.attention_norm(x);
      x += cache != nullptr ? layer.attention(n, Causal{}, (*cache)[l]) : layer.attention(n, Causal{});
      x += layer.feed_forward(layer.feed_forward_norm(x));
    }
    return output(final_norm(x));
  }
};

// ---- Files ----------------------------------------------------------------------------------------------------------

/// A file that is read from front to back and never past its end.
class FileReader {
 public:
  FileReader(std::string_view function, const std::filesystem::path& path)
      : function_(function), name_(path.string()), file_(path, std::ios::binary) {
    std::error_code error;
    const auto size = std::filesystem::file_size(path, error);
    if (error || !file_) fail(function_, name_, ", expected a file that can be read, got none");
    size_ = left_ = static_cast<std::int64_t>(size);
  }

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] std::int64_t size() const { return size_; }
  [[nodiscard]] std::int64_t left() const { return left_; }

  void skip(std::int64_t bytes) { file_.seekg(take(bytes), std::ios::cur); }
  template <class T>
  void read(T* to, std::int64_t count) {
    static_assert(std::endian::native == std::endian::little, "these files are little-endian");
    file_.read(reinterpret_cast<char*>(to), take(count * static_cast<std::int64_t>(sizeof(T))));
    if (!file_) fail(function_, name_, ", expected ", size_, " bytes that can be read, got an error");
  }
  template <class T>
  [[nodiscard]] T number() {
    T result{};
    read(&result, 1);
    return result;
  }

 private:
  std::streamoff take(std::int64_t bytes) {
    if (bytes > left_)
      fail(function_, name_, " is truncated, expected at least ", size_ - left_ + bytes, " bytes, got ", size_);
    left_ -= bytes;
    return bytes;
  }

  std::string_view function_;
  std::string name_;
  std::ifstream file_;
  std::int64_t size_ = 0, left_ = 0;
};

/// The model in a checkpoint of llama2.c, legacy layout. Its queries and keys are made for interleaved rotary; with
/// `layout` half_split they are reordered for that, and the model says the same.
/// Errors: a file that is missing, or whose header or length is not a checkpoint's; nothing has been allocated by then.
/// Source: llama2.c, export.py, legacy_export.
[[nodiscard]] inline Llama load_checkpoint(const std::filesystem::path& path,
                                           RotaryLayout layout = RotaryLayout::interleaved) {
  constexpr std::string_view fn = "load_checkpoint";
  FileReader file(fn, path);

  // 1. The header: seven sizes. Below these limits the file's length cannot overflow 64 bits.
  const auto size = [&](std::string_view what, std::int64_t limit = 1 << 24) {
    const std::int64_t n = file.number<std::int32_t>();
    if (n < 1 || n > limit) fail(fn, what, " in ", file.name(), ", expected 1 to ", limit, ", got ", n);
    return n;
  };
  const std::int64_t E = size("dim"), F = size("hidden_dim"), L = size("n_layers", 1 << 10), H = size("n_heads", E);
  if (E % (2 * H) != 0)
    fail(fn, "dim in ", file.name(), ", expected an even head size for each of ", H, " heads, got ", E);
  const std::int64_t G = size("n_kv_heads", H);
  if (H % G != 0) fail(fn, "n_heads in ", file.name(), ", expected a multiple of ", G, " key/value heads, got ", H);
  const std::int64_t signed_vocabulary = file.number<std::int32_t>();
  const std::int64_t V = std::abs(signed_vocabulary);
  const bool tied = signed_vocabulary > 0;  // the output matrix is the embedding
  if (V < 1 || V > 1 << 24)
    fail(fn, "vocab_size in ", file.name(), ", expected 1 to ", 1 << 24, " or minus that, got ", signed_vocabulary);
  const std::int64_t max_length = size("max_seq_len"), D = E / H;

  // 2. The length that follows from it, before anything is allocated.
  const std::int64_t per_layer = E + 2 * H * D * E + 2 * G * D * E + E + 3 * E * F;
  const std::int64_t floats = V * E + L * per_layer + E + max_length * D + (tied ? 0 : V * E);
  const std::int64_t expected = 7 * 4 + floats * 4;
  if (file.size() != expected)
    fail(fn, file.name(), file.size() < expected ? " is truncated" : " is too long", ", expected ", expected,
         " bytes, got ", file.size());

  // 3. The weights, kind by kind, each for all layers.
  Llama model(LlamaConfig{E, F, L, H, G, V, max_length, layout});
  const auto load_norm = [&](RmsNorm<float>& norm) {
    Tensor<float, 1> weight(norm.size());
    file.read(weight.data(), weight.size());
    norm.set_weight(weight);
  };
  const auto load = [&](Linear<float>& linear) {
    Tensor<float, 2> weight(linear.out_features(), linear.in_features());
    file.read(weight.data(), weight.size());
    linear.set_weight(weight);
  };
  file.read(model.embedding.data(), model.embedding.size());
  for (LlamaLayer& layer : model.layers) load_norm(layer.attention_norm);
  for (LlamaLayer& layer : model.layers) load(layer.attention.query());
  for (LlamaLayer& layer : model.layers) load(layer.attention.key());
  for (LlamaLayer& layer : model.layers) load(layer.attention.value());
  for (LlamaLayer& layer : model.layers) load(layer.attention.out_proj());
  for (LlamaLayer& layer : model.layers) load_norm(layer.feed_forward_norm);
  for (LlamaLayer& layer : model.layers) load(layer.feed_forward.gate);
  for (LlamaLayer& layer : model.layers) load(layer.feed_forward.down);
  for (LlamaLayer& layer : model.layers) load(layer.feed_forward.up);
  load_norm(model.final_norm);
  file.skip(max_length * D * 4);  // cosines and sines, which attn computes itself
  if (tied) {
    model.output.set_weight(model.embedding);
  } else {
    load(model.output);
  }

  if (layout == RotaryLayout::half_split) {
    for (LlamaLayer& layer : model.layers) {
      Linear<float>&query = layer.attention.query(), &key = layer.attention.key();
      query.set_weight(to_half_split(query.weight(), H));
      key.set_weight(to_half_split(key.weight(), G));
    }
  }
  return model;
}

// ---- Text and tokens ------------------------------------------------------------------------------------------------

/// What a model reads and writes: one of the library's tokenizers.
class Tokenizer {
 public:
  Tokenizer(SentencePieceTokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}  // NOLINT: it is what it holds
  Tokenizer(BytePairTokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}       // NOLINT
  /// Reads a tokenizer of llama2.c. Pieces that read "<0x00>" to "<0xFF>" are single bytes; a vocabulary of characters
  /// has none. Errors: a file that is missing or truncated, or that has fewer than three pieces.
  explicit Tokenizer(const std::filesystem::path& path) : tokenizer_(read(path)) {}

  [[nodiscard]] Index size() const {
    return std::visit([](const auto& t) { return t.size(); }, tokenizer_);
  }
  /// The token that stands for the beginning of a text, or -1.
  [[nodiscard]] Token begin_of_text() const {
    return std::visit([](const auto& t) { return t.begin_of_text(); }, tokenizer_);
  }
  /// Whether a text is over before this token.
  [[nodiscard]] bool ends(Token token) const {
    return std::visit([&](const auto& t) { return token == t.begin_of_text() || token == t.end_of_text(); },
                      tokenizer_);
  }
  /// The tokens of a text. Errors: a character that the vocabulary lacks.
  [[nodiscard]] std::vector<Token> encode(std::string_view text) const {
    return std::visit([&](const auto& t) { return t.encode(text); }, tokenizer_);
  }
  /// The text of a token, which depends on the one before: after the beginning a leading space may go.
  [[nodiscard]] std::string decode(Token previous, Token token) const {
    if (const auto* const pieces = std::get_if<SentencePieceTokenizer>(&tokenizer_))
      return pieces->decode(previous, token);
    return std::string(std::get<BytePairTokenizer>(tokenizer_).piece(token));
  }

 private:
  [[nodiscard]] static SentencePieceTokenizer read(const std::filesystem::path& path) {
    constexpr std::string_view fn = "Tokenizer";
    FileReader file(fn, path);
    const Index longest = file.number<std::int32_t>();
    std::vector<std::string> texts;
    std::vector<float> scores;
    while (file.left() > 0) {
      scores.push_back(file.number<float>());
      const Index length = file.number<std::int32_t>();
      if (length < 0 || length > longest)
        fail(fn, "length of piece ", texts.size(), " in ", file.name(), ", expected 0 to ", longest, ", got ", length);
      if (length > file.left())  // before the piece is allocated
        fail(fn, file.name(), " is truncated, expected ", length - file.left(), " more bytes, got ", file.size());
      texts.emplace_back(static_cast<std::size_t>(length), '\0');
      file.read(texts.back().data(), length);
    }
    const std::vector<std::string_view> pieces(texts.begin(), texts.end());
    return SentencePieceTokenizer({.pieces = pieces, .scores = scores});
  }

  std::variant<SentencePieceTokenizer, BytePairTokenizer> tokenizer_;
};

/// Draws the next token from logits, and from one seed the same tokens as llama2.c. temperature 0: always the
/// likeliest; top_p between 0 and 1: only from the likeliest that together reach this probability. Errors: a
/// temperature that is negative or not finite, top_p outside [0,1], seed 0. Source of top_p: Holtzman et al., "The
/// curious case of neural text degeneration", 2019.
class Sampler {
 public:
  explicit Sampler(float temperature, float top_p = 1.0F, std::uint64_t seed = 42)
      : temperature_(temperature), top_p_(top_p), state_(seed) {
    if (!(temperature >= 0.0F && std::isfinite(temperature)))
      fail("Sampler", "temperature, expected a number from 0 on, got ", temperature);
    if (!(top_p >= 0.0F && top_p <= 1.0F)) fail("Sampler", "top_p, expected a probability in [0,1], got ", top_p);
    if (seed == 0) fail("Sampler", "seed, expected a number from 1 on, got 0");
  }

  [[nodiscard]] Token operator()(View<const float, 1> logits) {
    const Index V = logits.size();
    const float* const best = std::max_element(logits.data(), logits.data() + V);
    if (temperature_ == 0.0F) return static_cast<Token>(best - logits.data());

    Tensor<float, 1> p(V);  // the best is taken off first, so that a small temperature does not overflow
    for (Index i = 0; i < V; ++i) p(i) = (logits(i) - *best) / temperature_;
    p = Softmax<float>()(p);
    if (std::isnan(p(0))) fail("Sampler", "logits, expected numbers, got NaN");

    std::vector<Token> candidates(static_cast<std::size_t>(V));
    std::iota(candidates.begin(), candidates.end(), 0);
    float sum = 1.0F;
    if (top_p_ > 0.0F && top_p_ < 1.0F) {
      std::stable_sort(candidates.begin(), candidates.end(), [&](Token a, Token b) { return p(a) > p(b); });
      std::size_t kept = 0;
      for (sum = 0.0F; kept < candidates.size() && sum <= top_p_; ++kept) sum += p(candidates[kept]);
      candidates.resize(kept);
    }
    const float drawn = random() * sum;
    float reached = 0.0F;
    for (const Token token : candidates)
      if ((reached += p(token)) > drawn) return token;
    return candidates.back();  // the sum was rounded down
  }

 private:
  float random() {  // xorshift64*, [0,1). Source: Vigna, 2016
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<float>(state_ * 0x2545F4914F6CDD1DU >> 40) * 0x1p-24F;
  }

  float temperature_, top_p_;
  std::uint64_t state_;
};

// ---- Writing --------------------------------------------------------------------------------------------------------

struct Generated {
  Index prompt_tokens = 0, new_tokens = 0;
  double prompt_seconds = 0.0, seconds = 0.0;  ///< reading the prompt; writing on
};

/// Writes on from a prompt, to `steps` tokens in all or until the model ends its text. `say` gets the text, prompt
/// included, piece by piece as it comes.
/// Errors: a tokenizer of another vocabulary; a prompt longer than `steps`, steps beyond the model's max_length.
template <class Say>
Generated generate(const Llama& model, const Tokenizer& tokenizer, Sampler& sampler, const std::string& prompt,
                   Index steps, Say&& say) {
  constexpr std::string_view fn = "generate";
  const Index V = model.config.vocabulary;
  if (tokenizer.size() != V) fail(fn, "tokens in the tokenizer, expected the model's ", V, ", got ", tokenizer.size());
  if (steps < 1 || steps > model.config.max_length)
    fail(fn, "steps, expected 1 to the model's ", model.config.max_length, ", got ", steps);
  const std::vector<Token> read = tokenizer.encode(prompt);
  Generated result{.prompt_tokens = std::ssize(read)};
  if (read.empty()) fail(fn, "prompt, expected some text, since no token of the model's begins one, got none");
  if (result.prompt_tokens > steps) fail(fn, "tokens in the prompt, expected at most ", steps, ", got ", read.size());

  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  const Token begin = tokenizer.begin_of_text();
  for (std::size_t i = 0; i < read.size(); ++i)
    if (i > 0 || read[0] != begin) say(tokenizer.decode(i > 0 ? read[i - 1] : begin, read[i]));
  LlamaCache cache = model.make_cache(1, steps);
  Tensor<float, 3> logits = model.forward({read.data(), {1, result.prompt_tokens}}, &cache);  // the prompt in one go
  result.prompt_seconds = seconds();

  Token last = read.back();
  for (;;) {
    const Token next = sampler({&logits(0, logits.dimension(1) - 1, 0), {V}});
    if (tokenizer.ends(next)) break;
    say(tokenizer.decode(last, next));
    ++result.new_tokens;
    if (cache.front().length(0) == steps) break;
    last = next;
    logits = model.forward({&last, {1, 1}}, &cache);
  }
  result.seconds = seconds() - result.prompt_seconds;
  return result;
}

}  // namespace attn::examples
