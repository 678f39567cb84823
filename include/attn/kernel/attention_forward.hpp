// Floor 2. Fused attention: how it is cut into tasks, and one task.
//
//   for each block of up to 384 queries of one head:            queries are transposed once
//     for each step of 64 keys that the mask does not call empty:
//       for each panel of 3 vectors of queries:
//         scores[key][query] = k q * scale                      one tile product, queries across the lanes
//         scores = mask(score function(scores))
//         p = exp(scores - row_max);  rescale earlier sums      online softmax, no horizontal step
//         y[element][query] = y * rescale + v p                 one tile product
//     y / row_sum, transposed back
//
// Scores are computed transposed so that both products are the same tile: its columns are queries, its rows are keys
// as they lie in k, or elements of v as they lie in v. No key or value needs packing, and any D and Dv will do.
// Where q, k and v are bfloat16 and the CPU multiplies pairs of them, the operands of both products are pairs: of elements of q and
// k, of keys in the weights and v.
// Memory traffic of a block: k and v once from L2 or L3, D + Dv elements per key for 2 * 384 * (D + Dv) flops. At 4 bytes
// that is 1 byte in 192 flops: arithmetic, not memory, is the limit.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../error.hpp"
#include "../scratch.hpp"
#include "arithmetic.hpp"
#include "attention_kernels.hpp"
#include "codec.hpp"
#include "dropout.hpp"
#include "gemm.hpp"
#include "problem.hpp"
#include "row_source.hpp"
#include "rules.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

/// The plan: attention of all heads, cut into blocks, up to 384 queries of one head against all its keys, and those
/// into tasks.
template <class Q>
class AttentionTasks {
  using A = AccumulatorOf<Q>;

 public:
  AttentionTasks(const AttentionProblem<Q>& problem, const Rules<A>& rules, const AttentionKernels<Q>& kernels,
                 Index threads)
      : problem_(problem), rules_(rules), kernels_(kernels), panel_(kernels.arithmetic.panel_columns()) {
    // Elements of q and k are multiplied in pairs as they lie.
    if constexpr (has_pairs)
      if (kernels.pairs != nullptr && problem.D % 2 == 0)
        pairs_ = kernels.pairs, keys_ = &pairs_->keys, values_ = &pairs_->values;
    cut_into_blocks(threads);
    cut_into_tasks(threads);
    choose_copies(threads);
    std::fill_n(scale_, panel_, problem.scale);
  }

  [[nodiscard]] Index tasks() const { return problem_.B * problem_.H * row_blocks_ / (task_heads_ * task_blocks_); }
  [[nodiscard]] double work() const { return problem_.work(); }
  [[nodiscard]] Index scratch_size() const { return attn::detail::scratch_size_of<Worker>(*this); }

  void run(Index task, Scratch scratch) const {
    Worker worker(*this, scratch);
    if (task_heads_ * task_blocks_ == 1) {
      // Few heads: one task per block, costliest first (the last rows, under a causal mask), so that no thread ends on a
      // long one.
      worker.begin_head(task % (problem_.B * problem_.H));
      worker.run(row_blocks_ - 1 - task / (problem_.B * problem_.H));
      return;
    }
    for (Index head = task * task_heads_; head < (task + 1) * task_heads_; ++head) {
      worker.begin_head(head);
      for (Index block = row_blocks_; block-- > 0;) worker.run(block);
    }
  }

 private:
  class Worker;

  static constexpr bool has_pairs = std::is_same_v<Q, Bfloat16>;
  static constexpr Index max_block_rows =
      384;                                // 96 read k and v too often (15 %), 192 and 288 are equal, 576 leave L2 (3 %)
  static constexpr Index step_keys = 64;  // 32 read and write the output too often (3 %), 96 and 128 are equal
  /// Keys whose steps are summed up before they join the total: one chain of steps over 2^20 keys would lose 5e-4.
  static constexpr Index chunk_keys = 64 * step_keys;
  static constexpr Index max_copied = (48 << 20) / static_cast<Index>(sizeof(A));  // of all threads together: 48 MB

  /// Whether this many equal tasks leave less than 1 in 16 of the threads' time idle.
  static bool keeps_busy(Index tasks, Index threads) { return (round_up(tasks, threads) - tasks) * 16 <= tasks; }

  /// Panels are the same rows whatever the size of a block, so it may follow the number of threads.
  void cut_into_blocks(Index threads) {
    const Index queries = problem_.B * problem_.H * problem_.S;
    panels_ = std::min(std::max<Index>(1, max_block_rows / panel_), ceil_div(problem_.S, panel_));
    while (panels_ > 1 && queries < 4 * threads * panels_ * panel_) panels_ = ceil_div(panels_, 2);
    row_blocks_ = ceil_div(problem_.S, panels_ * panel_);
  }
  /// A task is all queries that read one key/value head, or all of one head, so that keys and values are near for the
  /// next block (3 %) and copied once; where that would leave threads idle, it is one block of queries.
  void cut_into_tasks(Index threads) {
    task_heads_ = problem_.H / problem_.G, task_blocks_ = row_blocks_;
    if (!keeps_busy(problem_.B * problem_.G, threads)) task_heads_ = 1;
    if (!keeps_busy(problem_.B * problem_.H / task_heads_, threads)) task_blocks_ = 1;
  }
  /// Copies of all steps are kept where several blocks read them and they fit.
  void choose_copies(Index threads) {
    const bool read_again = task_heads_ * task_blocks_ > 1;
    const Index steps = std::max<Index>(ceil_div(problem_.T, step_keys), 1);
    const auto rows = [&](const RowFormat<A>& format, Index stride, Index size, Index copied_size) {
      const bool page_each = stride >= 4096;  // then a copy saves 1 to 2 %
      const bool copied =
          format.converted || aliases_in_cache(stride) || crowds_l1(stride, panels_) || (read_again && page_each);
      return typename RowSource<A>::Shape{.stride = stride,
                                          .size = size,
                                          .copied = copied,
                                          .padded = size,
                                          .width = copied_stride<A>(copied_size),
                                          .step = step_keys,
                                          .slots = 1};
    };
    const Index together = pairs_ != nullptr ? 2 : 1;  // elements in the place of one
    k_rows_ = rows(*keys_, problem_.k.row, problem_.D, ceil_div(problem_.D, together));
    v_rows_ = rows(*values_, problem_.v.row, problem_.Dv, ceil_div(problem_.Dv, together));
    const Index row = (k_rows_.copied ? k_rows_.width : 0) + (v_rows_.copied ? v_rows_.width : 0);
    if (read_again && problem_.T * row <= max_copied / threads) k_rows_.slots = v_rows_.slots = steps;
  }
  [[nodiscard]] bool is_chunked() const { return problem_.T > chunk_keys; }

  const AttentionProblem<Q>& problem_;
  const Rules<A>& rules_;
  const AttentionKernels<Q>& kernels_;
  const PairAttention* pairs_ = nullptr;  // where operands are pairs
  const RowFormat<A>*keys_ = &kernels_.keys, *values_ = &kernels_.values;
  Index panel_;                     // queries of a panel
  Index panels_, row_blocks_;       // panels of a block, blocks of a head
  Index task_heads_, task_blocks_;  // heads of a task, blocks of each
  typename RowSource<A>::Shape k_rows_, v_rows_;
  alignas(64) A scale_[panel_width<A>];  // a factor for each query of a panel
};

/// One thread's share: scratch memory, and the block of queries at hand.
template <class Q>
class AttentionTasks<Q>::Worker {
 public:
  Worker(const AttentionTasks& tasks, Scratch& scratch)
      : tasks_(tasks),
        problem_(tasks.problem_),
        rules_(tasks.rules_),
        arithmetic_(tasks.kernels_.arithmetic),
        panel_(tasks.panel_),
        queries_(scratch.take<A>(tasks.panels_ * panel_ * problem_.D)),
        chunk_(take_sums(scratch)),
        total_(tasks.is_chunked() ? take_sums(scratch) : chunk_),
        scores_(scratch.take<A>((step_keys + 1) * panel_)),
        rescale_(scratch.take<A>(panel_)),
        rows_buffer_(
            scratch.take<A>(panel_ * std::max({Index{2}, padded_v(), problem_.weights != nullptr ? step_keys : 0}))),
        k_(*tasks.keys_, tasks.k_rows_, scratch),
        v_(*tasks.values_, tasks.v_rows_, scratch) {}

  void begin_head(Index head) {
    b_ = head / problem_.H, h_ = head % problem_.H;
    const Index g = h_ / (problem_.H / problem_.G);
    k_.begin(problem_.k.of_head(b_, g));
    v_.begin(problem_.v.of_head(b_, g));
  }

  /// A block of the head's queries.
  void run(Index row_block) {
    first_row_ = row_block * tasks_.panels_ * panel_;
    rows_ = std::min(tasks_.panels_ * panel_, problem_.S - first_row_);
    for (Index row = 0; row < rows_; row += panel_) begin_panel(row);
    for (Index t = 0; t < problem_.T; t += step_keys)
      for (Index row = 0; row < rows_; row += panel_) {
        Block block;
        if (scores(t, row, block)) {
          softmax(row, block, chunk_.row_max + row, chunk_.row_sum + row, rescale_);
          weigh_values(t, row, block, rescale_);
        }
        if (tasks_.is_chunked() && ((t + step_keys) % chunk_keys == 0 || t + step_keys >= problem_.T)) join_chunk(row);
      }
    for (Index row = 0; row < rows_; row += panel_) finish(row);
  }

 private:
  /// The state of an online softmax of a block: y [panel][Dv][query], and a maximum and a sum for each query.
  struct Sums {
    A* y;
    A* row_max;
    A* row_sum;
  };
  [[gnu::noinline]] Sums take_sums(Scratch& scratch) const {
    const Index queries = tasks_.panels_ * panel_;
    return {scratch.take<A>(queries * problem_.Dv), scratch.take<A>(queries), scratch.take<A>(queries)};
  }
  [[gnu::noinline]] void clear(Index row, const Sums& sums) const {
    std::fill_n(sums.row_max + row, panel_, masked_score<A>);
    std::fill_n(sums.row_sum + row, panel_, A{0});
    std::fill_n(sums.y + row * problem_.Dv, panel_ * problem_.Dv, A{0});
  }
  void load_queries(Index row) {
    const Q* const from = problem_.q.at(b_, h_, first_row_ + row);
    A* const to = queries_ + row * problem_.D;
    if constexpr (has_pairs)
      if (tasks_.pairs_ != nullptr) return load_query_pairs(to, from, count(row));
    tasks_.kernels_.queries.load_transposed(to, panel_, from, problem_.q.row, count(row), problem_.D);
  }
  /// to[pair][query] = n rows of pairs, by way of copies, since rows need not begin where a pair may.
  void load_query_pairs(A* to, const Q* from, Index n) {
    for (Index left = problem_.D / 2, pairs = 0; left > 0; left -= pairs, from += 2 * pairs, to += pairs * panel_) {
      pairs = std::min(left, step_keys);
      tasks_.pairs_->keys.load(scores_, step_keys, reinterpret_cast<const std::byte*>(from),
                               problem_.q.row * Index{sizeof(Q)}, n, 2 * pairs);
      arithmetic_.transpose(to, panel_, scores_, step_keys, n, pairs);
    }
  }
  void begin_panel(Index row) {
    load_queries(row);
    clear(row, chunk_);
    if (tasks_.is_chunked()) clear(row, total_);
    if (const A sink = sink_of(problem_, h_);
        sink > masked_score<A>) {  // a key with the value 0, seen before all others
      std::fill_n(total_.row_max + row, panel_, sink);
      std::fill_n(total_.row_sum + row, panel_, A{1});
    }
  }

  /// Queries of the panel at `row`, also in vectors; keys of a block; elements of v in whole vectors.
  [[nodiscard]] Index count(Index row) const { return std::min(panel_, rows_ - row); }
  [[nodiscard]] Index vectors(Index row) const { return ceil_div(count(row), arithmetic_.lanes); }
  [[nodiscard]] static Index keys(const Block& block) { return block.last.key - block.first.key + 1; }
  [[nodiscard]] Index padded_v() const { return arithmetic_.padded(problem_.Dv); }

  /// scores = k q * scale.
  void multiply_keys(Index t, Index row, const Block& block) {
    if constexpr (has_pairs)
      if (tasks_.pairs_ != nullptr)
        return multiply_keys(tasks_.pairs_->arithmetic.panel_tiles, t, row, block, problem_.D / 2);
    multiply_keys(arithmetic_.panel_tiles, t, row, block, problem_.D);
  }
  /// The same of operands that are elements or pairs of them, `depth` to a row.
  template <class Operand>
  void multiply_keys(const Tiles<Operand, A, Operand> (&tiles)[3], Index t, Index row, const Block& block,
                     Index depth) {
    const auto k = k_.rows(t, block.first.key, block.last.key + 1);
    multiply(tiles,
             Product<Operand, A, Operand>{.a = reinterpret_cast<const Operand*>(k.first),
                                          .a_row = k.stride,
                                          .b = reinterpret_cast<const Operand*>(queries_ + row * problem_.D),
                                          .b_row = panel_,
                                          .depth = depth,
                                          .c = scores_,
                                          .c_row = panel_,
                                          .factor = tasks_.scale_},
             keys(block), count(row), ahead(k_, t, row));
  }

  /// scores = masked scores of the panel at `row` with keys of the step at t. Returns false where the mask leaves none;
  /// else `block` is what it leaves.
  bool scores(Index t, Index row, Block& block) {
    const Trimmed rest =
        trim(rules_,
             {problem_.position(b_, h_, first_row_ + row, t),
              problem_.position(b_, h_, first_row_ + row + count(row) - 1, std::min(t + step_keys, problem_.T) - 1)});
    if (rest.empty) return false;
    block = rest.block;
    multiply_keys(t, row, block);
    if (rules_.cap_scores != nullptr) rules_.cap_scores(scores_, nullptr, keys(block) * panel_, rules_.cap);
    if (rest.masked || rules_.has_score)
      rules_.panel(rules_, scores_, keys(block), count(row), block.first, rest.masked);
    return true;
  }

  /// scores = weights, relative to the maxima so far; `rescale` becomes the factor for earlier sums and outputs.
  void softmax(Index row, const Block& block, A* row_max, A* row_sum, A* rescale) {
    arithmetic_.softmax_panel(scores_, keys(block), vectors(row), row_max, row_sum, rescale);
    if (problem_.dropout.active())
      drop_panel(arithmetic_, scores_, panel_, keys(block), vectors(row) * arithmetic_.lanes, problem_.dropout,
                 block.first, problem_.H);
  }

  /// y = y * rescale + v p, for the step's weights p.
  void weigh_values(Index t, Index row, const Block& block, const A* rescale) {
    if constexpr (has_pairs)
      if (tasks_.pairs_ != nullptr) return weigh_pairs(t, row, block, rescale);
    const auto v = v_.rows(t, block.first.key, block.last.key + 1);
    add_values(arithmetic_.panel_tiles, row, v.first, v.stride, scores_, keys(block), rescale, ahead(v_, t, row));
  }
  /// y = y * rescale + the sum over `depth` of values times weights, which are elements or pairs of them.
  template <class Operand>
  void add_values(const Tiles<Operand, A, Operand> (&tiles)[3], Index row, const Operand* values, Index stride,
                  const Operand* weights, Index depth, const A* rescale, Prefetch ahead) {
    A* const y = chunk_.y + row * problem_.Dv;
    multiply(tiles,
             Product<Operand, A, Operand>{.a = values,
                                          .a_row = 1,
                                          .a_step = stride,
                                          .b = weights,
                                          .b_row = panel_,
                                          .depth = depth,
                                          .c = y,
                                          .c_row = panel_,
                                          .before = y,
                                          .before_row = panel_,
                                          .factor = rescale},
             problem_.Dv, count(row), ahead);
  }
  /// Does what weigh_values does in pairs of keys, of which the first is even. A key at either end whose partner is not in the
  /// block goes alone: the partner's value, which may be NaN, is not to be read.
  void weigh_pairs(Index t, Index row, const Block& block, const A* rescale) {
    const PairAttention& pairs = *tasks_.pairs_;
    const Index first = block.first.key + block.first.key % 2, end = block.last.key + 1 - (block.last.key + 1) % 2;
    A* const zeros = scores_ + keys(block) * panel_;  // the weights of no key
    const auto alone = [&](Index key) {
      auto* const weight = reinterpret_cast<BfloatPair*>(rows_buffer_);
      A* const value = rows_buffer_ + panel_;
      std::fill_n(zeros, panel_, A{0});
      pairs.round_weights(weight, scores_ + (key - block.first.key) * panel_, zeros, 0, 1, panel_);
      pairs.values.load(value, 0, v_.row_at(key), 0, 1, problem_.Dv);
      add_values(pairs.arithmetic.panel_tiles, row, reinterpret_cast<const BfloatPair*>(value), 0, weight, 1, rescale,
                 {});
      rescale = ones<A>.value;
    };
    if (first > block.first.key) alone(block.first.key);
    if (end <= block.last.key && end >= first) alone(block.last.key);
    if (first >= end) return;
    auto* const weights = reinterpret_cast<BfloatPair*>(scores_);
    const A* const from = scores_ + (first - block.first.key) * panel_;
    pairs.round_weights(weights, from, from + panel_, 2 * panel_, (end - first) / 2, panel_);
    const auto v = v_.rows(t, first, end);
    add_values(pairs.arithmetic.panel_tiles, row, reinterpret_cast<const BfloatPair*>(v.first), 2 * v.stride, weights,
               (end - first) / 2, rescale, ahead(v_, t, row));
  }

  /// Rows of the next step to prefetch during this panel: an equal share for each panel.
  [[nodiscard]] Prefetch ahead(const RowSource<A>& source, Index t, Index row) const {
    const Index share = ceil_div(step_keys, tasks_.panels_), first = t + step_keys + row / panel_ * share;
    return source.ahead(t + step_keys, first, std::clamp<Index>(problem_.T - first, 0, share));
  }

  /// Adds a chunk to the totals and begins the next one. Its maximum is a score like any other: a softmax of this one key
  /// gives the factors of both.
  [[gnu::cold, gnu::noinline]] void join_chunk(Index row) {
    std::copy_n(chunk_.row_max + row, panel_, scores_);
    A* const unused_sum = rows_buffer_;
    arithmetic_.softmax_panel(scores_, 1, vectors(row), total_.row_max + row, unused_sum, rescale_);
    const auto add = [&](A* to, const A* from) {
      for (Index i = 0; i < count(row); ++i) to[i] = to[i] * rescale_[i] + from[i] * scores_[i];
    };
    add(total_.row_sum + row, chunk_.row_sum + row);
    for (Index d = 0; d < problem_.Dv; ++d)
      add(total_.y + row * problem_.Dv + d * panel_, chunk_.y + row * problem_.Dv + d * panel_);
    clear(row, chunk_);
  }

  /// Writes what was asked for of a panel: y / row_sum, log-sum-exp, weights. From here on `rescale` holds 1 / row_sum.
  void finish(Index row) {
    for (Index i = 0; i < panel_; ++i) rescale_[i] = inverse_of(total_.row_sum[row + i]);
    if (problem_.y.data != nullptr) {
      A* const mean = total_.y + row * problem_.Dv;
      const bool finite = arithmetic_.scale_rows(mean, panel_, problem_.Dv, panel_, rescale_);
      write_output(row, 0, count(row), mean);
      if (!finite) average_again(row, mean);
    }
    for (Index i = 0; i < count(row) && problem_.log_sum_exp != nullptr; ++i)
      problem_.log_sum_exp[(b_ * problem_.H + h_) * problem_.S + first_row_ + row + i] =
          log_sum_exp(total_.row_max[row + i], total_.row_sum[row + i]);
    if (problem_.weights != nullptr) write_weights(row);
  }

  /// Writes n queries from the i-th of the panel on, out of means [Dv][query].
  void write_output(Index row, Index i, Index n, const A* mean) {
    Q* const to = problem_.y.at(b_, h_, first_row_ + row + i);
    if constexpr (!is_converted<Q>) {
      if (problem_.Dv == padded_v()) return arithmetic_.transpose(to, problem_.y.row, mean + i, panel_, problem_.Dv, n);
    }
    arithmetic_.transpose(rows_buffer_, padded_v(), mean + i, panel_, problem_.Dv, n);
    tasks_.kernels_.queries.store(to, problem_.y.row, rows_buffer_, padded_v(), n, problem_.Dv);
  }

  /// scores = the final weights of a step, once maxima and sums are known and `rescale` holds 1 / row_sum; scores are
  /// computed again. Returns false where the mask leaves no key.
  bool weights(Index t, Index row, Block& block) {
    if (!scores(t, row, block)) return false;
    A *const unused_sum = rows_buffer_, *const unused_rescale = rows_buffer_ + panel_;
    softmax(row, block, total_.row_max + row, unused_sum, unused_rescale);
    arithmetic_.scale_rows(scores_, panel_, keys(block), panel_, rescale_);
    return true;
  }

  /// Computes those queries of a panel again whose sums overflowed before they were divided, from weights that are
  /// divided first: finite wherever the values are. NaN and infinite values come here too, and stay.
  [[gnu::cold, gnu::noinline]] void average_again(Index row, const A* mean) {
    std::uint64_t overflowed = 0;  // a bit for each query
    for (Index d = 0; d < problem_.Dv; ++d)
      for (Index i = 0; i < count(row); ++i)
        if (!attn::detail::is_finite(mean[d * panel_ + i])) overflowed |= std::uint64_t{1} << i;
    A* const y = chunk_.y + row * problem_.Dv;
    std::fill_n(y, panel_ * problem_.Dv, A{0});
    for (Index t = 0; t < problem_.T; t += step_keys) {
      Block block;
      if (weights(t, row, block)) weigh_values(t, row, block, ones<A>.value);
    }
    for (Index i = 0; i < count(row); ++i)
      if ((overflowed >> i & 1) != 0) write_output(row, i, 1, y);
  }

  [[gnu::cold, gnu::noinline]] void write_weights(Index row) {
    Q* const to = problem_.weights + ((b_ * problem_.H + h_) * problem_.S + first_row_ + row) * problem_.T;
    __builtin_memset(static_cast<void*>(to), 0, static_cast<std::size_t>(count(row) * problem_.T) * sizeof(Q));
    for (Index t = 0; t < problem_.T; t += step_keys) {
      Block block;
      if (!weights(t, row, block)) continue;
      arithmetic_.transpose(rows_buffer_, step_keys, scores_, panel_, keys(block), count(row));
      tasks_.kernels_.queries.store(to + block.first.key, problem_.T, rows_buffer_, step_keys, count(row), keys(block));
    }
  }

  const AttentionTasks& tasks_;
  const AttentionProblem<Q>& problem_;
  const Rules<A>& rules_;
  const Arithmetic<A>& arithmetic_;
  const Index panel_;
  Index b_ = 0, h_ = 0;             // the head
  Index first_row_ = 0, rows_ = 0;  // queries of the block
  A* queries_;                      // [panel][D][query]
  Sums chunk_;                      // since the last join
  Sums total_;                      // of all chunks joined; `chunk_` itself where there is only one
  A* scores_;                       // of one panel, [key][query], with room for one more key
  A* rescale_;                      // a factor for each query of a panel
  A* rows_buffer_;                  // rows of queries: outputs or weights transposed; or two values for each query
  RowSource<A> k_, v_;
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
