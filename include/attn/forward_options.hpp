// Floor 5. What a call of LlamaAttention::forward may be given besides an input and a mask.
#pragma once

#include "kv_cache.hpp"
#include "llama_activations.hpp"
#include "rotary_positions.hpp"
#include "score.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// Options of one call of LlamaAttention<T>::forward, for what its plain overloads do not reach:
/// `m.forward(x, mask, ForwardOptions<float>{.positions = positions, .cache = cache})`.
///
/// Types: F is the type of the score function, `ForwardOptions<float, decltype(score)>{.score = score}`.
/// Conventions: what is left out is as in a plain call. A cache and activations exclude each other.
template <Scalar T, class F = NoScore>
struct ForwardOptions {
  /// Where tokens stand, for rotary alone: a start for each sequence, or positions [B,S] or [B,S,D/2]; where not set,
  /// behind those in the cache, one after the other. For drafts in trees, packed sequences, padding at the left.
  RotaryPositions positions = {};
  F score = {};            ///< applied to scaled scores, after the module's softcap
  CacheRef<T> cache = {};  ///< keys and values so far; of cross-attention: the context's
  LlamaActivations<T>* activations =
      nullptr;  ///< keeps what backward needs; the score function then needs a member derivative(score, at)
  View<const T, 3> context = {};  ///< of cross-attention [B,K,C]
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
