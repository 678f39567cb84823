// Caches whose keys and values are stored in fewer bits.
#include "module_support.hpp"

#include <limits>
#include <vector>

namespace {

using attn::CacheFormat;
using attn::Index;
using attn::KvCache;
using attn::LlamaAttention;
using attn::LlamaAttentionConfig;
using attn::Tensor;
using attn::View;
using attn_test::cast;
using attn_test::difference;
using attn_test::expect_error;
using attn_test::random_tensor;
using attn_test::same_bits;

constexpr CacheFormat formats[] = {CacheFormat::native, CacheFormat::bfloat16, CacheFormat::half, CacheFormat::int8};

/// A cache of two sequences of unlike length, filled in two steps.
template <class T>
KvCache<T> filled_cache(Index heads, Index tokens, Index D, Index Dv, CacheFormat keys, CacheFormat values) {
  KvCache<T> cache(2, heads, tokens, D, Dv, keys, values);
  const Index first = tokens / 2;
  for (const Index n : {first, tokens - first})
    cache.append(random_tensor<T, 4>({2, heads, n, D}, 1), random_tensor<T, 4>({2, heads, n, Dv}, 2));
  if (tokens > 3) cache.roll_back(1, 3);
  return cache;
}

/// Attention over a cache: the plain formula over the numbers that it holds. The bar: twice the error of the formula in T.
template <class T>
void expect_formula(Index S, Index tokens, Index D, Index Dv, CacheFormat keys, CacheFormat values) {
  SCOPED_TRACE(testing::Message() << S << " queries, " << tokens << " tokens, D " << D << ", keys "
                                  << cache_format_name(keys) << ", values " << cache_format_name(values));
  const KvCache<T> cache = filled_cache<T>(2, tokens, D, Dv, keys, values);
  const auto q = random_tensor<T, 4>({2, 4, S, D}, 3);
  attn::AttentionOptions options;
  options.log_sum_exp = true;
  const auto got = scaled_dot_product_attention(q, cache, attn::Causal{}, attn::NoScore{}, options);

  const std::vector<Index> start{cache.length(0) - S, cache.length(1) - S};
  options.query_start = start;
  const auto mask = attn::Causal{} & attn::Padding(cache.lengths());
  const auto k = cache.read_keys(), v = cache.read_values();
  const auto plain = [&]<class A>(A) {
    attn::AttentionResult<A> result{Tensor<A, 4>(2, 4, S, Dv), Tensor<A, 3>(2, 4, S), {}};
    const auto queries = cast<A>(q), all_keys = cast<A>(k), all_values = cast<A>(v);
    attn::reference::scaled_dot_product_attention_into<A>(
        {View<A, 4>(result.output), View<A, 3>(result.log_sum_exp), {}}, queries, all_keys, all_values, mask,
        attn::NoScore{}, options);
    return result;
  };
  const auto exact = plain(0.0);
  const auto rounded = plain(attn::Accumulator<T>{});
  const double epsilon = std::numeric_limits<attn::Accumulator<T>>::epsilon();
  EXPECT_LE(difference(got.output, exact.output).largest,
            2 * difference(rounded.output, exact.output).largest + 16 * epsilon);
  EXPECT_LE(difference(got.log_sum_exp, exact.log_sum_exp).largest,
            2 * difference(rounded.log_sum_exp, exact.log_sum_exp).largest + 16 * epsilon);
}

TEST(CacheFormats, AreReadWhileDecoding) {
  for (const CacheFormat keys : formats)
    for (const CacheFormat values : formats)
      for (const Index D : {1, 7, 64, 80, 128}) expect_formula<float>(1, 70, D, D + 3, keys, values);
  for (const CacheFormat format : formats) expect_formula<float>(2, 700, 33, 20, format, format);
}

TEST(CacheFormats, AreReadByAPrompt) {
  for (const CacheFormat keys : formats)
    for (const CacheFormat values : {CacheFormat::native, CacheFormat::int8}) {
      expect_formula<float>(50, 60, 24, 17, keys, values);
      expect_formula<float>(9, 200, 128, 128, keys, values);
    }
}

TEST(CacheFormats, ServeDoubles) {
  for (const CacheFormat format : formats) {
    expect_formula<double>(1, 70, 33, 20, format, format);
    expect_formula<double>(40, 70, 80, 65, format, format);
  }
}

// ---- What a cache holds -----------------------------------------------------------------------------------------------

TEST(CacheFormats, RoundToTheNearestNumber) {
  const struct {
    CacheFormat format;
    double bar;  // of each number, or of the largest of a row
  } cases[] = {{CacheFormat::native, 0},
               {CacheFormat::bfloat16, 0x1p-8},
               {CacheFormat::half, 0x1p-11},
               {CacheFormat::int8, 0.501 / 127}};
  for (const auto& [format, bar] : cases)
    for (const Index D : {1, 3, 16, 17, 128}) {
      KvCache<float> cache(1, 1, 5, D, D, format, CacheFormat::native);
      const auto k = random_tensor<float, 4>({1, 1, 5, D}, 1);
      cache.append(k, k);
      const auto keys = cache.read_keys();
      EXPECT_TRUE(same_bits(cache.read_values(), k));
      for (Index t = 0; t < 5; ++t) {
        double largest = 0;
        for (Index d = 0; d < D; ++d) largest = std::max(largest, std::abs(double{k(0, 0, t, d)}));
        for (Index d = 0; d < D; ++d) {
          const double x = double{k(0, 0, t, d)}, size = format == CacheFormat::int8 ? largest : std::abs(x);
          ASSERT_LE(std::abs(double{keys(0, 0, t, d)} - x), bar * size) << cache_format_name(format) << ", D " << D;
        }
      }
    }
}

TEST(CacheFormats, KeepRowsOfZerosAndTheLargestNumberOfInt8) {
  KvCache<float> cache(1, 1, 2, 20, 20, CacheFormat::int8, CacheFormat::int8);
  Tensor<float, 4> x(1, 1, 2, 20);
  x.setZero();
  x(0, 0, 1, 7) = -254, x(0, 0, 1, 19) = 3, x(0, 0, 1, 0) = 1, x(0, 0, 1, 1) = 5;  // a step is 2: ties go to even
  cache.append(x, x);
  const auto keys = cache.read_keys();
  for (Index d = 0; d < 20; ++d) EXPECT_EQ(keys(0, 0, 0, d), 0);
  EXPECT_EQ(keys(0, 0, 1, 7), -254);
  EXPECT_EQ(keys(0, 0, 1, 19), 4);
  EXPECT_EQ(keys(0, 0, 1, 0), 0);
  EXPECT_EQ(keys(0, 0, 1, 1), 4);
}

TEST(CacheFormats, MakeARowOfInt8NanWhereOneNumberIsNotFinite) {
  KvCache<float> cache(1, 1, 3, 20, 20, CacheFormat::int8, CacheFormat::int8);
  auto x = random_tensor<float, 4>({1, 1, 3, 20}, 1);
  x(0, 0, 1, 4) = std::numeric_limits<float>::infinity();
  cache.append(x, x);
  const auto keys = cache.read_keys();
  for (Index d = 0; d < 20; ++d) {
    EXPECT_TRUE(std::isfinite(keys(0, 0, 0, d)));
    EXPECT_TRUE(std::isnan(keys(0, 0, 1, d)));
    EXPECT_TRUE(std::isfinite(keys(0, 0, 2, d)));
  }
}

TEST(CacheFormats, HoldTheSameTokenByToken) {
  for (const CacheFormat format : formats) {
    KvCache<float> at_once(2, 3, 6, 10, 12, format, format), one_by_one(at_once);
    const auto k = random_tensor<float, 4>({2, 3, 6, 10}, 1), v = random_tensor<float, 4>({2, 3, 6, 12}, 2);
    at_once.append(k, v);
    for (Index t = 0; t < 6; ++t) {
      const auto token = [&](const Tensor<float, 4>& x) {
        return Tensor<float, 4>(
            x.slice(std::array<Index, 4>{0, 0, t, 0}, std::array<Index, 4>{2, 3, 1, x.dimension(3)}));
      };
      one_by_one.append(random_tensor<float, 4>({2, 3, 1, 10}, 7), token(v));
      one_by_one.roll_back(1);  // what was written there is replaced
      one_by_one.append(token(k), token(v));
    }
    EXPECT_TRUE(same_bits(at_once.read_keys(), one_by_one.read_keys())) << cache_format_name(format);
    EXPECT_TRUE(same_bits(at_once.read_values(), one_by_one.read_values())) << cache_format_name(format);
  }
}

TEST(CacheFormats, GiveTheSameBitsForAnyNumberOfThreads) {
  for (const CacheFormat format : formats) {
    const KvCache<float> cache = filled_cache<float>(2, 1300, 40, 40, format, format);
    for (const Index S : {1, 60}) {
      const auto q = random_tensor<float, 4>({2, 4, S, 40}, 3);
      attn::SerialExecutor serial;
      const auto on = [&](attn::Executor& executor) {
        const attn::UseExecutor use(executor);
        return scaled_dot_product_attention(q, cache, attn::Causal{}).output;
      };
      const auto expected = on(serial);
      for (const int threads : {2, 3}) {
        attn::ThreadPool pool(threads);
        EXPECT_TRUE(same_bits(on(pool), expected)) << cache_format_name(format);
      }
    }
  }
}

// ---- The function over a cache ----------------------------------------------------------------------------------------

TEST(AttentionOverACache, IsThatOverItsTensors) {
  const KvCache<float> cache = filled_cache<float>(2, 30, 16, 12, CacheFormat::native, CacheFormat::native);
  const auto q = random_tensor<float, 4>({2, 4, 6, 16}, 3);
  attn::AttentionOptions options;
  options.weights = true;
  const auto got = scaled_dot_product_attention(q, cache, attn::Causal{}, attn::SoftCap(5.F), options);
  const std::vector<Index> start{24, 21};
  options.query_start = start;
  const auto expected = scaled_dot_product_attention(
      q, cache.keys(), cache.values(), attn::Causal{} & attn::Padding(cache.lengths()), attn::SoftCap(5.F), options);
  EXPECT_TRUE(same_bits(got.output, expected.output));
  EXPECT_TRUE(same_bits(got.weights, expected.weights));
}

TEST(AttentionOverACache, TakesPositionsFromTheCaller) {
  const KvCache<float> cache = filled_cache<float>(2, 30, 16, 12, CacheFormat::half, CacheFormat::int8);
  const auto q = random_tensor<float, 4>({2, 4, 1, 16}, 3);
  const std::vector<Index> first{0, 0};
  attn::AttentionOptions options;
  options.query_start = first;
  const auto y = scaled_dot_product_attention(q, cache, attn::Causal{}, attn::NoScore{}, options).output;
  const auto v = cache.read_values();
  for (Index h = 0; h < 4; ++h)
    for (Index d = 0; d < 12; ++d) EXPECT_NEAR(y(1, h, 0, d), v(1, h / 2, 0, d), 1e-6F);  // the only key it sees
}

TEST(AttentionOverACache, RefusesQueriesThatDoNotFit) {
  const KvCache<float> cache = filled_cache<float>(2, 30, 16, 12, CacheFormat::half, CacheFormat::half);
  expect_error(
      [&] {
        static_cast<void>(scaled_dot_product_attention(random_tensor<float, 4>({3, 4, 1, 16}, 1), cache));
      },
      {"[attn::scaled_dot_product_attention]", "for a cache of B sequences", "expected [2,4,1,16]", "got [3,4,1,16]"});
  expect_error(
      [&] {
        static_cast<void>(scaled_dot_product_attention(random_tensor<float, 4>({2, 4, 1, 8}, 1), cache));
      },
      {"expected [2,4,1,16]", "got [2,4,1,8]"});
  expect_error(
      [&] {
        static_cast<void>(scaled_dot_product_attention(random_tensor<float, 4>({2, 3, 1, 16}, 1), cache));
      },
      {"query heads"});
}

// ---- The module -------------------------------------------------------------------------------------------------------

TEST(CachedModule, DecodesFromEveryFormat) {
  const auto config = LlamaAttentionConfig{.hidden_size = 96,
                                           .num_attention_heads = 6,
                                           .num_key_value_heads = 2,
                                           .rotary = attn::RotaryConfig{},
                                           .window = 20,
                                           .seed = 1};
  LlamaAttention<float> module(config);
  module.eval();
  const auto x = random_tensor<float, 3>({2, 40, 96}, 3);
  const auto expected = module.forward(x, attn::Causal());
  const auto tokens = [&](Index first, Index n) {
    return Tensor<float, 3>(x.slice(std::array<Index, 3>{0, first, 0}, std::array<Index, 3>{2, n, 96}));
  };
  for (const CacheFormat format : formats) {
    auto cache = module.make_cache(2, 40, format);
    EXPECT_EQ(cache.key_format(), format);
    EXPECT_EQ(cache.value_format(), format);
    double largest = 0;
    const auto compare = [&](const Tensor<float, 3>& y, Index first) {
      for (Index b = 0; b < 2; ++b)
        for (Index s = 0; s < y.dimension(1); ++s)
          for (Index e = 0; e < 96; ++e)
            largest = std::max(largest, std::abs(double{y(b, s, e)} - double{expected(b, first + s, e)}));
    };
    compare(module.forward(tokens(0, 31), attn::Causal(), cache), 0);
    for (Index s = 31; s < 40; ++s) compare(module.forward(tokens(s, 1), attn::Causal(), cache), s);
    const double bars[] = {2e-6, 4e-3, 6e-4, 8e-3};
    EXPECT_LE(largest, bars[static_cast<int>(format)]) << cache_format_name(format);
    EXPECT_GT(largest, format == CacheFormat::native ? -1 : 1e-6);
  }
}

TEST(CachedModule, TakesKeysAndValuesInUnlikeFormats) {
  const LlamaAttention<float> module(64, 4);
  const auto cache = module.make_cache(1, 8, CacheFormat::half, CacheFormat::int8);
  EXPECT_EQ(cache.key_format(), CacheFormat::half);
  EXPECT_EQ(cache.value_format(), CacheFormat::int8);
}

// ---- Errors -----------------------------------------------------------------------------------------------------------

TEST(CacheFormats, AreNotViewed) {
  const KvCache<float> cache(1, 1, 4, 8, 8, CacheFormat::half, CacheFormat::native);
  expect_error([&] { static_cast<void>(cache.keys()); }, {"[attn::KvCache::keys]", "native", "read_keys", "got half"});
  static_cast<void>(cache.values());
}

TEST(CacheFormats, MustExist) {
  expect_error([] { KvCache<float>(1, 1, 4, 8, 8, static_cast<CacheFormat>(7), CacheFormat::native); },
               {"[attn::KvCache] keys", "native, bfloat16, half or int8", "CacheFormat(7)"});
  expect_error([] { KvCache<float>(1, 1, 4, 8, 8, CacheFormat::half, static_cast<CacheFormat>(4)); },
               {"[attn::KvCache] values", "CacheFormat(4)"});
}

}  // namespace
