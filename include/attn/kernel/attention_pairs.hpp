// Floor 2. Attention of bfloat16 that is multiplied in pairs.
#pragma once

#include "../config.hpp"
#include "../error.hpp"
#include "codec.hpp"
#include "row_source.hpp"
#include "weights.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

/// The functions by which attention multiplies bfloat16 in pairs. A score is a sum over pairs of elements, which lie side by side
/// in rows of q and k. An output is a sum over pairs of keys: their weights are rounded, their rows of v copied two by two.
struct PairAttention {
  const PairArithmetic& arithmetic;
  RowFormat<float> keys;    ///< copied as they are; the size of a row is even
  RowFormat<float> values;  ///< row t and the next one side by side where row t would be, in room for two; t is even
  /// to[pair][i] = first[pair * row + i] and second[pair * row + i], for n of them in whole vectors.
  void (*round_weights)(BfloatPair* to, const float* first, const float* second, Index row, Index pairs, Index n);
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
