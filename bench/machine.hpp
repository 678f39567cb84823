#pragma once
// What the machine can do at most, measured in the same run as what is held against it: multiply-adds with the active
// instruction set, and bytes read from memory, both with as many threads as the current executor has.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <attn/attn.hpp>
#include <chrono>
#include <cstddef>

namespace attn_bench {

using attn::Index;

typedef float Vector16 __attribute__((vector_size(16)));
typedef float Vector32 __attribute__((vector_size(32)));
typedef float Vector64 __attribute__((vector_size(64)));

/// `rounds` times 12 independent multiply-adds, all in registers: 2 units of 4 to 5 cycles want 8 to 10 of them, 16
/// registers hold 14.
template <class V>
__attribute__((always_inline)) inline float multiply_add_loop(Index rounds) {
  constexpr int chains = 12;
  const volatile float half = 0.5F;  // unknown to the compiler; sums tend to 1
  const V a = V{} + half;
  V sum[chains];
  for (V& s : sum) s = V{} + half;  // each read anew, so that no two chains can be made one
  for (Index i = 0; i < rounds; ++i) _Pragma("GCC unroll 12") for (int c = 0; c < chains; ++c) sum[c] = sum[c] * a + a;
  for (int c = 1; c < chains; ++c) sum[0] += sum[c];
  return sum[0][0];
}

/// Adds up n floats, a multiple of 256, as 8 streams: one alone reached 0.75 of what 8 do.
template <class V>
__attribute__((always_inline)) inline float read_loop(const float* from, Index n) {
  constexpr int streams = 8;
  V sum[streams] = {};
  for (Index i = 0; i < n / streams; i += Index{sizeof(V) / sizeof(float)})
    _Pragma("GCC unroll 8") for (int s = 0; s < streams; ++s) {
      V v;
      __builtin_memcpy(&v, from + s * (n / streams) + i, sizeof v);
      sum[s] += v;
    }
  for (int s = 1; s < streams; ++s) sum[0] += sum[s];
  return sum[0][0];
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
    case attn::Isa::avx512:
      sum = multiply_add_avx512(rounds), lanes = 16;
      break;
    case attn::Isa::avx2:
      sum = multiply_add_avx2(rounds), lanes = 8;
      break;
#endif
    case attn::Isa::baseline:
    default:
      sum = multiply_add_loop<Vector16>(rounds);
  }
  benchmark::DoNotOptimize(sum);
  return 2.0 * 12 * lanes * static_cast<double>(rounds);
}
inline void read(const float* from, Index n) {
  float sum = 0.F;
  switch (attn::active_isa()) {
#if ATTN_X86_TARGETS
    case attn::Isa::avx512:
      sum = read_avx512(from, n);
      break;
    case attn::Isa::avx2:
      sum = read_avx2(from, n);
      break;
#endif
    case attn::Isa::baseline:
    default:
      sum = read_loop<Vector16>(from, n);
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

/// Multiply-adds per second, counted as two operations, of all threads of the current executor: one burst of some 10 ms.
inline double peak_burst() {
  constexpr Index rounds = 4'000'000;
  const int threads = attn::current_executor().concurrency();
  double operations = 0.0;
  const double time = seconds([&] {
    attn::current_executor().parallel_for(threads, [&](int worker) {
      const double done = multiply_add(rounds);
      if (worker == 0) operations = done * threads;
    });
  });
  return operations / time;
}

/// Bytes per second that all threads read together from 1 GiB, more than caches hold: one burst.
inline double bandwidth_burst() {
  constexpr Index floats = Index{1} << 28;
  static const attn::AlignedVector<float> memory(static_cast<std::size_t>(floats), 1.F);
  const int threads = attn::current_executor().concurrency();
  const Index share = floats / threads / 256 * 256;
  const double time = seconds([&] {
    attn::current_executor().parallel_for(threads, [&](int worker) { read(memory.data() + worker * share, share); });
  });
  return static_cast<double>(share * threads) * 4.0 / time;
}

/// The best of several bursts: what the machine can do if nothing else runs, for the heading of a report.
template <class Burst>
double best_of(int bursts, const Burst& burst) {
  double best = 0.0;
  while (bursts-- > 0) best = std::max(best, burst());
  return best;
}

}  // namespace attn_bench
