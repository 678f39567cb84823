// Tokens dropped from the front or the middle of a sequence: as a fresh cache that was fed with those that are left.
#include "module_support.hpp"

#include <vector>

namespace {

using attn::CacheFormat;
using attn::Causal;
using attn::Index;
using attn::KvCache;
using attn::KvCacheOptions;
using attn::LlamaAttention;
using attn::LlamaAttentionConfig;
using attn::RotaryConfig;
using attn::RotaryLayout;
using attn::Tensor;
using attn_test::expect_error;
using attn_test::max_difference;
using attn_test::random_tensor;
using attn_test::rows_of;
using attn_test::same_bits;

constexpr Index E = 96, B = 2;

LlamaAttention<float> evaluating(LlamaAttentionConfig config) {
  config.hidden_size = E, config.num_attention_heads = 6, config.num_key_value_heads = 2, config.seed = 7;
  LlamaAttention<float> module(config);
  module.eval();
  return module;
}
std::vector<RotaryConfig> rotations() {
  return {{},
          {.layout = RotaryLayout::interleaved, .theta = 500.0},
          {.dimensions = 6},
          {.scaling = attn::YarnScaling{.factor = 4.0, .original_length = 32}},
          {.scaling = attn::Llama3Scaling{.original_length = 64}},
          {.scaling = attn::DynamicNtkScaling{4.0, 64}, .length = 300}};
}
std::vector<KvCacheOptions> layouts() { return {{}, {.page = 64}, {.page = 128}}; }

/// Tokens of x without `count` of them from `first` on.
Tensor<float, 3> without(const Tensor<float, 3>& x, Index first, Index count) {
  Tensor<float, 3> rest(x.dimension(0), x.dimension(1) - count, E);
  for (Index b = 0; b < x.dimension(0); ++b)
    for (Index s = 0; s < rest.dimension(1); ++s)
      for (Index e = 0; e < E; ++e) rest(b, s, e) = x(b, s < first ? s : s + count, e);
  return rest;
}

struct Cut {
  Index first, count;
};
constexpr Cut cuts[] = {{0, 1}, {0, 64}, {4, 128}, {64, 64}, {37, 99}, {128, 65}, {0, 200}, {199, 1}, {100, 0}};

TEST(CacheErase, IsAFreshCacheOfTheTokensThatAreLeft) {
  const auto x = random_tensor<float, 3>({B, 200, E}, 1), more = random_tensor<float, 3>({B, 40, E}, 2);
  for (const RotaryConfig& rotary : rotations()) {
    const auto module = evaluating({.rotary = rotary});
    for (const KvCacheOptions& options : layouts())
      for (const auto& [first, count] : cuts) {
        auto cache = module.make_cache(B, 300, options), fresh = module.make_cache(B, 300, options);
        (void)module.forward(x, Causal{}, cache);
        for (Index b = 0; b < B; ++b) module.erase(cache, b, first, count);
        (void)module.forward(without(x, first, count), Causal{}, fresh);
        ASSERT_TRUE(std::ranges::equal(cache.lengths(), fresh.lengths()));
        EXPECT_LE(max_difference(cache.read_keys(), fresh.read_keys()), 1e-6) << first << ", " << count;
        EXPECT_TRUE(same_bits(cache.read_values(), fresh.read_values())) << first << ", " << count;
        for (const Index n : {Index{1}, Index{39}})  // decoding, then a prompt
          EXPECT_LE(max_difference(module.forward(rows_of(more, n == 1 ? 0 : 1, n), Causal{}, cache),
                                   module.forward(rows_of(more, n == 1 ? 0 : 1, n), Causal{}, fresh)),
                    1e-6);
      }
  }
}

TEST(CacheErase, KeepsTheBitsOfKeysThatAreNotRotated) {
  const auto module = evaluating({});
  const auto x = random_tensor<float, 3>({B, 200, E}, 1), more = random_tensor<float, 3>({B, 2, E}, 2);
  for (const CacheFormat format : {CacheFormat::native, CacheFormat::bfloat16, CacheFormat::half, CacheFormat::int8})
    for (KvCacheOptions options : layouts())
      for (const auto& [first, count] : cuts) {
        options.keys = options.values = format;
        auto cache = module.make_cache(B, 300, options), fresh = module.make_cache(B, 300, options);
        (void)module.forward(x, Causal{}, cache);
        for (Index b = 0; b < B; ++b) module.erase(cache, b, first, count);
        (void)module.forward(without(x, first, count), Causal{}, fresh);
        EXPECT_TRUE(same_bits(module.forward(more, Causal{}, cache), module.forward(more, Causal{}, fresh)));
      }
}

// The bar: a key was rounded, turned, and rounded once more; the fresh one was rounded once.
TEST(CacheErase, RoundsKeysInAFormatOnceMore) {
  const struct {
    CacheFormat format;
    double rounding;  // of the largest number of a row
  } cases[] = {{CacheFormat::bfloat16, 0x1p-8}, {CacheFormat::half, 0x1p-11}, {CacheFormat::int8, 0.5 / 127}};
  const auto module = evaluating({.rotary = RotaryConfig{}});
  const auto x = random_tensor<float, 3>({B, 200, E}, 1);
  for (const auto& [format, rounding] : cases)
    for (KvCacheOptions options : layouts()) {
      options.keys = options.values = format;
      auto cache = module.make_cache(B, 300, options), fresh = module.make_cache(B, 300);
      (void)module.forward(x, Causal{}, cache);
      for (Index b = 0; b < B; ++b) module.erase(cache, b, 5, 67);
      (void)module.forward(without(x, 5, 67), Causal{}, fresh);
      const auto got = cache.read_keys(), expected = fresh.read_keys();
      for (Index b = 0; b < B; ++b)
        for (Index g = 0; g < 2; ++g)
          for (Index t = 0; t < 133; ++t) {
            double largest = 0;
            for (Index d = 0; d < 16; ++d) largest = std::max(largest, std::abs(double{expected(b, g, t, d)}));
            // Turning a pair makes sqrt 2 of the largest at most, of numbers and of their errors.
            const double bar = (t < 5 ? 1.0 : 2 * std::sqrt(2.0)) * 1.02 * rounding * largest * std::sqrt(2.0);
            for (Index d = 0; d < 16; ++d)
              ASSERT_LE(std::abs(double{got(b, g, t, d)} - double{expected(b, g, t, d)}), bar)
                  << cache_format_name(format) << " token " << t;
          }
    }
}

TEST(CacheErase, MayBeRepeatedAsTheContextShifts) {
  const auto module = evaluating({.rotary = RotaryConfig{}});
  const auto x = random_tensor<float, 3>({1, 500, E}, 1);
  for (const KvCacheOptions& options : layouts()) {
    auto cache = module.make_cache(1, 128, options), fresh = module.make_cache(1, 128, options);
    Tensor<float, 3> y;
    for (Index t = 0; t < 500; ++t) {  // 4 first tokens stay, then the oldest half goes
      if (cache.length(0) == 128) module.erase(cache, 0, 4, 62);
      y = module.forward(rows_of(x, t, 1), Causal{}, cache);
    }
    const Index length = cache.length(0);
    Tensor<float, 3> left(1, length, E);
    for (Index s = 0; s < length; ++s)
      for (Index e = 0; e < E; ++e) left(0, s, e) = x(0, s < 4 ? s : 500 - length + s, e);
    const auto expected = module.forward(left, Causal{}, fresh);
    EXPECT_LE(max_difference(y, rows_of(expected, length - 1, 1)), 1e-6);
    EXPECT_LE(max_difference(cache.read_keys(), fresh.read_keys()), 2e-6);  // turned seven times
  }
}

TEST(CacheErase, LeavesOtherSequencesThatSharePagesAlone) {
  const auto module = evaluating({.rotary = RotaryConfig{}});
  const auto x = random_tensor<float, 3>({1, 200, E}, 1);
  for (const auto& [first, count] : cuts) {
    auto prompt = module.make_cache(1, 300, {.page = 64}), cache = module.make_cache(3, 300, {.page = 64});
    (void)module.forward(x, Causal{}, prompt);
    for (Index b = 0; b < 3; ++b) cache.fork(prompt, 0, b);
    module.erase(cache, 1, first, count);
    module.erase(cache, 2, first, count);
    cache.roll_back(2, 200 - count - std::min<Index>(first, 200 - count));
    const auto keys = cache.read_keys(), before = prompt.read_keys();
    for (Index g = 0; g < 2; ++g)
      for (Index t = 0; t < 200; ++t)
        for (Index d = 0; d < 16; ++d) ASSERT_EQ(keys(0, g, t, d), before(0, g, t, d));
    EXPECT_TRUE(same_bits(prompt.read_keys(), before));
  }
}

TEST(CacheErase, ServesCachesWithAWindow) {
  const auto module = evaluating({.rotary = RotaryConfig{}, .window = 50});
  const auto x = random_tensor<float, 3>({1, 300, E}, 1), more = random_tensor<float, 3>({1, 30, E}, 2);
  for (const auto& [first, count] : {Cut{0, 100}, {0, 64}, {3, 64}, {2, 71}, {297, 3}, {299, 1}}) {
    auto cache = module.make_cache(1, 400, {.window = 50}), fresh = module.make_cache(1, 400);
    for (Index t = 0; t < 300; t += 20) (void)module.forward(rows_of(x, t, 20), Causal{}, cache);
    ASSERT_GT(cache.first(0), 190);
    module.erase(cache, 0, first, count);
    (void)module.forward(without(x, first, count), Causal{}, fresh);
    EXPECT_LE(max_difference(module.forward(more, Causal{}, cache), module.forward(more, Causal{}, fresh)), 1e-6)
        << first << ", " << count;
  }
}

TEST(CacheErase, ServesDoublesAndHalves) {
  const attn::Rotary rotary(16);
  const auto serves = [&]<class T>(T, CacheFormat format, double bar) {
    KvCache<T> cache(1, 2, 300, 16, 16, {.keys = format, .page = 64}), fresh(cache);
    auto k = random_tensor<T, 4>({1, 2, 150, 16}, 1);
    const auto unrotated = k;
    const std::vector<Index> start{0};
    rotary.apply(k, start);
    cache.append(k, k);
    cache.erase(0, 10, 33, rotary);
    Tensor<T, 4> rest(1, 2, 117, 16);
    for (Index g = 0; g < 2; ++g)
      for (Index t = 0; t < 117; ++t)
        for (Index d = 0; d < 16; ++d) rest(0, g, t, d) = unrotated(0, g, t < 10 ? t : t + 33, d);
    rotary.apply(rest, start);
    fresh.append(rest, rest);
    EXPECT_LE(attn_test::difference(cache.read_keys(), fresh.read_keys()).largest, bar);
  };
  serves(double{}, CacheFormat::native, 1e-6);  // cosines are floats
  serves(double{}, CacheFormat::bfloat16, 2.5 * 0x1p-7);
  serves(Eigen::half{}, CacheFormat::native, 2.5 * 0x1p-10);
  serves(Eigen::bfloat16{}, CacheFormat::int8, 0.06);
}

// ---- Errors: nothing changes ----

TEST(CacheErase, RefusesFrequenciesThatDependOnTheLength) {
  const attn::RotaryScaling scalings[] = {
      attn::DynamicNtkScaling{4.0, 100},
      attn::LongRopeScaling{std::vector<double>(8, 1.5), std::vector<double>(8, 4.0), 100, 4.0, {}}};
  for (const attn::RotaryScaling& scaling : scalings) {
    const attn::Rotary by_length(16, {.scaling = scaling}), fixed(16, {.scaling = scaling, .length = 400});
    KvCache<float> cache(1, 2, 101, 16), within(1, 2, 100, 16);
    const auto k = random_tensor<float, 4>({1, 2, 100, 16}, 1);
    cache.append(k, k), within.append(k, k);
    expect_error([&] { cache.erase(0, 0, 10, by_length); },
                 {"[attn::KvCache::erase] rotary", "RotaryConfig::length", "original_length = 100", "got 101"});
    EXPECT_TRUE(same_bits(cache.read_keys(), k));
    EXPECT_NO_THROW(cache.erase(0, 0, 10, fixed));
    EXPECT_NO_THROW(within.erase(0, 0, 10, by_length));
  }
}

TEST(CacheErase, RefusesARotaryOfAnotherSizeAndTokensThatAreGone) {
  KvCache<float> cache(1, 2, 1000, 16, 16, {.window = 100});
  const auto k = random_tensor<float, 4>({1, 2, 300, 16}, 1);
  cache.append(k, k), cache.append(k, k);
  const auto before = cache.read_keys();
  expect_error([&] { cache.erase(0, 0, 10, attn::Rotary(8)); }, {"[attn::KvCache::erase] rotary", "16", "got 8"});
  expect_error([&] { cache.erase(0, 250, 310, attn::Rotary(16)); },
               {"[attn::KvCache::erase] tokens", "window of 100", "got 310 from 250"});
  EXPECT_TRUE(same_bits(cache.read_keys(), before));
}

}  // namespace
