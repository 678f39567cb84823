// Floor 2. Formats in which a linear layer stores its weight, and how they are read.
//
// A weight lies in panels of 48 outputs. In formats of 8 and 4 bits, 32 inputs of an output are a group that shares a scale:
// a weight is (number - zero) * scale. The numbers of a group of a panel are 32-bit words [word][output], each with the next
// four inputs of an output in its bytes; or, where a number has 4 bits, with the next eight: four in the lower halves of the
// bytes, four in the upper halves. So a vector of words is what a dot product of bytes takes for as many outputs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "../error.hpp"
#include "arithmetic.hpp"
#include "codec.hpp"
#include "problem.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

/// Weights of 8 and 4 bits, in groups.
struct Int8 {
  static constexpr int zero = 128;
};
struct Int4 {
  static constexpr int zero = 8;
};

/// Bits of a weight.
template <class W>
inline constexpr int weight_bits = 16;
template <>
inline constexpr int weight_bits<Int8> = 8;
template <>
inline constexpr int weight_bits<Int4> = 4;

/// Inputs of a group. Its words are as many, for each output, as a weight has bits.
inline constexpr Index group_inputs = 32;
template <class W>
inline constexpr bool is_grouped = weight_bits<W> < 16;

/// At which bit of a word its `input`-th input begins.
[[nodiscard]] constexpr int first_bit_of(int input) { return input % 4 * 8 + input / 4 * 4; }

/// A group of a row's inputs, rounded to 8 bits: numbers from -127 to 127, times a scale. Where one of them is infinite or
/// NaN, the numbers are 0 and the scale is NaN.
struct InputGroup {
  std::int8_t number[static_cast<std::size_t>(group_inputs)];
  float scale;       ///< of 16 significant bits, so that number * scale is exact in float
  std::int32_t sum;  ///< of the numbers
};

/// The weights of a panel from some input on.
struct WeightPart {
  const std::byte* values = nullptr;
  const Half* scales = nullptr;  ///< [group][output]; null for formats without groups
};

/// c(r, o) = before(r, o) + the sum over i below `inputs` of x(r, i) w(i, o), for the outputs o of a panel. X is float, or
/// InputGroup, which counts x_row and `inputs` in groups.
template <class X>
struct WeightProduct {
  const X* x = nullptr;
  Index x_row = 0;
  Index rows = 0, inputs = 0;
  WeightPart weights;
  float* c = nullptr;
  Index c_row = 0;
  const float* before = nullptr;
  Index before_row = 0;            ///< 0: one row for all
  const char* prefetch = nullptr;  ///< weights to prefetch, as many bytes as are read
};

/// A product of inputs in 8 bits, exact within a group.
using GroupProduct = void (*)(const WeightProduct<InputGroup>& product);

/// c(r, o) = before(r, o) + the sum over i below `inputs` of x(r, i) w(i, o), where both are stored as bfloat16 and are multiplied
/// in pairs of inputs. `pairs` is the weight of a panel side by side, [pair][output], or null: then `weights` is as it is stored.
struct PairProduct {
  const Bfloat16* x = nullptr;
  Index x_row = 0;
  Index rows = 0, inputs = 0;
  const Bfloat16* weights = nullptr;
  const BfloatPair* pairs = nullptr;
  float* c = nullptr;
  Index c_row = 0;
  const float* before = nullptr;
  Index before_row = 0;  ///< 0: one row for all
  const char* prefetch = nullptr;
};

/// What an instruction set does with pairs of bfloat16.
struct PairArithmetic {
  /// to[pair][i] = from[row][i] and from[row + 1][i], the first in the lower half; 0 in place of a row past the last.
  void (*interleave)(BfloatPair* to, Index to_row, const Bfloat16* from, Index from_row, Index rows, Index n);
  void (*multiply)(const PairProduct& product);         ///< null where there is no instruction for it, as are the tiles
  Tiles<BfloatPair, float, BfloatPair> panel_tiles[3];  ///< of 1, 2, 3 vectors of columns
};

/// What an instruction set does with a format of weights.
struct WeightReader {
  int bits;  ///< of a weight
  /// to[input][output] = the weights of a panel; whole groups, where there are groups.
  void (*load)(float* to, const WeightPart& part, Index inputs);
  /// A product of few rows, whose weights the tile converts. Sums run in the order of the inputs.
  void (*multiply)(const WeightProduct<float>& product);
  /// Rounds a row of n inputs, whose last group is filled with zeros.
  void (*round_inputs)(InputGroup* to, const float* from, Index n);
  GroupProduct multiply_groups;  ///< by dot products of bytes; null where the CPU has none
  /// The same, bit for bit, by AArch64's matrix products of bytes; null on other architectures.
  GroupProduct multiply_groups_by_matrices;

  [[nodiscard]] bool grouped() const { return bits < 16; }
  /// Bytes of a panel for each input.
  [[nodiscard]] Index panel_bytes() const { return panel_width<float> * bits / 8; }
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
