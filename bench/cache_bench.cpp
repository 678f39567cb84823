// Caches in pages, and with a window, beside caches without: `of_plain` is the plain cache's time by theirs, in pairs. What
// is read goes round 256 MB of caches each, so that no CPU cache serves it.
#include <utility>
#include <vector>

#include "support.hpp"

namespace attn_bench {
namespace {

using attn::CacheFormat;
using attn::KvCache;
using attn::KvCacheOptions;

constexpr Index H = 32, G = 8, D = 128, T = 4096, window = 1024;

/// Caches of one sequence of T tokens each, appended `n` at a time; all hold the same.
std::vector<KvCache<float>> layers(const KvCacheOptions& options, Index n = 512) {
  const auto k = random<4>({1, G, T, D}, 2), v = random<4>({1, G, T, D}, 3);
  const auto tokens = [&](const Tensor<float, 4>& x, Index t) {
    return View<const float, 4>(x.data() + t * D, {1, G, n, D}, {G * T * D, T * D, D, 1});
  };
  std::vector<KvCache<float>> all;
  for (Index i = 0; i < (Index{1} << 25) / (G * T * D); ++i) {
    KvCache<float>& cache = all.emplace_back(1, G, T, D, D, options);
    for (Index t = 0; t < T; t += n) cache.append(tokens(k, t), tokens(v, t));
  }
  return all;
}

/// The time of a call, in the mean over all caches.
template <class M>
double round(const std::vector<KvCache<float>>& all, const Tensor<float, 4>& q, Tensor<float, 4>& y, const M& mask) {
  return seconds([&] {
           for (const auto& cache : all) attn::scaled_dot_product_attention_into(y, q, cache, mask);
         }) /
         static_cast<double>(all.size());
}

/// S queries, the last of the sequence, over both; they must agree in every bit.
template <class M>
void compare(benchmark::State& state, const KvCacheOptions& options, Index S, const M& mask) {
  const auto plain = layers({.keys = options.keys, .values = options.values}), other = layers(options);
  const auto q = random<4>({1, H, S, D}, 1);
  Tensor<float, 4> expected(1, H, S, D), y(1, H, S, D);
  attn::scaled_dot_product_attention_into(expected, q, plain.front(), mask);
  attn::scaled_dot_product_attention_into(y, q, other.back(), mask);
  for (Index i = 0; i < y.size(); ++i)
    if (!(y.data()[i] == expected.data()[i])) return reject(state);
  for (auto _ : state) attn::scaled_dot_product_attention_into(y, q, other.front(), mask);
  compare_in_pairs(
      state, "of_plain", [&] { return round(plain, q, expected, mask); }, [&] { return round(other, q, y, mask); });
}

void pages(benchmark::State& state) {
  const auto format = static_cast<CacheFormat>(state.range(2));
  state.SetLabel(std::string(attn::cache_format_name(format)));
  compare(state, {.keys = format, .values = format, .page = state.range(1)}, state.range(0), attn::Causal{});
}
BENCHMARK(pages)
    ->ArgNames({"S", "page", "format"})
    ->ArgsProduct({{1, 256}, {64, 256}, {0, 3}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

void with_window(benchmark::State& state) {
  compare(state, {.page = state.range(1), .window = window}, state.range(0),
          attn::Causal{} & attn::SlidingWindow(window));
}
BENCHMARK(with_window)
    ->ArgNames({"S", "page"})
    ->ArgsProduct({{1, 256}, {64, 256}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

/// Appending a token at a time, from an empty cache to T: pages are allocated on the way.
void append(benchmark::State& state) {
  const auto k = random<4>({1, G, 1, D}, 2);
  const auto fill = [&](const KvCacheOptions& options) {
    KvCache<float> cache(1, G, T, D, D, options);
    return seconds([&] {
      for (Index t = 0; t < T; ++t) cache.append(View<const float, 4>(k), View<const float, 4>(k));
    });
  };
  for (auto _ : state) fill({.page = 256});
  compare_in_pairs(
      state, "of_plain", [&] { return fill({}); }, [&] { return fill({.page = 256}); });
}
BENCHMARK(append)->Unit(benchmark::kMillisecond)->UseRealTime();

/// A fork of T tokens, and the bytes that it adds.
void fork(benchmark::State& state) {
  KvCacheOptions options;
  if (state.range(0) != 0) options.page = state.range(0);
  KvCache<float> cache(2, G, T, D, D, options);
  const auto k = random<3>({G, T, D}, 2);
  cache.append(0, View<const float, 3>(k), View<const float, 3>(k));
  const Index before = cache.bytes();
  for (auto _ : state) {
    cache.fork(0, 1);
    benchmark::ClobberMemory();
  }
  state.counters["bytes_added"] = static_cast<double>(cache.bytes() - before);
}
BENCHMARK(fork)->ArgNames({"page"})->Arg(0)->Arg(64)->Unit(benchmark::kMicrosecond)->UseRealTime();

}  // namespace
}  // namespace attn_bench

int main(int argc, char** argv) { return attn_bench::run(argc, argv); }
