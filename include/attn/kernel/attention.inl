// Part of body.inl: fused attention.
//
// Scores are computed transposed: a panel of 3 vectors of queries lies across the lanes, keys run down; and so is the
// output, elements of v running down. Then
//   - both products are the same tile: its columns are queries, its rows are keys as they lie in k, or elements of v as
//     they lie in v. No key or value is ever packed, and any D and Dv will do;
//   - the softmax needs no horizontal step: running maximum and sum are one vector per 16 queries;
//   - p is stored as [key][query], which is how the tile wants it for p v.
// Queries are turned once per task, and outputs once back. Memory traffic per task of up to 384
// queries: k and v once from L2 or L3, D + Dv elements per key for 2 * 384 * (D + Dv) flops. At 4 bytes that is 1 byte
// in 192 flops: arithmetic, not memory, is the limit.

/// A panel: queries side by side, as many as the tile has columns. A step: the keys that are scored and weighed at a time.
template <class A>
inline constexpr Index panel_rows = tile_columns<A>;
inline constexpr Index most_task_rows =
    384;  // queries of one task: 96 or 192 read k and v too often (15, 5 %), 576 leave L2 (3 %)
inline constexpr Index step_keys = 64;  // 32: the output is read and written too often (3 %); 96 and 128 are equal

/// Tasks and scratch memory (in accumulators, per lane) of an attention.
template <class T>
struct AttentionPlan {
  using A = AccumulatorOf<T>;
  static constexpr bool low = !std::is_same_v<T, A>;
  Index panels, block_rows, row_blocks;
  bool copies_k, copies_v;

  AttentionPlan(const AttentionProblem<T>& p, Index threads) {
    // Panels are the same rows however many of them a task has, so this may depend on the number of threads.
    constexpr Index panel = panel_rows<A>;
    panels = std::min(std::max<Index>(1, most_task_rows / panel), (p.S + panel - 1) / panel);
    while (panels > 1 && p.B * p.H * p.S < 4 * threads * panels * panel) panels = (panels + 1) / 2;
    block_rows = std::max<Index>(panels, 1) * panel;
    row_blocks = (p.S + block_rows - 1) / block_rows;
    // Rows that lie far apart fall into the same sets of the caches: a copy of the step's rows costs 1 % and saves
    // up to half of the time (E = 4096: stride 16 KB).
    copies_k = low || p.k.row != p.D;
    copies_v = low || p.v.row != p.Dv;
  }
  [[nodiscard]] Index tasks(const AttentionProblem<T>& p) const { return p.B * p.H * row_blocks; }
  [[nodiscard]] Index scratch(const AttentionProblem<T>& p) const {
    constexpr Index panel = panel_rows<A>;
    return panels * panel * (p.D + p.Dv + 2) + (step_keys + 3) * panel + turned(p) +
           step_keys * ((copies_k ? apart(p.D) : 0) + (copies_v ? apart(p.Dv) : 0));
  }
  /// The stride of copied rows: a line more than they need, or those of 512 bytes would share a few sets of L1 (1 to 2 %).
  [[nodiscard]] static constexpr Index apart(Index size) { return size + 64 / static_cast<Index>(sizeof(A)); }
  /// A panel's output, or its weights of a step, turned to rows of queries.
  [[nodiscard]] static Index turned(const AttentionProblem<T>& p) {
    return panel_rows<A> * std::max(padded<A>(p.Dv), p.weights != nullptr ? step_keys : 0);
  }
};

/// to[column][row] = from[row][column]. Up to the next multiple of `lanes` rows, zeros are written.
template <class A, class T>
__attribute__((noinline)) void turn(A* to, Index to_row, const T* from, Index from_row, Index rows, Index columns) {
  constexpr int n = lanes<A>;
  for (Index row = 0; row < rows; row += n)
    for (Index column = 0; column < columns; column += n) {
      Vec<A> block[n];
      for (int i = 0; i < n; ++i) {
        const T* const at = from + (row + i) * from_row + column;
        if (row + i >= rows) {
          block[i] = Vec<A>{};
        } else if (column + n <= columns) {
          block[i] = load(at);
        } else {
          A part[n] = {};
          convert(part, at, columns - column);
          block[i] = load(part);
        }
      }
      transpose<A>(block);
      for (int i = 0; i < n && column + i < columns; ++i) store(to + (column + i) * to_row + row, block[i]);
    }
}

/// One step of the online softmax: s becomes p = exp(s - max), and `old` what earlier sums are multiplied by. Keys go in
/// pairs, so that two chains of maxima and sums overlap (4.0 ns per 16 scores without, 2.9 with); s has room for one
/// more.
template <class A>
void softmax_panel(A* s, Index keys, Index vectors, A* largest, A* sum, A* old) {
  constexpr Index stride = panel_rows<A>, pair = 2 * stride;
  for (Index n = 0; n < vectors * lanes<A>; n += lanes<A>) {
    A* const column = s + n;
    A* const end = column + keys * stride;
    if (keys % 2 != 0) store(end, splat(never<A>));
    const Vec<A> before = load(largest + n);
    Vec<A> max = before, max2 = before;
    for (A* at = column; at < end; at += pair) {
      max = larger<A>(max, load(at));
      max2 = larger<A>(max2, load(at + stride));
    }
    max = larger<A>(max, max2);
    const Vec<A> shift = shift_of<A>(max), factor = exp(before - shift);
    Vec<A> total = load(sum + n) * factor, total2 = {};
    for (A* at = column; at < end; at += pair) {
      const Vec<A> p = exp(load(at) - shift), p2 = exp(load(at + stride) - shift);
      total += p;
      total2 += p2;
      store(at, p);
      store(at + stride, p2);
    }
    store(largest + n, max);
    store(sum + n, total + total2);
    store(old + n, factor);
  }
}

/// Dropout of weights: p[key * key_stride + row * row_stride], `first` the position of the first.
template <class A>
void drop(A* p, Index key_stride, Index row_stride, Index keys, Index rows, const DropoutRule& rule, Position first,
          Index plane) {
  for (Index row = 0; row < rows; ++row)
    for (Index t = 0; t < keys;) {
      const auto column = static_cast<std::uint32_t>(first.key + t);
      const auto words = philox4x32(
          {column / 4, static_cast<std::uint32_t>(first.row + row), static_cast<std::uint32_t>(plane), rule.call},
          rule.key());
      for (std::uint32_t i = column % 4; i < 4 && t < keys; ++i, ++t) {
        A& weight = p[t * key_stride + row * row_stride];
        weight = words[i] >= rule.threshold ? weight * static_cast<A>(rule.scale) : A{0};
      }
    }
}

/// A mask and a score function as the loops below see them: three functions, called once per block of scores. Only these
/// are compiled for each mask and score function; within them a user's callable is inlined and becomes vectors.
template <class A>
struct Rules {
  const void *mask, *score;
  Coverage (*cover)(const Rules&, const Block&);
  void (*panel)(const Rules&, A* s, Index keys, Index rows, Position first, bool masked);  // s[key][query]
  void (*line)(const Rules&, A* s, Index keys, Position first, bool masked);               // s[key] of one query
  bool scores;  // whether there is a score function, so that even blocks kept in full must pass through
};

template <class A, class M, class F>
struct RulesOf {
  static Coverage cover(const Rules<A>& rules, const Block& block) {
    return static_cast<const M*>(rules.mask)->cover(block);
  }
  static void panel(const Rules<A>& rules, A* s, Index keys, Index rows, Position first, bool masked) {
    constexpr int width = static_cast<int>(panel_rows<A>);
    const auto last = static_cast<std::int32_t>(rows - 1);
    for (Index t = 0; t < keys; ++t, ++first.key) {
      if (masked)
        apply<true, 1, 0, width>(rules, s + t * width, last, first);
      else
        apply<false, 1, 0, width>(rules, s + t * width, last, first);
    }
  }
  static void line(const Rules<A>& rules, A* s, Index keys, Position first, bool masked) {
    constexpr int width = lanes<A>;
    for (Index t = 0; t < keys; t += width, first.key += width) {
      const auto last = static_cast<std::int32_t>(keys - 1 - t);
      if (masked)
        apply<true, 0, 1, width>(rules, s + t, last, first);
      else
        apply<false, 0, 1, width>(rules, s + t, last, first);
    }
  }

 private:
  /// The score function and the mask on n scores, each a row or a key further than the one before. Those past `last`
  /// repeat its position: they are not used.
  template <bool masked, int row_step, int key_step, int n>
  static ATTN_INLINE void apply(const Rules<A>& rules, A* s, std::int32_t last, Position first) {
    const M& mask = *static_cast<const M*>(rules.mask);
    const F& score = *static_cast<const F*>(rules.score);
    A x[n];  // a local copy: a mask's or function's own memory cannot overlap it, so the loop becomes vectors
    __builtin_memcpy(x, s, sizeof x);
    for (std::int32_t i = 0; i < n; ++i) {
      const std::int32_t step = i < last ? i : last;
      const Position at{first.batch, first.head, first.row + row_step * step, first.query + row_step * step,
                        first.key + key_step * step};
      A value = x[i];
      if constexpr (!std::is_same_v<F, NoScore>) value = static_cast<A>(score(value, at));
      if constexpr (masked && HasBias<M>) value += static_cast<A>(mask.bias(at));
      if constexpr (!std::is_same_v<F, NoScore> || HasBias<M>) value = live(value);
      if constexpr (masked) value = mask.keep(at) ? value : never<A>;
      x[i] = value;
    }
    __builtin_memcpy(s, x, sizeof x);
  }
};

template <class A, class M, class F>
Rules<A> rules_of(const M& mask, const F& score) {
  using Of = RulesOf<A, M, F>;
  return {&mask, &score, Of::cover, Of::panel, Of::line, !std::is_same_v<F, NoScore>};
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

/// Keys or values of one head, step by step. Where they cannot be read as they lie (low precision, columns to pad, rows
/// far apart), the step's rows are brought into scratch memory once, as far as anyone has asked for: keys that no query
/// attends are never read.
template <class T>
struct StepRows {
  using A = AccumulatorOf<T>;
  const T* from;
  Index stride, size, width;  // of a row: from the next, elements, elements padded
  A* copy;                    // or null: read as they lie
  Index step = -1, end = 0;   // what the copy holds

  /// Row t; rows up to `last` can be read at the stride that `out_stride` is set to.
  ATTN_INLINE const A* at(Index step_begin, Index t, Index last, Index& out_stride) {
    if constexpr (std::is_same_v<T, A>) {
      if (copy == nullptr) {
        out_stride = stride;
        return from + t * stride;
      }
    }
    Index i = step == step_begin ? end : step_begin;
    for (; i <= last; ++i) {
      A* const row = copy + (i - step_begin) * width;
      convert(row, from + i * stride, size);
      for (Index d = size; d < width; ++d) row[d] = 0;
    }
    step = step_begin, end = i;
    out_stride = width;
    return copy + (t - step_begin) * width;
  }
};

/// Up to block_rows queries of one head against all its keys.
template <class T>
struct AttentionTask {
  using A = AccumulatorOf<T>;
  using Plan = AttentionPlan<T>;
  static constexpr Index panel = panel_rows<A>;

  const AttentionProblem<T>& p;
  const Rules<A>& rules;
  const Plan& plan;
  Index b, h, g, first_row, rows;
  A *q, *y, *largest, *sum, *s, *old, *scale, *turned;  // q [panel][D][query], y [panel][Dv][query], s [key][query]
  StepRows<T> k, v;

  AttentionTask(const AttentionProblem<T>& problem, const Rules<A>& rules_, const Plan& plan_, Index task, A* scratch)
      : p(problem), rules(rules_), plan(plan_) {
    const Index block = plan.row_blocks - 1 - task / (p.B * p.H);  // under a causal mask the last rows cost most
    b = task % (p.B * p.H) / p.H;
    h = task % p.H;
    g = h / (p.H / p.G);
    first_row = block * plan.block_rows;
    rows = std::min(plan.block_rows, p.S - first_row);
    const Index queries = plan.panels * panel;
    q = scratch;
    y = q + queries * p.D;
    largest = y + queries * p.Dv;
    sum = largest + queries;
    s = sum + queries;
    old = s + (step_keys + 1) * panel;
    scale = old + panel;
    turned = scale + panel;
    A* const k_copy = turned + Plan::turned(p);
    k = {p.k.at(b, g, 0), p.k.row, p.D, Plan::apart(p.D), plan.copies_k ? k_copy : nullptr};
    v = {p.v.at(b, g, 0), p.v.row, p.Dv, Plan::apart(p.Dv),
         plan.copies_v ? k_copy + (plan.copies_k ? step_keys * Plan::apart(p.D) : 0) : nullptr};
  }

  void run() {
    for (Index i = 0; i < panel; ++i) scale[i] = p.scale;
    for (Index row = 0; row < rows; row += panel) {
      turn(q + row * p.D, panel, p.q.at(b, h, first_row + row), p.q.row, std::min(panel, rows - row), p.D);
      for (Index i = 0; i < panel; ++i) largest[row + i] = never<A>, sum[row + i] = 0;
      for (Index i = 0; i < panel * p.Dv; ++i) y[row * p.Dv + i] = 0;
    }
    for (Index t = 0; t < p.T_; t += step_keys)
      for (Index row = 0; row < rows; row += panel) {
        Block block;
        if (!scores(t, row, block)) continue;
        const Index keys = block.last.key - block.first.key + 1, count = std::min(panel, rows - row);
        softmax_panel(s, keys, (count + lanes<A> - 1) / lanes<A>, largest + row, sum + row, old);
        if (p.dropout.active()) drop(s, panel, 1, keys, count, p.dropout, block.first, b * p.H + h);
        values(t, row, block, count);
      }
    finish();
    if (p.weights != nullptr) write_weights();
  }

 private:
  /// s = masked scores of the panel at `row` with the keys of the step at t that are worth it; false: with none.
  bool scores(Index t, Index row, Block& block) {
    const Index count = std::min(panel, rows - row);
    block = {p.position(b, h, first_row + row, t),
             p.position(b, h, first_row + row + count - 1, std::min(t + step_keys, p.T_) - 1)};
    bool masked = false;
    if (!trim(rules, block, masked)) return false;
    const Index keys = block.last.key - block.first.key + 1;
    Product<A> product{nullptr, 0, 1, q + row * p.D, panel, p.D, s, panel, nullptr, 0, scale};
    product.a = k.at(t, block.first.key, block.last.key, product.a_row);
    multiply(product, keys, count, ahead(k, t, row));
    if (masked || rules.scores) rules.panel(rules, s, keys, count, block.first, masked);
    return true;
  }

  /// y = y * old + v p, for the step's weights in s.
  void values(Index t, Index row, const Block& block, Index count) {
    A* const to = y + row * p.Dv;
    Product<A> product{nullptr, 1, 0, s, panel, block.last.key - block.first.key + 1, to, panel, to, panel, old};
    product.a = v.at(t, block.first.key, block.last.key, product.a_step);
    multiply(product, p.Dv, count, ahead(v, t, row));
  }

  /// What comes nearer while a panel is computed: its share of the rows of the step after the one at t.
  [[nodiscard]] Wanted ahead(const StepRows<T>& of, Index t, Index row) const {
    const Index share = (step_keys + plan.panels - 1) / plan.panels, first = t + step_keys + row / panel * share;
    return Wanted::of(of.from + first * of.stride, of.stride, of.size, std::clamp<Index>(p.T_ - first, 0, share));
  }

  /// y / sum, and log-sum-exp, into the caller's memory.
  void finish() {
    for (Index row = 0; row < rows; row += panel) {
      const Index count = std::min(panel, rows - row);
      for (Index i = 0; i < panel; i += lanes<A>) {
        const Vec<A> inverse = inverse_of<A>(load(sum + row + i));
        for (A *at = y + row * p.Dv + i, *end = at + p.Dv * panel; at < end; at += panel) store(at, load(at) * inverse);
      }
      turn(turned, padded<A>(p.Dv), y + row * p.Dv, panel, p.Dv, count);
      for (Index i = 0; i < count; ++i) {
        convert(p.y.at(b, h, first_row + row + i), turned + i * padded<A>(p.Dv), p.Dv);
        if (p.log_sum_exp != nullptr)
          p.log_sum_exp[(b * p.H + h) * p.S + first_row + row + i] = log_sum_exp(largest[row + i], sum[row + i]);
      }
    }
  }

  /// The weights, by computing the scores again now that maximum and sum are known.
  void write_weights() {
    for (Index row = 0; row < rows; row += panel) {
      const Index count = std::min(panel, rows - row);
      T* const to = p.weights + ((b * p.H + h) * p.S + first_row + row) * p.T_;
      __builtin_memset(static_cast<void*>(to), 0, static_cast<std::size_t>(count * p.T_) * sizeof(T));
      for (Index t = 0; t < p.T_; t += step_keys) {
        Block block;
        if (!scores(t, row, block)) continue;
        const Index keys = block.last.key - block.first.key + 1;
        for (Index i = 0; i < panel; i += lanes<A>) {
          const Vec<A> shift = shift_of<A>(load(largest + row + i)), inverse = inverse_of<A>(load(sum + row + i));
          for (A *at = s + i, *end = at + keys * panel; at < end; at += panel)
            store(at, exp(load(at) - shift) * inverse);
        }
        if (p.dropout.active()) drop(s, panel, 1, keys, count, p.dropout, block.first, b * p.H + h);
        turn(turned, step_keys, s, panel, keys, count);
        for (Index i = 0; i < count; ++i) convert(to + i * p.T_ + block.first.key, turned + i * step_keys, keys);
      }
    }
  }
};
