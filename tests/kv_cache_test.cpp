#include "module_support.hpp"

namespace {

using attn::Index;
using attn::KvCache;
using attn::Tensor;
using attn::View;
using attn_test::expect_error;
using attn_test::random_tensor;

constexpr Index B = 3, G = 2, D = 5, Dv = 4;

struct Tokens {
  Tensor<float, 4> keys, values;
  explicit Tokens(Index count, unsigned seed)
      : keys(random_tensor<float, 4>({B, G, count, D}, seed)),
        values(random_tensor<float, 4>({B, G, count, Dv}, seed + 1000)) {}
};

/// Everything that the cache shows of each sequence: what a test compares before and after.
std::vector<float> contents(const KvCache<float>& cache) {
  std::vector<float> all;
  for (Index b = 0; b < cache.batch(); ++b) {
    all.push_back(static_cast<float>(cache.length(b)));
    for (Index g = 0; g < cache.key_value_heads(); ++g)
      for (Index t = 0; t < cache.length(b); ++t) {
        for (Index d = 0; d < cache.head_size(); ++d) all.push_back(cache.keys()(b, g, t, d));
        for (Index d = 0; d < cache.value_size(); ++d) all.push_back(cache.values()(b, g, t, d));
      }
  }
  return all;
}

TEST(KvCache, IsEmptyWhenNew) {
  const KvCache<float> cache(B, G, 10, D, Dv);
  EXPECT_EQ(cache.batch(), B);
  EXPECT_EQ(cache.key_value_heads(), G);
  EXPECT_EQ(cache.capacity(), 10);
  EXPECT_EQ(cache.head_size(), D);
  EXPECT_EQ(cache.value_size(), Dv);
  EXPECT_EQ(cache.max_length(), 0);
  EXPECT_EQ(cache.lengths().size(), 3U);
  EXPECT_EQ(cache.keys().dimension(2), 0);
}

TEST(KvCache, GivesValuesTheSizeOfKeysByDefault) { EXPECT_EQ(KvCache<float>(1, 1, 4, 7).value_size(), 7); }

TEST(KvCache, AppendsTokensAfterThoseItHolds) {
  KvCache<float> cache(B, G, 10, D, Dv);
  const Tokens first(3, 1), second(1, 2);
  cache.append(first.keys, first.values);
  cache.append(second.keys, second.values);
  EXPECT_EQ(cache.max_length(), 4);
  const View<const float, 4> keys = cache.keys(), values = cache.values();
  EXPECT_EQ(keys.shape(), (std::array<Index, 4>{B, G, 4, D}));
  EXPECT_EQ(values.shape(), (std::array<Index, 4>{B, G, 4, Dv}));
  for (Index b = 0; b < B; ++b) {
    EXPECT_EQ(cache.length(b), 4);
    for (Index g = 0; g < G; ++g)
      for (Index t = 0; t < 4; ++t) {
        for (Index d = 0; d < D; ++d)
          EXPECT_EQ(keys(b, g, t, d), t < 3 ? first.keys(b, g, t, d) : second.keys(b, g, 0, d));
        for (Index d = 0; d < Dv; ++d)
          EXPECT_EQ(values(b, g, t, d), t < 3 ? first.values(b, g, t, d) : second.values(b, g, 0, d));
      }
  }
}

TEST(KvCache, AppendsHeadsThroughStridedViews) {
  KvCache<float> cache(B, G, 4, D);
  const auto k = random_tensor<float, 3>({B, 2, G * D}, 1), v = random_tensor<float, 3>({B, 2, G * D}, 2);
  cache.append(attn::split_heads(k, G), attn::split_heads(v, G));
  for (Index b = 0; b < B; ++b)
    for (Index g = 0; g < G; ++g)
      for (Index t = 0; t < 2; ++t)
        for (Index d = 0; d < D; ++d) {
          EXPECT_EQ(cache.keys()(b, g, t, d), k(b, t, g * D + d));
          EXPECT_EQ(cache.values()(b, g, t, d), v(b, t, g * D + d));
        }
}

TEST(KvCache, RollsBackAllSequences) {
  KvCache<float> cache(B, G, 10, D, Dv);
  const Tokens first(3, 1), second(2, 2);
  cache.append(first.keys, first.values);
  const auto before = contents(cache);
  cache.append(second.keys, second.values);
  cache.roll_back(2);
  EXPECT_EQ(contents(cache), before);
  cache.roll_back(0);
  EXPECT_EQ(contents(cache), before);
}

TEST(KvCache, SequencesMayDifferInLength) {
  KvCache<float> cache(B, G, 10, D, Dv);
  const Tokens prompt(4, 1), next(2, 2);
  cache.append(prompt.keys, prompt.values);
  cache.roll_back(0, 3);
  cache.roll_back(2, 1);
  EXPECT_EQ((std::vector<Index>(cache.lengths().begin(), cache.lengths().end())), (std::vector<Index>{1, 4, 3}));
  EXPECT_EQ(cache.max_length(), 4);
  cache.append(next.keys, next.values);
  EXPECT_EQ((std::vector<Index>(cache.lengths().begin(), cache.lengths().end())), (std::vector<Index>{3, 6, 5}));
  const std::array<Index, 3> kept{1, 4, 3};
  for (Index b = 0; b < B; ++b) {
    const Index n = kept[static_cast<std::size_t>(b)];
    for (Index t = 0; t < n; ++t) EXPECT_EQ(cache.keys()(b, 1, t, 2), prompt.keys(b, 1, t, 2));
    for (Index t = 0; t < 2; ++t) EXPECT_EQ(cache.values()(b, 0, n + t, 3), next.values(b, 0, t, 3));
  }
}

TEST(KvCache, ResetForgetsOneSequenceOrAll) {
  KvCache<float> cache(B, G, 10, D, Dv);
  const Tokens tokens(4, 1);
  cache.append(tokens.keys, tokens.values);
  cache.reset(1);
  EXPECT_EQ(cache.length(0), 4);
  EXPECT_EQ(cache.length(1), 0);
  cache.reset();
  EXPECT_EQ(cache.max_length(), 0);
  cache.append(tokens.keys, tokens.values);
  EXPECT_EQ(cache.length(1), 4);
}

TEST(KvCache, CanBeFilledToTheLastToken) {
  KvCache<float> cache(B, G, 4, D, Dv);
  const Tokens tokens(4, 1), none(0, 1);
  EXPECT_NO_THROW(cache.append(tokens.keys, tokens.values));
  EXPECT_NO_THROW(cache.append(none.keys, none.values));
  EXPECT_NO_THROW(cache.check_room(0));
  expect_error([&] { cache.check_room(1); }, {"[attn::KvCache::append]", "4 of 4"});
}

TEST(KvCache, RefusesOverflowAndStaysUnchanged) {
  KvCache<float> cache(B, G, 5, D, Dv);
  const Tokens tokens(4, 1), two(2, 2);
  cache.append(tokens.keys, tokens.values);
  cache.roll_back(0, 2);  // one sequence has room, the others have not
  const auto before = contents(cache);
  expect_error([&] { cache.append(two.keys, two.values); },
               {"[attn::KvCache::append]", "room for 2 more", "got 4 of 5"});
  EXPECT_EQ(contents(cache), before);
}

TEST(KvCache, RefusesWrongShapesAndStaysUnchanged) {
  KvCache<float> cache(B, G, 5, D, Dv);
  const Tokens tokens(2, 1), three(3, 2);
  cache.append(tokens.keys, tokens.values);
  const auto before = contents(cache);
  expect_error([&] { cache.append(tokens.values, tokens.values); },
               {"[attn::KvCache::append] keys", "expected [3,2,2,5]", "got [3,2,2,4]"});
  expect_error([&] { cache.append(tokens.keys, tokens.keys); },
               {"[attn::KvCache::append] values", "expected [3,2,2,4]", "got [3,2,2,5]"});
  expect_error([&] { cache.append(three.keys, tokens.values); },
               {"[attn::KvCache::append] values", "expected [3,2,3,4]", "got [3,2,2,4]"});
  expect_error([&] { cache.append(Tensor<float, 4>(2, G, 1, D), Tensor<float, 4>(2, G, 1, Dv)); },
               {"[attn::KvCache::append] keys", "got [2,2,1,5]"});
  EXPECT_EQ(contents(cache), before);
}

TEST(KvCache, RefusesToRollBackTooFarAndStaysUnchanged) {
  KvCache<float> cache(B, G, 5, D, Dv);
  const Tokens tokens(4, 1);
  cache.append(tokens.keys, tokens.values);
  cache.roll_back(1, 2);
  const auto before = contents(cache);
  expect_error([&] { cache.roll_back(-1); }, {"[attn::KvCache::roll_back]", "got -1"});
  expect_error([&] { cache.roll_back(3); }, {"[attn::KvCache::roll_back]", "the 2 held", "got 3"});
  expect_error([&] { cache.roll_back(0, -2); }, {"[attn::KvCache::roll_back]", "got -2"});
  expect_error([&] { cache.roll_back(0, 5); }, {"[attn::KvCache::roll_back]", "the 4 held", "got 5"});
  EXPECT_EQ(contents(cache), before);
}

TEST(KvCache, RefusesSequencesItDoesNotHave) {
  KvCache<float> cache(B, G, 5, D, Dv);
  for (const Index b : {Index{-1}, B}) {
    expect_error([&] { cache.roll_back(b, 0); }, {"[attn::KvCache::roll_back] sequence", "3"});
    expect_error([&] { cache.reset(b); }, {"[attn::KvCache::reset] sequence", "3"});
    expect_error([&] { return cache.length(b); }, {"[attn::KvCache::length] sequence", "3"});
  }
}

TEST(KvCache, RefusesSizesBelowTheirLeast) {
  expect_error([] { KvCache<float> cache(-1, 1, 1, 1); }, {"[attn::KvCache]", "got [-1,1,1,1]"});
  expect_error([] { KvCache<float> cache(1, 0, 1, 1); }, {"[attn::KvCache]", "got [1,0,1,1]"});
  expect_error([] { KvCache<float> cache(1, 1, -1, 1); }, {"[attn::KvCache]", "got [1,1,-1,1]"});
  expect_error([] { KvCache<float> cache(1, 1, 1, 0); }, {"[attn::KvCache]", "got [1,1,1,0]"});
  expect_error([] { KvCache<float> cache(1, 1, 1, 1, -1); }, {"[attn::KvCache]"});
}

TEST(KvCache, MayHaveNoSequencesOrNoCapacity) {
  KvCache<float> none(0, 1, 4, 2), full(1, 1, 0, 2);
  EXPECT_EQ(none.max_length(), 0);
  EXPECT_NO_THROW(none.append(Tensor<float, 4>(0, 1, 2, 2), Tensor<float, 4>(0, 1, 2, 2)));
  expect_error([&] { full.append(Tensor<float, 4>(1, 1, 1, 2), Tensor<float, 4>(1, 1, 1, 2)); },
               {"[attn::KvCache::append]", "0 of 0"});
}

TEST(KvCache, ACopyIsIndependent) {
  KvCache<float> cache(B, G, 5, D, Dv);
  const Tokens tokens(2, 1), more(1, 2);
  cache.append(tokens.keys, tokens.values);
  const KvCache<float> copy = cache;
  const auto before = contents(copy);
  cache.roll_back(1);
  cache.append(more.keys, more.values);
  EXPECT_EQ(contents(copy), before);
}

TEST(KvCache, HoldsEveryType) {
  const auto holds = [](auto scalar) {
    using T = decltype(scalar);
    KvCache<T> cache(1, 1, 2, 3);
    const auto k = random_tensor<T, 4>({1, 1, 2, 3}, 1), v = random_tensor<T, 4>({1, 1, 2, 3}, 2);
    cache.append(k, v);
    return static_cast<double>(cache.keys()(0, 0, 1, 2)) == static_cast<double>(k(0, 0, 1, 2)) &&
           static_cast<double>(cache.values()(0, 0, 0, 1)) == static_cast<double>(v(0, 0, 0, 1));
  };
  EXPECT_TRUE(holds(0.0));
  EXPECT_TRUE(holds(Eigen::half()));
  EXPECT_TRUE(holds(Eigen::bfloat16()));
}

TEST(KvCache, RefusesSizesThatOverflow) {
  constexpr Index huge = Index{1} << 62;
  expect_error([] { KvCache<float> cache(1, 1, huge, 4); },
               {"[attn::KvCache] keys [B,G,capacity,D]", "memory can hold", "got [1,1,4611686018427387904,4]"});
  expect_error([] { KvCache<float> cache(1, 1, Index{1} << 40, 4, huge); },
               {"[attn::KvCache] values [B,G,capacity,Dv]", "memory can hold"});
  expect_error([] { KvCache<float> cache(0, 2, huge, 4); },
               {"[attn::KvCache] keys", "memory can hold"});  // strides of nothing
  expect_error([] { KvCache<float> cache(huge, 1, 0, 4); }, {"[attn::KvCache] batch", "memory can hold"});
}

TEST(KvCache, TakesViewsWhoseLastAxisHasGapsOrRepeats) {
  KvCache<float> cache(B, G, 4, D, Dv);
  const auto k = random_tensor<float, 4>({B, G, 2, 2 * D}, 1), v = random_tensor<float, 4>({B, G, 1, 1}, 2);
  cache.append(View<const float, 4>(k.data(), {B, G, 2, D}, {G * 4 * D, 4 * D, 2 * D, 2}),
               View<const float, 4>(v.data(), {B, G, 2, Dv}, {G, 1, 0, 0}));
  for (Index b = 0; b < B; ++b)
    for (Index g = 0; g < G; ++g)
      for (Index t = 0; t < 2; ++t) {
        for (Index d = 0; d < D; ++d) EXPECT_EQ(cache.keys()(b, g, t, d), k(b, g, t, 2 * d));
        for (Index d = 0; d < Dv; ++d) EXPECT_EQ(cache.values()(b, g, t, d), v(b, g, 0, 0));
      }
}

TEST(KvCache, ShowsWrittenTokensOnRequestAndCountsCommittedOnes) {
  KvCache<float> cache(B, G, 10, D, Dv), appended(B, G, 10, D, Dv);
  const Tokens first(3, 1), second(2, 2), never(4, 3);
  cache.append(first.keys, first.values);
  cache.roll_back(1, 2);
  appended = cache;
  const auto before = contents(cache);
  cache.write(never.keys, never.values);
  EXPECT_EQ(contents(cache), before);
  cache.write(second.keys, second.values);
  EXPECT_EQ(contents(cache), before);
  EXPECT_EQ(cache.keys(2).shape(), (std::array<Index, 4>{B, G, 5, D}));
  for (Index t = 0; t < 2; ++t) {
    EXPECT_EQ(cache.keys(2)(0, 1, 3 + t, 4), second.keys(0, 1, t, 4));
    EXPECT_EQ(cache.values(2)(1, 0, 1 + t, 3), second.values(1, 0, t, 3));  // behind its own tokens
  }
  cache.commit(2);
  appended.append(second.keys, second.values);
  EXPECT_EQ(contents(cache), contents(appended));
  expect_error([&] { cache.commit(6); }, {"[attn::KvCache::append] capacity", "5 of 10"});
  expect_error([&] { cache.commit(-1); }, {"[attn::KvCache::append] capacity"});
  expect_error([&] { (void)cache.keys(6); }, {"[attn::KvCache::append] capacity"});
  EXPECT_EQ(contents(cache), contents(appended));
}

TEST(KvCache, IsEmptyOnceMovedFromAndCanBeAssignedTo) {
  KvCache<float> cache(B, G, 5, D, Dv);
  const Tokens tokens(2, 1);
  cache.append(tokens.keys, tokens.values);
  const KvCache<float> copy = cache;
  KvCache<float> moved = std::move(cache);
  EXPECT_EQ(contents(moved), contents(copy));
  for (const Index size :
       {cache.batch(), cache.key_value_heads(), cache.capacity(), cache.head_size(), cache.value_size(),
        cache.max_length(), static_cast<Index>(cache.lengths().size()), cache.keys().size(), cache.values().size()})
    EXPECT_EQ(size, 0);
  expect_error([&] { cache.append(tokens.keys, tokens.values); },
               {"[attn::KvCache::append] keys", "expected [0,0,2,0]", "got [3,2,2,5]"});
  expect_error([&] { (void)cache.length(0); }, {"[attn::KvCache::length]"});
  cache.reset();
  cache.roll_back(0);
  cache = copy;
  EXPECT_EQ(contents(cache), contents(copy));
  cache = std::move(moved);
  EXPECT_EQ(contents(cache), contents(copy));
  EXPECT_EQ(moved.batch(), 0);
}

}  // namespace
