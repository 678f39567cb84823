// Floor 1. The lengths of the sequences in a padded batch, derived from a mask.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "mask.hpp"
#include "math.hpp"

namespace attn::detail {

/// The last key of a block that any of its queries may see, or the first; -1 where there is none. Descends only into
/// parts that the mask calls mixed.
template <class A, Mask M>
[[nodiscard]] std::int32_t outermost_key(const M& mask, const Block& block, bool last) {
  const Coverage coverage = mask.cover(block);
  const std::int32_t from = block.first.key, to = block.last.key;
  if (coverage == Coverage::empty) return -1;
  if (coverage == Coverage::full) return last ? to : from;
  if (from < to) {
    Block inner = block, outer = block;
    (last ? outer : inner).last.key = from + (to - from) / 2;
    (last ? inner : outer).first.key = from + (to - from) / 2 + 1;
    const std::int32_t key = outermost_key<A>(mask, inner, last);
    return key >= 0 ? key : outermost_key<A>(mask, outer, last);
  }
  Position at = block.first;
  for (; at.row <= block.last.row; ++at.row, ++at.query) {
    if (!mask.keep(at)) continue;
    if constexpr (HasBias<M>) {
      if (bits_of(static_cast<A>(mask.bias(at))) == bits_of(-std::numeric_limits<A>::infinity())) continue;
    }
    return from;
  }
  return -1;
}

/// The length of a batch entry's sequence without padding: from the first to the last key that any of its S queries may
/// see, in any head.
template <class A, Mask M>
[[nodiscard]] Index length_seen(const M& mask, Index batch, Index heads, Index S) {
  std::int32_t first = static_cast<std::int32_t>(S), last = -1;
  for (Index head = 0; head < heads; ++head) {
    const auto end = static_cast<std::int32_t>(S - 1);
    const Position zero{.batch = static_cast<std::int32_t>(batch),
                        .head = static_cast<std::int32_t>(head),
                        .row = 0,
                        .query = 0,
                        .key = 0};
    Block rest{zero, zero};
    rest.last.row = rest.last.query = end;
    if (last < end) {
      rest.first.key = last + 1, rest.last.key = end;
      last = std::max(last, outermost_key<A>(mask, rest, true));
    }
    if (first > 0) {
      rest.first.key = 0, rest.last.key = first - 1;
      const std::int32_t key = outermost_key<A>(mask, rest, false);
      if (key >= 0) first = key;
    }
  }
  return std::max<Index>(last - first + 1, 0);
}

}  // namespace attn::detail
