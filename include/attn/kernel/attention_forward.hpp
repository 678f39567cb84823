// Floor 2. Fused attention: how it is cut into tasks, and one task.
//
// Scores are computed transposed: a panel of 3 vectors of queries lies across the lanes, keys run down; and so is the
// output, elements of v running down. Then
//   - both products are the same tile: its columns are queries, its rows are keys as they lie in k, or elements of v as
//     they lie in v. No key or value needs packing, and any D and Dv will do;
//   - the softmax needs no horizontal step: running maximum and sum are one vector per 16 queries;
//   - p is stored as [key][query], which is how the tile wants it for p v.
// Queries are turned once, and outputs once back. Memory traffic per block of up to 384 queries: k and v once from L2 or
// L3, D + Dv elements per key for 2 * 384 * (D + Dv) flops. At 4 bytes that is 1 byte in 192 flops: arithmetic,
// not memory, is the limit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

/// Queries of one block. 96 read k and v too often (15 %), 192 and 288 are equal, 576 leave L2 (3 %).
inline constexpr Index most_block_rows = 384;
/// Keys scored and weighed at a time. 32 read and write the output too often (3 %), 96 and 128 are equal.
inline constexpr Index step_keys = 64;
/// Keys whose steps are summed up before they join the total: a single chain of steps over 2^20 keys would lose 5e-4.
inline constexpr Index chunk_keys = 64 * step_keys;

/// Dropout of weights p[key][row], `rows` of them in whole vectors, `first` the position of the first.
template <class T, class A>
void drop_panel(const Kernels<T>& f, A* p, Index p_row, Index keys, Index rows, const DropoutRule& rule, Position first,
                Index plane) {
  alignas(64) A factors[64];
  const auto column = static_cast<std::uint32_t>(first.key);
  for (Index row = 0; row < rows; row += 16)
    for (Index t = -static_cast<Index>(column % 4); t < keys; t += 4) {  // four keys share random numbers
      f.dropout_factors(factors, rule,
                        {static_cast<std::uint32_t>(first.key + t), static_cast<std::uint32_t>(first.row + row),
                         static_cast<std::uint32_t>(plane)},
                        {0, 1, 0});
      for (Index w = std::max<Index>(0, -t); w < std::min<Index>(4, keys - t); ++w)
        f.scale_rows(p + (t + w) * p_row + row, 0, 1, std::min<Index>(16, rows - row), factors + w * 16);
    }
}
/// The same of one row's weights p[key].
template <class T, class A>
void drop_line(const Kernels<T>& f, A* p, Index keys, const DropoutRule& rule, Position first, Index plane) {
  A factors[64];
  const auto column = static_cast<std::uint32_t>(first.key);
  for (Index t = -static_cast<Index>(column % 4); t < keys; t += 64) {
    f.dropout_factors(factors, rule,
                      {static_cast<std::uint32_t>(first.key + t), static_cast<std::uint32_t>(first.row),
                       static_cast<std::uint32_t>(plane)},
                      {4, 0, 0});
    for (Index i = std::max<Index>(0, -t); i < std::min<Index>(64, keys - t); ++i)
      p[t + i] *= factors[i % 4 * 16 + i / 4];
  }
}

/// What of a block of scores is worth computing: keys that the mask calls empty are cut off at both ends, by bisection,
/// so that padding is never read and a causal block ends at its last live key. Returns false where nothing is left.
template <class A>
bool trim(const Rules<A>& rules, Block& block, bool& masked) {
  const Coverage coverage = rules.cover(rules, block);
  masked = coverage == Coverage::mixed;
  if (!masked) return coverage == Coverage::full;
  std::int32_t low = block.first.key, high = block.last.key + 1;
  while (low < high) {  // keys from `high` on are empty
    const std::int32_t middle = low + (high - low) / 2;
    Block rest = block;
    rest.first.key = middle;
    if (rules.cover(rules, rest) == Coverage::empty)
      high = middle;
    else
      low = middle + 1;
  }
  block.last.key = high - 1;
  low = block.first.key, high = block.last.key;
  while (low < high) {  // keys before `low` are empty
    const std::int32_t middle = low + (high - low) / 2;
    Block rest = block;
    rest.last.key = middle;
    if (rules.cover(rules, rest) == Coverage::empty)
      low = middle + 1;
    else
      high = middle;
  }
  block.first.key = low;
  return block.first.key <= block.last.key;
}

/// Keys or values of one head, step by step. Where they cannot be read as they lie (low precision, columns to pad, crowded
/// rows), they are brought into scratch memory once, as far as anyone has asked for: keys that no query attends are never
/// read.
template <class T>
struct StepRows {
  using A = AccumulatorOf<T>;
  const Kernels<T>& f;
  const T* from = nullptr;
  Index stride = 0, size = 0, width = 0;  // of a row: from the next, elements, elements padded
  A* copy = nullptr;                      // or null: read as they lie
  Index* ends = nullptr;                  // where the copy of each step ends; null: there is room for one step
  Index step = -1, end = 0;               // that one

  /// The rows from `first` on, in so many steps.
  void begin(const T* first, Index steps) {
    if (first == from) return;
    from = first, step = -1;
    for (Index i = 0; i < steps && ends != nullptr; ++i) ends[i] = i * step_keys;
  }
  /// Row t; rows up to `last` can be read at the stride that `out_stride` is set to.
  const A* at(Index step_begin, Index t, Index last, Index& out_stride) {
    if constexpr (std::is_same_v<T, A>) {
      if (copy == nullptr) {
        out_stride = stride;
        return from + t * stride;
      }
    }
    if (ends == nullptr && step != step_begin) step = end = step_begin;
    Index& held = ends == nullptr ? end : ends[step_begin / step_keys];
    const Index base = ends == nullptr ? step_begin : 0, rows = last + 1 - held;
    if (rows > 0) {
      A* const to = copy + (held - base) * width;
      f.load(to, width, from + held * stride, stride, rows, size);
      for (Index i = 0; i < rows; ++i)
        for (Index d = size; d < f.padded(size); ++d) to[i * width + d] = 0;
      held = last + 1;
    }
    out_stride = width;
    return copy + (t - base) * width;
  }
  /// Rows from t on, where they will be read.
  [[nodiscard]] Wanted ahead(Index t, Index rows) const {
    if (ends != nullptr && rows > 0 && ends[t / step_keys] > t) return Wanted::of(copy + t * width, width, size, rows);
    return Wanted::of(from + t * stride, stride, size, rows);
  }
};

/// Attention of all heads, cut into blocks, up to 384 queries of one head against all its keys, and those into tasks.
template <class T>
class AttentionTasks {
  using A = AccumulatorOf<T>;
  static constexpr bool low = !std::is_same_v<T, A>;

 public:
  AttentionTasks(const AttentionProblem<T>& problem, const Rules<A>& rules_, const Kernels<T>& functions, Index threads)
      : p(problem), rules(rules_), f(functions), panel(f.panel()) {
    // Panels are the same rows however many of them a block has, so this may depend on the number of threads.
    panels = std::min(std::max<Index>(1, most_block_rows / panel), (p.S + panel - 1) / panel);
    while (panels > 1 && p.B * p.H * p.S < 4 * threads * panels * panel) panels = (panels + 1) / 2;
    row_blocks = (p.S + panels * panel - 1) / (panels * panel);
    // A task is all queries that read one key/value head, or all of one head, so that keys and values are near for the
    // next block (3 %) and copied once; where that would leave threads idle, it is one block of queries.
    heads = p.H / p.G, blocks = row_blocks;
    if (!even(p.B * p.G, threads)) heads = 1;
    if (!even(p.B * p.H / heads, threads)) blocks = 1;
    // Rows of a page each are worth copying where several blocks read the copy (1 to 2 %).
    const auto copies = [&](Index stride) {
      return low || crowded<T>(stride) || (heads * blocks > 1 && stride * static_cast<Index>(sizeof(T)) >= 4096);
    };
    copies_k = copies(p.k.row);
    copies_v = copies(p.v.row);
    copied = heads * blocks > 1 && p.T_ * copied_row() <= most_copied / threads ? std::max<Index>(steps(), 1) : 1;
  }

  [[nodiscard]] Index count() const { return p.B * p.H * row_blocks / (heads * blocks); }
  /// Scratch memory per thread, in accumulators.
  [[nodiscard]] Index scratch() const {
    return panels * panel * (p.D + (p.Dv + 2) * (chunked() ? 2 : 1)) + (step_keys + 3) * panel + turned_size() +
           copied * step_keys * copied_row() + 2 * ends_size();
  }
  void run(Index task, A* scratch) const {
    Task worker(*this, scratch);
    if (heads * blocks == 1) {
      // Few heads come block after block, the costly blocks of all of them first (under a causal mask the last), so that
      // no thread is left with one at the end.
      worker.begin(task % (p.B * p.H));
      worker.run(row_blocks - 1 - task / (p.B * p.H));
      return;
    }
    for (Index head = task * heads; head < (task + 1) * heads; ++head) {
      worker.begin(head);
      for (Index block = row_blocks; block-- > 0;) worker.run(block);
    }
  }

 private:
  static constexpr Index most_copied = (48 << 20) / static_cast<Index>(sizeof(A));  // of all threads together: 48 MB
  /// Whether so many equal tasks leave less than 1 in 16 of the threads' time idle.
  static bool even(Index tasks, Index threads) {
    return ((tasks + threads - 1) / threads * threads - tasks) * 16 <= tasks;
  }
  /// The stride of copied rows: a line more than they need, or those of 512 bytes would share a few sets of L1 (1 to 2 %).
  static constexpr Index apart(Index size) { return size + 64 / static_cast<Index>(sizeof(A)); }
  [[nodiscard]] Index steps() const { return (p.T_ + step_keys - 1) / step_keys; }
  [[nodiscard]] bool chunked() const { return p.T_ > chunk_keys; }
  [[nodiscard]] Index copied_row() const { return (copies_k ? apart(p.D) : 0) + (copies_v ? apart(p.Dv) : 0); }
  [[nodiscard]] Index ends_size() const {
    return copied > 1 ? f.padded(copied * static_cast<Index>(sizeof(Index) / sizeof(A))) : 0;
  }
  /// A panel's output, or its weights of a step, turned to rows of queries; or a sum and a factor of each query.
  [[nodiscard]] Index turned_size() const {
    return panel * std::max({Index{2}, f.padded(p.Dv), p.weights != nullptr ? step_keys : 0});
  }

  struct Task {
    const AttentionTasks& all;
    const AttentionProblem<T>& p;
    const Rules<A>& rules;
    const Kernels<T>& f;
    const Index panel;
    Index b = 0, h = 0, first_row = 0, rows = 0;
    A *q, *y, *largest, *sum, *s, *old, *scale, *turned;  // q [panel][D][query], y [panel][Dv][query], s [key][query]
    // Of the chunks so far; where there is only one chunk, they are y, largest and sum themselves.
    A *total_y, *total_largest, *total_sum;
    StepRows<T> k, v;

    Task(const AttentionTasks& tasks, A* scratch)
        : all(tasks), p(all.p), rules(all.rules), f(all.f), panel(all.panel), k{f}, v{f} {
      const Index queries = all.panels * panel, room = all.copied * step_keys;
      q = scratch;
      y = q + queries * p.D;
      largest = y + queries * p.Dv;
      sum = largest + queries;
      total_y = y, total_largest = largest, total_sum = sum;
      if (all.chunked()) {
        total_y = sum + queries;
        total_largest = total_y + queries * p.Dv;
        total_sum = total_largest + queries;
      }
      s = total_sum + queries;
      old = s + (step_keys + 1) * panel;
      scale = old + panel;
      turned = scale + panel;
      A* const k_copy = turned + all.turned_size();
      A* const v_copy = k_copy + (all.copies_k ? room * apart(p.D) : 0);
      k.stride = p.k.row, k.size = p.D, k.width = apart(p.D);
      v.stride = p.v.row, v.size = p.Dv, v.width = apart(p.Dv);
      k.copy = all.copies_k ? k_copy : nullptr;
      v.copy = all.copies_v ? v_copy : nullptr;
      if (all.copied > 1) {
        auto* const ends = static_cast<Index*>(static_cast<void*>(v_copy + (all.copies_v ? room * apart(p.Dv) : 0)));
        k.ends = all.copies_k ? ends : nullptr;
        v.ends = all.copies_v ? ends + all.copied : nullptr;
      }
      for (Index i = 0; i < panel; ++i) scale[i] = p.scale;
    }

    /// A head from now on.
    void begin(Index head) {
      b = head / p.H, h = head % p.H;
      k.begin(p.k.at(b, h / (p.H / p.G), 0), all.steps());
      v.begin(p.v.at(b, h / (p.H / p.G), 0), all.steps());
    }

    /// A block of its queries.
    void run(Index row_block) {
      first_row = row_block * all.panels * panel;
      rows = std::min(all.panels * panel, p.S - first_row);
      for (Index row = 0; row < rows; row += panel) {
        f.turn(q + row * p.D, panel, p.q.at(b, h, first_row + row), p.q.row, std::min(panel, rows - row), p.D);
        clear(row, y, largest, sum);
        if (all.chunked()) clear(row, total_y, total_largest, total_sum);
      }
      for (Index t = 0; t < p.T_; t += step_keys)
        for (Index row = 0; row < rows; row += panel) {
          Block block;
          if (scores(t, row, block)) {
            softmax(row, block, largest + row, sum + row, old);
            values(t, row, block, old);
          }
          if (all.chunked() && ((t + step_keys) % chunk_keys == 0 || t + step_keys >= p.T_)) join(row);
        }
      for (Index row = 0; row < rows; row += panel) finish(row);
    }

    void clear(Index row, A* outputs, A* maxima, A* sums) const {
      for (Index i = 0; i < panel; ++i) maxima[row + i] = never<A>, sums[row + i] = 0;
      for (Index i = 0; i < panel * p.Dv; ++i) outputs[row * p.Dv + i] = 0;
    }

    /// Adds a chunk to the totals and begins the next one. Its maximum is a score like any other: a softmax of this one key
    /// gives the factors of both.
    [[gnu::cold, gnu::noinline]] void join(Index row) {
      std::copy_n(largest + row, panel, s);
      A* const unused = turned;
      f.softmax_panel(s, 1, vectors(row), total_largest + row, unused, old);
      for (Index i = 0; i < count(row); ++i) total_sum[row + i] = total_sum[row + i] * old[i] + sum[row + i] * s[i];
      for (Index d = 0; d < p.Dv; ++d) {
        A* const to = total_y + row * p.Dv + d * panel;
        const A* const from = y + row * p.Dv + d * panel;
        for (Index i = 0; i < count(row); ++i) to[i] = to[i] * old[i] + from[i] * s[i];
      }
      clear(row, y, largest, sum);
    }

    [[nodiscard]] Index count(Index row) const { return std::min(panel, rows - row); }
    [[nodiscard]] Index vectors(Index row) const { return ceil_div(count(row), f.lanes); }
    [[nodiscard]] static Index keys(const Block& block) { return block.last.key - block.first.key + 1; }

    /// s = masked scores of the panel at `row` with the keys of the step at t that are worth it; false: with none.
    bool scores(Index t, Index row, Block& block) {
      block = {p.position(b, h, first_row + row, t),
               p.position(b, h, first_row + row + count(row) - 1, std::min(t + step_keys, p.T_) - 1)};
      bool masked = false;
      if (!trim(rules, block, masked)) return false;
      Product<A> product{nullptr, 0, 1, q + row * p.D, panel, p.D, s, panel, nullptr, 0, scale};
      product.a = k.at(t, block.first.key, block.last.key, product.a_row);
      multiply(f, product, keys(block), count(row), ahead(k, t, row));
      if (masked || rules.scores) rules.panel(rules, s, keys(block), count(row), block.first, masked);
      return true;
    }

    /// Online softmax: s = exp(s - the rows' maxima so far), and factor what earlier sums and outputs are multiplied by.
    void softmax(Index row, const Block& block, A* maxima, A* sums, A* factor) {
      f.softmax_panel(s, keys(block), vectors(row), maxima, sums, factor);
      if (p.dropout.active())
        drop_panel(f, s, panel, keys(block), vectors(row) * f.lanes, p.dropout, block.first, b * p.H + h);
    }

    /// y = y * factor + v p, for the step's weights p in s.
    void values(Index t, Index row, const Block& block, const A* factor) {
      A* const to = y + row * p.Dv;
      Product<A> product{nullptr, 1, 0, s, panel, keys(block), to, panel, to, panel, factor};
      product.a = v.at(t, block.first.key, block.last.key, product.a_step);
      multiply(f, product, p.Dv, count(row), ahead(v, t, row));
    }

    /// What comes nearer while a panel is computed: its share of the rows of the step after the one at t.
    [[nodiscard]] Wanted ahead(const StepRows<T>& of, Index t, Index row) const {
      const Index share = (step_keys + all.panels - 1) / all.panels, first = t + step_keys + row / panel * share;
      return of.ahead(first, std::clamp<Index>(p.T_ - first, 0, share));
    }

    /// Writes what was asked for of a panel: y / sum, log-sum-exp, weights.
    void finish(Index row) {
      for (Index i = 0; i < panel; ++i) old[i] = inverse_of(total_sum[row + i]);
      if (p.y.data != nullptr) {
        A* const mean = total_y + row * p.Dv;
        const bool finite = f.scale_rows(mean, panel, p.Dv, panel, old);
        write_output(row, 0, count(row), mean);
        if (!finite) average_again(row, mean);
      }
      for (Index i = 0; i < count(row) && p.log_sum_exp != nullptr; ++i)
        p.log_sum_exp[(b * p.H + h) * p.S + first_row + row + i] =
            log_sum_exp(total_largest[row + i], total_sum[row + i]);
      if (p.weights != nullptr) write_weights(row);
    }

    /// Rows of queries from the i-th of the panel on, out of means [Dv][query].
    void write_output(Index row, Index i, Index n, const A* mean) {
      T* const to = p.y.at(b, h, first_row + row + i);
      if constexpr (!low) {
        if (p.Dv == f.padded(p.Dv)) return f.turn_back(to, p.y.row, mean + i, panel, p.Dv, n);
      }
      f.turn_back(turned, f.padded(p.Dv), mean + i, panel, p.Dv, n);
      f.store(to, p.y.row, turned, f.padded(p.Dv), n, p.Dv);
    }

    /// s = the attention weights of a step, now that maxima and sums are known and `old` holds the inverse sums; scores
    /// are computed again. Returns false where the mask leaves no key.
    bool weights(Index t, Index row, Block& block) {
      if (!scores(t, row, block)) return false;
      A *const unused_sum = turned, *const unused_factor = turned + panel;
      softmax(row, block, total_largest + row, unused_sum, unused_factor);
      f.scale_rows(s, panel, keys(block), panel, old);
      return true;
    }

    /// Computes those queries of a panel again whose sums overflowed before they were divided, from weights that are
    /// divided first: finite wherever the values are. NaN and infinite values come here too, and stay.
    [[gnu::cold, gnu::noinline]] void average_again(Index row, const A* mean) {
      std::uint64_t overflowed = 0;  // a bit for each query
      for (Index d = 0; d < p.Dv; ++d)
        for (Index i = 0; i < count(row); ++i)
          if (!attn::detail::is_finite(mean[d * panel + i])) overflowed |= std::uint64_t{1} << i;
      std::fill_n(y + row * p.Dv, panel * p.Dv, A{0});
      for (Index t = 0; t < p.T_; t += step_keys) {
        Block block;
        if (weights(t, row, block)) values(t, row, block, ones<A>.value);
      }
      for (Index i = 0; i < count(row); ++i)
        if ((overflowed >> i & 1) != 0) write_output(row, i, 1, y + row * p.Dv);
    }

    [[gnu::cold, gnu::noinline]] void write_weights(Index row) {
      T* const to = p.weights + ((b * p.H + h) * p.S + first_row + row) * p.T_;
      __builtin_memset(static_cast<void*>(to), 0, static_cast<std::size_t>(count(row) * p.T_) * sizeof(T));
      for (Index t = 0; t < p.T_; t += step_keys) {
        Block block;
        if (!weights(t, row, block)) continue;
        f.turn_back(turned, step_keys, s, panel, keys(block), count(row));
        f.store(to + block.first.key, p.T_, turned, step_keys, count(row), keys(block));
      }
    }
  };

  const AttentionProblem<T>& p;
  const Rules<A>& rules;
  const Kernels<T>& f;
  const Index panel;
  Index panels, row_blocks;
  Index heads, blocks;  // of a task
  bool copies_k, copies_v;
  Index copied;  // steps that there is room for
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
