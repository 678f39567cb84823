// Floor 5. Parts of LlamaAttention that some models have: learned sinks, gates of the output.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

#include "llama_attention_config.hpp"
#include "memory.hpp"
#include "parallel.hpp"
#include "parameter.hpp"
#include "rms_norm.hpp"
#include "tensor.hpp"

namespace attn::detail {
inline namespace ATTN_EIGEN_ABI {

/// The score of each head's sink, and its gradient.
template <Scalar T>
struct Sinks {
  std::vector<T> scores;
  std::vector<Accumulator<T>> gradient;

  explicit Sinks(Index heads)
      : scores(static_cast<std::size_t>(heads), T(0)), gradient(static_cast<std::size_t>(heads)) {}
};

/// The norm of queries or of keys, `size` elements over all heads; null where the module has none.
template <Scalar T>
[[nodiscard]] std::shared_ptr<RmsNorm<T>> make_norm(const LlamaAttentionConfig& config, Index size) {
  const QueryKeyNorm norm = config.query_key_norm;
  if (norm == QueryKeyNorm::none) return nullptr;
  return std::make_shared<RmsNorm<T>>(
      norm == QueryKeyNorm::whole_projection ? size : config.head_dim, config.norm_epsilon,
      norm == QueryKeyNorm::per_head_one_plus_weight ? NormFactor::one_plus_weight : NormFactor::weight);
}
/// A copy of a part that a module may lack.
template <class Part>
[[nodiscard]] std::shared_ptr<Part> copy_of(const std::shared_ptr<Part>& part) {
  return part ? std::make_shared<Part>(*part) : nullptr;
}
template <class Part>
[[nodiscard]] Part& existing(std::string_view fn, const std::shared_ptr<Part>& part) {
  require(part != nullptr, fn, "module, expected one whose configuration has this part");
  return *part;
}

/// 1 / (1 + e^-x), without overflow.
template <class A>
[[nodiscard]] A sigmoid(A x) {
  const A e = std::exp(-std::abs(x));
  return x >= 0 ? 1 / (1 + e) : e / (1 + e);
}

/// Calls f(token) for each token, of about `work` multiplications each, on several threads where that pays.
template <class F>
void for_each_token(Index tokens, Index work, const F& f) {
  run_tasks(tokens, static_cast<double>(tokens) * static_cast<double>(work), 0,
            [&](Index token, std::byte*) { f(token); });
}

/// Copies between [token][heads][first + second] and its two parts [token][heads][first] and [token][heads][second].
template <Scalar T>
void split_parts(const T* joined, T* a, Index first, T* b, Index second, Index heads, Index tokens) {
  for_each_token(tokens, heads * (first + second), [&](Index token) {
    for (Index h = token * heads; h < (token + 1) * heads; ++h) {
      const T* const from = joined + h * (first + second);
      std::copy_n(from, first, a + h * first);
      std::copy_n(from + first, second, b + h * second);
    }
  });
}
template <Scalar T>
void join_parts(T* joined, const T* a, Index first, const T* b, Index second, Index heads, Index tokens) {
  for_each_token(tokens, heads * (first + second), [&](Index token) {
    for (Index h = token * heads; h < (token + 1) * heads; ++h) {
      T* const to = joined + h * (first + second);
      std::copy_n(a + h * first, first, to);
      std::copy_n(b + h * second, second, to + first);
    }
  });
}

inline constexpr Index sigmoid_work = 20;  // multiplications that a sigmoid takes, about

/// y = x sigmoid(gates), [tokens, size]. y may be x.
template <Scalar T>
void apply_gates(T* y, const T* x, const T* gates, Index tokens, Index size) {
  using A = Accumulator<T>;
  for_each_token(tokens, size * sigmoid_work, [&](Index token) {
    for (Index i = token * size; i < (token + 1) * size; ++i)
      y[i] = static_cast<T>(static_cast<A>(x[i]) * sigmoid(static_cast<A>(gates[i])));
  });
}
/// The gradients of x and of the gates from grad_y; grad_x may be grad_y.
template <Scalar T>
void apply_gates_backward(T* grad_x, T* grad_gates, const T* grad_y, const T* x, const T* gates, Index tokens,
                          Index size) {
  using A = Accumulator<T>;
  for_each_token(tokens, size * sigmoid_work, [&](Index token) {
    for (Index i = token * size; i < (token + 1) * size; ++i) {
      const A gradient = static_cast<A>(grad_y[i]), open = sigmoid(static_cast<A>(gates[i]));
      grad_gates[i] = static_cast<T>(gradient * static_cast<A>(x[i]) * (open * (1 - open)));
      grad_x[i] = static_cast<T>(gradient * open);
    }
  });
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn::detail
