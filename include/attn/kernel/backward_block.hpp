// Floor 2. The scores of a block of queries on the way back: weights, computed again, and their gradients.
//
// With P the weights, O the output, L log-sum-exp, all of one head, and d for a gradient:
//
//   P = exp(S - L)                                      scores S are computed again: nothing of size S x T was kept
//   dP = dO VT                                          through y = P V
//   dS = P (dP - delta),  delta = rowsum(dO O) - dL     through the softmax, and log-sum-exp
#pragma once

#include <algorithm>
#include <limits>

#include "../error.hpp"
#include "../math.hpp"
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

/// What a backward pass is computed with.
template <class Q, class A = AccumulatorOf<Q>>
struct AttentionBackwardKernels {
  AttentionKernels<Q> forward;
  const GradientArithmetic<A>& gradients;
};

/// A block of queries of one head. Its scores are computed panel by panel, with the keys of one step at a time.
template <class Q>
class BackwardBlock {
  using A = AccumulatorOf<Q>;

 public:
  static constexpr Index max_rows = 192;  // 288 is equal (Intel Xeon, AVX-512)
  static constexpr Index step_keys = 64;

  /// What blocks of a plan have in common.
  struct Shape {
    Index panel;   ///< queries of a panel
    Index panels;  ///< of a block
    Index slots;   ///< steps of keys whose copies are kept
    A scale;       ///< what gradients are multiplied by
    SlopesPanel<A> slopes;
    bool capped;  ///< whether gradients go through the cap of scores
  };
  static Shape shape_of(const AttentionProblem<Q>& n, const AttentionBackwardKernels<Q>& kernels) {
    const Index panel = kernels.forward.arithmetic.panel_columns();
    return {.panel = panel,
            .panels = std::min(std::max<Index>(1, max_rows / panel), ceil_div(n.S, panel)),
            .slots = 1,
            .scale = n.scale,
            .slopes = nullptr,
            .capped = false};
  }
  BackwardBlock(const AttentionBackwardProblem<Q>& problem, const Rules<A>& rules,
                const AttentionBackwardKernels<Q>& kernels, const Shape& shape, Scratch& scratch)
      : problem_(problem),
        n_(problem.forward),
        rules_(rules),
        kernels_(kernels),
        arithmetic_(kernels.forward.arithmetic),
        shape_(shape),
        queries_(scratch.take<A>(block_rows() * n_.D)),
        outputs_(scratch.take<A>(block_rows() * n_.Dv)),
        shift_(scratch.take<A>(block_rows())),
        delta_(scratch.take<A>(block_rows())),
        scores_(scratch.take<A>(step_keys * shape.panel)),
        of_weights_(scratch.take<A>(step_keys * shape.panel)),
        slopes_(scratch.take<A>(shape.slopes != nullptr ? step_keys * shape.panel : 0)),
        cap_slopes_(scratch.take<A>(shape.capped ? step_keys * shape.panel : 0)),
        factors_(scratch.take<A>(n_.dropout.active() ? step_keys * shape.panel : 0)),
        output_buffer_(scratch.take<A>(shape.panel * padded_stride(n_.Dv))),
        factor_of_scores_(scratch.take<A>(shape.panel)),
        factor_of_weights_(scratch.take<A>(shape.panel)),
        row(copied_stride<A>(block_rows())),
        q_stride(padded_stride(n_.D)),
        v_stride(padded_stride(n_.Dv)),
        query_rows(scratch.take<A>(block_rows() * q_stride)),
        output_rows(scratch.take<A>(block_rows() * v_stride)),
        weights(scratch.take<A>(step_keys * row)),
        gradients(scratch.take<A>(step_keys * row)),
        k(kernels.forward.keys, key_rows(kernels.forward.keys, n_.k.row, n_.D), scratch),
        v(kernels.forward.values, key_rows(kernels.forward.values, n_.v.row, n_.Dv), scratch) {}

  [[nodiscard]] Index block_rows() const { return shape_.panel * shape_.panels; }
  [[nodiscard]] Index count(Index at) const { return std::min(shape_.panel, rows - at); }

  void begin_head(Index batch, Index head) {
    b = batch, h = head;
    const Index g = head / (n_.H / n_.G);
    k.begin(n_.k.of_head(b, g));
    v.begin(n_.v.of_head(b, g));
    std::fill_n(factor_of_scores_, shape_.panel, n_.scale);
    std::fill_n(factor_of_weights_, shape_.panel, shape_.scale);
  }

  /// Loads queries and dO of a block in both layouts, and computes what the softmax subtracts and averages.
  void begin_block(Index block) {
    first_row = block * block_rows();
    rows = std::min(block_rows(), n_.S - first_row);
    load_rows(query_rows, q_stride, n_.q.at(b, h, first_row), n_.q.row, rows, n_.D);
    load_rows(output_rows, v_stride, problem_.grad_y.at(b, h, first_row), problem_.grad_y.row, rows, n_.Dv);
    for (Index at = 0; at < rows; at += shape_.panel) {
      arithmetic_.transpose(queries_ + at * n_.D, shape_.panel, query_rows + at * q_stride, q_stride, count(at), n_.D);
      arithmetic_.transpose(outputs_ + at * n_.Dv, shape_.panel, output_rows + at * v_stride, v_stride, count(at),
                            n_.Dv);
      load_sums(at);
    }
  }

  /// The keys that queries of a panel see in a step; none where the end is not behind the first.
  struct Seen {
    Index first, end;
    bool operator==(const Seen&) const = default;
    [[nodiscard]] Index keys() const { return end - first; }
  };
  /// Computes weights and gradients of the panel at `at` with those keys of the step at t that it sees, before `end_key`.
  Seen score(Index t, Index at, Index end_key) {
    const Trimmed rest =
        trim(rules_, {n_.position(b, h, first_row + at, t),
                      n_.position(b, h, first_row + at + count(at) - 1, std::min(t + step_keys, end_key) - 1)});
    if (rest.empty) return {0, 0};
    const Position first = rest.block.first;
    const Seen seen{first.key, rest.block.last.key + Index{1}};
    multiply_keys(scores_, k.rows(t, seen.first, seen.end), queries_ + at * n_.D, n_.D, factor_of_scores_, seen, at);
    multiply_keys(of_weights_, v.rows(t, seen.first, seen.end), outputs_ + at * n_.Dv, n_.Dv, factor_of_weights_, seen,
                  at);
    const Index scores = seen.keys() * shape_.panel;
    if (rules_.cap_scores != nullptr)
      rules_.cap_scores(scores_, shape_.capped ? cap_slopes_ : nullptr, scores, rules_.cap);
    if (shape_.slopes != nullptr)
      shape_.slopes(rules_, scores_, slopes_, seen.keys(), count(at), first, rest.masked);
    else if (rest.masked || rules_.has_score)
      rules_.panel(rules_, scores_, seen.keys(), count(at), first, rest.masked);
    for (Index i = 0; i < scores && shape_.slopes != nullptr && shape_.capped; ++i) slopes_[i] *= cap_slopes_[i];
    const Index vectors = ceil_div(count(at), arithmetic_.lanes);
    if (n_.dropout.active())
      for_dropout_factors(arithmetic_, seen.keys(), vectors * arithmetic_.lanes, n_.dropout, first, n_.H,
                          [&](Index key, Index query, Index n, const A* from) {
                            std::copy_n(from, n, factors_ + key * shape_.panel + query);
                          });
    const Index to = (seen.first - t) * row + at;
    kernels_.gradients.score_gradients({.scores = scores_,
                                        .of_weights = of_weights_,
                                        .slopes = shape_.slopes != nullptr ? slopes_
                                                  : shape_.capped          ? cap_slopes_
                                                                           : nullptr,
                                        .factors = n_.dropout.active() ? factors_ : nullptr,
                                        .shift = shift_ + at,
                                        .delta = delta_ + at,
                                        .weights = weights + to,
                                        .gradients = gradients + to,
                                        .row = row},
                                       seen.keys(), vectors);
    return seen;
  }

 private:
  /// The stride of rows that are copied or summed up, in whole vectors.
  [[nodiscard]] Index padded_stride(Index size) const { return copied_stride<A>(arithmetic_.padded(size)); }
  [[nodiscard]] typename RowSource<A>::Shape key_rows(const RowFormat<A>& format, Index stride, Index size) const {
    const bool copied = format.converted || aliases_in_cache(stride) || crowds_l1(stride, ceil_div(n_.S, shape_.panel));
    return {.stride = stride,
            .size = size,
            .copied = copied,
            .padded = arithmetic_.padded(size),
            .width = padded_stride(size),
            .step = step_keys,
            .slots = copied ? shape_.slots : 1};
  }
  /// n rows, and zeros up to the stride.
  void load_rows(A* to, Index stride, const Q* from, Index from_row, Index n, Index size) const {
    kernels_.forward.queries.load(to, stride, from, from_row, n, size);
    for (Index r = 0; r < n; ++r) std::fill(to + r * stride + size, to + (r + 1) * stride, A{0});
  }
  /// shift = log-sum-exp, or 0 where a row sees no key; delta = scale (rowsum(dO O) - dL), of the panel at `at`.
  void load_sums(Index at) {
    const Index n = count(at), first = (b * n_.H + h) * n_.S + first_row + at;
    load_rows(output_buffer_, v_stride, problem_.y.at(b, h, first_row + at), problem_.y.row, n, n_.Dv);
    std::fill_n(delta_ + at, shape_.panel, A{0});
    kernels_.gradients.row_products(delta_ + at, output_buffer_, v_stride, output_rows + at * v_stride, v_stride, n,
                                    arithmetic_.padded(n_.Dv));
    for (Index i = 0; i < shape_.panel; ++i) {
      const A sum = i < n ? problem_.log_sum_exp[first + i] : A{0};
      const bool no_key = attn::detail::bits_of(sum) == attn::detail::bits_of(-std::numeric_limits<A>::infinity());
      shift_[at + i] = no_key ? A{0} : sum;
      if (problem_.grad_log_sum_exp != nullptr && i < n) delta_[at + i] -= problem_.grad_log_sum_exp[first + i];
      delta_[at + i] *= shape_.scale;
    }
  }
  /// to[key][query] = rows of keys or values times queries or dO, times a factor.
  void multiply_keys(A* to, typename RowSource<A>::Rows from, const A* transposed, Index depth, const A* factor,
                     const Seen& seen, Index at) {
    multiply(arithmetic_,
             Product<A>{.a = from.first,
                        .a_row = from.stride,
                        .b = transposed,
                        .b_row = shape_.panel,
                        .depth = depth,
                        .c = to,
                        .c_row = shape_.panel,
                        .factor = factor},
             seen.keys(), count(at), {});
  }

  const AttentionBackwardProblem<Q>& problem_;
  const AttentionProblem<Q>& n_;
  const Rules<A>& rules_;
  const AttentionBackwardKernels<Q>& kernels_;
  const Arithmetic<A>& arithmetic_;
  const Shape& shape_;
  A *queries_, *outputs_;                     // [panel][D][query], [panel][Dv][query]: q and dO
  A *shift_, *delta_;                         // of each query
  A *scores_, *of_weights_;                   // of one panel, [key][query]
  A *slopes_, *cap_slopes_, *factors_;        // the same, where needed
  A* output_buffer_;                          // outputs of a panel
  A *factor_of_scores_, *factor_of_weights_;  // for each query of a panel

 public:
  // What the tasks read.
  const Index row;                 // from one key to the next in `weights` and `gradients`
  const Index q_stride, v_stride;  // of rows of D and of Dv
  Index b = 0, h = 0;              // the head
  Index first_row = 0, rows = 0;   // queries of the block
  A *query_rows, *output_rows;     // [query][D], [query][Dv]: q and dO
  A *weights, *gradients;          // of a block, [key of the step][query]
  RowSource<A> k, v;
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
