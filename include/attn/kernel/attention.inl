// Part of body.inl: fused attention.
//
// Scores are computed transposed: a panel of 3 vectors of queries lies across the lanes, keys run down. Then
//   - q is the packed operand of the tile (once per task, it stays in L1), k is read as it lies: no key is ever packed;
//   - the softmax needs no horizontal step: running maximum and sum are one vector per 16 queries;
//   - p is stored as [key][query], which is how the tile wants its rows for p v, and v is again read as it lies.
// Memory traffic per task of up to 384 queries: k and v once from L2 or L3, D + Dv elements per key for 2 * 384 * (D + Dv)
// flops. At 4 bytes that is 1 byte in 192 flops: arithmetic, not memory, is the limit.

template <class A>
struct AttentionTiles {
  static constexpr int vectors = 3;                   // per panel of queries
  static constexpr Index panel = vectors * lanes<A>;  // queries side by side
  static constexpr Index most_rows = 384;             // queries of one task: 96 or 192 read k and v too often (15, 5 %)
  static constexpr Index keys = 32;                   // keys of one step: 64 to 128 are up to 5 % slower
  static constexpr int key_rows = ATTN_VECTOR_REGISTERS == 32 ? 8 : 4;
};

/// Tasks and scratch memory (in accumulators, per lane) of an attention.
template <class T>
struct AttentionPlan {
  using A = AccumulatorOf<T>;
  using Tiles = AttentionTiles<A>;
  static constexpr bool low = !std::is_same_v<T, A>;
  Index panels, block_rows, row_blocks, padded_d, padded_dv;
  bool copies_v;

  AttentionPlan(const AttentionProblem<T>& p, Index threads) {
    // Panels are the same rows however many of them a task has, so this may depend on the number of threads.
    panels = std::min(std::max<Index>(1, Tiles::most_rows / Tiles::panel), (p.S + Tiles::panel - 1) / Tiles::panel);
    while (panels > 1 && p.B * p.H * p.S < 4 * threads * panels * Tiles::panel) panels = (panels + 1) / 2;
    block_rows = std::max<Index>(panels, 1) * Tiles::panel;
    row_blocks = (p.S + block_rows - 1) / block_rows;
    padded_d = (p.D + lanes<A> - 1) / lanes<A> * lanes<A>;
    padded_dv = (p.Dv + lanes<A> - 1) / lanes<A> * lanes<A>;
    // Rows of v that lie far apart fall into the same sets of the caches: a copy of the step's rows costs 1 % and saves
    // up to half of the time (E = 4096: stride 16 KB).
    copies_v = low || padded_dv != p.Dv || p.v.row != p.Dv;
  }
  [[nodiscard]] Index tasks(const AttentionProblem<T>& p) const { return p.B * p.H * row_blocks; }
  [[nodiscard]] Index scratch() const {
    return panels * Tiles::panel * (padded_d + padded_dv + 2) + (Tiles::keys + 1) * Tiles::panel +
           (copies_v ? Tiles::keys * padded_dv : 0) + (low ? Tiles::keys * padded_d : 0);
  }
};

/// to[d][panel lane] = rows[lane][d], zeros past the last row.
template <class A, class T>
void pack_queries(A* to, const T* rows, Index stride, Index count, Index D) {
  constexpr int n = lanes<A>;
  constexpr Index panel = AttentionTiles<A>::panel;
  for (Index lane = 0; lane < panel; lane += n) {
    Index d = 0;
    for (; d + n <= D; d += n) {
      Vec<A> block[n];
      ATTN_UNROLL
      for (int i = 0; i < n; ++i) block[i] = lane + i < count ? load(rows + (lane + i) * stride + d) : Vec<A>{};
      transpose<A>(block);
      ATTN_UNROLL
      for (int i = 0; i < n; ++i) store(to + (d + i) * panel + lane, block[i]);
    }
    for (; d < D; ++d)
      for (int i = 0; i < n; ++i) {
        A x = 0;
        if (lane + i < count) convert(&x, rows + (lane + i) * stride + d, 1);
        to[d * panel + lane + i] = x;
      }
  }
}

/// s[key][query] = k q * scale, for N vectors of queries.
template <class A, int N>
void score_panel(A* s, const A* q, const A* k, Index k_stride, Index keys, Index D, A scale) {
  using Tiles = AttentionTiles<A>;
  constexpr int R = Tiles::key_rows;
  for (Index t = 0; t < keys; t += R) {
    RowPointers<A, R> rows;
    ATTN_UNROLL
    for (int r = 0; r < R; ++r) rows.row[r] = k + std::min<Index>(t + r, keys - 1) * k_stride;
    Vec<A> acc[R][N] = {};
    multiply<A, R, N>(acc, rows, q, Tiles::panel, D);
    ATTN_UNROLL
    for (int r = 0; r < R; ++r) {
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) store(s + (t + r) * Tiles::panel + n * lanes<A>, acc[r][n] * scale);
    }
  }
}

/// One step of the online softmax: s becomes p = exp(s - max), and `old` what earlier sums are multiplied by. Keys go in
/// pairs, so that two chains of maxima and sums overlap (4.0 ns per 16 scores without, 2.9 with); s has room for one
/// more.
template <class A>
void softmax_panel(A* s, Index keys, Index vectors, A* largest, A* sum, A* old) {
  constexpr Index stride = AttentionTiles<A>::panel, pair = 2 * stride;
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

/// y[row][0..N vectors) = y * old + p v, R rows at a time.
template <class A, int R, int N>
void value_columns(A* y, Index y_stride, const A* p, const A* v, Index v_stride, Index keys, Index rows, const A* old) {
  constexpr Index panel = AttentionTiles<A>::panel;
  static_assert(panel % R == 0);
  for (Index row = 0; row < rows; row += R) {
    Vec<A> acc[R][N];
    ATTN_UNROLL
    for (int r = 0; r < R; ++r) {
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) acc[r][n] = load(y + (row + r) * y_stride + n * lanes<A>) * old[row + r];
    }
    multiply<A, R, N>(acc, AdjacentRows<A, panel>{p + row}, v, v_stride, keys);
    ATTN_UNROLL
    for (int r = 0; r < R; ++r) {
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) store(y + (row + r) * y_stride + n * lanes<A>, acc[r][n]);
    }
  }
}
template <class A>
void value_panel(A* y, Index y_stride, const A* p, const A* v, Index v_stride, Index keys, Index rows, const A* old) {
  constexpr bool wide = ATTN_VECTOR_REGISTERS == 32;  // accumulators: 24 of 32 registers, or 12 of 16
  constexpr Index panel = AttentionTiles<A>::panel;
  constexpr int one = panel < 12 ? 6 : 12;  // rows divide the panel
  for (Index c = 0; c < y_stride;) {
    const Index left = (y_stride - c) / lanes<A>;
    const Index n = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    if (n == 4) value_columns<A, wide ? 6 : 3, 4>(y + c, y_stride, p, v + c, v_stride, keys, rows, old);
    if (n == 2)
      value_columns<A, wide && panel % 12 == 0 ? 12 : 6, 2>(y + c, y_stride, p, v + c, v_stride, keys, rows, old);
    if (n == 1) value_columns<A, one, 1>(y + c, y_stride, p, v + c, v_stride, keys, rows, old);
    c += n * lanes<A>;
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
    constexpr int width = AttentionTiles<A>::panel;
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
  ATTN_INLINE void prefetch_rows(Index begin, Index finish) const {
    for (Index i = begin; i < finish; ++i) prefetch<2>(from + i * stride, size * static_cast<Index>(sizeof(T)));
  }
};

/// Up to block_rows queries of one head against all its keys.
template <class T>
struct AttentionTask {
  using A = AccumulatorOf<T>;
  using Tiles = AttentionTiles<A>;
  using Plan = AttentionPlan<T>;

  const AttentionProblem<T>& p;
  const Rules<A>& rules;
  const Plan& plan;
  Index b, h, g, first_row, rows;
  A *q, *y, *largest, *sum, *s, *old;
  StepRows<T> k, v;

  AttentionTask(const AttentionProblem<T>& problem, const Rules<A>& rules_, const Plan& plan_, Index task, A* scratch)
      : p(problem), rules(rules_), plan(plan_) {
    const Index block = plan.row_blocks - 1 - task / (p.B * p.H);  // under a causal mask the last rows cost most
    b = task % (p.B * p.H) / p.H;
    h = task % p.H;
    g = h / (p.H / p.G);
    first_row = block * plan.block_rows;
    rows = std::min(plan.block_rows, p.S - first_row);
    const Index lanes_ = plan.panels * Tiles::panel;
    q = scratch;
    y = q + lanes_ * plan.padded_d;
    largest = y + lanes_ * plan.padded_dv;
    sum = largest + lanes_;
    s = sum + lanes_;
    old = s + Tiles::keys * Tiles::panel;
    A* const copies = old + Tiles::panel;
    v = {p.v.at(b, g, 0), p.v.row, p.Dv, plan.padded_dv, plan.copies_v ? copies : nullptr};
    k = {p.k.at(b, g, 0), p.k.row, p.D, plan.padded_d, Plan::low ? copies + Tiles::keys * plan.padded_dv : nullptr};
  }

  void run() {
    for (Index row = 0; row < rows; row += Tiles::panel) {
      pack_queries(q + row * plan.padded_d, p.q.at(b, h, first_row + row), p.q.row, std::min(Tiles::panel, rows - row),
                   p.D);
      for (Index i = 0; i < Tiles::panel; ++i) largest[row + i] = never<A>, sum[row + i] = 0;
      for (Index i = 0; i < Tiles::panel * plan.padded_dv; ++i) y[row * plan.padded_dv + i] = 0;
    }
    for (Index t = 0; t < p.T_; t += Tiles::keys)
      for (Index row = 0; row < rows; row += Tiles::panel) {
        Block block;
        if (!scores(t, row, block)) continue;
        const Index keys = block.last.key - block.first.key + 1, count = std::min(Tiles::panel, rows - row);
        softmax_panel(s, keys, (count + lanes<A> - 1) / lanes<A>, largest + row, sum + row, old);
        if (p.dropout.active()) drop(s, Tiles::panel, 1, keys, count, p.dropout, block.first, b * p.H + h);
        Index stride = 0;
        const A* const values = v.at(t, block.first.key, block.last.key, stride);
        value_panel(y + row * plan.padded_dv, plan.padded_dv, s, values, stride, keys, count, old);
      }
    finish();
    if (p.weights != nullptr) write_weights();
  }

 private:
  /// s = masked scores of the panel at `row` with the keys of the step at t that are worth it; false: with none.
  bool scores(Index t, Index row, Block& block) {
    const Index count = std::min(Tiles::panel, rows - row);
    block = {p.position(b, h, first_row + row, t),
             p.position(b, h, first_row + row + count - 1, std::min(t + Tiles::keys, p.T_) - 1)};
    bool masked = false;
    if (!trim(rules, block, masked)) return false;
    // The next step's keys and values come nearer while this one is computed: each panel asks for its share.
    const Index share = (Tiles::keys + plan.panels - 1) / plan.panels,
                ahead = t + Tiles::keys + row / Tiles::panel * share;
    k.prefetch_rows(ahead, std::min(ahead + share, p.T_));
    v.prefetch_rows(ahead, std::min(ahead + share, p.T_));
    const Index keys = block.last.key - block.first.key + 1;
    Index stride = 0;
    const A* const from = k.at(t, block.first.key, block.last.key, stride);
    const A* const panel = q + row * plan.padded_d;
    if (count > 2 * lanes<A>)
      score_panel<A, 3>(s, panel, from, stride, keys, p.D, p.scale);
    else if (count > lanes<A>)
      score_panel<A, 2>(s, panel, from, stride, keys, p.D, p.scale);
    else
      score_panel<A, 1>(s, panel, from, stride, keys, p.D, p.scale);
    if (masked || rules.scores) rules.panel(rules, s, keys, count, block.first, masked);
    return true;
  }

  /// y / sum, and log-sum-exp, into the caller's memory.
  void finish() {
    for (Index row = 0; row < rows; ++row) {
      A* const from = y + row * plan.padded_dv;
      const bool dead = is_zero(sum[row]);
      const Vec<A> divisor = splat(dead ? A{1} : sum[row]);
      for (Index i = 0; i < plan.padded_dv; i += lanes<A>) store(from + i, load(from + i) / divisor);
      convert(p.y.at(b, h, first_row + row), from, p.Dv);
      if (p.log_sum_exp != nullptr)
        p.log_sum_exp[(b * p.H + h) * p.S + first_row + row] =
            dead ? -std::numeric_limits<A>::infinity() : largest[row] + std::log(sum[row]);
    }
  }

  /// The weights, by computing the scores again now that maximum and sum are known.
  void write_weights() {
    for (Index row = 0; row < rows; row += Tiles::panel) {
      const Index count = std::min(Tiles::panel, rows - row);
      T* const to = p.weights + ((b * p.H + h) * p.S + first_row + row) * p.T_;
      __builtin_memset(static_cast<void*>(to), 0, static_cast<std::size_t>(count * p.T_) * sizeof(T));
      for (Index t = 0; t < p.T_; t += Tiles::keys) {
        Block block;
        if (!scores(t, row, block)) continue;
        const Index keys = block.last.key - block.first.key + 1;
        for (Index i = 0; i < Tiles::panel; i += lanes<A>) {
          const Vec<A> shift = shift_of<A>(load(largest + row + i)), total = load(sum + row + i);
          const Vec<A> divisor = bits<A>(total) == 0 ? splat(A{1}) : total;
          for (Index key = 0; key < keys; ++key) {
            A* const at = s + key * Tiles::panel + i;
            store(at, exp(load(at) - shift) / divisor);
          }
        }
        if (p.dropout.active()) drop(s, Tiles::panel, 1, keys, count, p.dropout, block.first, b * p.H + h);
        for (Index i = 0; i < count; ++i)
          for (Index key = 0; key < keys; ++key)
            convert(to + i * p.T_ + block.first.key + key, s + key * Tiles::panel + i, 1);
      }
    }
  }
};
