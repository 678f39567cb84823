// Caches in pages: the same numbers as without them, shared prefixes, windows whose memory is bounded.
#include "module_support.hpp"

#include <limits>
#include <optional>
#include <vector>

namespace {

using attn::CacheFormat;
using attn::Causal;
using attn::Index;
using attn::KvCache;
using attn::KvCacheOptions;
using attn::LlamaAttention;
using attn::LlamaAttentionConfig;
using attn::Tensor;
using attn_test::expect_error;
using attn_test::max_difference;
using attn_test::random_tensor;
using attn_test::rows_of;
using attn_test::same_bits;
using attn_test::slice;

constexpr CacheFormat formats[] = {CacheFormat::native, CacheFormat::bfloat16, CacheFormat::half, CacheFormat::int8};
constexpr double close = 1e-6;

KvCacheOptions in(CacheFormat format, Index page) { return {.keys = format, .values = format, .page = page}; }

/// Two sequences of unlike length, in pieces; where there are pages, out of memory that was full of NaN.
template <class T>
KvCache<T> filled(KvCache<T> cache, Index tokens) {
  const Index G = cache.key_value_heads(), D = cache.head_size(), Dv = cache.value_size();
  const T nan = std::numeric_limits<T>::quiet_NaN();
  cache.append(attn_test::filled<T, 4>({2, G, tokens, D}, nan), attn_test::filled<T, 4>({2, G, tokens, Dv}, nan));
  cache.reset();
  const Index first = tokens / 3;
  for (const Index n : {first, tokens - first})
    cache.append(random_tensor<T, 4>({2, G, n, D}, 1), random_tensor<T, 4>({2, G, n, Dv}, 2));
  cache.roll_back(1, std::min<Index>(tokens, 70));
  return cache;
}

template <class T>
void expect_same_attention(Index tokens, Index D, Index Dv, CacheFormat format, Index page) {
  const auto plain = filled(KvCache<T>(2, 2, 2000, D, Dv, format, format), tokens),
             paged = filled(KvCache<T>(2, 2, 2000, D, Dv, in(format, page)), tokens);
  for (const Index S : {1, 4, 7, 130}) {
    const auto q = random_tensor<T, 4>({2, 6, S, D}, 3);
    attn::AttentionOptions options;
    options.weights = options.log_sum_exp = true;
    const auto expected = scaled_dot_product_attention(q, plain, Causal{}, attn::NoScore{}, options),
               got = scaled_dot_product_attention(q, paged, Causal{}, attn::NoScore{}, options);
    EXPECT_TRUE(same_bits(got.output, expected.output) && same_bits(got.weights, expected.weights))
        << S << " queries, " << tokens << " tokens, D " << D << ", " << cache_format_name(format) << ", page " << page;
    EXPECT_TRUE(same_bits(scaled_dot_product_attention(q, paged, Causal{}).output,
                          scaled_dot_product_attention(q, plain, Causal{}).output))
        << S << " queries, " << tokens << " tokens, D " << D << ", " << cache_format_name(format) << ", page " << page;
  }
}

TEST(CachePages, GiveTheSameBitsAsOneStretch) {
  for (const CacheFormat format : formats)
    for (const Index D : {7, 16, 64, 80}) expect_same_attention<float>(329, D, D, format, 64);
  for (const Index page : {64, 128, 320})
    for (const CacheFormat format : formats) expect_same_attention<float>(1500, 32, 16, format, page);
}

TEST(CachePages, ServeEveryType) {
  expect_same_attention<double>(400, 32, 33, CacheFormat::native, 64);
  expect_same_attention<double>(400, 16, 16, CacheFormat::half, 64);
  expect_same_attention<Eigen::half>(400, 32, 16, CacheFormat::native, 128);
  expect_same_attention<Eigen::bfloat16>(400, 64, 64, CacheFormat::int8, 64);
}

TEST(CachePages, GiveTheSameBitsWithAnyPrefetch) {
  const Index before = attn::decode_prefetch();
  const auto cache = filled(KvCache<float>(2, 2, 2000, 64, 64), 700);
  const auto q = random_tensor<float, 4>({2, 6, 1, 64}, 3);
  attn::set_decode_prefetch(0);
  const Tensor<float, 4> expected = scaled_dot_product_attention(q, cache).output;
  for (const Index bytes : {0, 2048, 1 << 16}) {
    attn::set_decode_prefetch(bytes);
    EXPECT_TRUE(same_bits(scaled_dot_product_attention(q, cache).output, expected)) << bytes << " bytes ahead";
    expect_same_attention<float>(700, 64, 64, CacheFormat::native, 64);
  }
  attn::set_decode_prefetch(before);
}

TEST(CachePages, GiveTheSameBitsForAnyNumberOfThreads) {
  const auto cache = filled(KvCache<float>(2, 2, 2000, 64, 64, in(CacheFormat::native, 64)), 1100);
  for (const Index S : {1, 60}) {
    const auto q = random_tensor<float, 4>({2, 4, S, 64}, 3);
    attn::SerialExecutor serial;
    const auto on = [&](attn::Executor& executor) {
      const attn::UseExecutor use(executor);
      return scaled_dot_product_attention(q, cache, Causal{}).output;
    };
    for (const int threads : {2, 3}) {
      attn::ThreadPool pool(threads);
      EXPECT_TRUE(same_bits(on(pool), on(serial)));
    }
  }
}

// ---- Memory ----

TEST(CachePages, GrowAsTokensComeWithoutMovingAny) {
  KvCache<float> cache(2, 2, Index{1} << 30, 16, 16, {.page = 64});
  EXPECT_EQ(cache.bytes(), 0);
  const auto one = random_tensor<float, 3>({2, 64, 16}, 1);
  cache.append(0, one, one);
  const Index page = cache.bytes();
  EXPECT_EQ(page, 2 * 2 * 64 * 16 * 4);
  const auto at = [&](Index run) { return cache.stored_keys(attn::active_isa()).rows.runs[run]; };
  const std::byte* const first = at(0);
  for (Index i = 2; i <= 40; ++i) {
    cache.append(0, one, one);
    EXPECT_EQ(cache.bytes(), i * page);
    EXPECT_EQ(at(0), first);
  }
}

TEST(CachePages, SharePrefixesAndCopyTheLastPageAlone) {
  KvCache<float> cache(3, 2, 5000, 8, 8, {.page = 64});
  const auto prefix = random_tensor<float, 3>({2, 4100, 8}, 1), more = random_tensor<float, 3>({2, 1, 8}, 2);
  cache.append(0, prefix, prefix);
  const Index before = cache.bytes(), page = 2 * 2 * 64 * 8 * 4;
  EXPECT_EQ(before, 65 * page);
  cache.fork(0, 1), cache.fork(0, 2);
  EXPECT_EQ(cache.bytes(), before);
  cache.append(1, more, more);
  EXPECT_EQ(cache.bytes(), before + page);
  cache.append(2, more, more);
  EXPECT_EQ(cache.bytes(), before + 2 * page);
  cache.append(0, more, more);
  EXPECT_EQ(cache.bytes(), before + 2 * page);
  const auto keys = cache.stored_keys(attn::active_isa()).rows;
  for (Index run = 0; run < 64; ++run) EXPECT_EQ(keys.of_head(1, 0).runs[run], keys.of_head(0, 0).runs[run]);
  EXPECT_NE(keys.of_head(1, 0).runs[64], keys.of_head(0, 0).runs[64]);
}

TEST(CachePages, OfACopyAreSharedUntilOneWrites) {
  const auto tokens = random_tensor<float, 4>({1, 2, 200, 8}, 1), more = random_tensor<float, 4>({1, 2, 1, 8}, 2);
  KvCache<float> cache(1, 2, 400, 8, 8, {.page = 64});
  cache.append(tokens, tokens);
  KvCache<float> copy = cache;
  EXPECT_EQ(copy.stored_keys(attn::active_isa()).rows.runs[3], cache.stored_keys(attn::active_isa()).rows.runs[3]);
  const auto before = copy.read_keys();
  cache.append(more, more);
  cache.roll_back(150);
  cache.append(tokens, tokens);
  EXPECT_TRUE(same_bits(copy.read_keys(), before));
  EXPECT_EQ(cache.length(0), 251);
}

TEST(CachePages, AreUsedAgainAndFreedOnRequest) {
  KvCache<float> cache(2, 1, 1000, 8, 8, {.page = 64});
  const auto tokens = random_tensor<float, 3>({1, 640, 8}, 1);
  const Index page = 2 * 64 * 8 * 4;
  cache.append(0, tokens, tokens);
  EXPECT_EQ(cache.bytes(), 10 * page);
  EXPECT_EQ(cache.spare_bytes(), 6 * page);  // a sequence may need 16, which are allocated together
  cache.reset(0);
  EXPECT_EQ(cache.bytes(), 0);
  EXPECT_EQ(cache.spare_bytes(), 16 * page);
  cache.append(1, tokens, tokens);
  EXPECT_EQ(cache.spare_bytes(), 6 * page);
  cache.append(0, tokens, tokens);
  EXPECT_EQ(cache.bytes(), 20 * page);
  EXPECT_EQ(cache.spare_bytes(), 12 * page);
  cache.roll_back(1, 600);
  cache.release_spare();
  EXPECT_EQ(cache.bytes(), 11 * page);
  EXPECT_EQ(cache.spare_bytes(), 21 * page);  // all that were allocated together are still in use
  cache.reset(0), cache.reset(1);
  cache.release_spare();
  EXPECT_EQ(cache.bytes() + cache.spare_bytes(), 0);
}

TEST(CachePages, AreFreedByWhoeverHoldsThemLast) {
  const auto tokens = random_tensor<float, 3>({1, 64, 8}, 1);
  std::optional<KvCache<float>> made(std::in_place, 1, 1, 1000, 8, 8, KvCacheOptions{.page = 64});
  KvCache<float> other(1, 1, 1000, 8, 8, {.page = 64});
  made->append(0, tokens, tokens);
  other.fork(*made, 0, 0);
  made->reset(0);
  made->release_spare();  // one of its pages is the other cache's
  EXPECT_GT(made->spare_bytes(), 0);
  const auto before = other.read_keys();
  made.reset();
  EXPECT_TRUE(same_bits(other.read_keys(), before));
  other.append(0, tokens, tokens);
  other.reset(0);
  other.release_spare();
  EXPECT_EQ(other.spare_bytes(), 0);
}

/// Stretches of memory that the keys of a sequence lie in.
Index stretches(const KvCache<float>& cache, Index b) {
  const auto rows = cache.stored_keys(attn::active_isa()).rows;
  const auto head = rows.of_head(b, 0);
  Index count = 1;
  for (Index run = 1; run * 64 < cache.length(b); ++run)
    if (head.runs[run] != head.runs[run - 1] + 64 * rows.row) ++count;
  return count;
}

TEST(CachePages, OfASequenceLieOneBehindTheOther) {
  const auto page = random_tensor<float, 3>({1, 64, 8}, 1), prompt = random_tensor<float, 3>({1, 640, 8}, 2);
  KvCache<float> cache(4, 1, 64 * 64, 8, 8, {.page = 64});
  for (Index b = 0; b < 3; ++b) {
    cache.append(b, prompt, prompt);
    EXPECT_EQ(stretches(cache, b), 1);
  }
  for (Index i = 0; i < 50; ++i)
    for (Index b = 0; b < 4; ++b) cache.append(b, page, page);  // in turn
  for (Index b = 0; b < 4; ++b) EXPECT_LE(stretches(cache, b), 6);
  cache.reset();
  cache.append(0, prompt, prompt);
  EXPECT_EQ(stretches(cache, 0), 1);
}

// ---- Windows ----

TEST(CacheWindow, BoundsMemoryHoweverLongTheSequence) {
  constexpr Index W = 300, page = 64, G = 2, D = 8, page_bytes = 2 * G * page * D * 4;
  for (const Index n : {1, 7, 200}) {
    KvCache<float> cache(1, G, 100000, D, D, {.page = page, .window = W});
    const auto tokens = random_tensor<float, 4>({1, G, n, D}, 1);
    const Index most = ((W + n + page - 1) / page + 1) * page_bytes;
    for (Index t = 0; t + n <= 20000; t += n) {
      cache.append(tokens, tokens);
      ASSERT_LE(cache.bytes(), most) << t << " tokens, " << n << " at a time";
    }
    EXPECT_GE(cache.first(0), cache.length(0) - W - n - page);
  }
}

TEST(CacheWindow, AllowsTheLastAppendToBeRolledBack) {
  KvCache<float> cache(1, 1, 10000, 8, 8, {.window = 100});
  const auto tokens = random_tensor<float, 4>({1, 1, 130, 8}, 1);
  for (int i = 0; i < 9; ++i) cache.append(tokens, tokens);
  cache.roll_back(130);
  expect_error([&] { cache.roll_back(130); }, {"[attn::KvCache::roll_back] tokens", "window of the next one"});
  EXPECT_EQ(cache.length(0), 8 * 130);
  cache.append(tokens, tokens);
  cache.reset();
  EXPECT_EQ(cache.first(0), 0);
}

TEST(CacheWindow, RefusesQueriesWhoseKeysAreGone) {
  KvCache<float> cache(1, 1, 10000, 8, 8, {.window = 100});
  const auto tokens = random_tensor<float, 4>({1, 1, 200, 8}, 1);
  for (int i = 0; i < 3; ++i) cache.append(tokens, tokens);
  EXPECT_NO_THROW((void)scaled_dot_product_attention(tokens, cache, Causal{}));
  const std::vector<Index> start{300};
  attn::AttentionOptions options;
  options.query_start = start;
  expect_error([&] { (void)scaled_dot_product_attention(tokens, cache, Causal{}, attn::NoScore{}, options); },
               {"[attn::scaled_dot_product_attention] queries", "window of 100", "got a first query at 300"});
}

/// The output of x, fed to a cache in pieces of n.
Tensor<float, 3> in_pieces(const LlamaAttention<float>& module, const Tensor<float, 3>& x, Index n,
                           KvCache<float>& cache) {
  Tensor<float, 3> y(x.dimension(0), x.dimension(1), x.dimension(2));
  for (Index at = 0; at < x.dimension(1); at += n) {
    const Index count = std::min(n, x.dimension(1) - at);
    const auto part = module.forward(rows_of(x, at, count), Causal{}, cache);
    for (Index b = 0; b < x.dimension(0); ++b)
      for (Index s = 0; s < count; ++s)
        for (Index e = 0; e < x.dimension(2); ++e) y(b, at + s, e) = part(b, s, e);
  }
  return y;
}
LlamaAttention<float> evaluating(LlamaAttentionConfig config) {
  config.hidden_size = 48, config.num_attention_heads = 6, config.num_key_value_heads = 2, config.seed = 7;
  LlamaAttention<float> module(config);
  module.eval();
  return module;
}

TEST(CacheWindow, GivesTheModuleTheSameBitsAsAWholeCache) {
  const auto module = evaluating({.rotary = attn::RotaryConfig{}, .window = 90});
  const auto x = random_tensor<float, 3>({2, 700, 48}, 1);
  for (const Index n : {1, 5, 64, 300}) {
    auto whole = module.make_cache(2, 700), window = module.make_cache(2, 700, {.window = 90}),
         larger = module.make_cache(2, 700, {.page = 128, .window = 150}),
         paged = module.make_cache(2, 700, {.page = 64});
    const auto expected = in_pieces(module, x, n, whole);
    EXPECT_TRUE(same_bits(in_pieces(module, x, n, window), expected)) << n << " at a time";
    EXPECT_TRUE(same_bits(in_pieces(module, x, n, larger), expected)) << n << " at a time";
    EXPECT_TRUE(same_bits(in_pieces(module, x, n, paged), expected)) << n << " at a time";
    EXPECT_LT(window.bytes(), whole.bytes());
  }
}

TEST(CachePages, OfAModuleHoldItsValueSize) {
  const auto module = evaluating({.value_head_dim = 5});
  const auto x = random_tensor<float, 3>({1, 70, 48}, 1);
  auto plain = module.make_cache(1, 70), paged = module.make_cache(1, 70, {.page = 64});
  EXPECT_EQ(paged.value_size(), 5);
  EXPECT_TRUE(same_bits(module.forward(x, Causal{}, paged), module.forward(x, Causal{}, plain)));
}

TEST(CacheWindow, MustHoldTheWindowOfTheModule) {
  const auto module = evaluating({.window = 90}), without = evaluating({});
  const auto x = random_tensor<float, 3>({1, 5, 48}, 1);
  auto shorter = module.make_cache(1, 100, {.window = 89}), fits = module.make_cache(1, 100, {.window = 90});
  expect_error([&] { (void)module.forward(x, Causal{}, shorter); },
               {"[attn::LlamaAttention::forward] cache", "module's of 90 tokens", "got a window of 89"});
  expect_error([&] { (void)without.forward(x, Causal{}, fits); },
               {"[attn::LlamaAttention::forward] cache", "without a window", "got a window of 90"});
  EXPECT_EQ(fits.length(0), 0);
  EXPECT_NO_THROW((void)module.forward(x, Causal{}, fits));
}

// ---- Sequences: one by one, forked, reordered ----

TEST(CacheSequences, ServeRequestsThatComeAndGo) {
  const auto module = evaluating({.rotary = attn::RotaryConfig{}});
  const auto x = random_tensor<float, 3>({3, 100, 48}, 1);
  for (const KvCacheOptions& options : {KvCacheOptions{}, KvCacheOptions{.page = 64}}) {
    auto batch = module.make_cache(3, 100, options), prompt = module.make_cache(1, 100, options);
    for (const Index b : {2, 0, 1}) {  // each request is read alone and joins the batch
      prompt.reset();
      (void)module.forward(slice(x, b, 0, 70 + b), Causal{}, prompt);
      batch.fork(prompt, 0, b);
    }
    Tensor<float, 3> next(3, 1, 48);
    for (Index s = 0; s < 8; ++s) {
      for (Index b = 0; b < 3; ++b) next.chip<0>(b) = slice(x, b, 70 + b + s, 1).chip<0>(0);
      const auto y = module.forward(next, Causal{}, batch);
      for (Index b = 0; b < 3; ++b) {
        const auto alone = module.forward(slice(x, b, 0, 71 + b + s), Causal{});
        EXPECT_LE(max_difference(slice(y, b, 0, 1), slice(alone, 0, 70 + b + s, 1)), close);
      }
    }
  }
}

TEST(CacheSequences, FollowBeams) {
  const auto module = evaluating({.rotary = attn::RotaryConfig{}});
  const auto x = random_tensor<float, 3>({3, 90, 48}, 1);
  const std::vector<Index> source{1, 1, 0};
  for (const CacheFormat format : formats)
    for (const bool pages : {false, true}) {
      KvCacheOptions options{.keys = format, .values = format};
      if (pages) options.page = 64;
      auto cache = module.make_cache(3, 90, options), fresh = module.make_cache(3, 90, options);
      (void)module.forward(rows_of(x, 0, 80), Causal{}, cache);
      cache.reorder(source);
      Tensor<float, 3> sorted(3, 80, 48);
      for (Index b = 0; b < 3; ++b)
        sorted.chip<0>(b) = x.chip<0>(source[static_cast<std::size_t>(b)])
                                .slice(std::array<Index, 2>{0, 0}, std::array<Index, 2>{80, 48});
      (void)module.forward(sorted, Causal{}, fresh);
      EXPECT_TRUE(same_bits(module.forward(rows_of(x, 80, 5), Causal{}, cache),
                            module.forward(rows_of(x, 80, 5), Causal{}, fresh)));
    }
}

// ---- Errors: nothing changes ----

TEST(CachePages, AreWholeRunsOfKeys) {
  for (const Index page : {0, -64, 63, 100})
    expect_error([&] { KvCache<float>(1, 1, 10, 8, 8, KvCacheOptions{.page = page}); },
                 {"[attn::KvCache] page", "multiple of 64"});
  expect_error([] { KvCache<float>(1, 1, 10, 8, 8, KvCacheOptions{.window = 0}); },
               {"[attn::KvCache] window", "at least 1", "got 0"});
  expect_error([] { KvCache<float>(1, 1, 10, 8, 8, KvCacheOptions{.page = Index{1} << 60}); },
               {"[attn::KvCache] keys", "memory can hold"});
}

TEST(CachePages, AreNotViewed) {
  const KvCache<float> cache(1, 1, 10, 8, 8, {.page = 64});
  expect_error([&] { (void)cache.keys(); }, {"[attn::KvCache::keys]", "without pages", "read_keys", "in pages"});
  expect_error([&] { (void)cache.values(); }, {"[attn::KvCache::values]", "without pages"});
}

TEST(CacheSequences, RefuseWhatDoesNotFit) {
  for (const KvCacheOptions& options : {KvCacheOptions{}, KvCacheOptions{.page = 64}}) {
    KvCache<float> cache(2, 2, 100, 8, 4, options), other(2, 2, 100, 8, 8, options);
    const auto k = random_tensor<float, 3>({2, 90, 8}, 1), v = random_tensor<float, 3>({2, 90, 4}, 2);
    cache.append(1, k, v);
    const auto before = cache.read_keys();
    expect_error([&] { cache.append(2, k, v); }, {"[attn::KvCache::append] sequence", "one of 2", "got 2"});
    expect_error([&] { cache.append(0, v, v); }, {"[attn::KvCache::append] keys [G,S,D]", "[2,90,8]", "[2,90,4]"});
    expect_error([&] { cache.append(0, k, k); }, {"[attn::KvCache::append] values [G,S,Dv]", "[2,90,4]", "[2,90,8]"});
    expect_error([&] { cache.append(1, k, v); }, {"[attn::KvCache::append] capacity", "90 of 100"});
    expect_error([&] { cache.fork(1, 2); }, {"[attn::KvCache::fork] sequence", "got 2"});
    expect_error([&] { cache.fork(-1, 0); }, {"[attn::KvCache::fork] sequence", "got -1"});
    expect_error([&] { cache.fork(other, 0, 0); }, {"[attn::KvCache::fork] cache", "same heads"});
    expect_error([&] { cache.reorder(std::vector<Index>{1}); }, {"[attn::KvCache::reorder]", "each of 2", "got 1"});
    expect_error([&] { cache.reorder(std::vector<Index>{1, 2}); }, {"[attn::KvCache::reorder] sequence", "got 2"});
    for (const auto& [first, count] : {std::pair<Index, Index>{-1, 1}, {0, -1}, {91, 0}, {80, 11}, {1, Index(1) << 62}})
      expect_error([&, from = first, n = count] { cache.erase(1, from, n); }, {"[attn::KvCache::erase] tokens", "90"});
    expect_error([&] { cache.erase(2, 0, 0); }, {"[attn::KvCache::erase] sequence", "got 2"});
    EXPECT_TRUE(same_bits(cache.read_keys(), before));
    EXPECT_EQ(cache.length(0), 0);
    EXPECT_EQ(cache.length(1), 90);
  }
}

}  // namespace
