// Floor 2. The functions that an attention is computed with.
#pragma once

#include <algorithm>

#include "../scratch.hpp"
#include "arithmetic.hpp"
#include "attention_pairs.hpp"
#include "codec.hpp"
#include "problem.hpp"
#include "row_source.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

using attn::detail::Scratch;

/// Arithmetic of one instruction set, its conversions of queries and outputs, and the formats of keys and values.
template <class Q, class A = AccumulatorOf<Q>>
struct AttentionKernels {
  const Arithmetic<A>& arithmetic;
  const Codec<Q>& queries;
  const RowFormat<A>& keys;
  const RowFormat<A>& values;
  Index ahead = 0;                       ///< bytes that decoding prefetches
  const PairAttention* pairs = nullptr;  ///< where q, k and v are bfloat16, to be multiplied in pairs
};

/// The score of a head's sink; the masked score where it has none.
template <class Q>
[[nodiscard]] AccumulatorOf<Q> sink_of(const AttentionProblem<Q>& problem, Index h) {
  using A = AccumulatorOf<Q>;
  return problem.sinks == nullptr ? masked_score<A> : std::max(static_cast<A>(problem.sinks[h]), masked_score<A>);
}

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
