// Floor 2. The backward pass of the linear layer: two products over the packed layout.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "../error.hpp"
#include "../scratch.hpp"
#include "arithmetic.hpp"
#include "codec.hpp"
#include "gemm.hpp"
#include "linear_forward.hpp"
#include "problem.hpp"
#include "weights.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

/// The weight as grad_x = grad_y w reads it: panels of inputs, transposed out of the panels of outputs, part by part. What
/// LinearTasks calls `input`, what is summed over, is `output` here.
template <class W>
struct BackwardPanels {
  using A = AccumulatorOf<W>;
  static constexpr Index width = panel_width<W>;
  static constexpr Index max_depth = 480 / width * width;
  static constexpr Index max_rows = 192;
  static constexpr bool is_stored = false, is_copied = true;
  static constexpr bool is_paired = std::is_same_v<W, Bfloat16>;
  static constexpr bool is_kept = true;   // of a task, for all its blocks of rows
  static constexpr Index max_group = 11;  // copies of 1 MB

  const Codec<W>& codec;
  const Arithmetic<A>& arithmetic;
  const W* weight;
  Index in;                               ///< of the layer: panels of outputs are in * width elements apart
  const PairArithmetic* pairs = nullptr;  ///< for gradients and weights of bfloat16 that are multiplied as they are

  [[nodiscard]] static constexpr Index depth_unit() { return width; }
  [[nodiscard]] const W* at(Index panel, Index output) const { return weight + (output * in + panel * width * width); }
  [[nodiscard]] const A* read(Index panel, Index output, Index outputs, A* copy) const {
    const Index inputs = std::min(width, in - panel * width);
    for (Index o = 0; o < outputs; o += width)
      codec.load_transposed(copy + o * width, width, at(panel, output + o), width, inputs,
                            std::min(width, outputs - o));
    return copy;
  }
  /// The same part in pairs of outputs, [pair][width]. The two weights of a pair are a 32-bit word of the panel of outputs, so
  /// words are what is transposed.
  void read_pairs(Index panel, Index output, Index outputs, BfloatPair* copy) const {
    const Index inputs = std::min(width, in - panel * width);
    for (Index o = 0; o < outputs; o += width) {
      const void* const words = at(panel, output + o);
      arithmetic.transpose(reinterpret_cast<A*>(copy + o / 2 * width), width, static_cast<const A*>(words), width / 2,
                           inputs, ceil_div(std::min(width, outputs - o), 2));
    }
  }
  [[nodiscard]] Prefetch ahead(Index panel, Index output, Index outputs, Index passes) const {
    return Prefetch::of(at(panel, output), in * width, width * width / passes, ceil_div(outputs, width));
  }
};

/// The plan of the parameters' gradients. A task is a block of inputs by a group of panels of outputs:
///   for each part of at most 512 rows:  its columns of x are copied, a tile's inputs of all rows side by side
///     for each panel of the group:      its columns of grad_y, up to 96 KB, are copied and stay in L2
///       for each tile:                  gradient += xT grad_y, where the tile's rows are inputs
///       and, of the first block:        bias gradient += ones grad_y
/// Both are copied because a tile reads columns of them, and rows of a few KB share sets of the caches: read in place, x takes
/// 1.6 to 2.5 times as long, grad_y 1.3 to 3 times.
/// Bfloat16 may be multiplied in pairs of rows, which the copies then have side by side.
/// Sums run part by part in the order of the rows whatever the cut, so it may depend on the number of threads.
template <class X, class W, class Operand>
class LinearGradientTasks {
  using A = AccumulatorOf<X>;
  static constexpr Index pair = std::is_same_v<Operand, A> ? 1 : 2;  // rows that are multiplied at once
  static constexpr Index width = panel_width<W>;
  static constexpr Index max_depth = 512 * pair;   // rows of a part
  static constexpr Index max_block_inputs = 1024;  // copies of 2 MB; 512 copy grad_y too often (3 % at 4096 inputs)
  static constexpr Index min_block_inputs = 256;
  static constexpr Index unit = 4;           // a tile's rows are a multiple of this
  static constexpr Index copied_rows = 16;   // rows of x that are copied side by side; 8 and 32 are equal
  static constexpr Index copied_panels = 2;  // panels of grad_y that are copied side by side; 1 and 8 are slower (1 %)
  static constexpr Index bias_rows = 8;      // rows that are summed in A before they join a sum in double

 public:
  LinearGradientTasks(const LinearBackwardProblem<X, W>& problem, const LinearKernels<X>& kernels,
                      const PairArithmetic* pairs, Index tasks)
      : problem_(problem), kernels_(kernels), pairs_(pairs), tile_rows_(kernels.arithmetic.tile_rows()) {
    depth_ = round_up(ceil_div(problem.rows, ceil_div(problem.rows, max_depth)), unit) / pair;
    // By blocks of inputs first: each copies grad_y, a panel of which is near; each group of panels copies x.
    const Index panels = ceil_div(problem.out, width), tiles = ceil_div(problem.in, tile_rows_);
    input_blocks_ = std::max(ceil_div(problem.in, max_block_inputs), std::min(tasks, problem.in / min_block_inputs));
    block_inputs_ = ceil_div(tiles, std::max<Index>(input_blocks_, 1)) * tile_rows_;
    input_blocks_ = ceil_div(problem.in, block_inputs_);
    group_panels_ = ceil_div(panels, std::min(panels, ceil_div(tasks, input_blocks_)));
    groups_ = ceil_div(panels, group_panels_);
  }

  [[nodiscard]] Index tasks() const { return input_blocks_ * groups_; }
  [[nodiscard]] Index scratch_size() const { return attn::detail::scratch_size_of<Buffers>(*this); }

  void run(Index task, Scratch scratch) const {
    const Buffers buffers(*this, scratch);
    Part part{.first_input = task % input_blocks_ * block_inputs_};
    part.inputs = std::min(block_inputs_, problem_.in - part.first_input);
    const Index first_panel = task / input_blocks_ * group_panels_;
    const Index last_panel = std::min(first_panel + group_panels_, ceil_div(problem_.out, width));
    const bool biased = problem_.bias_gradient != nullptr && part.first_input == 0;
    std::fill_n(buffers.bias, group_panels_ * width, 0.0);
    for (part.first_row = 0; part.first_row < problem_.rows; part.first_row += depth_ * pair) {
      part.rows = std::min(depth_ * pair, problem_.rows - part.first_row);
      read_inputs(part, buffers);
      for (part.panel = first_panel; part.panel < last_panel; ++part.panel) {
        const Index slot = (part.panel - first_panel) % copied_panels;
        if (slot == 0) read_gradients(part, std::min(copied_panels, last_panel - part.panel), buffers);
        part.gradients = buffers.gradients + slot * depth_ * width;
        add_panel(part, buffers);
        if (biased) add_bias(part, buffers.bias + (part.panel - first_panel) * width);
      }
    }
    const Index first = first_panel * width, end = std::min(last_panel * width, problem_.out);
    for (Index o = first; o < end && biased; ++o)
      problem_.bias_gradient[o] =
          static_cast<A>(static_cast<double>(problem_.bias_gradient[o]) + buffers.bias[o - first]);
  }

 private:
  struct Buffers {
    Operand* x;          // [tile of inputs][row][input]
    Operand* row;        // some rows of x, converted
    Operand* gradients;  // [panel][row][width] of grad_y
    double* bias;        // [width] of each panel

    Buffers(const LinearGradientTasks& tasks, Scratch& scratch)
        : x(scratch.take<Operand>(ceil_div(tasks.block_inputs_, tasks.tile_rows_) * tasks.tile_pitch())),
          row(scratch.take<Operand>(is_converted<X> ? copied_rows / pair * tasks.block_inputs_ : 0)),
          gradients(scratch.take<Operand>(copied_panels * tasks.depth_ * width)),
          bias(scratch.take<double>(tasks.group_panels_ * width)) {}
  };
  /// Rows, a block of inputs, and a panel of outputs.
  struct Part {
    Index first_input = 0, inputs = 0;
    Index first_row = 0, rows = 0;
    Index panel = 0;
    const Operand* gradients = nullptr;  // the panel's columns of grad_y, [row][width]
  };

  /// From the copy of a tile's inputs to the next.
  [[nodiscard]] Index tile_pitch() const { return copied_stride<Operand>(depth_ * tile_rows_); }
  [[nodiscard]] const Tiles<Operand, A, Operand> (&panel_tiles() const)[3] {
    if constexpr (pair == 2)
      return pairs_->panel_tiles;
    else
      return kernels_.arithmetic.panel_tiles;
  }
  /// to[row][i] = from[row][i], as what is multiplied.
  void load(Operand* to, Index to_row, const X* from, Index from_row, Index rows, Index n) const {
    if constexpr (pair == 2)
      pairs_->interleave(to, to_row, from, from_row, rows, n);
    else
      kernels_.inputs.load(to, to_row, from, from_row, rows, n);
  }

  void read_inputs(const Part& part, const Buffers& buffers) const {
    for (Index first = 0; first < part.rows; first += copied_rows) {
      const Index rows = std::min(copied_rows, part.rows - first);
      const X* const x = problem_.x + (part.first_row + first) * problem_.x_row + part.first_input;
      Operand* const to = buffers.x + first / pair * tile_rows_;
      if constexpr (is_converted<X>) {
        load(buffers.row, part.inputs, x, problem_.x_row, rows, part.inputs);
        split(to, buffers.row, part.inputs, ceil_div(rows, pair), part.inputs);
      } else {
        split(to, x, problem_.x_row, rows, part.inputs);
      }
    }
  }
  /// to[tile][row][input] = from[row][tile, input].
  void split(Operand* to, const Operand* from, Index from_row, Index rows, Index inputs) const {
    for (; inputs > 0; inputs -= tile_rows_, from += tile_rows_, to += tile_pitch()) {
      const Index whole = inputs >= tile_rows_ ? tile_rows_ : 0;
      for (Index row = 0; row < rows; ++row)
        for (Index i = 0; i < whole; i += unit)
          __builtin_memcpy(to + row * tile_rows_ + i, from + row * from_row + i, unit * sizeof(Operand));
      for (Index row = 0; row < rows && whole == 0; ++row)
        std::copy_n(from + row * from_row, inputs, to + row * tile_rows_);
    }
  }

  [[nodiscard]] Index columns(const Part& part) const { return std::min(width, problem_.out - part.panel * width); }

  /// Copies panels of grad_y, a row of all of them after the other, as they lie.
  void read_gradients(const Part& part, Index panels, const Buffers& buffers) const {
    constexpr Index ahead = 4;  // rows: with none, copying takes 1.5 times as long (Intel Xeon, AVX-512)
    const Index columns = std::min(panels * width, problem_.out - part.panel * width);
    for (Index row = 0; row < part.rows; row += pair) {
      const X* const from = problem_.grad_y + (part.first_row + row) * problem_.grad_y_row + part.panel * width;
      Operand* to = buffers.gradients + row / pair * width;
      for (Index next = row + ahead; next < std::min(row + ahead + pair, part.rows); ++next)
        prefetch(from + (next - row) * problem_.grad_y_row, columns * Index{sizeof(X)});
      for (Index column = 0; column < columns; column += width, to += depth_ * width) {
        const Index n = std::min(width, columns - column);
        load(to, width, from + column, problem_.grad_y_row, std::min(pair, part.rows - row), n);
        std::fill_n(to + n, width - n, Operand{});
      }
    }
  }

  void add_panel(const Part& part, const Buffers& buffers) const {
    A* const gradient = problem_.weight_gradient + (part.panel * problem_.in + part.first_input) * width;
    const Index step = kernels_.arithmetic.panel_columns();
    for (Index i = 0; i < part.inputs; i += tile_rows_) {
      const Index inputs = std::min(tile_rows_, part.inputs - i);
      A* const c = gradient + i * width;
      Product<Operand, A, Operand> product{.a = buffers.x + i / tile_rows_ * tile_pitch(),
                                           .a_row = 1,
                                           .a_step = tile_rows_,
                                           .b = part.gradients,
                                           .b_row = width,
                                           .depth = ceil_div(part.rows, pair),
                                           .c = c,
                                           .c_row = width,
                                           .before = c,
                                           .before_row = width,
                                           .factor = ones<A>.value};
      for (Index column = 0; column < columns(part); column += step) {
        multiply(panel_tiles(), product, inputs, columns(part) - column,
                 Prefetch::of(c + (tile_rows_ + column / step) * width, 0, tile_rows_ * width, 1));
        product.b += step, product.c += step, product.before += step;
      }
      // Where an input is infinite, its products with the zeros that fill the panel are NaN.
      for (Index row = 0; row < inputs && columns(part) < width; ++row)
        std::fill_n(c + row * width + columns(part), width - columns(part), A{0});
    }
  }

  /// The bias is the weight of an input that is always 1.
  void add_bias(const Part& part, double* bias) const {
    constexpr Operand one = [] {
      if constexpr (pair == 2)
        return Operand{0x3F803F80};
      else
        return Operand{1};
    }();
    alignas(64) A sums[std::size_t{width}] = {};
    const Index step = kernels_.arithmetic.panel_columns();
    for (Index first = 0; first < part.rows; first += bias_rows) {
      Product<Operand, A, Operand> product{.a = &one,
                                           .a_step = 0,
                                           .b = part.gradients + first / pair * width,
                                           .b_row = width,
                                           .depth = ceil_div(std::min(bias_rows, part.rows - first), pair),
                                           .c = sums,
                                           .c_row = step,
                                           .factor = ones<A>.value};
      for (Index column = 0; column < columns(part); column += step, product.b += step, product.c += step)
        multiply(panel_tiles(), product, 1, columns(part) - column, {});
      for (Index o = 0; o < width; ++o) bias[o] += static_cast<double>(sums[o]);
    }
  }

  const LinearBackwardProblem<X, W>& problem_;
  const LinearKernels<X>& kernels_;
  const PairArithmetic* pairs_;
  Index tile_rows_;  // inputs of a tile
  Index depth_;      // rows of a part, or pairs of them
  Index block_inputs_, input_blocks_;
  Index group_panels_, groups_;
};

/// The plan of a backward pass: tasks for the parameters' gradients come first, then, if the caller wants grad_x, tasks for it.
/// Operand is what is multiplied: the type of sums, or pairs, which `pairs` is then for.
template <class X, class W, class Operand = AccumulatorOf<X>>
class LinearBackwardTasks {
 public:
  LinearBackwardTasks(const LinearBackwardProblem<X, W>& problem, const LinearKernels<X>& kernels,
                      const Codec<W>& weights, Index threads, const PairArithmetic* pairs = nullptr)
      : of_outputs_{.x = problem.grad_y,
                    .bias = nullptr,
                    .y = problem.grad_x,
                    .rows = problem.rows,
                    .in = problem.out,
                    .out = problem.in,
                    .x_row = problem.grad_y_row,
                    .y_row = problem.grad_x_row,
                    .add = problem.add},
        of_parameters_(problem, kernels, pairs, threads),
        of_inputs_(of_outputs_, kernels,
                   {.codec = weights,
                    .arithmetic = kernels.arithmetic,
                    .weight = problem.weight,
                    .in = problem.in,
                    .pairs = pairs},
                   threads) {}
  LinearBackwardTasks(const LinearBackwardTasks&) = delete;  // of_inputs_ refers to of_outputs_
  LinearBackwardTasks& operator=(const LinearBackwardTasks&) = delete;

  [[nodiscard]] Index tasks() const { return of_parameters_.tasks() + (wants_inputs() ? of_inputs_.tasks() : 0); }
  [[nodiscard]] double work() const { return of_inputs_.work() * (wants_inputs() ? 2.0 : 1.0); }
  [[nodiscard]] Index scratch_size() const {
    return std::max(of_parameters_.scratch_size(), wants_inputs() ? of_inputs_.scratch_size() : 0);
  }
  void run(Index task, Scratch scratch) const {
    const Index first = of_parameters_.tasks();
    if (task < first)
      of_parameters_.run(task, scratch);
    else
      of_inputs_.run(task - first, scratch);
  }

 private:
  [[nodiscard]] bool wants_inputs() const { return of_outputs_.y != nullptr; }

  LinearProblem<X> of_outputs_;  // grad_x = grad_y w, as a layer that goes the other way
  LinearGradientTasks<X, W, Operand> of_parameters_;
  LinearTasks<X, BackwardPanels<W>> of_inputs_;
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
