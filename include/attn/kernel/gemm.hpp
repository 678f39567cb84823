// Floor 2. Products of matrices, tile by tile.
#pragma once

#include <algorithm>

#include "../error.hpp"
#include "../math.hpp"
#include "arithmetic.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

using attn::detail::ceil_div;
using attn::detail::round_up;

/// Rows to bring into the caches while something else is computed. Sizes are in bytes.
struct Prefetch {
  const char* row = nullptr;  ///< the next one
  Index stride = 0;           ///< from one row to the next
  Index size = 0;             ///< of a row
  Index rows = 0;             ///< left

  template <class T>
  static Prefetch of(const T* first, Index stride, Index size, Index rows) {
    constexpr Index bytes = sizeof(T);
    return {.row = reinterpret_cast<const char*>(first), .stride = stride * bytes, .size = size * bytes, .rows = rows};
  }
};

/// Prefetches `bytes` into L1. Into L2 alone they came too late (AMD Zen 4: 10 % of an attention at E = 4096).
inline void prefetch(const void* from, Index bytes) {
  for (Index i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

/// Whether rows at this stride, in bytes, map to few sets of the caches, so that it is better to copy them first: that costs 2
/// to 4 % and saves up to half of the time (rows of 16 KB). At 4 KB copying costs 1 to 3 % more than it saves.
[[nodiscard]] constexpr bool aliases_in_cache(Index stride) { return stride % 8192 == 0; }

/// Whether to copy rows of keys because their stride, in bytes, maps them to a quarter of L1's sets: that pays where many panels
/// of queries read them (4 to 7 % of an attention with 12 heads of 64) and costs 3 % where 3 do (Intel Xeon).
[[nodiscard]] constexpr bool crowds_l1(Index stride, Index panels) { return stride % 1024 == 0 && panels >= 6; }

/// The stride of copied rows of `size`: a cache line more, since a stride of 512 bytes maps to few sets of L1 (1 to 2 %).
template <class T>
[[nodiscard]] constexpr Index copied_stride(Index size) {
  return size + 64 / static_cast<Index>(sizeof(T));
}

/// 512 bytes of ones: a row of factors for the widest tile.
template <class A>
struct Ones {
  A value[512 / sizeof(A)];
  constexpr Ones() : value() {
    for (A& v : value) v = 1;
  }
};
template <class A>
inline constexpr Ones<A> ones{};

/// A product of `rows` rows and of as many columns as a panel has at most, with tiles of 1, 2 and 3 vectors of columns. Leftover
/// rows use the one-row tile, which takes no longer for one row than the whole one. Prefetches `ahead` evenly over the steps: a
/// burst delays the tile's own loads (7 % of an attention).
template <class Operand, class A>
void multiply(const Tiles<Operand, A, Operand> (&panel_tiles)[3], Product<Operand, A, Operand> product, Index rows,
              Index columns, Prefetch ahead) {
  const auto& tiles = panel_tiles[std::min<Index>((columns - 1) / panel_tiles[0].columns, 2)];
  const Index lines = ahead.rows * ceil_div(ahead.size, 64), depth = product.depth;
  Index every = 1, done_bytes = 0;  // steps from one prefetched line to the next; how far into the row they are
  while (every < 16 && 2 * every * lines * tiles.rows <= depth * rows) every *= 2;
  while (rows > 0) {
    const bool whole = rows >= tiles.rows;
    const Index done = whole ? tiles.rows : 1;
    if (product.c_row != panel_tiles[2].columns)  // the caller's memory, which may not be near
      for (Index r = 0; r < done; ++r)
        prefetch(product.c + r * product.c_row, tiles.columns * static_cast<Index>(sizeof(A)));
    (whole ? tiles.whole : tiles.one)(product, ahead.row + done_bytes, ahead.rows > 0 ? every - 1 : -1);
    if (whole && ahead.rows > 0)
      for (done_bytes += depth / every * 64; done_bytes >= ahead.size && ahead.rows > 0; done_bytes -= ahead.size) {
        ahead.row += ahead.stride;
        if (--ahead.rows > 0 && done_bytes > ahead.size) prefetch(ahead.row, ahead.size);
      }
    product.skip_rows(done);
    rows -= done;
  }
}
template <class A>
void multiply(const Arithmetic<A>& arithmetic, const Product<A>& product, Index rows, Index columns, Prefetch ahead) {
  multiply(arithmetic.panel_tiles, product, rows, columns, ahead);
}

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
