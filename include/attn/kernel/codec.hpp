// Floor 2. Storage: the types in which elements lie in memory, and how they become the type that sums are in.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../config.hpp"
#include "../error.hpp"
#include "arithmetic.hpp"

namespace attn::kernel {

/// Elements that are stored in 16 bits and computed in float.
struct Half {
  std::uint16_t bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};
/// Two of them side by side, the first in the lower half: some CPUs multiply them by two others, and add both products to a
/// float, in one instruction.
struct BfloatPair {
  std::uint32_t bits;
};

/// The type in which sums, scores and softmax of a stored type are computed.
template <class Storage>
using AccumulatorOf = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

/// Whether stored elements must be converted before they can be multiplied.
template <class Storage>
inline constexpr bool is_converted = !std::is_same_v<Storage, AccumulatorOf<Storage>>;

inline namespace ATTN_UNIT_FLAGS {

/// What a stored type needs of an instruction set: three functions. A row is `n` elements; `from_row` and `to_row` are
/// the distances of rows, in elements.
template <class Storage, class A = AccumulatorOf<Storage>>
struct Codec {
  /// to[row][i] = from[row][i].
  void (*load)(A* to, Index to_row, const Storage* from, Index from_row, Index rows, Index n);
  /// to[row][i] = from[row][i], rounded to nearest, ties to even.
  void (*store)(Storage* to, Index to_row, const A* from, Index from_row, Index rows, Index n);
  /// to[i][row] = from[row][i], and 0 for the rows that fill the last vector.
  void (*load_transposed)(A* to, Index to_row, const Storage* from, Index from_row, Index rows, Index n);
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
