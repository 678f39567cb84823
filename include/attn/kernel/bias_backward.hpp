// Floor 2. Gradients of a tensor that is added to the scores, an additive mask or a ScoreBias, of any shape that broadcasts.
//
// A task is a part of the tensor: it computes the gradients of all scores that this part was added to and sums them up, in
// double and in the order of batch, heads, queries and keys. Scores are computed again, two products: that takes no memory
// for partial sums, and no number of threads changes a bit.
#pragma once

#include <algorithm>
#include <array>

#include "../error.hpp"
#include "../math.hpp"
#include "../scratch.hpp"
#include "backward_block.hpp"
#include "problem.hpp"
#include "rules.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

/// The plan.
template <class Q>
class BiasGradientTasks {
  using A = AccumulatorOf<Q>;
  using Block = BackwardBlock<Q>;

 public:
  /// gradient: of the tensor, whose shape is [B or 1, H or 1, S or 1, T or 1]. slopes: the derivative of a score with respect
  /// to it; null where that is 1.
  BiasGradientTasks(const AttentionBackwardProblem<Q>& problem, const Rules<A>& rules,
                    const AttentionBackwardKernels<Q>& kernels, SlopesPanel<A> slopes, const Heads<A>& gradient,
                    const std::array<Index, 4>& shape)
      : problem_(problem), n_(problem.forward), rules_(rules), kernels_(kernels), gradient_(gradient), shape_(shape) {
    block_ = Block::shape_of(n_, kernels);
    block_.scale = A{1};
    block_.slopes = slopes;
    block_.slots = task_keys / Block::step_keys;
    rows_ = std::min(block_.panel * block_.panels, n_.S);
    row_blocks_ = ceil_div(n_.S, rows_);
  }

  [[nodiscard]] Index tasks() const { return shape_[0] * shape_[1] * row_parts() * key_parts(); }
  [[nodiscard]] double work() const { return n_.work(); }
  [[nodiscard]] Index scratch_size() const { return attn::detail::scratch_size_of<Worker>(*this); }
  void run(Index task, Scratch scratch) const { Worker(*this, scratch).run(task); }

 private:
  static constexpr Index task_keys = 256;  // a block of queries is loaded once for these

  /// Whether the tensor has all elements along an axis, or one for all.
  [[nodiscard]] bool has_rows() const { return shape_[2] > 1; }
  [[nodiscard]] bool has_keys() const { return shape_[3] > 1; }
  [[nodiscard]] Index row_parts() const { return has_rows() ? row_blocks_ : 1; }
  [[nodiscard]] Index key_parts() const { return has_keys() ? ceil_div(n_.T, task_keys) : 1; }

  class Worker {
   public:
    Worker(const BiasGradientTasks& tasks, Scratch& scratch)
        : tasks_(tasks),
          block_(tasks.problem_, tasks.rules_, tasks.kernels_, tasks.block_, scratch),
          key_stride_(tasks.has_keys() ? (tasks.has_rows() ? tasks.rows_ : 1) : 0),
          sums_size_((tasks.has_keys() ? task_keys : 1) * (tasks.has_rows() ? tasks.rows_ : 1)),
          sums_(scratch.take<double>(sums_size_)) {}

    void run(Index task) {
      const Index key_part = task % tasks_.key_parts(), rest = task / tasks_.key_parts();
      const Index row_part = rest % tasks_.row_parts(), head = rest / tasks_.row_parts();
      const Index b = head / tasks_.shape_[1], h = head % tasks_.shape_[1];
      first_key_ = key_part * task_keys;
      end_key_ = tasks_.has_keys() ? std::min(first_key_ + task_keys, tasks_.n_.T) : tasks_.n_.T;
      std::fill_n(sums_, sums_size_, 0.0);
      const auto end = [](Index size, Index first, Index all) { return size > 1 ? first + 1 : all; };
      for (Index batch = b; batch < end(tasks_.shape_[0], b, tasks_.n_.B); ++batch)
        for (Index of = h; of < end(tasks_.shape_[1], h, tasks_.n_.H); ++of) {
          block_.begin_head(batch, of);
          for (Index block = row_part; block < end(tasks_.shape_[2], row_part, tasks_.row_blocks_); ++block)
            add_block(block);
        }
      write(tasks_.gradient_.at(b, h, row_part * tasks_.rows_));
    }

   private:
    void add_block(Index block) {
      const Index panel = tasks_.block_.panel;
      block_.begin_block(block);
      for (Index t = first_key_; t < end_key_; t += Block::step_keys)
        for (Index row = 0; row < block_.rows; row += panel) {
          const auto seen = block_.score(t, row, end_key_);
          for (Index key = seen.first; key < seen.end; ++key)
            add(block_.gradients + (key - t) * block_.row + row, block_.count(row),
                sums_ + (key - first_key_) * key_stride_ + (tasks_.has_rows() ? row : 0));
        }
    }
    /// Adds n queries of a key, each to its own sum or all to one.
    void add(const A* from, Index n, double* to) const {
      if (tasks_.has_rows()) {
        for (Index i = 0; i < n; ++i) to[i] += static_cast<double>(from[i]);
      } else {
        double sum = 0.0;
        for (Index i = 0; i < n; ++i) sum += static_cast<double>(from[i]);
        *to += sum;
      }
    }
    void write(A* to) const {
      const Index rows = tasks_.has_rows() ? block_.rows : 1, keys = tasks_.has_keys() ? end_key_ - first_key_ : 1;
      for (Index row = 0; row < rows; ++row, to += tasks_.gradient_.row)
        for (Index key = 0; key < keys; ++key) to[first_key_ + key] = static_cast<A>(sums_[key * key_stride_ + row]);
    }

    const BiasGradientTasks& tasks_;
    Block block_;
    Index first_key_ = 0, end_key_ = 0;
    Index key_stride_;  // of sums, from one key to the next; 0: one sum for all keys
    Index sums_size_;
    double* sums_;  // [key][query], of the part of the tensor
  };

  const AttentionBackwardProblem<Q>& problem_;
  const AttentionProblem<Q>& n_;
  const Rules<A>& rules_;
  const AttentionBackwardKernels<Q>& kernels_;
  const Heads<A> gradient_;
  const std::array<Index, 4> shape_;
  typename Block::Shape block_;
  Index rows_, row_blocks_;  // queries of a block, blocks of a head
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
