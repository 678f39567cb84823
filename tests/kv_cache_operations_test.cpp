// Random sequences of operations on caches of every layout, beside a model in plain vectors.
#include "module_support.hpp"

#include <optional>
#include <random>
#include <vector>

namespace {

using attn::CacheFormat;
using attn::Index;
using attn::KvCache;
using attn::KvCacheOptions;
using attn::Tensor;
using attn_test::same_bits;

constexpr Index B = 4, G = 2, H = 4, D = 5, Dv = 3, capacity = 420;
constexpr int operations = 10000;

/// Keys [G,D] and values [G,Dv] of a token.
using Token = std::vector<float>;
using Sequence = std::vector<Token>;

/// What a test knows of a cache: the tokens of each sequence.
using Model = std::vector<Sequence>;

Tensor<float, 3> keys_of(const Sequence& tokens) {
  Tensor<float, 3> x(G, std::ssize(tokens), D);
  for (Index g = 0; g < G; ++g)
    for (Index t = 0; t < std::ssize(tokens); ++t)
      for (Index d = 0; d < D; ++d) x(g, t, d) = tokens[std::size_t(t)][std::size_t(g * D + d)];
  return x;
}
Tensor<float, 3> values_of(const Sequence& tokens) {
  Tensor<float, 3> x(G, std::ssize(tokens), Dv);
  for (Index g = 0; g < G; ++g)
    for (Index t = 0; t < std::ssize(tokens); ++t)
      for (Index d = 0; d < Dv; ++d) x(g, t, d) = tokens[std::size_t(t)][std::size_t(G * D + g * Dv + d)];
  return x;
}

/// A cache without pages that was fed with the tokens of a model: what all others must equal.
KvCache<float> fed_with(const Model& model, CacheFormat format) {
  KvCache<float> cache(B, G, capacity, D, Dv, format, format);
  for (Index b = 0; b < B; ++b) {
    const Sequence& tokens = model[std::size_t(b)];
    cache.append(b, keys_of(tokens), values_of(tokens));
  }
  return cache;
}

/// A cache, its model, and what is done to both.
class Trial {
 public:
  Trial(const KvCacheOptions& options, unsigned seed)
      : options_(options), cache_(B, G, capacity, D, Dv, options), words_(seed) {
    // Spare pages full of NaN: whatever reads a token that was not written shows it.
    const Sequence poison(300, Token(G * (D + Dv), std::numeric_limits<float>::quiet_NaN()));
    for (Index b = 0; b < B; ++b) cache_.append(b, keys_of(poison), values_of(poison));
    cache_.reset();
    other_ = cache_;
  }

  void step() {
    const Index b = below(B), a = below(B), length = std::ssize(model_[std::size_t(b)]);
    switch (below(13)) {
      case 0:
      case 1:
        return append_to_all(below(8) == 0 ? below(70) : below(4));
      case 2:
      case 3:
        return append(b, below(3) == 0 ? below(150) : below(70));
      case 4:
        return roll_back(b, std::min(below(below(4) == 0 ? 100 : 6), length));
      case 5:
        if (below(8) == 0) forget(b);
        return;
      case 6:
        cache_.fork(a, b);
        model_[std::size_t(b)] = Sequence(model_[std::size_t(a)]);
        return;
      case 7:
        return reorder();
      case 8:
      case 9:
        return erase(b, length);
      case 10:  // an exchange with a copy, which shares pages
        if (below(2) == 0) return std::swap(other_, cache_), std::swap(other_model_, model_);
        other_ = cache_, other_model_ = model_;
        return;
      case 11:
        cache_.fork(other_, a, b);
        model_[std::size_t(b)] = other_model_[std::size_t(a)];
        return;
      default:
        if (below(10) == 0) cache_.release_spare();
        return write_only(below(5));
    }
  }

  /// The cache holds what the model says, and shows the rest to nobody.
  void check(bool attends) {
    check(cache_, model_);
    if (HasFatalFailure() || !attends) return;
    check(other_, other_model_);
    for (const Index S : {1, 3, 9}) check_attention(S);
  }

 private:
  static bool HasFatalFailure() { return testing::Test::HasFatalFailure(); }
  [[nodiscard]] Index below(Index n) { return static_cast<Index>(words_() % static_cast<unsigned>(n)); }
  [[nodiscard]] Sequence tokens(Index n) {
    Sequence all(static_cast<std::size_t>(n), Token(G * (D + Dv)));
    for (Token& token : all)
      for (float& x : token) x = static_cast<float>(words_()) * 0x1p-31F - 1.F;
    return all;
  }
  [[nodiscard]] Index longest() const {
    std::size_t n = 0;
    for (const Sequence& sequence : model_) n = std::max(n, sequence.size());
    return static_cast<Index>(n);
  }

  void append(Index b, Index n) {
    const Sequence more = tokens(n);
    Sequence& all = model_[std::size_t(b)];
    const bool fits = std::ssize(all) + n <= capacity;
    try {
      cache_.append(b, keys_of(more), values_of(more));
    } catch (const attn::Error&) {
      ASSERT_FALSE(fits);
      return;
    }
    ASSERT_TRUE(fits);
    all.insert(all.end(), more.begin(), more.end());
  }
  [[nodiscard]] std::array<Tensor<float, 4>, 2> batch(const std::vector<Sequence>& more, Index n) const {
    std::array<Tensor<float, 4>, 2> kv{Tensor<float, 4>(B, G, n, D), Tensor<float, 4>(B, G, n, Dv)};
    for (Index b = 0; b < B; ++b) {
      kv[0].chip<0>(b) = keys_of(more[std::size_t(b)]);
      kv[1].chip<0>(b) = values_of(more[std::size_t(b)]);
    }
    return kv;
  }
  void append_to_all(Index n) {
    std::vector<Sequence> more;
    for (Index b = 0; b < B; ++b) more.push_back(tokens(n));
    const auto kv = batch(more, n);
    const bool fits = longest() + n <= capacity;
    try {
      cache_.append(kv[0], kv[1]);
    } catch (const attn::Error&) {
      ASSERT_FALSE(fits);
      return;
    }
    ASSERT_TRUE(fits);
    for (std::size_t b = 0; b < B; ++b) model_[b].insert(model_[b].end(), more[b].begin(), more[b].end());
  }
  void write_only(Index n) {
    if (longest() + n > capacity) return;
    const std::vector<Sequence> more(
        std::size_t(B), Sequence(std::size_t(n), Token(G * (D + Dv), std::numeric_limits<float>::quiet_NaN())));
    const auto kv = batch(more, n);
    cache_.write(kv[0], kv[1]);
  }
  /// Whether the window of the next token is held once a sequence has this length.
  [[nodiscard]] bool keeps_window(Index first, Index length) const {
    return !options_.window || first <= std::max<Index>(length - *options_.window + 1, 0);
  }
  void roll_back(Index b, Index n) {
    Sequence& all = model_[std::size_t(b)];
    const Index left = std::ssize(all) - n;
    const bool allowed = left == 0 || keeps_window(cache_.first(b), left);
    try {
      cache_.roll_back(b, n);
    } catch (const attn::Error&) {
      ASSERT_FALSE(allowed);
      return;
    }
    ASSERT_TRUE(allowed);
    all.resize(std::size_t(left));
  }
  void forget(Index b) {
    cache_.reset(b);
    model_[std::size_t(b)].clear();
  }
  void reorder() {
    std::vector<Index> source(B);
    for (Index& from : source) from = below(B);
    if (below(2) == 0) {  // cycles alone
      for (Index b = 0; b < B; ++b) source[std::size_t(b)] = b;
      std::shuffle(source.begin(), source.end(), words_);
    }
    cache_.reorder(source);
    const Model before = model_;
    for (std::size_t b = 0; b < B; ++b) model_[b] = before[std::size_t(source[b])];
  }
  void erase(Index b, Index length) {
    Index begin = below(length + 1), count = below(length - begin + 1);
    if (below(2) == 0) begin = begin / 64 * 64, count = count / 64 * 64;
    if (below(3) == 0) begin = 0;
    Index first = cache_.first(b);
    first = first <= begin ? first : std::max(first - count, begin);
    const bool allowed = keeps_window(first, length - count);
    try {
      cache_.erase(b, begin, count);
    } catch (const attn::Error&) {
      ASSERT_FALSE(allowed);
      return;
    }
    ASSERT_TRUE(allowed);
    Sequence& all = model_[std::size_t(b)];
    all.erase(all.begin() + begin, all.begin() + begin + count);
  }

  void check(const KvCache<float>& cache, const Model& model) const {
    const KvCache<float> expected = fed_with(model, options_.keys);
    ASSERT_TRUE(std::ranges::equal(cache.lengths(), expected.lengths()));
    const auto k = cache.read_keys(), v = cache.read_values(), plain_k = expected.read_keys(),
               plain_v = expected.read_values();
    for (Index b = 0; b < B; ++b) {
      const Index length = cache.length(b), first = cache.first(b);
      ASSERT_TRUE(first == 0 || (options_.window && first <= length));
      for (Index g = 0; g < G; ++g)
        for (Index t = first; t < length; ++t) {
          for (Index d = 0; d < D; ++d) ASSERT_EQ(k(b, g, t, d), plain_k(b, g, t, d)) << b << ' ' << t;
          for (Index d = 0; d < Dv; ++d) ASSERT_EQ(v(b, g, t, d), plain_v(b, g, t, d)) << b << ' ' << t;
        }
    }
  }
  void check_attention(Index S) {
    const KvCache<float> expected = fed_with(model_, options_.keys);
    const auto q = attn_test::random_tensor<float, 4>({B, H, S, D}, 3);
    std::vector<Index> start;
    for (Index b = 0; b < B; ++b) {
      if (!keeps_window(cache_.first(b), cache_.length(b) - S)) return;
      start.push_back(cache_.length(b) - S);
    }
    attn::AttentionOptions options;
    options.query_start = start;
    const auto got = scaled_dot_product_attention(q, cache_, attn::NoMask{}, attn::NoScore{}, options).output;
    const auto window = attn::SlidingWindow(options_.window.value_or(capacity), capacity);
    EXPECT_TRUE(same_bits(got, scaled_dot_product_attention(q, expected, window, attn::NoScore{}, options).output));
  }

  KvCacheOptions options_;
  KvCache<float> cache_;
  Model model_ = Model(B);
  KvCache<float> other_{B, G, capacity, D, Dv};
  Model other_model_ = Model(B);
  std::mt19937 words_;
};

void run(const KvCacheOptions& options, unsigned seed) {
  Trial trial(options, seed);
  for (int i = 0; i < operations; ++i) {
    ASSERT_NO_FATAL_FAILURE(trial.step()) << "operation " << i;
    if (i % 4 == 0 || i < 100) {
      ASSERT_NO_FATAL_FAILURE(trial.check(i % 40 == 0)) << "operation " << i;
    }
  }
}

TEST(CacheOperations, WithoutPagesAreThoseOfVectors) { run({}, 1); }
TEST(CacheOperations, InPagesAreThoseOfVectors) { run({.page = 64}, 2); }
TEST(CacheOperations, InLongPagesAreThoseOfVectors) { run({.page = 192}, 3); }
TEST(CacheOperations, WithAWindowAreThoseOfVectors) { run({.page = 64, .window = 100}, 4); }
TEST(CacheOperations, WithAWindowOfOneTokenAreThoseOfVectors) { run({.window = 1}, 5); }
TEST(CacheOperations, InInt8AreThoseOfVectors) {
  run({.keys = CacheFormat::int8, .values = CacheFormat::int8, .page = 64, .window = 70}, 6);
}
TEST(CacheOperations, InHalfAreThoseOfVectors) {
  run({.keys = CacheFormat::half, .values = CacheFormat::half, .page = 128}, 7);
}

}  // namespace
