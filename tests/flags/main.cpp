// A program of the kind users write, without GoogleTest: it is compiled with flags and for machines that the tests
// themselves are not. With each instruction set, it compares what kernels compute with attn::reference.
#include <attn/attn.hpp>

#include <cmath>
#include <cstdint>
#include <cstdio>

namespace {

using attn::Index;
using attn::Tensor;

int differences = 0;

/// Numbers that look random, the same on every machine.
template <class T, int Rank>
void fill(Tensor<T, Rank>& x, std::uint32_t seed) {
  for (Index i = 0; i < x.size(); ++i) {
    const auto word = attn::philox4x32({static_cast<std::uint32_t>(i), seed, 0, 0}, {})[0];
    x.data()[i] = static_cast<T>(static_cast<float>(word) * 0x1p-31F - 1.F);
  }
}

/// Complains unless both tensors hold the same, up to `bar`. NaN differs from everything.
template <class T, int Rank>
void compare(const char* what, const Tensor<T, Rank>& got, const Tensor<T, Rank>& expected, double bar) {
  double worst = 0;
  for (Index i = 0; i < got.size(); ++i) {
    const double error = std::abs(static_cast<double>(got.data()[i]) - static_cast<double>(expected.data()[i]));
    worst = error <= worst ? worst : error;
  }
  if (worst <= bar) return;
  std::printf("%s, elements of %d bytes: off by %g, expected at most %g\n", what, static_cast<int>(sizeof(T)), worst,
              bar);
  ++differences;
}

/// Attention of `queries` queries with a mask that reads memory, one that is a callable, a score function and dropout.
template <class T>
void check_attention(const char* what, Index queries, double bar) {
  constexpr Index keys = 90;
  Tensor<T, 4> q(2, 4, queries, 20), k(2, 2, keys, 20), v(2, 2, keys, 11), y(2, 4, queries, 11),
      expected(2, 4, queries, 11);
  Tensor<float, 4> bias(1, 4, queries, keys);
  fill(q, 1), fill(k, 2), fill(v, 3), fill(bias, 4);
  const auto not_every_fifth = [](attn::Position at) { return at.key % 5 != 3 || at.key == at.query; };
  const auto mask = attn::Causal{} & attn::AdditiveMask(bias) & not_every_fifth;
  const auto score = [](auto x, attn::Position at) {
    return x * static_cast<decltype(x)>(2) - static_cast<decltype(x)>(at.distance()) / static_cast<decltype(x)>(16);
  };
  attn::AttentionOptions options;
  options.dropout = 0.25;
  options.seed = 5;
  attn::scaled_dot_product_attention_into(y, q, k, v, mask, score, options);
  const attn::AttentionOutputs<T> out{expected, {}, {}};
  attn::reference::scaled_dot_product_attention_into<T>(out, q, k, v, mask, score, options);
  compare(what, y, expected, bar);
}

/// y = x WT + b by its formula.
template <class T, int Rank>
Tensor<T, Rank> plain_linear(const attn::Linear<T>& layer, const Tensor<T, Rank>& x) {
  using A = attn::Accumulator<T>;
  const auto weight = layer.weight();
  const auto bias = layer.bias();
  Tensor<T, Rank> y(x.dimensions());
  const Index size = layer.in_features();
  for (Index i = 0; i < x.size(); ++i) {
    A sum = static_cast<A>(bias(i % size));
    for (Index j = 0; j < size; ++j)
      sum += static_cast<A>(x.data()[i / size * size + j]) * static_cast<A>(weight(i % size, j));
    y.data()[i] = static_cast<T>(sum);
  }
  return y;
}

/// The module in evaluation, and what its dropout makes of a tensor.
template <class T>
void check_module(double bar) {
  attn::LlamaAttention<T> module(48, 4, 0.1);
  module.eval();
  Tensor<T, 3> x(2, 33, 48), context(2, 33, 48);
  fill(x, 7);
  auto q = plain_linear(module.query(), x), k = plain_linear(module.key(), x), v = plain_linear(module.value(), x);
  const attn::AttentionOutputs<T> out{attn::split_heads(context, 4), {}, {}};
  attn::reference::scaled_dot_product_attention_into<T>(out, attn::split_heads(q, 4), attn::split_heads(k, 4),
                                                        attn::split_heads(v, 4), attn::Causal{}, attn::NoScore{}, {});
  compare("LlamaAttention", module.forward(x, attn::Causal{}), plain_linear(module.out_proj(), context), bar);

  const attn::Dropout<T> dropout(0.1, 3);
  const attn::DropoutRule rule(0.1, 3, 0);
  Tensor<T, 3> expected = x;
  for (Index i = 0; i < x.size(); ++i)
    expected.data()[i] = rule.keep(static_cast<std::uint32_t>(i), 0, 0)
                             ? static_cast<T>(static_cast<attn::Accumulator<T>>(x.data()[i]) *
                                              static_cast<attn::Accumulator<T>>(rule.scale))
                             : static_cast<T>(0);
  compare("Dropout", dropout.forward(x), expected, 0);
}

template <class T>
void check(double bar) {
  check_attention<T>("attention of many queries", 70, bar);
  check_attention<T>("attention of one query", 1, bar);
  check_module<T>(bar);
}

}  // namespace

int main() {
  for (const attn::Isa isa : attn::supported_isas()) {
    attn::set_active_isa(isa);
    std::printf("%s\n", attn::isa_name(isa).data());
    std::fflush(stdout);  // so that a crash is known by the name above it
    check<float>(1e-5);
    check<double>(1e-13);
    check<Eigen::half>(4e-3);
  }
  std::printf("%d differences\n", differences);
  return differences == 0 ? 0 : 1;
}
