// Floor 2. Attention of few queries, as in decoding.
//
// With few queries the lanes of a panel would be idle and reading the keys is the limit. So here lanes run along D, and a
// key/value head is read once for all query heads that share it. Keys are cut into chunks of a fixed size, each with a
// softmax of its own; the chunks' means are then joined in the order of the keys. So a row's result does not depend on the
// number of threads, nor on the other sequences of the batch. Memory traffic: every key and value once.
#pragma once

#include <algorithm>
#include <array>
#include <type_traits>

#include "attention_forward.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

template <class T>
class DecodeTasks {
  using A = AccumulatorOf<T>;
  static constexpr Index most_rows = 32;  // queries times query heads of a key/value head
  static constexpr bool low = !std::is_same_v<T, A>;
  static constexpr Index group = 16;      // values weighed at a time, all columns: they are read as they lie
  static constexpr Index joined = 64;     // chunks summed up before they join the total
  static constexpr Index copy_keys = 64;  // copied at a time, where they are: they stay in L1 and L2

 public:
  /// Keys whose sums are taken by themselves.
  static constexpr Index chunk_keys = 256;

  /// Few queries, and no weights asked for.
  [[nodiscard]] static bool fit(const AttentionProblem<T>& p) {
    return p.S <= 4 && p.H / p.G * p.S <= most_rows && p.weights == nullptr;
  }
  DecodeTasks(const AttentionProblem<T>& problem, const Rules<A>& rules_, const Kernels<T>& functions)
      : p(problem),
        rules(rules_),
        f(functions),
        heads(p.H / p.G),
        rows(heads * p.S),
        D(f.padded(p.D)),
        Dv(f.padded(p.Dv)),
        chunks(ceil_div(p.T_, chunk_keys)) {
    // A task of many chunks reads k and v in long stretches (256, 512, 1024, 2048 keys: 16, 18, 18.5, 19 GB/s a core of AMD
    // Zen 4), but there should be enough tasks for many threads.
    span = 8;
    while (span > 1 && p.B * p.G * ceil_div(chunks, span) < 32) span /= 2;
  }

  [[nodiscard]] Index count() const { return p.B * p.G * ceil_div(chunks, span); }
  /// The shape of what tasks leave for join(): per row of each chunk the maximum, the sum and the mean of v.
  [[nodiscard]] std::array<Index, 4> partials() const { return {p.B, p.G, chunks, partial()}; }
  /// Scratch memory per thread, in accumulators.
  [[nodiscard]] Index scratch() const {
    const Index copies = copy_keys * std::max(copies_k() ? D : 0, copies_v() ? Dv : 0);
    return std::max(rows * (D + score_row()) + copies, f.padded(chunks) + Dv);
  }

  /// All rows that read one key/value head, against a span of chunks of its keys.
  void run(Index task, A* results, A* scratch) const {
    const Index spans = ceil_div(chunks, span);
    const Index first_chunk = task % spans * span, g = task / spans % p.G, b = task / spans / p.G;
    const Index begin = first_chunk * chunk_keys, end = std::min(begin + span * chunk_keys, p.T_);
    A* const q = scratch;
    A* const s = q + rows * D;  // [row][key of the span], with room for one more vector
    A* const copies = s + rows * score_row();

    for (Index r = 0; r < rows; ++r) {
      A* const row = q + r * D;
      f.load(row, D, p.q.at(b, g * heads + r / p.S, r % p.S), p.D, 1, p.D);
      for (Index d = p.D; d < D; ++d) row[d] = 0;
    }
    bool masked = false;
    Index first = end, last = begin - 1;
    for (Index h = g * heads; h < (g + 1) * heads; ++h) {
      Block block{p.position(b, h, 0, begin), p.position(b, h, p.S - 1, end - 1)};
      bool mixed = false;
      const bool some = trim(rules, block, mixed);
      masked = masked || mixed || !some;
      if (!some) continue;
      first = std::min<Index>(first, block.first.key);
      last = std::max<Index>(last, block.last.key);
    }
    StepRows<T> k{f, p.k.at(b, g, 0), p.k.row, p.D, D, copies_k() ? copies : nullptr};
    for (Index t = first; t <= last;) {
      const Index keys = (copies_k() ? std::min(t - t % copy_keys + copy_keys - 1, last) : last) - t + 1;
      Index stride = 0;
      const A* const key = k.at(t, t, t + keys - 1, stride);
      f.score_rows(s + t - begin, score_row(), q, rows, key, stride, keys, D, p.scale);
      t += keys;
    }
    StepRows<T> v{f, p.v.at(b, g, 0), p.v.row, p.Dv, Dv, copies_v() ? copies : nullptr};
    for (Index t = begin; t < end; t += chunk_keys) {
      A* const result = results + ((b * p.G + g) * chunks + t / chunk_keys) * partial();
      const Index from = std::max(first, t), to = std::min({last + 1, t + chunk_keys, end});
      for (Index r = 0; r < rows; ++r)
        weigh(b, g * heads + r / p.S, r % p.S, t, from, to, masked, s + r * score_row() + t - begin, result[r],
              result[rows + r]);
      average(v, t, from, to, s + t - begin, result + 2 * rows);
    }
  }

  /// Joins the chunks of one row, in the order of the keys: row is (b * H + h) * S + s.
  void join(Index row, const A* results, A* scratch) const {
    const Index s = row % p.S, h = row / p.S % p.H, b = row / p.S / p.H;
    const Index r = h % heads * p.S + s;
    const A* const first = results + (b * p.G + h / heads) * chunks * partial();
    A* const y = scratch;
    A* const weights = scratch + Dv;  // of the chunks: their maxima are scores as any
    for (Index c = 0; c < chunks; ++c) weights[c] = first[c * partial() + r];
    A largest = never<A>, sum = 0, unused = 0;
    f.softmax_line(weights, chunks, largest, unused);
    for (Index c = 0; c < chunks; c += joined) {
      A part = 0;
      for (Index i = c; i < std::min(c + joined, chunks); ++i) part += weights[i] *= first[i * partial() + rows + r];
      sum += part;
    }
    const A inverse = inverse_of(sum);
    for (Index c = 0; c < chunks; ++c) weights[c] *= inverse;
    if (p.y.data != nullptr) {
      for (Index i = 0; i < Dv; ++i) y[i] = 0;
      for (Index c = 0; c < chunks; c += joined)
        multiply_few(f,
                     Product<A>{weights + c, chunks, 1, first + c * partial() + 2 * rows + r * Dv, partial(),
                                std::min(joined, chunks - c), y, Dv, y, Dv, nullptr},
                     1, Dv);
      f.store(p.y.at(b, h, s), p.Dv, y, p.Dv, 1, p.Dv);
    }
    if (p.log_sum_exp != nullptr) p.log_sum_exp[row] = log_sum_exp(largest, sum);
  }

 private:
  /// Turns a row's scores with the chunk at t into weights, divided by their sum: s[key - t], scored from `from` to before
  /// `to`. Keys before these are masked; sums begin at t all the same, so that they do not depend on what a task covers.
  void weigh(Index b, Index h, Index row, Index t, Index from, Index to, bool masked, A* s, A& largest, A& sum) const {
    largest = never<A>, sum = 0;
    if (from >= to) return;
    const Position at = p.position(b, h, row, t);
    if (masked || rules.scores) rules.line(rules, s, to - t, at, masked);
    f.softmax_line(s, to - t, largest, sum);
    const A inverse = inverse_of(sum);
    for (Index i = 0; i < to - t; ++i) s[i] *= inverse;
    if (p.dropout.active()) drop_line(f, s, to - t, p.dropout, at, b * p.H + h);
  }

  /// y [row][Dv] = the chunk's weights s [row][key - t] times v: means, so that they overflow only where a value does.
  void average(StepRows<T>& v, Index t, Index from, Index to, const A* s, A* y) const {
    for (Index i = 0; i < rows * Dv; ++i) y[i] = 0;
    for (Index key = from; key < to;) {
      const Index next = std::min(key - key % group + group, to);
      Index stride = 0;
      const A* const value = v.at(std::max(key - key % copy_keys, from), key, next - 1, stride);
      multiply_few(f, Product<A>{s + (key - t), score_row(), 1, value, stride, next - key, y, Dv, y, Dv, nullptr}, rows,
                   Dv);
      key = next;
    }
  }

  [[nodiscard]] bool copies_k() const { return low || D != p.D; }
  [[nodiscard]] bool copies_v() const { return low || Dv != p.Dv; }
  [[nodiscard]] Index partial() const { return rows * (Dv + 2); }
  /// The stride of rows of scores: kernels write whole vectors.
  [[nodiscard]] Index score_row() const { return span * chunk_keys + f.lanes; }

  const AttentionProblem<T>& p;
  const Rules<A>& rules;
  const Kernels<T>& f;
  Index heads, rows, D, Dv;
  Index chunks;  // of all keys
  Index span;    // chunks of a task
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
