#pragma once
// What the benchmarks share: the machine's limits, measured in the same run; inputs; checks that come before timing;
// counters; main.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <attn/attn.hpp>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <exception>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <type_traits>

namespace attn_bench {

using attn::Index;
using attn::Tensor;
using attn::View;

// ---- The machine ------------------------------------------------------------------------------------------------

typedef float Vector16 __attribute__((vector_size(16)));
typedef float Vector32 __attribute__((vector_size(32)));
typedef float Vector64 __attribute__((vector_size(64)));

/// `rounds` times 12 independent multiply-adds, all in registers: 2 units of 4 to 5 cycles want 8 to 10 of them, 16
/// registers hold 14.
template <class V>
__attribute__((always_inline)) inline float multiply_add_loop(Index rounds) {
  constexpr int chains = 12;
  V sum[chains] = {};
  float half = 0.5F;
  benchmark::DoNotOptimize(half);
  const V a = V{} + half;
  for (Index i = 0; i < rounds; ++i)
    _Pragma("GCC unroll 12") for (int c = 0; c < chains; ++c) sum[c] = sum[c] * a + a;
  for (int c = 1; c < chains; ++c) sum[0] += sum[c];
  return sum[0][0];
}

/// Adds up n floats, a multiple of 256, as 4 streams.
template <class V>
__attribute__((always_inline)) inline float read_loop(const float* from, Index n) {
  V sum[4] = {};
  for (Index i = 0; i < n / 4; i += Index{sizeof(V) / 4})
    _Pragma("GCC unroll 4") for (int s = 0; s < 4; ++s) {
      V v;
      __builtin_memcpy(&v, from + s * (n / 4) + i, sizeof v);
      sum[s] += v;
    }
  return (sum[0] + sum[1] + sum[2] + sum[3])[0];
}

#if ATTN_X86_TARGETS
#define ATTN_BENCH_TARGET(name) __attribute__((target(name), noinline)) inline
ATTN_BENCH_TARGET("avx512f") float multiply_add_avx512(Index rounds) { return multiply_add_loop<Vector64>(rounds); }
ATTN_BENCH_TARGET("avx2,fma") float multiply_add_avx2(Index rounds) { return multiply_add_loop<Vector32>(rounds); }
ATTN_BENCH_TARGET("avx512f") float read_avx512(const float* from, Index n) { return read_loop<Vector64>(from, n); }
ATTN_BENCH_TARGET("avx2") float read_avx2(const float* from, Index n) { return read_loop<Vector32>(from, n); }
#undef ATTN_BENCH_TARGET
#endif

/// Runs rounds of multiply-adds with the active instruction set; returns how many operations these were.
inline double multiply_add(Index rounds) {
  float sum = 0.F;
  int lanes = 4;
  switch (attn::active_isa()) {
#if ATTN_X86_TARGETS
    case attn::Isa::avx512: sum = multiply_add_avx512(rounds), lanes = 16; break;
    case attn::Isa::avx2: sum = multiply_add_avx2(rounds), lanes = 8; break;
#endif
    default: sum = multiply_add_loop<Vector16>(rounds);
  }
  benchmark::DoNotOptimize(sum);
  return 2.0 * 12 * lanes * static_cast<double>(rounds);
}
inline void read(const float* from, Index n) {
  float sum = 0.F;
  switch (attn::active_isa()) {
#if ATTN_X86_TARGETS
    case attn::Isa::avx512: sum = read_avx512(from, n); break;
    case attn::Isa::avx2: sum = read_avx2(from, n); break;
#endif
    default: sum = read_loop<Vector16>(from, n);
  }
  benchmark::DoNotOptimize(sum);
}

/// Seconds that a call of `work` takes.
template <class Work>
double seconds(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Multiply-adds per second, counted as two operations, of all threads of the current executor: the best of 10 runs.
inline double peak() {
  static std::map<int, double> known;
  const int threads = attn::current_executor().concurrency();
  const auto [at, is_new] = known.try_emplace(threads, 0.0);
  for (int run = 0; is_new && run < 10; ++run) {
    constexpr Index rounds = 4'000'000;  // some 10 ms
    double operations = 0.0;
    const double time = seconds([&] {
      attn::current_executor().parallel_for(threads, [&](int lane) {
        const double done = multiply_add(rounds);
        if (lane == 0) operations = done * threads;
      });
    });
    at->second = std::max(at->second, operations / time);
  }
  return at->second;
}

/// Bytes per second that all threads read together from 1 GiB, more than caches hold: the best of 5 runs.
inline double bandwidth() {
  static const double best = [] {
    constexpr Index floats = Index{1} << 28;
    const int threads = attn::current_executor().concurrency();
    const Index share = floats / threads / 256 * 256;
    const attn::AlignedVector<float> memory(static_cast<std::size_t>(floats), 1.F);
    double time = 1e9;
    for (int run = 0; run < 5; ++run)
      time = std::min(time, seconds([&] {
        attn::current_executor().parallel_for(threads, [&](int lane) { read(memory.data() + lane * share, share); });
      }));
    return static_cast<double>(share * threads) * 4.0 / time;
  }();
  return best;
}

// ---- Inputs -----------------------------------------------------------------------------------------------------

/// Numbers within (-bound, bound) that depend on seed and place alone; peers/compare.js has the same formula.
inline void fill(float* data, Index size, std::uint32_t seed, double bound = 1.0) {
  for (Index i = 0; i < size; ++i) {
    std::uint32_t h = (static_cast<std::uint32_t>(i) + seed * 0x85EBCA6BU) * 0x9E3779B1U;
    h = (h ^ (h >> 15)) * 0x85EBCA77U;
    h ^= h >> 13;
    data[i] = static_cast<float>(static_cast<std::int32_t>(h) * (bound * 0x1p-31));
  }
}
template <int Rank>
[[nodiscard]] Tensor<float, Rank> random(const std::type_identity_t<std::array<Index, Rank>>& shape, std::uint32_t seed) {
  auto x = attn::detail::make_tensor<float, Rank>(shape);
  fill(x.data(), x.size(), seed);
  return x;
}

// ---- Checks, of a sample of the result ----------------------------------------------------------------------------

/// Whether y is what x [rows,in], the weight and the bias say, at 200 places, by a double loop.
inline bool check_linear(const attn::Linear<float>& linear, const float* x, Index rows, const float* y) {
  const Index in = linear.in_features(), out = linear.out_features();
  const Tensor<float, 1> bias = linear.bias();
  Tensor<float, 1> weight(in);
  for (Index i = 0; i < 200; ++i) {
    const Index row = i < 2 ? i * (rows - 1) : i * 7919 % rows, o = i < 2 ? i * (out - 1) : i * 6007 % out;
    linear.weight_row(o, weight);
    double sum = bias.size() > 0 ? bias(o) : 0.0, size = std::abs(sum);
    for (Index j = 0; j < in; ++j) {
      const double product = double{x[row * in + j]} * double{weight(j)};
      sum += product;
      size += std::abs(product);
    }
    if (!(std::abs(sum - double{y[row * out + o]}) <= 1e-6 * size)) return false;
  }
  return true;
}

/// One row [Dv] of attention by attn::reference in double: batch entry b, head h, query s.
template <class M, class F>
[[nodiscard]] Tensor<double, 4> attention_row(View<const float, 4> q, View<const float, 4> k, View<const float, 4> v,
                                              const M& mask, const F& score, Index b, Index h, Index s) {
  const auto part = [b](View<const float, 4> x, Index head, Index first, Index rows) {
    auto to = attn::detail::make_tensor<double, 4>({1, 1, rows, x.dimension(3)});
    for (Index row = 0; row < rows; ++row)
      for (Index d = 0; d < x.dimension(3); ++d) to(0, 0, row, d) = x(b, head, first + row, d);
    return to;
  };
  const Index g = h / (q.dimension(1) / k.dimension(1)), T = k.dimension(2), start = T - q.dimension(2) + s;
  auto y = attn::detail::make_tensor<double, 4>({1, 1, 1, v.dimension(3)});
  attn::AttentionOptions options;
  options.query_start = {&start, 1};
  const auto row = part(q, h, s, 1), keys = part(k, g, 0, T), values = part(v, g, 0, T);
  attn::reference::scaled_dot_product_attention_into<double>({y, {}, {}}, row, keys, values, mask, score, options);
  return y;
}

// ---- Counters ----------------------------------------------------------------------------------------------------

using Counter = benchmark::Counter;

/// One iteration is `operations` of arithmetic: GFLOP/s, and the share of what the units can do.
inline void count_operations(benchmark::State& state, double operations) {
  state.counters["GFLOP/s"] = Counter(operations * 1e-9, Counter::kIsIterationInvariantRate);
  state.counters["share_of_peak"] = Counter(operations / peak(), Counter::kIsIterationInvariantRate);
}
/// One iteration moves `bytes`: GB/s, and the share of the read bandwidth.
inline void count_bytes(benchmark::State& state, double bytes) {
  state.counters["GB/s"] = Counter(bytes * 1e-9, Counter::kIsIterationInvariantRate);
  state.counters["share_of_bandwidth"] = Counter(bytes / bandwidth(), Counter::kIsIterationInvariantRate);
}

/// B, S, E, H of every benchmark of attention.
inline void module_shapes(benchmark::internal::Benchmark* it) {
  it->ArgNames({"B", "S", "E", "H"})->Unit(benchmark::kMillisecond)->UseRealTime();
  for (const auto& shape : {std::array<Index, 4>{8, 128, 256, 8}, {1, 1024, 768, 12}, {1, 2048, 1024, 8},
                            {1, 512, 4096, 32}, {1, 2048, 4096, 32}})
    it->Args({shape.begin(), shape.end()});
}

inline int run(int argc, char** argv) {
  try {
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    benchmark::AddCustomContext("isa", std::string(attn::isa_name(attn::active_isa())));
    benchmark::AddCustomContext("threads", std::to_string(attn::current_executor().concurrency()));
    benchmark::AddCustomContext("peak", std::to_string(std::lround(peak() * 1e-9)) + " GFLOP/s");
    benchmark::AddCustomContext("bandwidth", std::to_string(std::lround(bandwidth() * 1e-9)) + " GB/s");
    benchmark::RunSpecifiedBenchmarks();
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}

}  // namespace attn_bench
