// Floor 2. The linear layer: how it is cut into tasks, and one task.
#pragma once

#include <algorithm>
#include <cstddef>

#include "../error.hpp"
#include "../scratch.hpp"
#include "arithmetic.hpp"
#include "codec.hpp"
#include "gemm.hpp"
#include "linear_panels.hpp"
#include "problem.hpp"
#include "weights.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

using attn::detail::Scratch;

/// The functions that a linear layer is computed with, besides those that read its weight.
template <class X, class A = AccumulatorOf<X>>
struct LinearKernels {
  const Arithmetic<A>& arithmetic;
  const Codec<X>& inputs;
};

/// The plan. A task is a block of rows of x by a group of panels of the weight:
///   for each part of at most 512 inputs:  its columns of x, up to 512 KB, stay in L2, copied there where they need to be
///     for each panel of the group:        its part of the weight, up to 96 KB, comes from memory once, prefetched; where it is
///                                         stored in another type, a copy is converted, or each tile converts it
///       for each tile:                    y += x w
/// Where weights are multiplied as whole numbers, or in pairs, there is neither a copy of x in float nor one of the weight;
/// a part then has up to 2048 inputs of 8 bits.
/// Sums run part by part in the order of the inputs whatever the cut, so it may depend on the number of threads.
template <class X, class Panels>
class LinearTasks {
  using A = typename Panels::A;
  static_assert(std::is_same_v<A, AccumulatorOf<X>>, "inputs and weights are computed in one type");
  static constexpr Index width = Panels::width;
  static constexpr Index max_block_rows = Panels::max_rows;
  static constexpr Index few_rows = 8;  // whose products convert the weight in the tile
  // Bytes from what few rows multiply to what they prefetch. One row of 4096 x 4096 in bfloat16: 1.48 of float's speed with
  // none, 1.69 with 4096, 1.95 with 16384 (Intel Xeon; not tried on AMD).
  static constexpr Index weight_ahead = 16384;
  // Inputs of a part where products are of bytes: y is read and written once for each part. 512: 11 % slower, 1024: 7 %, 4096: 2 %
  // faster, but rounded inputs of a block would then take 1.3 MB (Intel Xeon).
  static constexpr Index dot_depth = 2048;
  static constexpr Index max_task_rows = 2048;  // of tasks of several blocks, which share copies of the weight

 public:
  LinearTasks(const LinearProblem<X>& problem, const LinearKernels<X>& kernels, const Panels& panels, Index threads)
      : problem_(problem), kernels_(kernels), arithmetic_(kernels.arithmetic), panels_(panels) {
    // From the inputs alone, so that a row's sums do not depend on how many rows there are.
    const Index most = dots() ? dot_depth : Panels::max_depth;
    depth_ = round_up(ceil_div(inputs(), ceil_div(inputs(), most)), panels.depth_unit());
    cut_rows(threads);
    cut_panels(threads);
  }

  [[nodiscard]] Index tasks() const { return row_tasks_ * groups_; }
  [[nodiscard]] double work() const {
    return static_cast<double>(problem_.rows) * static_cast<double>(problem_.in * problem_.out);
  }
  [[nodiscard]] Index scratch_size() const { return attn::detail::scratch_size_of<Buffers>(*this); }

  void run(Index task, Scratch scratch) const {
    const Buffers buffers(*this, scratch);
    const Index first_block = task % row_tasks_ * task_blocks_;
    const Index first_panel = task / row_tasks_ * group_panels_;
    const Place end{.part = ceil_div(inputs(), depth_),
                    .block = std::min(task_blocks_, row_blocks_ - first_block),
                    .panel = std::min(group_panels_, ceil_div(problem_.out, width) - first_panel)};
    Part part{};
    for (Index n = 0; n < end.part * end.block * end.panel; ++n) {
      const Place at = place(n, end), next = place(n + 1, end);
      part.first_row = (first_block + at.block) * block_rows_;
      part.rows = std::min(block_rows_, problem_.rows - part.first_row);
      part.panel = first_panel + at.panel;
      part.input = at.part * depth_;
      part.inputs = std::min(depth_, inputs() - part.input);
      part.slot = at;
      if (by_panel() || at.panel == 0) read_rows(part, buffers, n == 0);
      const Index passes = ceil_div(std::min(width, problem_.out - part.panel * width), arithmetic_.panel_columns());
      part.ahead = panels_.ahead(first_panel + next.panel, next.part * depth_, part.inputs, passes);
      if (next.block > 0) part.ahead.rows = 0;  // that part of the weight has been copied
      add_panel(part, buffers);
    }
  }

 private:
  /// What a task computes at a time: which part of the inputs, which of its blocks of rows, which of its panels.
  struct Place {
    Index part = 0, block = 0, panel = 0;
  };
  struct Buffers {
    A* x;                 // [row][input] of one part, or of all inputs of a single row
    InputGroup* rounded;  // the same in groups, where inputs are rounded: of all rows or, if sums are of floats, of one
    A* sums;              // of y, where its own memory cannot hold them: of each block, a panel, or all of the group
    A* weights;           // [input][width] of one panel, or of each of the group, where they are copied
    BfloatPair* pairs;    // the same in pairs of inputs, [pair][width]

    Buffers(const LinearTasks& tasks, Scratch& scratch)
        : x(scratch.take<A>((tasks.dots() ? 1 : tasks.block_rows_) * tasks.row_inputs())),
          rounded(scratch.take<InputGroup>((tasks.dots() ? tasks.block_rows_ : 1) * tasks.row_groups())),
          sums(scratch.take<A>(tasks.block_rows_ * width * tasks.task_blocks_ * tasks.summed_panels())),
          weights(scratch.take<A>(tasks.copied_weights())),
          pairs(scratch.take<BfloatPair>(tasks.copied_pairs())) {}
  };
  /// A panel of outputs and a part of the inputs, for a block of rows.
  struct Part {
    Index first_row = 0, rows = 0;
    Index panel = 0;
    Index input = 0, inputs = 0;
    Place slot;            // the same within the task
    const A* x = nullptr;  // the rows of x from `input` on
    Index x_row = 0;
    const InputGroup* rounded = nullptr;  // the same, where they are multiplied as whole numbers; x_row counts groups
    Prefetch ahead;                       // of the part of the weight that comes after this one
  };

  /// What is summed over: whole groups, where there are groups.
  [[nodiscard]] Index inputs() const {
    if constexpr (Panels::is_stored) return panels_.in;
    return problem_.in;
  }
  /// Whether inputs are rounded as the weights are, and whether products are then of whole numbers.
  [[nodiscard]] bool rounds() const {
    if constexpr (Panels::is_stored) return panels_.reader.grouped();
    return false;
  }
  [[nodiscard]] bool dots() const {
    if constexpr (Panels::is_stored) return panels_.multiply_groups != nullptr;
    return false;
  }
  /// Whether inputs and weights are both multiplied as they are stored, in pairs.
  [[nodiscard]] bool pairs() const {
    if constexpr (Panels::is_paired && std::is_same_v<X, Bfloat16>) return panels_.pairs != nullptr;
    return false;
  }

  /// A single row needs no part of x kept near: panel by panel, the weight is read in the order of its memory.
  [[nodiscard]] bool by_panel() const { return !Panels::is_kept && problem_.rows == 1; }
  [[nodiscard]] Place place(Index n, const Place& end) const {
    if (by_panel()) return {.part = n % end.part, .block = 0, .panel = n / end.part};
    const Index block = n / end.panel;
    return {.part = block / end.block, .block = block % end.block, .panel = n % end.panel};
  }
  /// Inputs of a row that are read at a time.
  [[nodiscard]] Index row_inputs() const { return by_panel() ? round_up(inputs(), group_inputs) : depth_; }
  [[nodiscard]] Index row_groups() const { return rounds() ? row_inputs() / group_inputs : 0; }
  [[nodiscard]] Index copied_weights() const {
    return !Panels::is_copied || dots() || pairs() ? 0 : depth_ * width * kept_panels();
  }
  [[nodiscard]] Index copied_pairs() const { return pairs() ? ceil_div(depth_, 2) * width * kept_panels() : 0; }
  [[nodiscard]] Index summed_panels() const { return is_converted<X> ? group_panels_ : 1; }
  [[nodiscard]] Index kept_panels() const { return Panels::is_kept ? group_panels_ : 1; }

  void cut_rows(Index threads) {
    row_blocks_ = ceil_div(problem_.rows, max_block_rows);
    const Index equal = round_up(row_blocks_, threads);  // as many for each thread, if they stay large
    if (problem_.rows >= equal * (max_block_rows - max_block_rows / 6)) row_blocks_ = equal;
    block_rows_ = round_up(ceil_div(problem_.rows, row_blocks_), arithmetic_.tile_rows());
    row_blocks_ = ceil_div(problem_.rows, block_rows_);
    task_blocks_ = Panels::is_kept ? std::min(row_blocks_, max_task_rows / block_rows_) : 1;
    while (task_blocks_ > 1 && ceil_div(row_blocks_, task_blocks_) * ceil_div(problem_.out, width) < 4 * threads)
      task_blocks_ = ceil_div(task_blocks_, 2);
    row_tasks_ = ceil_div(row_blocks_, task_blocks_);
  }
  /// Few large groups save copies of x, many small ones keep threads busy to the end: the fewest groups that give each
  /// thread two tasks or more and leave less than 1 in 16 of the time idle.
  void cut_panels(Index threads) {
    const Index panels = ceil_div(problem_.out, width);
    Index groups = ceil_div(panels, Panels::max_group);
    for (; groups < panels; ++groups) {
      const Index tasks = row_tasks_ * groups;
      if (tasks >= 2 * threads && (round_up(tasks, threads) - tasks) * 16 <= tasks) break;
    }
    group_panels_ = ceil_div(panels, groups);
    groups_ = ceil_div(panels, group_panels_);
  }
  /// The rows of x, where they are, or copied if they need conversion or alias in the caches. Of a single row all inputs are
  /// read at once, when the task begins.
  void read_rows(Part& part, const Buffers& buffers, bool begins) const {
    if (pairs()) return;
    const Index begin = by_panel() ? 0 : part.input, skipped = part.input - begin;
    const Index size = std::min(by_panel() ? inputs() : part.inputs, problem_.in - begin);
    const X* const x = problem_.x + part.first_row * problem_.x_row + begin;
    const bool is_read = begins || !by_panel();
    if (rounds()) {
      if (is_read) round_rows(x, part.rows, size, buffers);
      part.x = buffers.x + skipped, part.rounded = buffers.rounded + skipped / group_inputs;
      part.x_row = dots() ? row_groups() : row_inputs();
      return;
    }
    if constexpr (!is_converted<X>) {
      if (part.rows == 1 || !aliases_in_cache(problem_.x_row * Index{sizeof(X)})) {
        part.x = x + skipped, part.x_row = problem_.x_row;
        return;
      }
    }
    if (is_read) kernels_.inputs.load(buffers.x, size, x, problem_.x_row, part.rows, size);
    part.x = buffers.x + skipped, part.x_row = size;
    if (Panels::is_stored && part.rows > 1 && part.rows <= few_rows)  // rows that fill a tile
      std::fill(buffers.x + part.rows * size, buffers.x + block_rows_ * size, A{0});
  }
  /// Rounds rows of x, group by group, and where sums are of floats makes them floats again.
  void round_rows(const X* x, Index rows, Index size, const Buffers& buffers) const {
    if constexpr (Panels::is_stored) {
      for (Index row = 0; row < rows; ++row, x += problem_.x_row) {
        InputGroup* const rounded = buffers.rounded + (dots() ? row * row_groups() : 0);
        A* to = buffers.x + (dots() ? 0 : row * row_inputs());
        if constexpr (is_converted<X>) {
          kernels_.inputs.load(to, size, x, problem_.x_row, 1, size);
          panels_.reader.round_inputs(rounded, to, size);
        } else {
          panels_.reader.round_inputs(rounded, x, size);
        }
        if (dots()) continue;
        for (const InputGroup* group = rounded; group < rounded + ceil_div(size, group_inputs); ++group)
          for (const std::int8_t number : group->number) *to++ = static_cast<A>(number) * group->scale;
      }
    }
  }

  /// y += x w, or bias + x w for the first inputs.
  void add_panel(const Part& part, const Buffers& buffers) const {
    const Index columns = std::min(width, problem_.out - part.panel * width);
    X* const y = problem_.y + part.first_row * problem_.y_row + part.panel * width;
    const Index slot = part.slot.block * summed_panels() + (is_converted<X> ? part.slot.panel : 0);
    A* sums = buffers.sums + slot * block_rows_ * width;
    Index sums_row = width;
    if constexpr (!is_converted<X>) {
      if (columns == width) sums = y, sums_row = problem_.y_row;
    }
    alignas(64) A bias[std::size_t{width}] = {};
    if (part.input == 0 && problem_.bias != nullptr)
      kernels_.inputs.load(bias, width, problem_.bias + part.panel * width, width, 1, columns);

    const bool first = part.input == 0 && !problem_.add;
    if (sums != static_cast<void*>(y) && part.input == 0 && problem_.add)
      kernels_.inputs.load(sums, width, y, problem_.y_row, part.rows, columns);

    Product<A> product{.a = part.x,
                       .a_row = part.x_row,
                       .b_row = width,
                       .depth = part.inputs,
                       .c = sums,
                       .c_row = sums_row,
                       .before = first ? bias : sums,
                       .before_row = first ? 0 : sums_row,
                       .factor = ones<A>.value};
    if (pairs()) {
      add_pairs(part, product, buffers);
      return store_sums(part, sums, y, columns);
    }
    if (dots() || (Panels::is_stored && part.rows <= few_rows)) {
      add_stored(part, product);
      return store_sums(part, sums, y, columns);
    }
    product.b = read_weight(part, buffers);
    const Index step = arithmetic_.panel_columns(), passes = ceil_div(columns, step);
    for (Index pass = 0; pass < passes; ++pass) {
      multiply(arithmetic_, product, part.rows, columns - pass * step, part.ahead);
      product.b += step, product.c += step, product.before += step;
    }
    store_sums(part, sums, y, columns);
  }
  /// The product with a panel as it is stored: of whole numbers, or of few rows, where reading the weight is the limit and a
  /// copy would be written and read besides. Few rows that were copied have room for whole tiles, whose other rows are not
  /// used.
  void add_stored(const Part& part, const Product<A>& product) const {
    if constexpr (Panels::is_stored) {
      const WeightPart weights = panels_.at(part.panel, part.input);
      const bool is_few = part.rows <= few_rows;
      const auto stored = [&]<class Input>(const Input* x, Index rows, Index inputs) {
        return WeightProduct<Input>{
            .x = x,
            .x_row = part.x_row,
            .rows = rows,
            .inputs = inputs,
            .weights = weights,
            .c = product.c,
            .c_row = product.c_row,
            .before = product.before,
            .before_row = product.before_row,
            .prefetch = is_few ? reinterpret_cast<const char*>(weights.values) + weight_ahead : part.ahead.row};
      };
      if (dots()) return panels_.multiply_groups(stored(part.rounded, part.rows, part.inputs / group_inputs));
      const bool fills = is_converted<X> && part.rows > 1;
      panels_.reader.multiply(
          stored(part.x, fills ? round_up(part.rows, arithmetic_.tile_rows()) : part.rows, part.inputs));
    }
  }
  /// The product of x and a panel in pairs of inputs, side by side in a copy; few rows read it as it is stored.
  void add_pairs(const Part& part, const Product<A>& product, const Buffers& buffers) const {
    if constexpr (Panels::is_paired && std::is_same_v<X, Bfloat16>) {
      PairProduct paired{.x = problem_.x + part.first_row * problem_.x_row + part.input,
                         .x_row = problem_.x_row,
                         .rows = part.rows,
                         .inputs = part.inputs,
                         .c = product.c,
                         .c_row = product.c_row,
                         .before = product.before,
                         .before_row = product.before_row};
      if constexpr (Panels::is_stored) {
        paired.prefetch = part.ahead.row;
        if (part.rows <= few_rows) {
          paired.weights = panels_.stored_pairs(part.panel, part.input);
          paired.prefetch = reinterpret_cast<const char*>(paired.weights) + weight_ahead;
          return panels_.pairs->multiply(paired);
        }
      }
      BfloatPair* const copy = buffers.pairs + kept_slot(part) * ceil_div(depth_, 2) * width;
      if (!is_kept(part)) panels_.read_pairs(part.panel, part.input, part.inputs, copy);
      paired.pairs = copy;
      panels_.pairs->multiply(paired);
    }
  }
  /// Writes y once all inputs have been summed up, where its own memory did not hold the sums.
  void store_sums(const Part& part, const A* sums, X* y, Index columns) const {
    if (sums != static_cast<void*>(y) && part.input + part.inputs == inputs())
      kernels_.inputs.store(y, problem_.y_row, sums, width, part.rows, columns);
  }

  /// Which of the copies of a part of the weight is that of a panel; and whether an earlier block of rows has made it.
  [[nodiscard]] static Index kept_slot(const Part& part) { return Panels::is_kept ? part.slot.panel : 0; }
  [[nodiscard]] static bool is_kept(const Part& part) { return Panels::is_kept && part.slot.block > 0; }
  [[nodiscard]] const A* read_weight(const Part& part, const Buffers& buffers) const {
    A* const copy = buffers.weights + kept_slot(part) * depth_ * width;
    return is_kept(part) ? copy : panels_.read(part.panel, part.input, part.inputs, copy);
  }

  const LinearProblem<X>& problem_;
  const LinearKernels<X>& kernels_;
  const Arithmetic<A>& arithmetic_;
  Panels panels_;
  Index depth_;  // inputs of a part
  Index block_rows_, row_blocks_;
  Index task_blocks_, row_tasks_;  // blocks of a task
  Index group_panels_, groups_;
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
