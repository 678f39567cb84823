#pragma once
// What the benchmarks share: inputs, checks that come before timing, the timed loop with its counters, shapes, main.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <attn/attn.hpp>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "machine.hpp"

namespace attn_bench {

using attn::Tensor;
using attn::View;

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
[[nodiscard]] Tensor<float, Rank> random(const std::type_identity_t<std::array<Index, std::size_t{Rank}>>& shape,
                                         std::uint32_t seed) {
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

inline bool rejected = false;

/// What a benchmark does whose result is wrong: it is not timed, and the program fails.
inline void reject(benchmark::State& state) {
  rejected = true;
  state.SkipWithError("wrong result");
}

// ---- Timing ------------------------------------------------------------------------------------------------------

/// What one run does: arithmetic, bytes that it must move, or both.
struct Work {
  double operations = 0.0, bytes = 0.0;
};

/// The middle of some numbers.
inline double median(std::vector<double> numbers) {
  std::sort(numbers.begin(), numbers.end());
  return (numbers[(numbers.size() - 1) / 2] + numbers[numbers.size() / 2]) / 2.0;
}

/// What part of the machine's limit the work reaches: the median over pairs of a burst of the work, of some 50 ms, and one
/// of the limit. A limit that was measured once, before the work, was off by 30 % on a shared host.
template <class Run, class Limit>
double share_of(double amount, const Run& run, const Limit& limit) {
  constexpr int pairs = 9;
  const int runs = std::max(1, static_cast<int>(0.05 / seconds(run)));
  std::vector<double> shares;
  for (int pair = 0; pair < pairs; ++pair) {
    const double time = seconds([&] {
      for (int i = 0; i < runs; ++i) run();
    });
    shares.push_back(amount * runs / time / limit());
  }
  return median(shares);
}

/// How much less time one way takes than another: the median over alternating pairs of their times, with the least and the
/// largest ratio. Both give the time of one run, in the mean over a burst.
template <class Reference, class Run>
void compare_in_pairs(benchmark::State& state, const char* name, const Reference& reference, const Run& run) {
  reference(), run();
  std::vector<double> ratios;
  for (int pair = 0; pair < 9; ++pair) {
    const double time = reference();
    ratios.push_back(time / run());
  }
  state.counters[name] = median(ratios);
  state.counters["least"] = *std::ranges::min_element(ratios);
  state.counters["largest"] = *std::ranges::max_element(ratios);
}

/// The timed loop. Counters: GFLOP/s and the share of what the units can do; GB/s and the share of the read bandwidth.
template <class Run>
void time_runs(benchmark::State& state, Work work, const Run& run) {
  const double time = seconds([&] {
    for (auto _ : state) {
      run();
      benchmark::ClobberMemory();
    }
  });
  const double rate = static_cast<double>(state.iterations()) / time;
  if (work.operations > 0.0) {
    state.counters["GFLOP/s"] = work.operations * rate * 1e-9;
    state.counters["share_of_peak"] = share_of(work.operations, run, peak_burst);
  }
  if (work.bytes > 0.0) {
    state.counters["GB/s"] = work.bytes * rate * 1e-9;
    state.counters["share_of_bandwidth"] = share_of(work.bytes, run, bandwidth_burst);
  }
}

/// What programs that time pairs are told: [--pairs N] [--json FILE].
struct PairOptions {
  int pairs = 9;
  std::ofstream json;  // where it is not open, what is written goes nowhere

  PairOptions(int argc, char** argv) {
    for (int i = 1; i < argc; i += 2) {
      const std::string flag = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
      if (flag == "--pairs" && std::atoi(value.c_str()) > 0) {
        pairs = std::atoi(value.c_str());
      } else if (flag == "--json" && !value.empty()) {
        json.open(value);
        if (!json) throw std::runtime_error("cannot write " + value);
      } else {
        throw std::runtime_error("expected [--pairs N] [--json FILE], got " + flag + " " + value);
      }
    }
  }
};

/// B, S, E, H of every benchmark of attention.
inline void module_shapes(benchmark::internal::Benchmark* it) {
  it->ArgNames({"B", "S", "E", "H"})->Unit(benchmark::kMillisecond)->UseRealTime();
  for (const auto& shape : {std::array<Index, 4>{8, 128, 256, 8},
                            {1, 1024, 768, 12},
                            {1, 2048, 1024, 8},
                            {1, 512, 4096, 32},
                            {1, 2048, 4096, 32}})
    it->Args({shape.begin(), shape.end()});
}

inline int run(int argc, char** argv) {
  try {
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    benchmark::AddCustomContext("isa", std::string(attn::isa_name(attn::active_isa())));
    benchmark::AddCustomContext("threads", std::to_string(attn::current_executor().concurrency()));
    benchmark::AddCustomContext("peak", std::to_string(std::lround(best_of(10, peak_burst) * 1e-9)) + " GFLOP/s");
    benchmark::AddCustomContext("bandwidth", std::to_string(std::lround(best_of(5, bandwidth_burst) * 1e-9)) + " GB/s");
    benchmark::RunSpecifiedBenchmarks();
    return rejected ? 1 : 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}

}  // namespace attn_bench
