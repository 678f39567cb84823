#pragma once
// What the tests of gradients share: attention's gradients by attn::reference in double, and the bar that answers must meet.

#include "support.hpp"

namespace attn_test {

/// All gradients of an attention, as double.
struct GradientAnswer {
  Tensor<double, 4> q, k, v, mask, score_bias;
};

/// What a backward pass is asked for besides q, k, v: weights of the output and of log-sum-exp.
template <class T>
struct OutputGradients {
  Tensor<T, 4> output;
  Tensor<attn::Accumulator<T>, 3> log_sum_exp;
};
template <class T>
[[nodiscard]] OutputGradients<T> random_gradients(const Sizes& n, unsigned seed) {
  return {random_tensor<T, 4>({n.B, n.H, n.S, n.Dv}, seed),
          random_tensor<attn::Accumulator<T>, 3>({n.B, n.H, n.S}, seed + 1)};
}

/// attn::reference's gradients.
template <class T, class M, class F>
[[nodiscard]] GradientAnswer gradients_by_reference(const Inputs<T>& in, const OutputGradients<T>& grad, const M& mask,
                                                    const F& score, const attn::AttentionOptions& options) {
  using A = attn::Accumulator<T>;
  auto q = in.q, k = in.k, v = in.v;
  Tensor<A, 4> of_mask(0, 0, 0, 0), of_bias(0, 0, 0, 0);
  attn::AttentionGradientOutputs<T> out{q, k, v, {}, {}};
  if constexpr (attn::detail::additive_masks<M> == 1) {
    of_mask = attn::detail::make_tensor<A, 4>(attn::detail::additive_shape(mask));
    if (options.mask_gradient) out.mask = View<A, 4>(of_mask);
  }
  if constexpr (attn::detail::score_biases<F> == 1) {
    of_bias = attn::detail::make_tensor<A, 4>(attn::detail::bias_shape(score));
    if (options.score_bias_gradient) out.score_bias = View<A, 4>(of_bias);
  }
  const Tensor<T, 4> y = grad.output;  // the results of the forward call are not used
  const auto sums = attn::detail::make_tensor<A, 3>({y.dimension(0), y.dimension(1), y.dimension(2)});
  const View<const A, 3> of_sums =
      grad.log_sum_exp.size() > 0 ? View<const A, 3>(grad.log_sum_exp) : View<const A, 3>();
  attn::reference::scaled_dot_product_attention_backward_into(out, grad.output, in.q, in.k, in.v, y, sums, mask, score,
                                                              options, of_sums);
  return {cast<double>(q), cast<double>(k), cast<double>(v), cast<double>(of_mask), cast<double>(of_bias)};
}

/// Twice the plain formula's error in float; where that is next to nothing, some ulp of the largest gradient. For double,
/// 2^-29 times as much, and twice that. For half and bfloat16 the output that forward rounded is part of each score's
/// gradient: some ulp of that type.
template <class T, class G>
void expect_gradient(const char* what, const Tensor<G, 4>& got, const Tensor<double, 4>& exact,
                     const Tensor<double, 4>& in_float) {
  ASSERT_EQ(attn::detail::shape_of(got), attn::detail::shape_of(exact)) << what;
  const double size = magnitude(exact);
  double bar =
      std::max(2 * difference(in_float, exact).largest, 16 * double{std::numeric_limits<float>::epsilon()} * size);
  if constexpr (std::is_same_v<T, double>) bar *= 2 * 0x1p-29;
  bar += 4 * storage_error<T> * size;
  for (Index i = 0; i < got.size(); ++i) {
    const double expected = exact.data()[i];
    ASSERT_LE(difference_of(to<double>(got.data()[i]), expected), bar)
        << what << " at " << i << " of " << got.size() << ", expected " << expected << ", the largest is " << size;
  }
}

/// The fused gradients of an attention with this mask and score are those of attn::reference.
template <class T, class M, class F>
void expect_gradients(const Inputs<T>& in, const M& mask, const F& score, attn::AttentionOptions options = {}) {
  SCOPED_TRACE(testing::Message() << in.n);
  const auto grad = random_gradients<T>(in.n, 77);
  options.log_sum_exp = true;
  options.mask_gradient = attn::detail::additive_masks<M> == 1;
  options.score_bias_gradient = attn::detail::score_biases<F> == 1;
  const OutputGradients<double> grad_in_double{cast<double>(grad.output), cast<double>(grad.log_sum_exp)};
  const OutputGradients<float> grad_in_float{cast<float>(grad.output), cast<float>(grad.log_sum_exp)};
  const auto exact = gradients_by_reference(cast<double>(in), grad_in_double, mask, score, options);
  const auto in_float = gradients_by_reference(cast<float>(in), grad_in_float, mask, score, options);
  const auto result = attn::scaled_dot_product_attention(in.q, in.k, in.v, mask, score, options);
  const auto got = attn::scaled_dot_product_attention_backward(grad.output, in.q, in.k, in.v, result, mask, score,
                                                               options, grad.log_sum_exp);
  expect_gradient<T>("gradient of q", got.q, exact.q, in_float.q);
  expect_gradient<T>("gradient of k", got.k, exact.k, in_float.k);
  expect_gradient<T>("gradient of v", got.v, exact.v, in_float.v);
  if (options.mask_gradient) expect_gradient<T>("gradient of the mask", got.mask, exact.mask, in_float.mask);
  if (options.score_bias_gradient)
    expect_gradient<T>("gradient of the ScoreBias", got.score_bias, exact.score_bias, in_float.score_bias);
}

}  // namespace attn_test
