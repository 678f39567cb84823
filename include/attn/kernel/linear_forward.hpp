// Floor 2. The linear layer: how it is cut into tasks, and one task.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

/// How a linear layer is cut into tasks. A task is a block of rows of x by a group of panels of the weight:
///   for each stretch of `depth` inputs:  its part of x, up to 384 KB, stays in L2, copied there where it needs to be
///     for each panel of the group:       its part of the weight, up to 96 KB, comes from memory once, ahead of time
///       for each tile:                   y += x w
/// Sums run stretch by stretch in the order of the inputs whatever the cut, so it may depend on the number of threads.
template <class T>
class LinearTasks {
  using A = AccumulatorOf<T>;
  static constexpr bool low = !std::is_same_v<T, A>;
  static constexpr Index width = panel_width<T>;
  static constexpr Index most_depth = 512;  // 128: 4 % slower, each tile of y is read and written too often; 256: 2 %
  static constexpr Index most_rows = 192;   // 384: 1 % slower

 public:
  LinearTasks(const LinearProblem<T>& problem, const Kernels<T>& functions, Index threads) : p(problem), f(functions) {
    const Index panels = ceil_div(p.out, width);
    // Of the inputs alone, so that a row's sums do not depend on how many rows there are.
    depth = round_up(ceil_div(p.in, ceil_div(p.in, most_depth)), 8);
    row_blocks = (p.rows + most_rows - 1) / most_rows;
    const Index even = (row_blocks + threads - 1) / threads * threads;  // as many for each thread, if they stay large
    if (p.rows >= even * (most_rows - most_rows / 6)) row_blocks = even;
    block_rows = (p.rows + row_blocks - 1) / row_blocks;
    block_rows = (block_rows + f.tile_rows() - 1) / f.tile_rows() * f.tile_rows();
    row_blocks = (p.rows + block_rows - 1) / block_rows;
    // Few large groups save copies of x, many small ones keep threads busy to the end: the fewest groups that give each
    // thread two tasks or more and leave less than 1 in 16 of the time idle.
    Index groups = 1;
    for (; groups < panels; ++groups) {
      const Index tasks = row_blocks * groups, rounds = (tasks + threads - 1) / threads;
      if (tasks >= 2 * threads && (rounds * threads - tasks) * 16 <= tasks) break;
    }
    block_panels = (panels + groups - 1) / groups;
    panel_blocks = (panels + block_panels - 1) / block_panels;
  }

  [[nodiscard]] Index count() const { return row_blocks * panel_blocks; }
  /// Scratch memory per thread, in accumulators.
  [[nodiscard]] Index scratch() const {
    return block_rows * depth + block_rows * width * (low ? block_panels : 1) + (low ? depth * width : 0);
  }

  void run(Index task, A* scratch) const {
    const Index first_row = task % row_blocks * block_rows;
    const Index rows = std::min(block_rows, p.rows - first_row);
    const Index first_panel = task / row_blocks * block_panels;
    const Index panels = std::min(block_panels, ceil_div(p.out, width) - first_panel);
    const Index stretches = ceil_div(p.in, depth);
    A* const packed_x = scratch;
    A* const sums = packed_x + block_rows * depth;  // of y, where its own memory cannot hold them
    [[maybe_unused]] A* const own_weight = sums + block_rows * width * block_panels;
    // A single row needs no part of x kept near: panel by panel, the weight is read as it lies.
    const bool by_panel = !low && p.rows == 1;

    const A* x = packed_x;
    Index x_row = 0;
    for (Index n = 0; n < stretches * panels; ++n) {
      const Index stretch = by_panel ? n % stretches : n / panels;
      const Index panel = first_panel + (by_panel ? n / stretches : n % panels);
      const Index i = stretch * depth, inputs = std::min(depth, p.in - i);
      if (by_panel || panel == first_panel) x = rows_of_x(first_row, rows, i, inputs, packed_x, x_row);

      const Index columns = std::min(width, p.out - panel * width);
      const T* const stored = p.weight + (panel * p.in + i) * width;
      const T* next = stored + (by_panel ? inputs : p.in) * width;
      if (!by_panel && panel + 1 == first_panel + panels) next = p.weight + (first_panel * p.in + i + inputs) * width;
      T* const y = p.y + first_row * p.y_row + panel * width;
      A* to = sums + (low ? (panel - first_panel) * block_rows * width : 0);
      Index to_row = width;
      const A* weight = own_weight;
      if constexpr (low) {
        f.load(own_weight, width, stored, width, inputs, width);
      } else {
        weight = stored;
        if (columns == width) to = y, to_row = p.y_row;
      }
      alignas(64) A bias[std::size_t{width}] = {};
      if (i == 0 && p.bias != nullptr) f.load(bias, width, p.bias + panel * width, width, 1, columns);

      Product<A> product{x, x_row, 1, weight, width, inputs, to, to_row, to, to_row, ones<A>.value};
      if (i == 0) product.before = bias, product.before_row = 0;
      const Index passes = ceil_div(columns, f.panel());
      const Wanted next_panel = Wanted::of(next, 0, inputs * width / passes, 1);
      for (Index pass = 0; pass < passes; ++pass) {
        multiply(f, product, rows, columns - pass * f.panel(), next_panel);
        product.b += f.panel(), product.c += f.panel(), product.before += f.panel();
      }
      if (to != static_cast<void*>(y) && i + inputs == p.in) f.store(y, p.y_row, to, width, rows, columns);
    }
  }

 private:
  /// Rows of x from input i on, as they lie in memory or copied to `packed_x`; x_row becomes their distance.
  const A* rows_of_x(Index first_row, Index rows, Index i, Index inputs, A* packed_x, Index& x_row) const {
    const T* const x = p.x + first_row * p.x_row + i;
    if constexpr (!low) {
      if (rows == 1 || !crowded<T>(p.x_row)) {
        x_row = p.x_row;
        return x;
      }
    }
    x_row = inputs;
    f.load(packed_x, inputs, x, p.x_row, rows, inputs);
    return packed_x;
  }

  const LinearProblem<T>& p;
  const Kernels<T>& f;
  Index depth, block_rows, block_panels, row_blocks, panel_blocks;
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
