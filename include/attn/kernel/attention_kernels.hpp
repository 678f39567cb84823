// Floor 2. The functions that an attention is computed with.
#pragma once

#include "../scratch.hpp"
#include "arithmetic.hpp"
#include "codec.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

using attn::detail::Scratch;

/// Arithmetic of one instruction set, and its conversions of queries and outputs, and of keys and values.
template <class Q, class KV, class A = AccumulatorOf<Q>>
struct AttentionKernels {
  const Arithmetic<A>& arithmetic;
  const Codec<Q>& queries;
  const Codec<KV>& keys;
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
