// Floor 2. Attention of few queries, as in decoding.
//
// With few queries the lanes of a panel would lie idle and reading the keys is the limit. So here lanes run along D, a
// key/value head is read once for all query heads that share it, and the keys are cut into chunks, of a size that the shape
// alone decides, that threads take one by one; the chunks' results are then joined in the order of the keys, so that neither
// the number of threads nor anything else changes a bit. Memory traffic: every key and value once.
#pragma once

#include <algorithm>
#include <type_traits>

#include "attention_task.hpp"

namespace attn::kernel::inline ATTN_BASELINE {

template <class T>
class DecodeTasks {
  using A = AccumulatorOf<T>;
  static constexpr Index most_rows = 32;  // queries times query heads of a key/value head
  static constexpr bool low = !std::is_same_v<T, A>;
  static constexpr Index group = 16;  // values weighed at a time, all columns: they are read as they lie

 public:
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
        Dv(f.padded(p.Dv)) {
    // Long chunks read k and v in long stretches (256, 512, 1024, 2048 keys: 16, 18, 18.5, 19 GB/s a core of AMD Zen 4), but
    // there should be enough for many threads.
    chunk = 2048;
    while (chunk > 256 && p.B * p.G * ((p.T_ + chunk - 1) / chunk) < 32) chunk /= 2;
    chunks = (p.T_ + chunk - 1) / chunk;
    step = low ? 64 : chunk;
  }

  [[nodiscard]] Index count() const { return p.B * p.G * chunks; }
  /// What tasks leave for join(), in accumulators: per row of each task the maximum, the sum and the output so far.
  [[nodiscard]] Index partials() const { return count() * partial(); }
  /// Scratch memory per thread, in accumulators.
  [[nodiscard]] Index scratch() const {
    const Index copied = step * ((copies_k() ? D : 0) + (copies_v() ? Dv : 0));
    return std::max(rows * (D + step) + copied, f.padded(chunks) + Dv);
  }

  /// All rows that read one key/value head, against one chunk of its keys.
  void run(Index task, A* results, A* scratch) const {
    const Index part = task % chunks, g = task / chunks % p.G, b = task / chunks / p.G;
    A* const largest = results + task * partial();
    A* const sum = largest + rows;
    A* const y = sum + rows;
    A* const q = scratch;
    A* const s = q + rows * D;  // [row][step]
    A* const copies = s + rows * step;
    StepRows<T> k{f, p.k.at(b, g, 0), p.k.row, p.D, D, copies_k() ? copies : nullptr};
    StepRows<T> v{f, p.v.at(b, g, 0), p.v.row, p.Dv, Dv, copies_v() ? copies + (copies_k() ? step * D : 0) : nullptr};

    for (Index r = 0; r < rows; ++r) {
      A* const row = q + r * D;
      f.load(row, D, p.q.at(b, g * heads + r / p.S, r % p.S), p.D, 1, p.D);
      for (Index d = p.D; d < D; ++d) row[d] = 0;
      largest[r] = never<A>, sum[r] = 0;
    }
    for (Index i = 0; i < rows * Dv; ++i) y[i] = 0;

    const Index end = std::min((part + 1) * chunk, p.T_);
    for (Index t = part * chunk; t < end; t += step) {
      // Which keys any head wants, and whether each head needs its mask there.
      Index first = end, last = -1;
      bool masked = false;
      for (Index h = 0; h < heads; ++h) {
        Block block{p.position(b, g * heads + h, 0, t),
                    p.position(b, g * heads + h, p.S - 1, std::min(t + step, end) - 1)};
        bool mixed = false;
        if (!trim(rules, block, mixed)) {
          masked = true;
          continue;
        }
        masked |= mixed || (last >= 0 && (first != block.first.key || last != block.last.key));
        first = std::min<Index>(first, block.first.key);
        last = std::max<Index>(last, block.last.key);
      }
      if (last < 0) continue;
      const Index keys = last - first + 1;
      Index stride = 0;
      const A* const key = k.at(t, first, last, stride);
      f.score_rows(s, step, q, rows, key, stride, keys, D, p.scale);

      for (Index r = 0; r < rows; ++r) {
        A* const line = s + r * step;
        const Index h = g * heads + r / p.S;
        const Position at = p.position(b, h, r % p.S, first);
        if (masked || rules.scores) rules.line(rules, line, keys, at, masked);
        const A old = f.softmax_line(line, keys, largest[r], sum[r]);
        for (Index i = 0; i < Dv; ++i) y[r * Dv + i] *= old;
        if (p.dropout.active()) drop_line(f, line, keys, p.dropout, at, b * p.H + h);
      }

      const A* const value = v.at(t, first, last, stride);
      for (Index i = 0; i < keys; i += group)
        multiply_few(
            f, Product<A>{s + i, step, 1, value + i * stride, stride, std::min(group, keys - i), y, Dv, y, Dv, nullptr},
            rows, Dv);
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
    A largest = never<A>, sum = 0, total = 0;
    f.softmax_line(weights, chunks, largest, total);
    for (Index i = 0; i < Dv; ++i) y[i] = 0;
    for (Index c = 0; c < chunks; ++c) sum += first[c * partial() + rows + r] * weights[c];
    multiply_few(f, Product<A>{weights, chunks, 1, first + 2 * rows + r * Dv, partial(), chunks, y, Dv, y, Dv, nullptr},
                 1, Dv);
    const A inverse = inverse_of(sum);
    for (Index i = 0; i < Dv; ++i) y[i] *= inverse;
    if (p.y.data != nullptr) f.store(p.y.at(b, h, s), p.Dv, y, p.Dv, 1, p.Dv);
    if (p.log_sum_exp != nullptr) p.log_sum_exp[row] = log_sum_exp(largest, sum);
  }

 private:
  [[nodiscard]] bool copies_k() const { return low || D != p.D; }
  [[nodiscard]] bool copies_v() const { return low || Dv != p.Dv; }
  [[nodiscard]] Index partial() const { return rows * (Dv + 2); }

  const AttentionProblem<T>& p;
  const Rules<A>& rules;
  const Kernels<T>& f;
  Index heads, rows, D, Dv;
  Index chunk, chunks,
      step;  // keys of one task, tasks of one head; keys scored and weighed at a time: copies stay in L2
};

}  // namespace attn::kernel::inline ATTN_BASELINE
