// Floor 2. What an instruction set computes, as a table of functions for each accumulator type. Everything else of a
// kernel is ordinary code, compiled once, that calls them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "../config.hpp"
#include "../error.hpp"
#include "../math.hpp"
#include "../philox.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

/// A product of matrices: c(r, n) = before(r, n) * factor(n) + sum over i below depth of a(r, i) b(i, n); or, without
/// `before`, the sum times factor(n). b may be stored in another type, from which the tile converts it.
template <class Operand, class A = Operand, class B = Operand>
struct Product {
  const Operand* a = nullptr;  ///< a(r, i) is a[r * a_row + i * a_step]: strided rows, or a transposed matrix
  Index a_row = 0;
  Index a_step = 1;
  const B* b = nullptr;  ///< b(i, n) is b[i * b_row + n]
  Index b_row = 0;
  Index depth = 0;
  A* c = nullptr;
  Index c_row = 0;
  const A* before = nullptr;  ///< c itself, or what c starts from, or null
  Index before_row = 0;       ///< 0: one row for all
  const A* factor = nullptr;

  void skip_rows(Index n) {
    a += n * a_row;
    c += n * c_row;
    if (before != nullptr) before += n * before_row;
  }
};

/// A microkernel of rows x columns, and its variant of one row. While it runs it prefetches cache lines from `prefetch`
/// on, one whenever the number of steps left has none of the bits of `prefetch_mask`: every mask + 1 steps; -1: none.
template <class Operand, class A = Operand, class B = Operand>
struct Tiles {
  using Tile = void (*)(const Product<Operand, A, B>&, const char* prefetch, Index prefetch_mask);
  Index rows, columns;
  Tile whole, one;
};

/// The place of an element, as DropoutRule counts them; columns are a multiple of 4.
struct DropoutPlace {
  std::uint32_t column, row, plane;
};

/// Elements that one call of `dropout_factors` is for.
inline constexpr Index dropout_group = 64;
/// Where the factor of the i-th of them is, counted by columns: four columns share random numbers.
[[nodiscard]] constexpr Index dropout_index(Index i) { return i % 4 * 16 + i / 4; }

/// scores[row][key] = q k * scale, for rows of k as they are stored. Sizes are whole vectors; kernels write whole vectors of
/// scores, also beyond the last key.
template <class A>
struct RowScores {
  A* scores = nullptr;
  Index scores_row = 0;
  const A* q = nullptr;  ///< [row][size]
  Index rows = 0;
  const std::byte* k = nullptr;
  Index k_row = 0;  ///< in bytes
  Index keys = 0;
  Index size = 0;  ///< of a row, in whole vectors
  A scale = 1;
  Index ahead = 0;  ///< bytes from a row to what is prefetched while it is read; 0: nothing
};
/// y[row][element] += the sum over keys of weights[row][key] v[key][element], for rows of v as they are stored.
template <class A>
struct RowAverage {
  A* y = nullptr;  ///< [row][size]
  const A* weights = nullptr;
  Index weights_row = 0;
  Index rows = 0;
  const std::byte* v = nullptr;
  Index v_row = 0;  ///< in bytes
  Index keys = 0;
  Index size = 0;  ///< of a row, in whole vectors
  Index ahead = 0;
};

/// The functions of one instruction set that depend on the accumulator alone.
template <class A>
struct Arithmetic {
  Index lanes;              ///< elements of a vector
  Tiles<A> panel_tiles[3];  ///< of 1, 2, 3 vectors of columns
  /// Attention of few queries over rows of A.
  void (*score_rows)(const RowScores<A>& call);
  void (*weigh_rows)(const RowAverage<A>& call);
  /// One step of the online softmax over scores[key][query]: they become exp(score - row_max); `rescale` is the factor
  /// for earlier sums and outputs. Writes one row past the last key.
  void (*softmax_panel)(A* scores, Index keys, Index vectors, A* row_max, A* row_sum, A* rescale);
  /// The same of one row of scores, in whole vectors; returns the factor.
  A (*softmax_line)(A* scores, Index keys, A& row_max, A& row_sum);
  /// to[column][row] = from[row][column], and 0 for the rows that fill the last vector.
  void (*transpose)(A* to, Index to_row, const A* from, Index from_row, Index rows, Index columns);
  /// x[row][i] *= factor[i], n in whole vectors. Returns whether all products are finite.
  bool (*scale_rows)(A* x, Index x_row, Index rows, Index n, const A* factor);
  /// What dropout multiplies a group of elements by, its scale or 0: four columns from `first` on, sixteen times, each
  /// `step` further. See dropout_index.
  void (*dropout_factors)(A* factors, const DropoutRule& rule, DropoutPlace first, DropoutPlace step);

  /// Columns of the widest tile: blocks of queries and panels of weights are cut to these.
  [[nodiscard]] Index panel_columns() const { return panel_tiles[2].columns; }
  [[nodiscard]] Index tile_rows() const { return panel_tiles[2].rows; }
  /// n rounded up to whole vectors.
  [[nodiscard]] Index padded(Index n) const { return attn::detail::round_up(n, lanes); }
};

/// A panel of scores [key][query] on the way back: what their gradients are computed from, and where they go.
template <class A>
struct ScoreGradients {
  const A* scores;      ///< masked scores, as the softmax takes them
  const A* of_weights;  ///< gradient of each weight
  const A* slopes;      ///< derivative of the score function at each score, or null
  const A* factors;     ///< what dropout multiplied each weight by, or null
  const A* shift;       ///< log-sum-exp of each query
  const A* delta;       ///< weighted mean of its weights' gradients
  A* weights;           ///< becomes the weights after dropout
  A* gradients;         ///< becomes the gradients of the scores before the score function; 0 where the weight is 0
  Index row;            ///< of `weights` and `gradients`, from one key to the next
};

/// What a backward pass needs of an instruction set besides: apart, so that programs that do not train compile none of it.
template <class A>
struct GradientArithmetic {
  void (*score_gradients)(const ScoreGradients<A>& panel, Index keys, Index vectors);
  /// sums[row] = the sum over i of a[row][i] b[row][i]; n in whole vectors.
  void (*row_products)(A* sums, const A* a, Index a_row, const A* b, Index b_row, Index rows, Index n);
};

/// The score of a key that a query never attends: the lowest finite number, so that -ffast-math cannot break it. All
/// other scores are above it.
template <class A>
inline constexpr A masked_score = -std::numeric_limits<A>::max();

/// Compares bits, which -ffast-math leaves alone.
template <class A>
[[nodiscard]] inline bool is_zero(A x) {
  return attn::detail::bits_of(x) == 0;
}
template <class A>
[[nodiscard]] A log_sum_exp(A row_max, A row_sum) {
  return is_zero(row_sum) ? -std::numeric_limits<A>::infinity() : row_max + std::log(row_sum);
}
/// What a sum of exponentials divides by: 1 / sum, or 1 where every key is masked, so that the result is 0 and not NaN.
template <class A>
[[nodiscard]] A inverse_of(A row_sum) {
  return is_zero(row_sum) ? A{1} : A{1} / row_sum;
}

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
