// Floor 4. The definition: attention and its gradients as the formula says them, one score after the other, any scalar
// type. Every fast path is tested against these two pages. They are slow and meant to be read.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "attention.hpp"
#include "attention_backward.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {
namespace reference {

/// Computes attn::scaled_dot_product_attention_into by its definition. Same arguments, same results, same errors. One function of more
/// than 40 lines, since it is meant to be read as a whole.
template <Scalar T, Mask M, class F>
void scaled_dot_product_attention_into(const AttentionOutputs<T>& out, View<const T, 4> q, View<const T, 4> k,
                                       View<const T, 4> v, const M& mask, const F& score,
                                       const AttentionOptions& options) {
  using A = Accumulator<T>;
  const auto sizes = detail::check_attention("scaled_dot_product_attention", q, k, v, mask, score, options, out);
  const auto [B, H, G, S, Keys, D, Dv] = sizes;
  const auto problem = detail::attention_problem(sizes, q, {}, {}, options, out);
  const A never = -std::numeric_limits<A>::infinity();
  std::vector<A> p(static_cast<std::size_t>(Keys)), y(static_cast<std::size_t>(Dv));
  const auto is_never = [](A x) { return detail::bits_of(x) == detail::bits_of(-std::numeric_limits<A>::infinity()); };
  const bool output = !detail::is_absent(out.output);

  for (Index b = 0; b < B; ++b)
    for (Index h = 0; h < H; ++h)
      for (Index s = 0; s < S; ++s) {
        const Index g = h / (H / G);
        Position at = problem.position(b, h, s, 0);

        // scores = q kT * scale, then score functions, then the mask
        A largest = never;
        for (Index t = 0; t < Keys; ++t) {
          at.key = static_cast<std::int32_t>(t);
          A& x = p[static_cast<std::size_t>(t)];
          x = never;
          if (!mask.keep(at)) continue;
          A dot = 0;
          for (Index d = 0; d < D; ++d) dot += static_cast<A>(q(b, h, s, d)) * static_cast<A>(k(b, g, t, d));
          x = static_cast<A>(score(dot * problem.scale, at));
          if constexpr (detail::HasBias<M>) x += static_cast<A>(mask.bias(at));
          if (detail::is_nan(x) || (!detail::is_nan(largest) && x > largest)) largest = x;
        }

        // p = softmax(scores), where a sink is one more score; a row with no key left is 0
        const A sink = problem.sinks == nullptr ? never : static_cast<A>(problem.sinks[h]);
        if (!detail::is_nan(largest)) largest = std::max(largest, sink);
        A sum = is_never(sink) ? A{0} : std::exp(sink - largest);
        for (A& x : p) sum += x = is_never(x) ? A{0} : std::exp(x - largest);
        if (out.log_sum_exp.data() != nullptr) out.log_sum_exp(b, h, s) = kernel::log_sum_exp(largest, sum);

        // y = dropout(p) v
        std::fill(y.begin(), y.end(), A{0});
        for (Index t = 0; t < Keys; ++t) {
          A& x = p[static_cast<std::size_t>(t)];
          if (!kernel::is_zero(x)) x /= sum;
          if (problem.dropout.active())
            x *= problem.dropout.keep(static_cast<std::uint32_t>(t), static_cast<std::uint32_t>(s),
                                      static_cast<std::uint32_t>(b * H + h))
                     ? static_cast<A>(problem.dropout.scale)
                     : A{0};
          if (out.weights.data() != nullptr) out.weights(b, h, s, t) = static_cast<T>(x);
          if (kernel::is_zero(x)) continue;  // keys that no query attends are not read
          for (Index d = 0; d < Dv; ++d) y[static_cast<std::size_t>(d)] += x * static_cast<A>(v(b, g, t, d));
        }
        for (Index d = 0; d < Dv && output; ++d)
          out.output(b, h, s, d) = static_cast<T>(y[static_cast<std::size_t>(d)]);
      }
}

/// Sums of gradients, added to element by element and rounded once.
template <class T>
class GradientSums {
  using A = Accumulator<T>;

 public:
  explicit GradientSums(const View<T, 4>& gradient)
      : gradient_(gradient), sums_(static_cast<std::size_t>(gradient.size()), A{0}) {}

  /// Adds x at an index; an axis of size 1 collects all indices along it. Does nothing if the caller wants no gradient.
  void add(Index a, Index b, Index c, Index d, A x) {
    const std::array<Index, 4> at{a, b, c, d};
    std::size_t i = 0;
    for (std::size_t axis = 0; axis < 4; ++axis) {
      const Index size = gradient_.shape()[axis];
      i = i * static_cast<std::size_t>(size) + static_cast<std::size_t>(size == 1 ? 0 : at[axis]);
    }
    if (!sums_.empty()) sums_[i] += x;
  }
  void write() const {
    const auto [a, b, c, d] = gradient_.shape();
    std::size_t i = 0;
    for (Index j = 0; j < a; ++j)
      for (Index k = 0; k < b; ++k)
        for (Index l = 0; l < c; ++l)
          for (Index m = 0; m < d; ++m) gradient_(j, k, l, m) = static_cast<T>(sums_[i++]);
  }

 private:
  View<T, 4> gradient_;
  std::vector<A> sums_;
};

/// Computes attn::scaled_dot_product_attention_backward_into by its definition. Same arguments, same results, same errors, but the
/// forward call's results are not used: weights are computed anew. Longer than 40 lines for the same reason.
template <Scalar T, Mask M, class F>
void scaled_dot_product_attention_backward_into(
    const AttentionGradientOutputs<T>& out, std::type_identity_t<View<const T, 4>> grad_output,
    std::type_identity_t<View<const T, 4>> q, std::type_identity_t<View<const T, 4>> k,
    std::type_identity_t<View<const T, 4>> v, std::type_identity_t<View<const T, 4>> output,
    std::type_identity_t<View<const Accumulator<T>, 3>> log_sum_exp, const M& mask, const F& score,
    const AttentionOptions& options, std::type_identity_t<View<const Accumulator<T>, 3>> grad_log_sum_exp = {}) {
  using A = Accumulator<T>;
  static_assert(detail::explain_derivative<F, A>());
  constexpr auto fn = detail::in_attention_backward;
  const auto sizes = detail::check_attention<T>(fn, q, k, v, mask, score, options, {});
  detail::check_backward<T>(sizes, {grad_output, output, log_sum_exp, grad_log_sum_exp}, out,
                            {detail::layout_of("q", q), detail::layout_of("k", k), detail::layout_of("v", v)});
  detail::check_bias_gradients(out, mask, score);
  const auto [B, H, G, S, Keys, D, Dv] = sizes;
  const auto problem = detail::attention_problem(sizes, q, {}, {}, options, AttentionOutputs<T>{});
  GradientSums<T> grad_q(out.q), grad_k(out.k), grad_v(out.v);
  GradientSums<A> grad_mask(out.mask), grad_bias(out.score_bias);
  GradientSums<A> grad_sinks(View<A, 4>(out.sinks.data(), {1, 1, 1, out.sinks.dimension(0)}));
  std::vector<A> p(static_cast<std::size_t>(Keys)), grad_p(p), slope(p), bias_slope(p);

  for (Index b = 0; b < B; ++b)
    for (Index h = 0; h < H; ++h)
      for (Index s = 0; s < S; ++s) {
        const Index g = h / (H / G);
        Position at = problem.position(b, h, s, 0);

        // p = softmax(mask(score(q kT * scale))), and the derivatives of the score function
        const A never = -std::numeric_limits<A>::infinity();
        const A sink = problem.sinks == nullptr ? never : static_cast<A>(problem.sinks[h]);
        A largest = sink;
        for (Index t = 0; t < Keys; ++t) {
          at.key = static_cast<std::int32_t>(t);
          const auto i = static_cast<std::size_t>(t);
          p[i] = never;
          if (!mask.keep(at)) continue;
          A dot = 0;
          for (Index d = 0; d < D; ++d) dot += static_cast<A>(q(b, h, s, d)) * static_cast<A>(k(b, g, t, d));
          const Dual<A> x = detail::score_with_derivative<A>(score, dot * problem.scale, at);
          p[i] = x.value, slope[i] = x.derivative;
          if constexpr (detail::score_biases<F> == 1)
            bias_slope[i] = detail::score_with_bias_derivative<A>(score, dot * problem.scale, at).derivative;
          if constexpr (detail::HasBias<M>) p[i] += static_cast<A>(mask.bias(at));
          largest = std::max(largest, p[i]);
        }
        const auto weight = [&](A x) {
          return detail::bits_of(x) == detail::bits_of(never) ? A{0} : std::exp(x - largest);
        };
        const A of_sink = weight(sink);
        A sum = of_sink;
        for (A& x : p) sum += x = weight(x);

        // dp = dropout(dy vT), dv = dropout(p)T dy, delta = sum of p dp
        A delta = grad_log_sum_exp.data() != nullptr ? -grad_log_sum_exp(b, h, s) : A{0};
        for (Index t = 0; t < Keys; ++t) {
          const auto i = static_cast<std::size_t>(t);
          if (kernel::is_zero(p[i])) continue;  // keys that no query attends are not read
          p[i] /= sum;
          A kept = 1;
          if (problem.dropout.active())
            kept = problem.dropout.keep(static_cast<std::uint32_t>(t), static_cast<std::uint32_t>(s),
                                        static_cast<std::uint32_t>(b * H + h))
                       ? static_cast<A>(problem.dropout.scale)
                       : A{0};
          A dot = 0;
          for (Index d = 0; d < Dv; ++d) {
            const A grad_y = static_cast<A>(grad_output(b, h, s, d));
            dot += grad_y * static_cast<A>(v(b, g, t, d));
            grad_v.add(b, g, t, d, p[i] * kept * grad_y);
          }
          grad_p[i] = kept * dot;
          delta += p[i] * grad_p[i];
        }

        // dsink = -(weight of the sink) delta
        if (!kernel::is_zero(of_sink)) grad_sinks.add(0, 0, 0, h, -of_sink / sum * delta);

        // ds = p (dp - delta), then through mask and score function to q and k
        for (Index t = 0; t < Keys; ++t) {
          const auto i = static_cast<std::size_t>(t);
          if (kernel::is_zero(p[i])) continue;
          const A grad_score = p[i] * (grad_p[i] - delta), grad_dot = grad_score * slope[i] * problem.scale;
          grad_mask.add(b, h, s, t, grad_score);
          grad_bias.add(b, h, s, t, grad_score * bias_slope[i]);
          for (Index d = 0; d < D; ++d) {
            grad_q.add(b, h, s, d, grad_dot * static_cast<A>(k(b, g, t, d)));
            grad_k.add(b, g, t, d, grad_dot * static_cast<A>(q(b, h, s, d)));
          }
        }
      }
  for (const auto* sums : {&grad_q, &grad_k, &grad_v}) sums->write();
  for (const auto* sums : {&grad_mask, &grad_bias, &grad_sinks}) sums->write();
}

}  // namespace reference
}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
