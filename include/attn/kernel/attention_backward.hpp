// Floor 2. Fused attention's backward pass: how it is cut into tasks, and one task.
//
//   for each query head of a key/value head:
//     for each block of up to 192 queries:              queries and dO are transposed once, and copied
//       for each step of 64 keys of the slab that the mask does not call empty:
//         for each panel of 3 vectors of queries:
//           scores[key][query] = k q * scale            product 1, then score function and mask
//           of_weights[key][query] = v dO * scale       product 2
//           weights, gradients [key][query]             see BackwardBlock
//           dq[element][query] += k gradients           product 3
//         dv[key][element] += weights dO                product 4, all panels of the block at once
//         dk[key][element] += gradients q               product 5
//     dq, transposed back
//   dk, dv
//
// A task is a slab of keys of one key/value head with all its query heads, so that dk and dv are summed in one place. Where
// the keys of a head are cut into several slabs, each writes a partial dq, and these are summed in the order of the slabs.
// The cut depends on the shape alone: no number of threads changes a bit.
// Source: Dao, "FlashAttention-2", 2023, algorithm 2.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../error.hpp"
#include "../math.hpp"
#include "../scratch.hpp"
#include "backward_block.hpp"
#include "gemm.hpp"
#include "problem.hpp"
#include "rules.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

/// Which gradients the tasks of a plan compute. Together, each score is computed once: five products. Apart, it takes seven,
/// and no memory for partial sums.
enum class BackwardPass : std::uint8_t { all, keys, queries };

/// The plan.
template <class Q>
class AttentionBackwardTasks {
  using A = AccumulatorOf<Q>;

 public:
  AttentionBackwardTasks(const AttentionBackwardProblem<Q>& problem, const GradientRules<A>& rules,
                         const AttentionBackwardKernels<Q>& kernels, BackwardPass pass)
      : problem_(problem), n_(problem.forward), rules_(rules), kernels_(kernels), pass_(pass) {
    slab_keys_ = round_up(ceil_div(std::max<Index>(n_.T, 1), slabs_of(n_, pass)), step_keys);
    slabs_ = std::max<Index>(1, ceil_div(n_.T, slab_keys_));
    block_ = BackwardBlock<Q>::shape_of(n_, kernels);
    block_.slots = pass == BackwardPass::queries ? 1 : slab_keys_ / step_keys;
    block_.slopes = rules.slopes;
    block_.capped = rules.forward.cap_scores != nullptr;
    row_blocks_ = ceil_div(n_.S, block_.panels * block_.panel);
  }

  /// Whether one pass keeps enough threads busy with an acceptable amount of memory for partial sums.
  [[nodiscard]] static bool fits_one_pass(const AttentionProblem<Q>& n) {
    const Index slabs = slabs_of(n, BackwardPass::all);
    return slabs == slabs_wanted(n) || (slabs * most_slab >= n.T && slabs * n.B * n.G >= 4);
  }

  [[nodiscard]] Index slabs() const { return slabs_; }
  /// Elements of the partial gradients of q, [slab][B][H][S][D]: none where there is one slab.
  [[nodiscard]] Index partials() const {
    return slabs_ > 1 && pass_ == BackwardPass::all ? slabs_ * query_elements() : 0;
  }
  void set_partials(A* partials) { partials_ = partials; }

  [[nodiscard]] Index tasks() const {
    return pass_ == BackwardPass::queries ? n_.B * n_.H * row_blocks_ : n_.B * n_.G * slabs_;
  }
  [[nodiscard]] double work() const { return 2.5 * n_.work(); }
  [[nodiscard]] Index scratch_size() const { return attn::detail::scratch_size_of<Worker>(*this); }

  /// A task; those of the first keys and of the last queries come first: under a causal mask they are the costliest.
  void run(Index task, Scratch scratch) const {
    Worker worker(*this, scratch);
    if (pass_ == BackwardPass::queries)
      worker.run_queries(task % (n_.B * n_.H), row_blocks_ - 1 - task / (n_.B * n_.H));
    else
      worker.run_slab(task % (n_.B * n_.G), task / (n_.B * n_.G));
  }

  /// Sums up the partial gradients of q, some rows of a head at a time.
  [[nodiscard]] Index joins() const { return n_.B * n_.H * ceil_div(n_.S, join_rows); }
  [[nodiscard]] Index join_scratch_size() const {
    Scratch measured;
    measured.take<A>(join_rows * n_.D);
    return measured.size();
  }
  void join(Index task, Scratch scratch) const {
    const Index head = task % (n_.B * n_.H), first = task / (n_.B * n_.H) * join_rows;
    const Index rows = std::min(join_rows, n_.S - first);
    A* const sum = scratch.take<A>(join_rows * n_.D);
    const A* partial = partials_ + (head * n_.S + first) * n_.D;
    std::copy_n(partial, rows * n_.D, sum);
    for (Index slab = 1; slab < slabs_; ++slab) {
      partial += query_elements();
      for (Index i = 0; i < rows * n_.D; ++i) sum[i] += partial[i];
    }
    kernels_.forward.queries.store(problem_.grad_q.at(head / n_.H, head % n_.H, first), problem_.grad_q.row, sum, n_.D,
                                   rows, n_.D);
  }

 private:
  class Worker;

  static constexpr Index step_keys = BackwardBlock<Q>::step_keys;
  static constexpr Index join_rows = 64;
  static constexpr Index least_slab = 512;  // keys: a slab transposes and copies all queries, 2 % of its products
  static constexpr Index most_slab = 16384;
  static constexpr Index wanted_tasks = 32;
  static constexpr Index most_partials = (128 << 20) / static_cast<Index>(sizeof(A));  // elements: 128 MB

  static Index slabs_wanted(const AttentionProblem<Q>& n) {
    const Index for_threads = std::min(ceil_div(wanted_tasks, n.B * n.G), n.T / least_slab);
    return std::max({Index{1}, for_threads, ceil_div(n.T, most_slab)});
  }
  static Index slabs_of(const AttentionProblem<Q>& n, BackwardPass pass) {
    if (pass == BackwardPass::queries) return 1;
    if (pass == BackwardPass::keys) return slabs_wanted(n);
    const double elements = static_cast<double>(n.B * n.H) * static_cast<double>(n.S) * static_cast<double>(n.D);
    const auto room = static_cast<Index>(static_cast<double>(most_partials) / std::max(elements, 1.0));
    return std::clamp<Index>(room, 1, slabs_wanted(n));
  }
  [[nodiscard]] Index query_elements() const { return n_.B * n_.H * n_.S * n_.D; }

  const AttentionBackwardProblem<Q>& problem_;
  const AttentionProblem<Q>& n_;
  const GradientRules<A>& rules_;
  const AttentionBackwardKernels<Q>& kernels_;
  BackwardPass pass_;
  typename BackwardBlock<Q>::Shape block_;
  Index row_blocks_;         // blocks of a head
  Index slab_keys_, slabs_;  // keys of a slab, slabs of a head
  A* partials_ = nullptr;
};

/// One thread's share: sums of gradients, and the block of queries at hand.
template <class Q>
class AttentionBackwardTasks<Q>::Worker {
  using Block = BackwardBlock<Q>;
  using Seen = typename Block::Seen;

 public:
  Worker(const AttentionBackwardTasks& tasks, Scratch& scratch)
      : tasks_(tasks),
        problem_(tasks.problem_),
        n_(tasks.n_),
        arithmetic_(tasks.kernels_.forward.arithmetic),
        panel_(tasks.block_.panel),
        block_(tasks.problem_, tasks.rules_.forward, tasks.kernels_, tasks.block_, scratch),
        grad_q_(scratch.take<A>(sums_queries() ? block_.block_rows() * n_.D : 0)),
        grad_k_(scratch.take<A>(sums_keys() ? tasks.slab_keys_ * block_.q_stride : 0)),
        grad_v_(scratch.take<A>(sums_keys() ? tasks.slab_keys_ * block_.v_stride : 0)),
        query_buffer_(scratch.take<A>(panel_ * block_.q_stride)),
        seen_(scratch.take<Seen>(tasks.block_.panels)) {}

  /// All gradients that a slab of keys has a part in.
  void run_slab(Index kv_head, Index slab) {
    const Index b = kv_head / n_.G, g = kv_head % n_.G, group = n_.H / n_.G;
    slab_ = slab, first_key_ = slab * tasks_.slab_keys_;
    end_key_ = std::min(first_key_ + tasks_.slab_keys_, n_.T);
    const Index keys = end_key_ - first_key_;
    std::fill_n(grad_k_, keys * block_.q_stride, A{0});
    std::fill_n(grad_v_, keys * block_.v_stride, A{0});
    for (Index h = g * group; h < (g + 1) * group; ++h) {
      block_.begin_head(b, h);
      for (Index block = tasks_.row_blocks_; block-- > 0;) run_block(block);
    }
    const auto write = [&](const Heads<Q>& to, const A* from, Index stride, Index size) {
      if (to.data != nullptr)
        tasks_.kernels_.forward.queries.store(to.at(b, g, first_key_), to.row, from, stride, keys, size);
    };
    write(problem_.grad_k, grad_k_, block_.q_stride, n_.D);
    write(problem_.grad_v, grad_v_, block_.v_stride, n_.Dv);
  }

  /// The gradients of a block of queries.
  void run_queries(Index head, Index block) {
    first_key_ = 0, end_key_ = n_.T;
    block_.begin_head(head / n_.H, head % n_.H);
    run_block(block);
  }

 private:
  [[nodiscard]] bool sums_queries() const { return tasks_.pass_ != BackwardPass::keys; }
  [[nodiscard]] bool sums_keys() const { return tasks_.pass_ != BackwardPass::queries; }

  void run_block(Index block) {
    block_.begin_block(block);
    if (sums_queries()) std::fill_n(grad_q_, block_.block_rows() * n_.D, A{0});
    for (Index t = first_key_; t < end_key_; t += step_keys) {
      for (Index row = 0; row < block_.rows; row += panel_) {
        const Seen seen = seen_[row / panel_] = block_.score(t, row, end_key_);
        if (seen.keys() > 0 && sums_queries()) add_to_queries(t, row, seen);
      }
      if (sums_keys()) add_to_keys(t);
    }
    for (Index row = 0; row < block_.rows && sums_queries(); row += panel_) write_queries(row);
  }

  /// dq[element][query] += k gradients.
  void add_to_queries(Index t, Index row, const Seen& seen) {
    A* const grad = grad_q_ + row * n_.D;
    const auto k = block_.k.rows(t, seen.first, seen.end);
    multiply(arithmetic_,
             Product<A>{.a = k.first,
                        .a_row = 1,
                        .a_step = k.stride,
                        .b = block_.gradients + (seen.first - t) * block_.row + row,
                        .b_row = block_.row,
                        .depth = seen.keys(),
                        .c = grad,
                        .c_row = panel_,
                        .before = grad,
                        .before_row = panel_,
                        .factor = ones<A>.value},
             n_.D, block_.count(row), {});
  }

  /// dv[key][element] += weights dO; dk[key][element] += gradients q; panels that see the same keys in one product.
  void add_to_keys(Index t) {
    for (Index row = 0, end = 0; row < block_.rows; row = end) {
      const Seen seen = seen_[row / panel_];
      for (end = row + panel_; end < block_.rows && seen_[end / panel_] == seen;) end += panel_;
      end = std::min(end, block_.rows);
      if (seen.keys() <= 0) continue;
      const Index from = (seen.first - t) * block_.row + row, to = seen.first - first_key_;
      const auto add = [&](const A* scores, const A* rows, A* sums, Index stride, Index size) {
        add_rows({.a = scores + from,
                  .a_row = block_.row,
                  .b = rows + row * stride,
                  .b_row = stride,
                  .depth = end - row,
                  .c = sums + to * stride,
                  .c_row = stride},
                 seen.keys(), size);
      };
      add(block_.weights, block_.output_rows, grad_v_, block_.v_stride, n_.Dv);
      add(block_.gradients, block_.query_rows, grad_k_, block_.q_stride, n_.D);
    }
  }
  /// c += a b, its columns cut into panels as equal as may be: a narrow one at the end would run at half the rate.
  void add_rows(Product<A> product, Index rows, Index columns) {
    product.before = product.c, product.before_row = product.c_row, product.factor = ones<A>.value;
    for (Index left = ceil_div(columns, panel_), n = 0; left > 0; --left, columns -= n) {
      n = std::min(columns, arithmetic_.padded(ceil_div(columns, left)));
      multiply(arithmetic_, product, rows, n, {});
      product.b += n, product.c += n, product.before += n;
    }
  }

  /// Writes dq of a panel, or its part of it.
  void write_queries(Index row) {
    const Index n = block_.count(row), s = block_.first_row + row;
    arithmetic_.transpose(query_buffer_, block_.q_stride, grad_q_ + row * n_.D, panel_, n_.D, n);
    if (tasks_.partials_ == nullptr) {
      tasks_.kernels_.forward.queries.store(problem_.grad_q.at(block_.b, block_.h, s), problem_.grad_q.row,
                                            query_buffer_, block_.q_stride, n, n_.D);
      return;
    }
    A* const to = tasks_.partials_ + slab_ * tasks_.query_elements() + ((block_.b * n_.H + block_.h) * n_.S + s) * n_.D;
    for (Index i = 0; i < n; ++i) std::copy_n(query_buffer_ + i * block_.q_stride, n_.D, to + i * n_.D);
  }

  const AttentionBackwardTasks& tasks_;
  const AttentionBackwardProblem<Q>& problem_;
  const AttentionProblem<Q>& n_;
  const Arithmetic<A>& arithmetic_;
  const Index panel_;
  Block block_;
  Index slab_ = 0, first_key_ = 0, end_key_ = 0;
  A* grad_q_;            // [panel][D][query]
  A *grad_k_, *grad_v_;  // [key][D], [key][Dv] of the slab
  A* query_buffer_;      // rows of a panel
  Seen* seen_;           // of each panel
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
