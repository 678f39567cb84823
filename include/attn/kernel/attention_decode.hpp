// Floor 2. Attention of few queries, as in decoding.
//
// With few queries the lanes of a panel would be idle and reading the keys is the limit. So here lanes run along D, and a
// key/value head is read once for all query heads that share it. Keys are cut into chunks of a fixed size, each with a
// softmax of its own; the chunks' means are then joined in the order of the keys. So a row's result does not depend on the
// number of threads, nor on the other sequences of the batch. Memory traffic: every key and value once.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

#include "../error.hpp"
#include "../scratch.hpp"
#include "arithmetic.hpp"
#include "attention_kernels.hpp"
#include "codec.hpp"
#include "dropout.hpp"
#include "problem.hpp"
#include "row_source.hpp"
#include "rules.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

/// The plan: each task is a span of chunks of one key/value head; join() then makes the rows of them.
template <class Q>
class DecodeTasks {
  using A = AccumulatorOf<Q>;
  static constexpr Index max_queries = 4;     // more fill enough lanes of a panel
  static constexpr Index max_rows = 32;       // queries times query heads of a key/value head: all scores stay in L2
  static constexpr Index group_keys = 16;     // values weighed at a time, all columns: they are read as they lie
  static constexpr Index joined_chunks = 64;  // summed up before they join the total, as steps of a chunk are
  static constexpr Index copy_keys = 64;      // copied at a time, where they are: they stay in L1 and L2
  static constexpr Index max_span = 8;        // chunks of a task, see below
  static constexpr Index enough_tasks = 32;   // for many threads

 public:
  /// Keys whose sums are taken by themselves.
  static constexpr Index chunk_keys = 256;

  /// Few queries, and no weights asked for.
  [[nodiscard]] static bool fit(const AttentionProblem<Q>& problem) {
    return problem.S <= max_queries && problem.H / problem.G * problem.S <= max_rows && problem.weights == nullptr;
  }

  DecodeTasks(const AttentionProblem<Q>& problem, const Rules<A>& rules, const AttentionKernels<Q>& kernels)
      : problem_(problem),
        rules_(rules),
        kernels_(kernels),
        arithmetic_(kernels.arithmetic),
        heads_(problem.H / problem.G),
        rows_(heads_ * problem.S),
        D_(arithmetic_.padded(problem.D)),
        Dv_(arithmetic_.padded(problem.Dv)),
        chunks_(ceil_div(problem.T, chunk_keys)),
        span_(max_span) {
    // A task of many chunks reads k and v in long stretches (256, 512, 1024, 2048 keys: 16, 18, 18.5, 19 GB/s a core of AMD
    // Zen 4), but there should be enough tasks for many threads.
    while (span_ > 1 && tasks() < enough_tasks) span_ /= 2;
  }

  /// The shape of what tasks leave for join(): for each row of each chunk the maximum, the sum and the mean of v.
  [[nodiscard]] std::array<Index, 4> partials() const { return {problem_.B, problem_.G, chunks_, partial()}; }
  /// Where tasks leave it. Set before they run.
  void set_partials(A* partials) { partials_ = partials; }

  [[nodiscard]] Index tasks() const { return problem_.B * problem_.G * ceil_div(chunks_, span_); }
  [[nodiscard]] double work() const { return problem_.work(); }
  [[nodiscard]] Index scratch_size() const {
    using attn::detail::scratch_size_of;
    return std::max(scratch_size_of<Buffers>(*this), scratch_size_of<JoinBuffers>(*this));
  }

  /// All rows that read one key/value head, against a span of chunks of its keys.
  void run(Index task, Scratch scratch) const {
    const Index spans = ceil_div(chunks_, span_);
    const Index g = task / spans % problem_.G, b = task / spans / problem_.G;
    const Index begin = task % spans * span_ * chunk_keys;
    const Index end = std::min(begin + span_ * chunk_keys, problem_.T);
    Buffers buffers(*this, scratch);
    load_queries(b, g, buffers.queries);
    const Kept kept = kept_keys(b, g, begin, end);

    buffers.k.begin(problem_.k.of_head(b, g));
    score(kept, begin, buffers);
    buffers.v.begin(problem_.v.of_head(b, g));
    for (Index t = begin; t < end; t += chunk_keys) {
      A* const partials = partials_of(b, g) + t / chunk_keys * partial();
      const Index from = std::max(kept.begin, t), to = std::min({kept.end, t + chunk_keys, end});
      A* const scores = buffers.scores + t - begin;
      for (Index r = 0; r < rows_; ++r)
        weigh(problem_.position(b, g * heads_ + r / problem_.S, r % problem_.S, t), from, to, kept.masked,
              scores + r * scores_row(), partials[r], partials[rows_ + r]);
      average(buffers.v, t, from, to, scores, partials + 2 * rows_);
    }
  }

  /// Joins the chunks of one row, in the order of the keys: row is (b * H + h) * S + s.
  void join(Index row, Scratch scratch) const {
    const JoinBuffers buffers(*this, scratch);
    const Index s = row % problem_.S, h = row / problem_.S % problem_.H, b = row / problem_.S / problem_.H;
    const Index r = h % heads_ * problem_.S + s;
    const A* const first = partials_of(b, h / heads_);
    A* const weights = buffers.weights;  // of the chunks: their maxima are scores like any other
    for (Index c = 0; c < chunks_; ++c) weights[c] = first[c * partial() + r];
    const A sink = sink_of(problem_, h);
    A row_max = sink, row_sum = sink > masked_score<A> ? A{1} : A{0};
    A unused = 0;
    row_sum *= arithmetic_.softmax_line(weights, chunks_, row_max, unused);
    for (Index c = 0; c < chunks_; c += joined_chunks) {
      A part = 0;
      for (Index i = c; i < std::min(c + joined_chunks, chunks_); ++i)
        part += weights[i] *= first[i * partial() + rows_ + r];
      row_sum += part;
    }
    if (problem_.log_sum_exp != nullptr) problem_.log_sum_exp[row] = log_sum_exp(row_max, row_sum);
    if (problem_.y.data == nullptr) return;
    const A inverse = inverse_of(row_sum);
    for (Index c = 0; c < chunks_; ++c) weights[c] *= inverse;
    std::fill_n(buffers.y, Dv_, A{0});
    for (Index c = 0; c < chunks_; c += joined_chunks)
      arithmetic_.weigh_rows({.y = buffers.y,
                              .weights = weights + c,
                              .weights_row = chunks_,
                              .rows = 1,
                              .v = reinterpret_cast<const std::byte*>(first + c * partial() + 2 * rows_ + r * Dv_),
                              .v_row = partial() * Index{sizeof(A)},
                              .keys = std::min(joined_chunks, chunks_ - c),
                              .size = Dv_});
    kernels_.queries.store(problem_.y.at(b, h, s), problem_.Dv, buffers.y, problem_.Dv, 1, problem_.Dv);
  }

 private:
  struct Buffers {
    A* queries;  // [row][D]
    A* scores;   // [row][key of the span]
    RowSource<A> k, v;

    Buffers(const DecodeTasks& tasks, Scratch& scratch)
        : queries(scratch.take<A>(tasks.rows_ * tasks.D_)),
          scores(scratch.take<A>(tasks.rows_ * tasks.scores_row())),
          k(tasks.kernels_.keys, tasks.key_rows(), scratch),
          v(tasks.kernels_.values, tasks.value_rows(), scratch) {}
  };
  struct JoinBuffers {
    A* y;        // [Dv]
    A* weights;  // [chunk]

    JoinBuffers(const DecodeTasks& tasks, Scratch& scratch)
        : y(scratch.take<A>(tasks.Dv_)), weights(scratch.take<A>(tasks.arithmetic_.padded(tasks.chunks_))) {}
  };
  /// Keys of a span that any of its rows may see: from `begin` to before `end`.
  struct Kept {
    Index begin, end;
    bool masked;  ///< the mask is asked about each
  };

  [[nodiscard]] typename RowSource<A>::Shape rows_of(const RowFormat<A>& format, Index stride, Index size) const {
    const Index padded = arithmetic_.padded(size);
    return {.stride = stride,
            .size = size,
            .copied = padded != size || format.score_rows == nullptr,
            .padded = padded,
            .width = padded,
            .step = copy_keys,
            .slots = 1};
  }
  [[nodiscard]] typename RowSource<A>::Shape key_rows() const {
    return rows_of(kernels_.keys, problem_.k.row, problem_.D);
  }
  [[nodiscard]] typename RowSource<A>::Shape value_rows() const {
    return rows_of(kernels_.values, problem_.v.row, problem_.Dv);
  }
  [[nodiscard]] A* partials_of(Index b, Index g) const {
    return partials_ + (b * problem_.G + g) * chunks_ * partial();
  }
  [[nodiscard]] Index partial() const { return rows_ * (Dv_ + 2); }
  /// The stride of rows of scores: kernels write whole vectors, one of them beyond the last key.
  [[nodiscard]] Index scores_row() const { return span_ * chunk_keys + arithmetic_.lanes; }

  void load_queries(Index b, Index g, A* queries) const {
    for (Index r = 0; r < rows_; ++r) {
      A* const row = queries + r * D_;
      kernels_.queries.load(row, D_, problem_.q.at(b, g * heads_ + r / problem_.S, r % problem_.S), problem_.D, 1,
                            problem_.D);
      for (Index d = problem_.D; d < D_; ++d) row[d] = 0;
    }
  }
  [[nodiscard]] Kept kept_keys(Index b, Index g, Index begin, Index end) const {
    Kept kept{end, begin, false};
    for (Index h = g * heads_; h < (g + 1) * heads_; ++h) {
      const Trimmed rest =
          trim(rules_, {problem_.position(b, h, 0, begin), problem_.position(b, h, problem_.S - 1, end - 1)});
      kept.masked = kept.masked || rest.masked || rest.empty;
      if (rest.empty) continue;
      kept.begin = std::min<Index>(kept.begin, rest.block.first.key);
      kept.end = std::max<Index>(kept.end, rest.block.last.key + 1);
    }
    return kept;
  }

  /// Scores of all rows with the keys that are kept: as they are stored, or, where they do not fill vectors, copied a step at
  /// a time.
  void score(const Kept& kept, Index begin, Buffers& buffers) const {
    const bool copied = key_rows().copied;
    for (Index t = kept.begin; t < kept.end;) {
      const Index end = copied ? std::min(t - t % copy_keys + copy_keys, kept.end) : buffers.k.stretch_end(t, kept.end);
      const auto k = buffers.k.stored_rows(t, t, end);
      (copied ? arithmetic_.score_rows : kernels_.keys.score_rows)({.scores = buffers.scores + t - begin,
                                                                    .scores_row = scores_row(),
                                                                    .q = buffers.queries,
                                                                    .rows = rows_,
                                                                    .k = k.first,
                                                                    .k_row = k.stride,
                                                                    .keys = end - t,
                                                                    .size = D_,
                                                                    .scale = problem_.scale,
                                                                    .ahead = copied ? 0 : kernels_.ahead});
      t = end;
    }
  }

  /// Makes a row's scores with the chunk at `at` weights, divided by their sum: scores[key - chunk], known from `from` to
  /// before `to`. Keys before these are masked; sums begin with the chunk all the same, so that they do not depend on
  /// what a task covers.
  void weigh(Position at, Index from, Index to, bool masked, A* scores, A& row_max, A& row_sum) const {
    row_max = masked_score<A>, row_sum = 0;
    if (from >= to) return;
    const Index keys = to - at.key;
    if (rules_.cap_scores != nullptr) rules_.cap_scores(scores, nullptr, arithmetic_.padded(keys), rules_.cap);
    if (masked || rules_.has_score) rules_.line(rules_, scores, keys, at, masked);
    arithmetic_.softmax_line(scores, keys, row_max, row_sum);
    const A inverse = inverse_of(row_sum);
    for (Index i = 0; i < keys; ++i) scores[i] *= inverse;
    if (problem_.dropout.active()) drop_line(arithmetic_, scores, keys, problem_.dropout, at, problem_.H);
  }

  /// y [row][Dv] = the weights [row][key - t] of the chunk at t, times v: means, so that they overflow only where a value
  /// does.
  void average(RowSource<A>& source, Index t, Index from, Index to, const A* weights, A* y) const {
    const bool copied = value_rows().copied;
    std::fill_n(y, rows_ * Dv_, A{0});
    for (Index key = from; key < to;) {
      const Index end = std::min(key - key % group_keys + group_keys, to);
      const auto v = source.stored_rows(std::max(key - key % copy_keys, from), key, end);
      (copied ? arithmetic_.weigh_rows : kernels_.values.weigh_rows)({.y = y,
                                                                      .weights = weights + (key - t),
                                                                      .weights_row = scores_row(),
                                                                      .rows = rows_,
                                                                      .v = v.first,
                                                                      .v_row = v.stride,
                                                                      .keys = end - key,
                                                                      .size = Dv_,
                                                                      .ahead = copied ? 0 : kernels_.ahead});
      key = end;
    }
  }

  const AttentionProblem<Q>& problem_;
  const Rules<A>& rules_;
  const AttentionKernels<Q>& kernels_;
  const Arithmetic<A>& arithmetic_;
  Index heads_, rows_;  // query heads of a key/value head, and rows: queries of all of them
  Index D_, Dv_;        // head sizes in whole vectors
  Index chunks_;        // of all keys
  Index span_;          // chunks of a task
  A* partials_ = nullptr;
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
