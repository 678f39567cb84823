// Floor 4. The definition: attention as the formula says it, one score after the other, any scalar type.
// Every fast path is tested against this page. It is slow and meant to be read.
#pragma once

#include <algorithm>
#include <vector>

#include "attention.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {
namespace reference {

/// attn::scaled_dot_product_attention_into, by definition. Same arguments, same results, same errors. One function of more
/// than 40 lines, since it is meant to be read as a whole.
template <Scalar T, Mask M, class F>
void scaled_dot_product_attention_into(const AttentionOutputs<T>& out, View<const T, 4> q, View<const T, 4> k,
                                       View<const T, 4> v, const M& mask, const F& score,
                                       const AttentionOptions& options) {
  using A = Accumulator<T>;
  const auto sizes = detail::check_attention("scaled_dot_product_attention", q, k, v, mask, score, options, out);
  const auto [B, H, G, S, Keys, D, Dv] = sizes;
  const auto problem = detail::attention_problem(sizes, q, k, v, options, out);
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

        // p = softmax(scores); a row with no key left is 0
        A sum = 0;
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

}  // namespace reference
}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
