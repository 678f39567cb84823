// What the tests of modules share beyond support.hpp: pieces of [B,S,E] tensors, and the module by its definition.
#pragma once

#include "support.hpp"

#include <vector>

namespace attn_test {

/// One ulp of 1.
inline constexpr double float_epsilon = 0x1p-23;

/// Batch entry b, rows from `first` on, of a tensor [B,S,E].
template <class T>
[[nodiscard]] Tensor<T, 3> slice(const Tensor<T, 3>& x, Index b, Index first, Index rows) {
  Tensor<T, 3> result(1, rows, x.dimension(2));
  for (Index s = 0; s < rows; ++s)
    for (Index e = 0; e < x.dimension(2); ++e) result(0, s, e) = x(b, first + s, e);
  return result;
}

/// All batch entries, rows from `first` on, of a tensor [B,S,E].
template <class T>
[[nodiscard]] Tensor<T, 3> rows_of(const Tensor<T, 3>& x, Index first, Index rows) {
  Tensor<T, 3> result(x.dimension(0), rows, x.dimension(2));
  for (Index b = 0; b < x.dimension(0); ++b)
    for (Index s = 0; s < rows; ++s)
      for (Index e = 0; e < x.dimension(2); ++e) result(b, s, e) = x(b, first + s, e);
  return result;
}

/// The largest magnitude.
template <class X>
[[nodiscard]] double largest(const X& x) {
  double result = 0.0;
  for (Index i = 0; i < x.size(); ++i) result = std::max(result, std::abs(static_cast<double>(x.data()[i])));
  return result;
}

/// The largest absolute difference; infinite where shapes differ or one side alone is NaN or infinite.
template <class T, class U, int Rank>
[[nodiscard]] double max_difference(const Tensor<T, Rank>& x, const Tensor<U, Rank>& y) {
  return x.dimensions() == y.dimensions() ? difference(x, y).largest : infinity;
}

/// `function` throws, and the text holds these parts in this order.
template <class F>
void expect_error(const F& function, std::initializer_list<std::string_view> parts) {
  EXPECT_TRUE(reads(error_of(function), parts));
}

/// The sum of y weighted by grad_y: what backward's gradients are of.
[[nodiscard]] inline double weighted_sum(const Tensor<double, 3>& y, const Tensor<double, 3>& grad_y) {
  double total = 0;
  for (Index i = 0; i < y.size(); ++i) total += y.data()[i] * grad_y.data()[i];
  return total;
}
/// Each gradient is that of central differences of `sum` when its value moves, to 1e-6 of the largest of its tensor.
template <class Sum>
void expect_differences(const std::string& what, double* values, const double* gradient, Index n, const Sum& sum) {
  double largest = 1e-2;  // a key's bias has no gradient without rotary
  for (Index i = 0; i < n; ++i) largest = std::max(largest, std::abs(gradient[i]));
  for (Index i = 0; i < n; ++i) {
    const double middle = values[i];
    values[i] = middle + 1e-5;
    const double above = sum();
    values[i] = middle - 1e-5;
    const double below = sum();
    values[i] = middle;
    ASSERT_NEAR(gradient[i], (above - below) / 2e-5, 1e-6 * largest) << what << " at " << i;
  }
}

/// The definition of a LlamaAttention in evaluation mode, computed in type U from a module's own weights: Linear by two
/// loops, Rotary, reference.hpp.
template <class U, class T>
[[nodiscard]] Tensor<U, 3> plain_linear(const attn::Linear<T>& layer, const Tensor<U, 3>& x) {
  const auto weight = cast<U>(layer.weight());
  const auto bias = cast<U>(layer.bias());
  Tensor<U, 3> y(x.dimension(0), x.dimension(1), layer.out_features());
  for (Index b = 0; b < x.dimension(0); ++b)
    for (Index s = 0; s < x.dimension(1); ++s)
      for (Index o = 0; o < layer.out_features(); ++o) {
        U sum = 0;
        for (Index i = 0; i < layer.in_features(); ++i) sum += x(b, s, i) * weight(o, i);
        y(b, s, o) = layer.has_bias() ? sum + bias(o) : sum;
      }
  return y;
}

template <class U, class T, class M = attn::NoMask>
[[nodiscard]] Tensor<U, 3> plain_module(const attn::LlamaAttention<T>& module, const Tensor<T, 3>& input,
                                        const M& mask = {}) {
  const attn::LlamaAttentionConfig& c = module.config();
  const auto x = cast<U>(input);
  auto q = plain_linear<U>(module.query(), x), k = plain_linear<U>(module.key(), x),
       v = plain_linear<U>(module.value(), x);
  const auto q_heads = attn::split_heads(q, c.num_attention_heads),
             k_heads = attn::split_heads(k, c.num_key_value_heads);
  const std::vector<Index> start(static_cast<std::size_t>(x.dimension(0)), 0);
  if (c.rotary) {
    const attn::Rotary rotary(c.head_dim, *c.rotary);
    rotary.apply(q_heads, start);
    rotary.apply(k_heads, start);
  }
  Tensor<U, 3> context(x.dimension(0), x.dimension(1), c.num_attention_heads * c.head_dim);
  const attn::AttentionOutputs<U> out{attn::split_heads(context, c.num_attention_heads), {}, {}};
  const auto all = attn::as_mask(mask) & (c.window ? attn::SlidingWindow(*c.window) : attn::SlidingWindow::unlimited());
  attn::reference::scaled_dot_product_attention_into<U>(
      out, q_heads, k_heads, attn::split_heads(v, c.num_key_value_heads), all, attn::NoScore(), {});
  return plain_linear<U>(module.out_proj(), context);
}

}  // namespace attn_test
