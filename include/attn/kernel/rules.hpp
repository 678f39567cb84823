// Floor 2. A mask and a score function as kernels see them.
#pragma once

#include <cstdint>

#include "../config.hpp"
#include "../error.hpp"
#include "../position.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

/// Caps n scores, in whole vectors, at +-cap; writes their derivatives where `slopes` is not null.
template <class A>
using CapScores = void (*)(A* scores, A* slopes, Index n, A cap);

/// A mask and a score function as three functions, called once per block of scores. Only these are compiled for each
/// type of mask and score function; inside them a user's callable is inlined and vectorised.
template <class A>
struct Rules {
  const void* mask;
  const void* score;
  Coverage (*cover)(const Rules&, const Block&);
  /// Applies both to scores[key][query] from `first` on; `masked`: whether the mask is asked.
  void (*panel)(const Rules&, A* scores, Index keys, Index rows, Position first, bool masked);
  /// The same for scores[key] of one query.
  void (*line)(const Rules&, A* scores, Index keys, Position first, bool masked);
  bool has_score;  ///< whether there is a score function, so that blocks kept in full pass through these functions too
  CapScores<A> cap_scores = nullptr;  ///< what is done to scores before these functions, if anything
  A cap = 0;
};

/// Does what Rules::panel does, and writes the derivative of each score that is kept.
template <class A>
using SlopesPanel = void (*)(const Rules<A>&, A* scores, A* slopes, Index keys, Index rows, Position first,
                             bool masked);

/// Rules of a backward pass, which also needs derivatives of the score function.
template <class A>
struct GradientRules {
  Rules<A> forward;
  SlopesPanel<A> slopes;       ///< with respect to the score before; null without a score function
  SlopesPanel<A> bias_slopes;  ///< with respect to the ScoreBias; null unless there is just one
};

/// The part of a block that a mask does not call empty.
struct Trimmed {
  Block block;
  bool empty;   ///< no key remains
  bool masked;  ///< the mask keeps only some of the block
};

/// Cuts keys off both ends of a block that the mask keeps in part, by bisection.
template <class A>
[[nodiscard, gnu::noinline]] Trimmed bisect(const Rules<A>& rules, const Block& block) {
  const auto is_empty = [&](std::int32_t first_key, std::int32_t last_key) {
    Block part = block;
    part.first.key = first_key, part.last.key = last_key;
    return rules.cover(rules, part) == Coverage::empty;
  };
  std::int32_t low = block.first.key, high = block.last.key + 1;
  while (low < high) {  // keys from `high` on are empty
    const std::int32_t middle = low + (high - low) / 2;
    if (is_empty(middle, block.last.key))
      high = middle;
    else
      low = middle + 1;
  }
  const std::int32_t last = high - 1;
  low = block.first.key, high = last;
  while (low < high) {  // keys before `low` are empty
    const std::int32_t middle = low + (high - low) / 2;
    if (is_empty(block.first.key, middle))
      low = middle + 1;
    else
      high = middle;
  }
  Trimmed rest{block, low > last, true};
  rest.block.first.key = low, rest.block.last.key = last;
  return rest;
}

/// Cuts keys off both ends of a block while the mask calls them empty: padding is never read, and a causal block ends at
/// the last key that a query of it sees.
template <class A>
[[nodiscard]] Trimmed trim(const Rules<A>& rules, const Block& block) {
  const Coverage coverage = rules.cover(rules, block);
  if (coverage == Coverage::mixed) return bisect(rules, block);
  return {block, coverage == Coverage::empty, false};
}

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
