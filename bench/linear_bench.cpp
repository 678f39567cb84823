// attn::Linear: a prompt, forward and backward, limited by multiply-adds; a token, limited by reading the weight.
#include <vector>

#include "support.hpp"

namespace attn_bench {
namespace {

using attn::Linear;
using attn::WeightFormat;

/// rows x in -> rows x out, the sizes M, K and N of a product of matrices.
void time_linear(benchmark::State& state) {
  const Index M = state.range(0), N = state.range(1), K = state.range(2);
  const Linear<float> linear(K, N);
  const auto x = random<2>({M, K}, 1);
  auto y = linear.forward(x);
  if (!check_linear(linear, x.data(), M, y.data())) return reject(state);
  time_runs(state, {.operations = 2.0 * static_cast<double>(M * N * K)}, [&] { linear.forward_into(y, x); });
}

void linear_shapes(benchmark::internal::Benchmark* it) {
  it->ArgNames({"M", "N", "K"})->Unit(benchmark::kMillisecond)->UseRealTime();
  it->Args({512, 4096, 4096})->Args({2048, 1024, 1024})->Args({1024, 768, 768});
}
void linear(benchmark::State& state) { time_linear(state); }
BENCHMARK(linear)->Apply(linear_shapes);

/// Whether the gradients of one backward pass are what x [rows,in], grad_y [rows,out] and the weight say, at 100 places
/// each, by a double loop.
bool check_gradients(const Linear<float>& linear, const Tensor<float, 2>& x, const Tensor<float, 2>& grad_y,
                     const Tensor<float, 2>& grad_x) {
  const Index M = x.dimension(0), N = grad_y.dimension(1), K = x.dimension(1);
  const auto weight = linear.weight(), of_weight = linear.weight_gradient();
  const auto of_bias = linear.bias_gradient();
  const auto is_sum = [](Index terms, const auto& term, float result) {
    double sum = 0.0, size = 0.0;
    for (Index i = 0; i < terms; ++i) sum += term(i), size += std::abs(term(i));
    return std::abs(sum - double{result}) <= 1e-6 * size;
  };
  for (Index i = 0; i < 100; ++i) {
    const Index m = i < 2 ? i * (M - 1) : i * 7919 % M, n = i < 2 ? i * (N - 1) : i * 6007 % N,
                k = i < 2 ? i * (K - 1) : i * 5003 % K;
    if (!is_sum(
            N, [&](Index j) { return double{grad_y(m, j)} * double{weight(j, k)}; }, grad_x(m, k)))
      return false;
    if (!is_sum(
            M, [&](Index j) { return double{grad_y(j, n)} * double{x(j, k)}; }, of_weight(n, k)))
      return false;
    if (!is_sum(
            M, [&](Index j) { return double{grad_y(j, n)}; }, of_bias(n)))
      return false;
  }
  return true;
}

/// All gradients of one layer. share_of_forward: how its rate compares with that of forward, in bursts that alternate.
void linear_backward(benchmark::State& state) {
  const Index M = state.range(0), N = state.range(1), K = state.range(2);
  Linear<float> linear(K, N);
  const auto x = random<2>({M, K}, 1), grad_y = random<2>({M, N}, 2);
  auto y = linear.forward(x), grad_x = linear.backward(grad_y, x);
  if (!check_gradients(linear, x, grad_y, grad_x)) return reject(state);
  const double operations = 2.0 * static_cast<double>(M * N * K);
  const auto backward = [&] { linear.backward_into(grad_x, grad_y, x); };
  time_runs(state, {.operations = 2.0 * operations}, backward);
  state.counters["share_of_forward"] = share_of(2.0 * operations, backward, [&] {
    constexpr int runs = 4;
    const double time = seconds([&] {
      for (int i = 0; i < runs; ++i) linear.forward_into(y, x);
    });
    return operations * runs / time;
  });
}
BENCHMARK(linear_backward)->Apply(linear_shapes);

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

/// Whether y is what x [rows,in] and the weight as it is stored say, at 200 places, by a double loop. Formats with groups
/// may round each input by half a step of its group of 32.
bool check_format(const Linear<float>& linear, const Tensor<float, 2>& x, const Tensor<float, 2>& y) {
  const Index rows = x.dimension(0), in = linear.in_features(), out = linear.out_features();
  const bool rounds = is_grouped(linear.weight_format());
  const Tensor<float, 1> bias = linear.bias();
  Tensor<float, 1> weight(in);
  for (Index i = 0; i < 200; ++i) {
    const Index row = i * 7919 % rows, o = i * 6007 % out;
    linear.weight_row(o, weight);
    double sum = double{bias(o)}, bar = 1e-6 * std::abs(sum);
    for (Index first = 0; first < in; first += 32) {
      double largest = 0, weights = 0;
      for (Index j = first; j < std::min(first + 32, in); ++j) {
        sum += double{x(row, j)} * double{weight(j)};
        largest = std::max(largest, std::abs(double{x(row, j)}));
        weights += std::abs(double{weight(j)});
      }
      bar += largest * weights * (1e-6 + (rounds ? 0.501 / 127 : 0.0));
    }
    if (!(std::abs(sum - double{y(row, o)}) <= bar)) return false;
  }
  return true;
}

/// Layers whose weights are stored in a format, beside the same in float: `of_float` is the median over alternating rounds of
/// float's time by theirs, with the least and the largest. 512 MB of weights each, so none waits in a cache.
void linear_format(benchmark::State& state) {
  const auto format = static_cast<WeightFormat>(state.range(0));
  const Index rows = state.range(1), N = state.range(2), K = state.range(3);
  state.SetLabel(std::string(attn::weight_format_name(format)));
  const auto round = [&](const auto& layers, const auto& x, auto& y) {
    return seconds([&] {
             for (const auto& layer : layers) layer.forward_into(y, x);
           }) /
           static_cast<double>(layers.size());
  };
  const Linear<float> layer(K, N);
  Linear<float> in_format(layer);
  in_format.store_weights(format);
  constexpr Index bits[] = {32, 16, 16, 8, 4};
  const Index count = rows > 64 ? 1 : (Index{1} << 27) / (N * K);
  const std::vector<Linear<float>> in_float(static_cast<std::size_t>(count), layer);
  const std::vector<Linear<float>> layers(static_cast<std::size_t>(count * 32 / bits[state.range(0)]), in_format);
  const auto x = random<2>({rows, K}, 1);
  auto y = layer.forward(x);
  if (!check_format(in_format, x, in_format.forward(x))) return reject(state);
  time_runs(state, {}, [&] { layers.front().forward_into(y, x); });
  compare_in_pairs(
      state, "of_float", [&] { return round(in_float, x, y); }, [&] { return round(layers, x, y); });
}
BENCHMARK(linear_format)
    ->ArgNames({"format", "rows", "N", "K"})
    ->ArgsProduct({{1, 2, 3, 4}, {1, 8, 512}, {4096}, {4096}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

/// A layer of bfloat16 beside one of float, whose time by the other's is `of_float`.
void linear_of_bfloat16(benchmark::State& state) {
  const Index M = state.range(0), N = state.range(1), K = state.range(2);
  const Linear<float> layer(K, N);
  const Tensor<Eigen::bfloat16, 2> weight = layer.weight().cast<Eigen::bfloat16>();
  const Tensor<Eigen::bfloat16, 1> bias = layer.bias().cast<Eigen::bfloat16>();
  const Linear<Eigen::bfloat16> low(weight, bias);
  const auto x = random<2>({M, K}, 1);
  const Tensor<Eigen::bfloat16, 2> x_low = x.cast<Eigen::bfloat16>();
  Tensor<float, 2> y(M, N);
  Tensor<Eigen::bfloat16, 2> y_low(M, N);
  layer.forward_into(y, x), low.forward_into(y_low, x_low);
  for (Index i = 0; i < y.size(); i += 101)
    if (!(std::abs(static_cast<float>(y_low.data()[i]) - y.data()[i]) <= 0.02F)) return reject(state);
  time_runs(state, {.operations = 2.0 * static_cast<double>(M * N * K)}, [&] { low.forward_into(y_low, x_low); });
  compare_in_pairs(
      state, "of_float", [&] { return seconds([&] { layer.forward_into(y, x); }); },
      [&] { return seconds([&] { low.forward_into(y_low, x_low); }); });
}
BENCHMARK(linear_of_bfloat16)->Apply(linear_shapes);

}  // namespace
}  // namespace attn_bench

int main(int argc, char** argv) { return attn_bench::run(argc, argv); }
