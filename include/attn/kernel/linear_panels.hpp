// Floor 2. The weight of a linear layer as forward reads it: panels of outputs.
#pragma once

#include "../error.hpp"
#include "arithmetic.hpp"
#include "gemm.hpp"
#include "problem.hpp"
#include "weights.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

/// A weight of the type that sums are in: panels of outputs, read in place.
template <class T>
struct PlainPanels {
  using A = T;
  static constexpr Index width = panel_width<A>;
  static constexpr Index max_depth = 512;  // 128: 4 % slower, each tile of y is read and written too often; 256: 2 %
  static constexpr Index max_rows = 192;   // of a block; 384: 1 % slower
  static constexpr bool is_stored = false, is_copied = false, is_kept = false, is_paired = false;
  static constexpr Index max_group = 1 << 30;

  const A* weight;
  Index in;

  [[nodiscard]] static constexpr Index depth_unit() { return 8; }
  [[nodiscard]] const A* at(Index panel, Index input) const { return weight + (panel * in + input) * width; }
  /// The part of a panel from `input` on, [input][width]; `copy` has room for it where it is copied.
  [[nodiscard]] const A* read(Index panel, Index input, Index, A*) const { return at(panel, input); }
  [[nodiscard]] Prefetch ahead(Index panel, Index input, Index inputs, Index passes) const {
    return Prefetch::of(at(panel, input), 0, inputs * width / passes, 1);
  }
};

/// A weight in another format, in the same order: its tiles convert it for few rows, others read a copy.
struct StoredPanels {
  using A = float;
  static constexpr Index width = panel_width<A>;
  static constexpr Index max_depth = PlainPanels<A>::max_depth;
  static constexpr Index max_rows = 256;  // since each block converts the weight again; 192: 1 to 2 % slower
  static constexpr bool is_stored = true, is_copied = true;
  static constexpr bool is_kept = false;   // a copy is made again for each block of rows
  static constexpr bool is_paired = true;  // where it is bfloat16 and inputs are, too
  static constexpr Index max_group = 1 << 30;

  const WeightReader& reader;
  WeightPart first;
  Index in;  ///< of a panel: whole groups, where there are groups
  /// Multiplies weights and rounded inputs as whole numbers; null: as floats.
  GroupProduct multiply_groups = nullptr;
  const PairArithmetic* pairs = nullptr;  ///< for inputs and weights of bfloat16 that are multiplied as they are

  [[nodiscard]] Index depth_unit() const { return reader.grouped() ? group_inputs : PlainPanels<A>::depth_unit(); }
  [[nodiscard]] WeightPart at(Index panel, Index input) const {
    const Index inputs = panel * in + input;
    return {.values = first.values + inputs * reader.panel_bytes(),
            .scales = reader.grouped() ? first.scales + inputs / group_inputs * width : nullptr};
  }
  [[nodiscard]] const A* read(Index panel, Index input, Index inputs, A* copy) const {
    reader.load(copy, at(panel, input), inputs);
    return copy;
  }
  [[nodiscard]] const Bfloat16* stored_pairs(Index panel, Index input) const {
    return static_cast<const Bfloat16*>(static_cast<const void*>(at(panel, input).values));
  }
  /// The same part in pairs of inputs, [pair][width].
  void read_pairs(Index panel, Index input, Index inputs, BfloatPair* copy) const {
    pairs->interleave(copy, width, stored_pairs(panel, input), width, inputs, width);
  }
  [[nodiscard]] Prefetch ahead(Index panel, Index input, Index inputs, Index passes) const {
    return Prefetch::of(at(panel, input).values, 0, inputs * reader.panel_bytes() / passes, 1);
  }
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
