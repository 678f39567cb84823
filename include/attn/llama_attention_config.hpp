// Floor 5. What a LlamaAttention is made of.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "error.hpp"
#include "math.hpp"
#include "rotary.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// What a LlamaAttention is made of. The defaults are plain multi-head attention.
struct LlamaAttentionConfig {
  Index hidden_size = 0;             ///< E
  Index num_attention_heads = 0;     ///< H
  Index num_key_value_heads = 0;     ///< G: H is multi-head, 1 multi-query, between them grouped-query; 0: H
  Index head_dim = 0;                ///< D; 0: E / H, and E must then be a multiple of H
  bool bias = true;                  ///< whether the four projections have biases
  double attention_dropout = 0.1;    ///< probability that an attention weight is dropped in training
  double projection_dropout = 0.1;   ///< probability that an element of the output is dropped in training
  OptionalRotary rotary = {};        ///< a RotaryConfig, to rotate queries and keys by position
  std::optional<Index> window = {};  ///< how many keys a query sees in every call, itself included
  /// Seeds initial weights and dropout. Where not set, each module has a seed of its own, as in PyTorch.
  std::optional<std::uint64_t> seed = {};
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn

namespace attn::detail {

/// The numbers of heads and the head size: fills in their defaults and checks that they fit each other.
[[gnu::cold]] inline void complete_heads(LlamaAttentionConfig& c) {
  constexpr auto fn = "LlamaAttention";
  require(c.hidden_size >= 1, fn, "hidden_size, expected at least 1, got ", c.hidden_size);
  require(c.num_attention_heads >= 1, fn, "num_attention_heads, expected at least 1, got ", c.num_attention_heads);
  if (c.num_key_value_heads == 0) c.num_key_value_heads = c.num_attention_heads;
  require(c.num_key_value_heads >= 1 && c.num_attention_heads % c.num_key_value_heads == 0, fn,
          "num_attention_heads, expected a multiple of num_key_value_heads = ", c.num_key_value_heads, ", got ",
          c.num_attention_heads);
  if (c.head_dim == 0) {
    require(c.hidden_size % c.num_attention_heads == 0, fn,
            "hidden_size, expected a multiple of num_attention_heads = ", c.num_attention_heads, ", got ",
            c.hidden_size);
    c.head_dim = c.hidden_size / c.num_attention_heads;
  }
  require(c.head_dim >= 1, fn, "head_dim, expected at least 1, got ", c.head_dim);
}

/// The configuration of a module of T with its defaults filled in. Errors: see LlamaAttention's constructor.
template <Scalar T>
[[gnu::cold]] LlamaAttentionConfig complete(const LlamaAttentionConfig& given) {
  LlamaAttentionConfig c = given;
  constexpr auto fn = "LlamaAttention";
  complete_heads(c);
  const std::array<Index, 3> sizes{c.num_attention_heads, c.head_dim, c.hidden_size};
  checked_size<T>(fn, "num_attention_heads, head_dim, hidden_size", as_shape(sizes));
  for (const double p : {c.attention_dropout, c.projection_dropout})
    require(is_probability(p), fn, "dropout, expected a probability in [0,1], got ", p);
  require(!c.window || *c.window >= 1, fn, "window, expected at least 1, got ", c.window.value_or(0));
  require(!c.rotary || c.head_dim % 2 == 0, fn, "head_dim, expected an even number with rotary, got ", c.head_dim);
  return c;
}

}  // namespace attn::detail
