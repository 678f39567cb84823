// Floor 5. What a LlamaAttention is made of.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include "error.hpp"
#include "math.hpp"
#include "rotary.hpp"
#include "softcap.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// Which root mean square norm queries and keys pass through before they are rotated, each with a weight of its own.
enum class QueryKeyNorm : std::uint8_t {
  none,
  per_head,                  ///< each head by itself, weight [D]: Qwen 3
  per_head_one_plus_weight,  ///< the same times 1 + weight: Gemma 3
  whole_projection,          ///< all heads of a token together, weights [H*D] and [G*D]: OLMo 2
};

/// What a LlamaAttention is made of. The defaults are plain multi-head attention.
struct LlamaAttentionConfig {
  Index hidden_size = 0;             ///< E
  Index num_attention_heads = 0;     ///< H
  Index num_key_value_heads = 0;     ///< G: H is multi-head, 1 multi-query, between them grouped-query; 0: H
  Index head_dim = 0;                ///< D; 0: E / H, and E must then be a multiple of H
  bool bias = true;                  ///< whether projections have biases, where nothing below says otherwise
  double attention_dropout = 0.1;    ///< probability that an attention weight is dropped in training
  double projection_dropout = 0.1;   ///< probability that an element of the output is dropped in training
  OptionalRotary rotary = {};        ///< a RotaryConfig, to rotate queries and keys by position
  std::optional<Index> window = {};  ///< how many keys a query sees in every call, itself included
  /// Seeds initial weights and dropout. Where not set, each module has a seed of its own, as in PyTorch.
  std::optional<std::uint64_t> seed = {};

  std::optional<bool> query_bias = {};  ///< whether this projection has a bias; `bias` where not set
  std::optional<bool> key_bias = {};
  std::optional<bool> value_bias = {};
  std::optional<bool> output_bias = {};
  Index value_head_dim = 0;          ///< Dv, the head size of values; 0: D
  std::optional<double> scale = {};  ///< factor on scores; 1 / sqrt(D) where not set
  OptionalSoftCap softcap = {};      ///< cap * tanh(score / cap), before any score function; a number, or none
  bool sinks = false;                ///< whether each head has a learned sink, see AttentionOptions
  QueryKeyNorm query_key_norm = QueryKeyNorm::none;
  double norm_epsilon = 1e-6;  ///< of query_key_norm
  /// Whether the output of each head is multiplied by the sigmoid of a gate, which the query projection computes: for each
  /// head D elements of the query, then Dv of the gate. As in Qwen3-Next.
  bool output_gate = false;
  Index context_size =
      0;  ///< cross-attention: size of the context's vectors, of which keys and values are made; 0: none
  /// The longest sequence that the module is made for: longer ones are refused. A rotary scaling whose frequencies depend
  /// on the length takes those of this length, unless RotaryConfig::length says otherwise.
  std::optional<Index> max_length = {};
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
  if (c.value_head_dim == 0) c.value_head_dim = c.head_dim;
  require(c.value_head_dim >= 1, fn, "value_head_dim, expected at least 1, got ", c.value_head_dim);
  require(c.context_size >= 0, fn, "context_size, expected at least 0, got ", c.context_size);
}

/// Fills in the biases and, with a longest sequence, the length of rotary frequencies; checks what is not a size.
template <Scalar T>
[[gnu::cold]] void complete_options(LlamaAttentionConfig& c) {
  constexpr auto fn = "LlamaAttention";
  for (std::optional<bool>* bias : {&c.query_bias, &c.key_bias, &c.value_bias, &c.output_bias})
    *bias = bias->value_or(c.bias);
  for (const double p : {c.attention_dropout, c.projection_dropout})
    require(is_probability(p), fn, "dropout, expected a probability in [0,1], got ", p);
  require(!c.window || *c.window >= 1, fn, "window, expected at least 1, got ", c.window.value_or(0));
  require(!c.rotary || c.head_dim % 2 == 0, fn, "head_dim, expected an even number with rotary, got ", c.head_dim);
  require(c.context_size == 0 || (!c.rotary && !c.window), fn,
          "context_size, expected no rotary and no window: they go by distances within one sequence");
  require(!c.scale || is_finite(static_cast<double>(static_cast<Accumulator<T>>(*c.scale))), fn,
          "scale, expected a finite number, got ", c.scale.value_or(0));
  require(!c.softcap || is_positive(*c.softcap), fn, "softcap, expected a positive number, got ",
          c.softcap.value_or(0));
  require(c.query_key_norm <= QueryKeyNorm::whole_projection, fn,
          "query_key_norm, expected none, per_head, per_head_one_plus_weight or whole_projection, got QueryKeyNorm(",
          static_cast<Index>(c.query_key_norm), ")");
  require(is_finite(c.norm_epsilon) && c.norm_epsilon >= 0.0, fn, "norm_epsilon, expected a number from 0 on, got ",
          c.norm_epsilon);
  require(!c.max_length || *c.max_length >= 1, fn, "max_length, expected at least 1, got ", c.max_length.value_or(0));
  if (c.max_length && c.rotary && !c.rotary->length) c.rotary->length = *c.max_length;
}

/// The configuration of a module of T with its defaults filled in. Errors: see LlamaAttention's constructor.
template <Scalar T>
[[gnu::cold]] LlamaAttentionConfig complete(const LlamaAttentionConfig& given) {
  LlamaAttentionConfig c = given;
  constexpr auto fn = "LlamaAttention";
  complete_heads(c);
  using Both = std::array<T, 2>;  // heads of queries and of gates, which one projection computes
  for (const Index size : {c.head_dim, c.value_head_dim})
    for (const Index inputs : {c.hidden_size, c.context_size}) {
      const std::array<Index, 3> sizes{c.num_attention_heads, size, std::max<Index>(inputs, 1)};
      checked_size<Both>(fn, "num_attention_heads, head_dim or value_head_dim, hidden_size or context_size",
                         as_shape(sizes));
    }
  complete_options<T>(c);
  return c;
}

/// Sizes that follow from a configuration, over all heads.
struct LlamaSizes {
  Index queries;     ///< H * D
  Index attended;    ///< H * Dv: what attention gives
  Index projected;   ///< of the query projection: queries, and gates where there are any
  Index keys;        ///< G * D
  Index values;      ///< G * Dv
  Index key_inputs;  ///< of the key and value projections

  explicit LlamaSizes(const LlamaAttentionConfig& c)
      : queries(c.num_attention_heads * c.head_dim),
        attended(c.num_attention_heads * c.value_head_dim),
        projected(queries + (c.output_gate ? attended : 0)),
        keys(c.num_key_value_heads * c.head_dim),
        values(c.num_key_value_heads * c.value_head_dim),
        key_inputs(c.context_size > 0 ? c.context_size : c.hidden_size) {}
};

/// Throws unless modules of these configurations can share their parameters.
[[gnu::cold]] inline void check_alike(std::string_view fn, const LlamaAttentionConfig& a,
                                      const LlamaAttentionConfig& b) {
  const auto sizes = [](const LlamaAttentionConfig& c) {
    return std::array<Index, 4>{c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim};
  };
  const auto parts = [](const LlamaAttentionConfig& c) {
    const auto flag = [](std::optional<bool> bias) { return Index{bias.value_or(false)}; };
    return std::array<Index, 9>{c.value_head_dim,
                                c.context_size,
                                flag(c.query_bias),
                                flag(c.key_bias),
                                flag(c.value_bias),
                                flag(c.output_bias),
                                static_cast<Index>(c.query_key_norm),
                                Index{c.sinks},
                                Index{c.output_gate}};
  };
  require(sizes(a) == sizes(b), fn, "modules of different sizes, expected [E,H,G,D] = ", as_shape(sizes(a)), ", got ",
          as_shape(sizes(b)));
  require(parts(a) == parts(b), fn,
          "modules of different parts, expected [Dv, context, biases of q, k, v, output, norm, sinks, gate] = ",
          as_shape(parts(a)), ", got ", as_shape(parts(b)));
}

}  // namespace attn::detail
