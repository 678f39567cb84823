// attn::LlamaAttention, the whole layer: four projections and attention, without dropout.
#include <cmath>
#include <string>
#include <vector>

#include "support.hpp"

namespace attn_bench {
namespace {

/// y by its definition, at 100 places: projections that are checked by themselves, attention by attn::reference, the
/// output projection by a double loop.
template <class M>
bool check_layer(const attn::LlamaAttention<float>& layer, const Tensor<float, 3>& x, const M& mask,
                 const Tensor<float, 3>& y) {
  const Index B = x.dimension(0), S = x.dimension(1), E = x.dimension(2), H = layer.config().num_attention_heads;
  const auto q = layer.query().forward(x), k = layer.key().forward(x), v = layer.value().forward(x);
  if (!check_linear(layer.query(), x.data(), B * S, q.data()) ||
      !check_linear(layer.key(), x.data(), B * S, k.data()) || !check_linear(layer.value(), x.data(), B * S, v.data()))
    return false;
  const Tensor<float, 1> bias = layer.out_proj().bias();
  Tensor<float, 1> weight(E);
  for (Index i = 0; i < 2; ++i) {
    const Index b = i * (B - 1), s = i == 0 ? S / 3 : S - 1;
    std::vector<double> context;
    for (Index h = 0; h < H; ++h) {
      const auto row = attention_row(attn::split_heads(q, H), attn::split_heads(k, H), attn::split_heads(v, H), mask,
                                     attn::NoScore{}, b, h, s);
      context.insert(context.end(), row.data(), row.data() + row.size());
    }
    for (Index o = 0; o < E; o += (E + 49) / 50) {
      layer.out_proj().weight_row(o, weight);
      double sum = bias(o);
      for (Index e = 0; e < E; ++e) sum += double{weight(e)} * context[static_cast<std::size_t>(e)];
      if (!(std::abs(sum - double{y(b, s, o)}) <= 1e-5)) return false;
    }
  }
  return true;
}

template <class M>
void time_layer(benchmark::State& state, double share, const M& mask) {
  const Index B = state.range(0), S = state.range(1), E = state.range(2), H = state.range(3);
  attn::LlamaAttention<float> layer(E, H);
  layer.eval();
  const auto x = random<3>({B, S, E}, 1);
  auto y = layer.forward(x, mask);
  if (!check_layer(layer, x, mask, y)) return reject(state);
  const double per_element = 8.0 * static_cast<double>(E) + share * 4.0 * static_cast<double>(S);
  time_runs(state, {.operations = static_cast<double>(B * S * E) * per_element},
            [&] { layer.forward_into(y, x, mask); });
}

void full(benchmark::State& state) { time_layer(state, 1.0, attn::NoMask{}); }
void causal(benchmark::State& state) { time_layer(state, 0.5, attn::Causal{}); }
BENCHMARK(full)->Apply(module_shapes);
BENCHMARK(causal)->Apply(module_shapes);

/// The root mean square of y's distance from `right`, relative to that of `right`.
double relative_error(const Tensor<float, 3>& y, const Tensor<float, 3>& right) {
  double errors = 0.0, squares = 0.0;
  for (Index i = 0; i < right.size(); ++i) {
    const double x = right.data()[i], error = static_cast<double>(y.data()[i]) - x;
    squares += x * x, errors += error * error;
  }
  return std::sqrt(errors / squares);
}

/// One token after T others, with weights in a format and a cache in int8, beside the same in float: `of_float` is float's time by
/// theirs, the median of pairs in turns. Weights and cache are 400 MB in float, so nothing waits in the CPU's caches.
void token_format(benchmark::State& state) {
  const auto format = static_cast<attn::WeightFormat>(state.range(0));
  const Index E = state.range(1), H = state.range(2), T = state.range(3);
  state.SetLabel(std::string(attn::weight_format_name(format)));
  attn::LlamaAttention<float> in_float({.hidden_size = E, .num_attention_heads = H, .seed = 1});
  in_float.eval();
  attn::LlamaAttention<float> in_format(in_float);
  in_format.store_weights(format);
  auto floats = in_float.make_cache(1, T + 1), bytes = in_float.make_cache(1, T + 1, attn::CacheFormat::int8);
  const auto keys = random<4>({1, H, T, E / H}, 1), values = random<4>({1, H, T, E / H}, 2);
  floats.append(keys, values), bytes.append(keys, values);
  const auto x = random<3>({1, 1, E}, 3);
  Tensor<float, 3> y(1, 1, E), y_float(1, 1, E);
  const auto token = [&](const attn::LlamaAttention<float>& layer, attn::KvCache<float>& cache, Tensor<float, 3>& to) {
    return seconds([&] {
      layer.forward_into(to, x, attn::Causal{}, cache);
      cache.roll_back(1);
    });
  };
  token(in_float, floats, y_float), token(in_format, bytes, y);
  if (!(relative_error(y, y_float) <= (format == attn::WeightFormat::int4 ? 0.3 : 0.05))) return reject(state);
  time_runs(state, {}, [&] { token(in_format, bytes, y); });
  compare_in_pairs(
      state, "of_float", [&] { return token(in_float, floats, y_float); }, [&] { return token(in_format, bytes, y); });
}
BENCHMARK(token_format)
    ->ArgNames({"format", "E", "H", "T"})
    ->ArgsProduct({{3, 4}, {4096}, {32}, {4096}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace attn_bench

int main(int argc, char** argv) { return attn_bench::run(argc, argv); }
