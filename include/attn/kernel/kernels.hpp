// Floor 2. What an instruction set offers, and the words in which it is asked: a table of functions. Everything else of a
// kernel is ordinary code, compiled once, that calls them.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "../math.hpp"
#include "problem.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

using attn::detail::ceil_div;
using attn::detail::round_up;

/// A product: c(r, n) = before(r, n) * factor(n) + sum over i below depth of a(r, i) b(i, n); or, where there is no
/// `before`, the sum times factor(n).
template <class A>
struct Product {
  const A* a;
  Index a_row, a_step;  // a(r, i) is a[r * a_row + i * a_step]: rows that lie anywhere, or a transposed matrix
  const A* b;
  Index b_row, depth;  // b(i, n) is b[i * b_row + n]
  A* c;
  Index c_row;
  const A* before;  // c itself, or what c starts from, or null; before_row 0: one row for all
  Index before_row;
  const A* factor;

  void skip_rows(Index n) {
    a += n * a_row;
    c += n * c_row;
    if (before != nullptr) before += n * before_row;
  }
};

/// Memory that is wanted soon, in bytes: `rows` stretches of `size`.
struct Wanted {
  const char* row = nullptr;
  Index stride = 0, size = 0, rows = 0;

  template <class T>
  static Wanted of(const T* first, Index stride, Index size, Index rows) {
    constexpr Index bytes = sizeof(T);
    return {reinterpret_cast<const char*>(first), stride * bytes, size * bytes, rows};
  }
};

/// The tile with so many rows and columns, and the one with a single row. Meanwhile the lines from `next` on are asked for, one
/// whenever the number of steps left has none of the bits of `mask`.
template <class A>
struct Tiles {
  using Tile = void (*)(const Product<A>&, const char* next, Index mask);
  Index rows, columns;
  Tile whole, one;
};

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

/// The place of an element, as DropoutRule counts them; columns are a multiple of 4.
struct DropoutPlace {
  std::uint32_t column, row, plane;
};

/// A mask and a score function as the loops below see them: three functions, called once per block of scores. Only these
/// are compiled for each mask and score function; within them a user's callable is inlined and becomes vectors.
template <class A>
struct Rules {
  const void *mask, *score;
  Coverage (*cover)(const Rules&, const Block&);
  void (*panel)(const Rules&, A* s, Index keys, Index rows, Position first, bool masked);  // s[key][query]
  void (*line)(const Rules&, A* s, Index keys, Position first, bool masked);               // s[key] of one query
  bool scores;  // whether there is a score function, so that even blocks kept in full must pass through
};

/// The functions of one instruction set, for elements stored as T. `turn` and `load` convert to what T is computed in.
template <class T, class A = AccumulatorOf<T>>
struct Kernels {
  Index lanes;         ///< of a vector
  Tiles<A> panels[3];  ///< of 1, 2, 3 vectors of columns
  Tiles<A> few[3];     ///< for products of few rows, the widest first, the last one vector wide
  void (*score_rows)(A* s, Index s_row, const A* q, Index rows, const A* k, Index k_row, Index keys, Index D, A scale);
  void (*softmax_panel)(A* s, Index keys, Index vectors, A* largest, A* sum, A* old);
  A (*softmax_line)(A* line, Index keys, A& largest, A& sum);
  void (*turn)(A* to, Index to_row, const T* from, Index from_row, Index rows, Index columns);
  void (*turn_back)(A* to, Index to_row, const A* from, Index from_row, Index rows, Index columns);
  bool (*scale_rows)(A* x, Index x_row, Index rows, Index n, const A* factor);
  void (*dropout_factors)(A* factors, const DropoutRule& rule, DropoutPlace first, DropoutPlace step);
  void (*load)(A* to, Index to_row, const T* from, Index from_row, Index rows, Index n);
  void (*store)(T* to, Index to_row, const A* from, Index from_row, Index rows, Index n);

  /// Queries, or outputs of a linear layer, side by side: the columns of the tile that all is cut for; and its rows.
  [[nodiscard]] Index panel() const { return panels[2].columns; }
  [[nodiscard]] Index tile_rows() const { return panels[2].rows; }
  /// n rounded up to whole vectors.
  [[nodiscard]] Index padded(Index n) const { return (n + lanes - 1) / lanes * lanes; }
};

/// The score of a key that a query never attends: the lowest finite number, so that -ffast-math cannot break it. Live
/// scores stay above it (see live()).
template <class A>
inline constexpr A never = -std::numeric_limits<A>::max();

/// By its bits, which -ffast-math leaves alone.
template <class A>
[[nodiscard]] inline bool is_zero(A x) {
  using Bits = std::conditional_t<sizeof(A) == 4, std::uint32_t, std::uint64_t>;
  return __builtin_bit_cast(Bits, x) == 0;
}
template <class A>
[[nodiscard]] A log_sum_exp(A largest, A sum) {
  return is_zero(sum) ? -std::numeric_limits<A>::infinity() : largest + std::log(sum);
}
/// What a sum of exponentials divides by: 1 / sum, or 1 where nothing is live, so that the result is 0 and not NaN.
template <class A>
[[nodiscard]] A inverse_of(A sum) {
  return is_zero(sum) ? A{1} : A{1} / sum;
}

/// Asks for `bytes` from `from` on to be brought near: what is read next, while this is computed. Into L1, that is: asked
/// into L2 alone it came too late (AMD Zen 4: 10 % of an attention at E = 4096).
inline void prefetch(const void* from, Index bytes) {
  for (Index i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

/// Whether rows of T this many elements apart crowd into a few sets of the caches, so that it is better to copy them first:
/// that costs 2 to 4 % and saves up to half of the time (16 KB). At 4 KB it is better not to, by 1 to 3 %.
template <class T>
[[nodiscard]] constexpr bool crowded(Index stride) {
  return stride * static_cast<Index>(sizeof(T)) % 8192 == 0;
}

/// A product of `rows` rows and of as many columns as a panel has at most, tile by tile. Rows that fill no tile are computed
/// one by one, which takes no longer than a tile would. What is wanted comes nearer meanwhile, spread over all steps: a
/// burst of it would hold up the loads of the tile (7 % of an attention).
template <class T, class A>
void multiply(const Kernels<T>& f, Product<A> product, Index rows, Index columns, Wanted wanted) {
  const Tiles<A>& tiles = f.panels[std::min<Index>((columns - 1) / f.lanes, 2)];
  const Index lines = wanted.rows * ((wanted.size + 63) / 64), depth = product.depth;
  Index every = 1, column = 0;  // steps from one line to the next; bytes asked for of the wanted row
  while (every < 16 && 2 * every * lines * tiles.rows <= depth * rows) every *= 2;
  while (rows > 0) {
    const bool whole = rows >= tiles.rows;
    const Index done = whole ? tiles.rows : 1;
    if (product.c_row != f.panel())  // the caller's memory
      for (Index r = 0; r < done; ++r)
        prefetch(product.c + r * product.c_row, tiles.columns * static_cast<Index>(sizeof(A)));
    (whole ? tiles.whole : tiles.one)(product, wanted.row + column, wanted.rows > 0 ? every - 1 : -1);
    if (whole)
      for (column += depth / every * 64; column >= wanted.size && wanted.rows > 0; column -= wanted.size) {
        wanted.row += wanted.stride;
        if (--wanted.rows > 0 && column > wanted.size) prefetch(wanted.row, wanted.size);
      }
    product.skip_rows(done);
    rows -= done;
  }
}

/// A product of few rows, as in decoding, with any number of columns in whole vectors, without factors. Reading b is the
/// limit, and it wants to be read as it lies, so that tiles are wide.
template <class T, class A>
void multiply_few(const Kernels<T>& f, Product<A> product, Index rows, Index columns) {
  product.factor = ones<A>.value;
  const Tiles<A>* tiles = f.few;
  while (columns > 0) {
    while (columns < tiles->columns) ++tiles;
    Product<A> part = product;
    for (Index left = rows, done = 0; left > 0; left -= done) {
      done = left >= tiles->rows ? tiles->rows : 1;
      (done > 1 ? tiles->whole : tiles->one)(part, nullptr, -1);
      part.skip_rows(done);
    }
    product.b += tiles->columns, product.c += tiles->columns, product.before += tiles->columns;
    columns -= tiles->columns;
  }
}

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
