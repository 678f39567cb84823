// attn::scaled_dot_product_attention on heads of [B,S,E] tensors, as the module has them. Causal attention is counted
// as half the work of full attention.
#include <vector>

#include "support.hpp"

namespace attn_bench {
namespace {

using View4 = View<const float, 4>;

template <class M, class F>
bool check_attention(View4 q, View4 k, View4 v, const M& mask, const F& score, View4 y) {
  const Index B = q.dimension(0), H = q.dimension(1), S = q.dimension(2);
  for (Index i = 0; i < 12; ++i) {
    const Index b = i % B, h = i * 5 % H, s = i < 2 ? i * (S - 1) : i * 7919 % S;
    const auto row = attention_row(q, k, v, mask, score, b, h, s);
    for (Index d = 0; d < v.dimension(3); ++d)
      if (!(std::abs(row(0, 0, 0, d) - double{y(b, h, s, d)}) <= 1e-5)) return false;
  }
  return true;
}

template <class M, class F = attn::NoScore>
void time_attention(benchmark::State& state, double share, const M& mask, const F& score = {}) {
  const Index B = state.range(0), S = state.range(1), E = state.range(2), H = state.range(3);
  const auto q = random<3>({B, S, E}, 1), k = random<3>({B, S, E}, 2), v = random<3>({B, S, E}, 3);
  Tensor<float, 3> y(B, S, E);
  const View4 heads[] = {attn::split_heads(q, H), attn::split_heads(k, H), attn::split_heads(v, H)};
  const auto run = [&] {
    attn::scaled_dot_product_attention_into(attn::split_heads(y, H), heads[0], heads[1], heads[2], mask, score);
  };
  run();
  if (!check_attention(heads[0], heads[1], heads[2], mask, score, attn::split_heads(y, H))) return reject(state);
  time_runs(state, {.operations = share * 4.0 * static_cast<double>(B * S * S * E)}, run);
}

void full(benchmark::State& state) { time_attention(state, 1.0, attn::NoMask{}); }
void causal(benchmark::State& state) { time_attention(state, 0.5, attn::Causal{}); }
void causal_with_lambda(benchmark::State& state) {
  time_attention(state, 0.5, attn::Causal{},
                 [](auto score, attn::Position at) { return score - 0.01F * std::abs(at.distance()); });
}
BENCHMARK(full)->Apply(module_shapes);
BENCHMARK(causal)->Apply(module_shapes);
BENCHMARK(causal_with_lambda)->Apply(module_shapes);

/// q, k and v in 16 bits beside the same in float: `of_float` is float's time by theirs.
template <class T, class M>
void prefill_in(benchmark::State& state, double share, const M& mask) {
  const Index B = state.range(0), S = state.range(1), E = state.range(2), H = state.range(3);
  Tensor<float, 3> in_float[3], y(B, S, E);
  Tensor<T, 3> in_bits[3], low(B, S, E);
  for (unsigned i = 0; i < 3; ++i) {
    in_bits[i] = random<3>({B, S, E}, i + 1).template cast<T>();
    in_float[i] = in_bits[i].template cast<float>();
  }
  const auto run = [&](auto& to, const auto& from) {
    attn::scaled_dot_product_attention_into(attn::split_heads(to, H), attn::split_heads(from[0], H),
                                            attn::split_heads(from[1], H), attn::split_heads(from[2], H), mask);
  };
  run(y, in_float), run(low, in_bits);
  for (Index i = 0; i < y.size(); i += 97)
    if (!(std::abs(static_cast<float>(low.data()[i]) - y.data()[i]) <= 1e-3F + 0x1p-8F * std::abs(y.data()[i])))
      return reject(state);
  time_runs(state, {.operations = share * 4.0 * static_cast<double>(B * S * S * E)}, [&] { run(low, in_bits); });
  compare_in_pairs(
      state, "of_float", [&] { return seconds([&] { run(y, in_float); }); },
      [&] { return seconds([&] { run(low, in_bits); }); });
}
template <class T>
void full_in(benchmark::State& state) {
  prefill_in<T>(state, 1.0, attn::NoMask{});
}
template <class T>
void causal_in(benchmark::State& state) {
  prefill_in<T>(state, 0.5, attn::Causal{});
}
BENCHMARK(full_in<Eigen::bfloat16>)->Apply(module_shapes);
BENCHMARK(causal_in<Eigen::bfloat16>)->Apply(module_shapes);
BENCHMARK(full_in<Eigen::half>)->Apply(module_shapes);
BENCHMARK(causal_in<Eigen::half>)->Apply(module_shapes);

/// One query per head over a cache of T keys. As in a model, each layer has a cache of its own: 1 GiB in all.
void decode(benchmark::State& state) {
  const Index H = state.range(0), G = state.range(1), D = state.range(2), T = state.range(3);
  const auto q = random<4>({1, H, 1, D}, 1);
  const auto k = random<4>({1, G, T, D}, 2), v = random<4>({1, G, T, D}, 3);
  attn::KvCache<float> filled(1, G, T, D);
  filled.append(View4(k), View4(v));
  const std::vector<attn::KvCache<float>> layers(static_cast<std::size_t>((Index{1} << 27) / (G * T * D)), filled);
  Tensor<float, 4> y(1, H, 1, D);
  std::size_t layer = 0;
  const auto run = [&] {
    const auto& cache = layers[layer++ % layers.size()];
    attn::scaled_dot_product_attention_into(y, q, cache.keys(), cache.values());
  };
  run();
  if (!check_attention(q, k, v, attn::NoMask{}, attn::NoScore{}, y)) return reject(state);
  time_runs(state, {.bytes = 8.0 * static_cast<double>(G * T * D)}, run);
}
BENCHMARK(decode)
    ->ArgNames({"H", "G", "D", "T"})
    ->Args({32, 8, 128, 4096})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

/// The same over caches in a format, 512 MB of them, beside as many bytes of caches in float: `of_float` is float's time by
/// theirs.
void decode_format(benchmark::State& state) {
  const auto format = static_cast<attn::CacheFormat>(state.range(0));
  const Index H = state.range(1), G = state.range(2), D = state.range(3), T = state.range(4);
  state.SetLabel(std::string(attn::cache_format_name(format)));
  const auto q = random<4>({1, H, 1, D}, 1);
  const auto k = random<4>({1, G, T, D}, 2), v = random<4>({1, G, T, D}, 3);
  attn::KvCache<float> in_float(1, G, T, D), in_format(1, G, T, D, D, format, format);
  in_float.append(View4(k), View4(v));
  in_format.append(View4(k), View4(v));
  constexpr Index bits[] = {32, 16, 16, 8};
  const Index count = (Index{1} << 26) / (G * T * D);
  const std::vector<attn::KvCache<float>> floats(static_cast<std::size_t>(count), in_float);
  const std::vector<attn::KvCache<float>> caches(static_cast<std::size_t>(count * 32 / bits[state.range(0)]),
                                                 in_format);
  Tensor<float, 4> y(1, H, 1, D);
  const auto round = [&](const std::vector<attn::KvCache<float>>& all) {
    return seconds([&] {
             for (const auto& cache : all) attn::scaled_dot_product_attention_into(y, q, cache);
           }) /
           static_cast<double>(all.size());
  };
  attn::scaled_dot_product_attention_into(y, q, in_format);
  const auto keys = in_format.read_keys(), values = in_format.read_values();
  if (!check_attention(q, keys, values, attn::NoMask{}, attn::NoScore{}, y)) return reject(state);
  time_runs(state, {}, [&] { attn::scaled_dot_product_attention_into(y, q, caches.front()); });
  compare_in_pairs(
      state, "of_float", [&] { return round(floats); }, [&] { return round(caches); });
}
BENCHMARK(decode_format)
    ->ArgNames({"format", "H", "G", "D", "T"})
    ->ArgsProduct({{1, 2, 3}, {32}, {8}, {128}, {4096}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace attn_bench

int main(int argc, char** argv) { return attn_bench::run(argc, argv); }
