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

/// The place among dropout's random numbers of the weight `key` keys and `row` rows behind `first`.
[[nodiscard]] inline DropoutPlace dropout_place(Position first, Index key, Index row, Index heads) {
  return {static_cast<std::uint32_t>(first.key + key), static_cast<std::uint32_t>(first.row + row),
          static_cast<std::uint32_t>(first.batch * heads + first.head)};
}

/// Calls use(key, row, n, factors) for the weights [key][row] of a panel, n rows of a key at a time; `first` is the position
/// of the first weight, `rows` are whole vectors.
template <class A, class Use>
void for_dropout_factors(const Arithmetic<A>& arithmetic, Index keys, Index rows, const DropoutRule& rule,
                         Position first, Index heads, const Use& use) {
  alignas(64) A factors[dropout_group];
  const Index phase = static_cast<std::uint32_t>(first.key) % 4;
  for (Index row = 0; row < rows; row += 16)
    for (Index t = -phase; t < keys; t += 4) {  // four keys share random numbers
      arithmetic.dropout_factors(factors, rule, dropout_place(first, t, row, heads), {0, 1, 0});
      for (Index w = std::max<Index>(0, -t); w < std::min<Index>(4, keys - t); ++w)
        use(t + w, row, std::min<Index>(16, rows - row), factors + dropout_index(w));
    }
}

/// Applies dropout to the weights p[key][row].
template <class A>
void drop_panel(const Arithmetic<A>& arithmetic, A* p, Index p_row, Index keys, Index rows, const DropoutRule& rule,
                Position first, Index heads) {
  for_dropout_factors(arithmetic, keys, rows, rule, first, heads, [&](Index key, Index row, Index n, const A* factors) {
    A* const at = p + key * p_row + row;
    for (Index i = 0; i < n; ++i) at[i] *= factors[i];
  });
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
