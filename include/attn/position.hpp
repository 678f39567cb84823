// Floor 1. Where a score stands: its place among queries and keys, rectangles of places, and what a mask keeps of one.
#pragma once

#include <cstdint>

namespace attn {

/// The place of one score: a query and a key. Indices are 32 bits wide so that twice as many fit a vector; calls with
/// more than 2^30 queries or keys are refused.
struct Position {
  std::int32_t batch = 0;
  std::int32_t head = 0;   ///< query head
  std::int32_t row = 0;    ///< row of the query tensor
  std::int32_t query = 0;  ///< where the query stands among the keys: row + keys - queries, unless told otherwise
  std::int32_t key = 0;    ///< row of the key tensor

  /// query - key: how far back the key lies.
  [[nodiscard]] constexpr float distance() const { return static_cast<float>(query - key); }
};

/// A rectangle of scores of one batch entry and one head: from `first` to `last`, both included.
struct Block {
  Position first, last;
};

/// What a mask keeps of a block.
enum class Coverage : std::uint8_t { empty, full, mixed };

}  // namespace attn
