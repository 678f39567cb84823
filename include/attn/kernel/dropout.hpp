// Floor 2. Dropout of attention weights in the two layouts in which kernels hold them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../error.hpp"
#include "../philox.hpp"
#include "../position.hpp"
#include "arithmetic.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

/// Which of the planes of random numbers a head draws from, and where it draws the first.
[[nodiscard]] inline DropoutPlace dropout_place(Position first, Index key, Index row, Index heads) {
  return {static_cast<std::uint32_t>(first.key + key), static_cast<std::uint32_t>(first.row + row),
          static_cast<std::uint32_t>(first.batch * heads + first.head)};
}

/// Drops of the weights p[key][row], `rows` of them in whole vectors; `first` is the position of the first weight.
template <class A>
void drop_panel(const Arithmetic<A>& arithmetic, A* p, Index p_row, Index keys, Index rows, const DropoutRule& rule,
                Position first, Index heads) {
  alignas(64) A factors[dropout_group];
  const Index phase = static_cast<std::uint32_t>(first.key) % 4;
  for (Index row = 0; row < rows; row += 16)
    for (Index t = -phase; t < keys; t += 4) {  // four keys share random numbers
      arithmetic.dropout_factors(factors, rule, dropout_place(first, t, row, heads), {0, 1, 0});
      for (Index w = std::max<Index>(0, -t); w < std::min<Index>(4, keys - t); ++w)
        arithmetic.scale_rows(p + (t + w) * p_row + row, 0, 1, std::min<Index>(16, rows - row),
                              factors + dropout_index(w));
    }
}

/// The same for the weights p[key] of one row.
template <class A>
void drop_line(const Arithmetic<A>& arithmetic, A* p, Index keys, const DropoutRule& rule, Position first,
               Index heads) {
  A factors[dropout_group];
  const Index phase = static_cast<std::uint32_t>(first.key) % 4;
  for (Index t = -phase; t < keys; t += dropout_group) {
    arithmetic.dropout_factors(factors, rule, dropout_place(first, t, 0, heads), {4, 0, 0});
    for (Index i = std::max<Index>(0, -t); i < std::min(dropout_group, keys - t); ++i)
      p[t + i] *= factors[dropout_index(i)];
  }
}

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
