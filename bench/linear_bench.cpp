// attn::Linear: a prompt, limited by multiply-adds; a token, limited by reading the weight.
#include <vector>

#include "support.hpp"

namespace attn_bench {
namespace {

using attn::Linear;

/// rows x in -> rows x out, the sizes M, K and N of a product of matrices.
void time_linear(benchmark::State& state) {
  const Index M = state.range(0), N = state.range(1), K = state.range(2);
  const Linear<float> linear(K, N);
  const auto x = random<2>({M, K}, 1);
  auto y = linear.forward(x);
  if (!check_linear(linear, x.data(), M, y.data())) return reject(state);
  time_runs(state, {.operations = 2.0 * static_cast<double>(M * N * K)}, [&] { linear.forward_into(y, x); });
}

void linear(benchmark::State& state) { time_linear(state); }
BENCHMARK(linear)
    ->ArgNames({"M", "N", "K"})
    ->Args({512, 4096, 4096})
    ->Args({2048, 1024, 1024})
    ->Args({1024, 768, 768})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

/// The matrix tile: one core, everything in its L2 cache.
void linear_one_core(benchmark::State& state) {
  attn::SerialExecutor serial;
  const attn::UseExecutor use(serial);
  time_linear(state);
}
BENCHMARK(linear_one_core)
    ->ArgNames({"M", "N", "K"})
    ->Args({192, 512, 256})
    ->Unit(benchmark::kMicrosecond)
    ->UseRealTime();

/// One row, as in decoding. As in a model, one layer follows another: 1 GiB of weights in all, so none waits in a
/// cache.
void linear_one_row(benchmark::State& state) {
  const Index N = state.range(0), K = state.range(1);
  const std::vector<Linear<float>> layers(static_cast<std::size_t>((Index{1} << 28) / (N * K)), Linear<float>(K, N));
  const auto x = random<2>({1, K}, 1);
  auto y = layers.back().forward(x);
  if (!check_linear(layers.back(), x.data(), 1, y.data())) return reject(state);
  std::size_t layer = 0;
  time_runs(state, {.bytes = 4.0 * static_cast<double>(N * K)},
            [&] { layers[layer++ % layers.size()].forward_into(y, x); });
}
BENCHMARK(linear_one_row)->ArgNames({"N", "K"})->Args({4096, 4096})->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
}  // namespace attn_bench

int main(int argc, char** argv) { return attn_bench::run(argc, argv); }
