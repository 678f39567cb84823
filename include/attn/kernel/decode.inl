// Part of body.inl: attention of few queries, as in decoding.
//
// With few queries the lanes of a panel would lie idle and reading the keys is the limit. So here lanes run along D, a
// key/value head is read once for all query heads that share it, and the keys are cut into chunks of fixed size that
// threads take one by one; the chunks' results are then joined in the order of the keys, so that neither the number of
// threads nor anything else changes a bit. Memory traffic: every key and value once.

template <class T>
struct DecodePlan {
  using A = AccumulatorOf<T>;
  static constexpr Index most_rows = 32;  // queries times query heads of a key/value head
  static constexpr Index chunk = 512;     // keys of one task
  static constexpr bool low = !std::is_same_v<T, A>;
  static constexpr Index step = low ? 64 : chunk;  // keys scored and weighed at a time; 64 read k and v in too short
                                                   // stretches (20 %), but copies should stay in L2
  static constexpr Index group = 16;               // values weighed at a time, all columns: they are read as they lie
  Index rows, chunks, padded_d, padded_dv;
  bool copies_v;

  explicit DecodePlan(const AttentionProblem<T>& p) {
    rows = p.H / p.G * p.S;
    chunks = (p.T_ + chunk - 1) / chunk;
    padded_d = padded<A>(p.D), padded_dv = padded<A>(p.Dv);
    copies_v = low || padded_dv != p.Dv;
  }
  /// Few queries, and no weights asked for.
  [[nodiscard]] static bool fits(const AttentionProblem<T>& p) {
    return p.S <= 4 && p.H / p.G * p.S <= most_rows && p.weights == nullptr;
  }
  [[nodiscard]] Index tasks(const AttentionProblem<T>& p) const { return p.B * p.G * chunks; }
  /// Of one chunk: per row the maximum, the sum and the output so far.
  [[nodiscard]] Index partial() const { return rows * (padded_dv + 2); }
  /// Scratch memory per thread, in accumulators.
  [[nodiscard]] Index scratch() const { return rows * (padded_d + step) + step * (padded_d + padded_dv); }
};

/// The sums of the lanes of n vectors, side by side in every n-th part of one vector: a tree of perfect shuffles.
template <class A, int n>
ATTN_INLINE Vec<A> sum_lanes(const Vec<A> (&v)[n]) {
  if constexpr (n == 1) {
    return v[0];
  } else {
    Vec<A> half[n / 2];
    ATTN_UNROLL
    for (int i = 0; i < n / 2; ++i) {
      Vec<A> low, high;
      interleave<A>(v[i], v[i + n / 2], low, high, std::make_integer_sequence<int, lanes<A>>{});
      half[i] = low + high;
    }
    return sum_lanes<A>(half);
  }
}

/// s[row][key] = q k * scale, for `keys` keys; q and k padded to whole vectors. As many sums as a vector has lanes, of 4 rows with
/// some keys, are in registers; their lanes are added up together. Keys are read one after the other, as they lie: reading
/// four side by side halved the bandwidth (AMD Zen 4), and asking for them ahead gained nothing.
template <class A>
__attribute__((noinline)) void score_rows(A* s, Index s_row, const A* q, Index rows, const A* k, Index k_row,
                                          Index keys, Index D, A scale) {
  constexpr int n = lanes<A>, R = n < 4 ? n : 4, K = n / R;
  for (Index t = 0; t < keys; t += K)
    for (Index r = 0; r < rows; r += R) {
      const A* row[R];
      ATTN_UNROLL
      for (int i = 0; i < R; ++i) row[i] = q + std::min<Index>(r + i, rows - 1) * D;
      Vec<A> sum[n] = {};
      ATTN_UNROLL
      for (int j = 0; j < K; ++j) {
        const A* const key = k + std::min<Index>(t + j, keys - 1) * k_row;
        for (Index d = 0; d < D; d += n) {
          const Vec<A> y = load(key + d);
          ATTN_UNROLL
          for (int i = 0; i < R; ++i) sum[i * K + j] += load(row[i] + d) * y;
        }
      }
      A sums[n];
      store(sums, sum_lanes<A>(sum) * scale);
      for (Index i = 0; i < R && r + i < rows; ++i)
        __builtin_memcpy(s + (r + i) * s_row + t, sums + i * K, K * sizeof(A));
    }
}

/// One line of scores becomes p = exp(s - max), its end padded with `never`; the row's maximum and sum go on, and the
/// factor for what was summed before is returned.
template <class A>
A softmax_line(A* line, Index keys, A& largest, A& sum) {
  constexpr Index n = lanes<A>;
  const Index end = padded<A>(keys);
  for (Index i = keys; i < end; ++i) line[i] = never<A>;
  Vec<A> max = splat(largest);
  for (Index i = 0; i < end; i += n) max = larger<A>(max, load(line + i));
  A most = largest;
  for (Index i = 0; i < n; ++i) most = max[i] > most ? max[i] : most;
  const Vec<A> shift = shift_of<A>(splat(most)), factor = exp(splat(largest) - shift);
  Vec<A> total = {};
  for (Index i = 0; i < end; i += n) {
    const Vec<A> p = exp(load(line + i) - shift);
    total += p;
    store(line + i, p);
  }
  sum = sum * factor[0] + sum_of<A>(total);
  largest = most;
  return factor[0];
}

/// All rows that read one key/value head, against one chunk of its keys.
template <class T>
void decode_task(const AttentionProblem<T>& p, const DecodePlan<T>& plan, const Rules<AccumulatorOf<T>>& rules,
                 Index task, AccumulatorOf<T>* partials, AccumulatorOf<T>* scratch) {
  using A = AccumulatorOf<T>;
  using Plan = DecodePlan<T>;
  constexpr Index step = Plan::step, n = lanes<A>;
  const Index chunk = task % plan.chunks, g = task / plan.chunks % p.G, b = task / plan.chunks / p.G;
  const Index heads = p.H / p.G, Dv = plan.padded_dv;
  A* const largest = partials + task * plan.partial();
  A* const sum = largest + plan.rows;
  A* const y = sum + plan.rows;
  A* const q = scratch;
  A* const s = q + plan.rows * plan.padded_d;  // [row][step]
  A* const copies = s + plan.rows * step;
  StepRows<T> k{p.k.at(b, g, 0), p.k.row, p.D, plan.padded_d, Plan::low || plan.padded_d != p.D ? copies : nullptr};
  StepRows<T> v{p.v.at(b, g, 0), p.v.row, p.Dv, Dv, plan.copies_v ? copies + step * plan.padded_d : nullptr};

  for (Index r = 0; r < plan.rows; ++r) {
    A* const row = q + r * plan.padded_d;
    convert(row, p.q.at(b, g * heads + r / p.S, r % p.S), p.D);
    for (Index d = p.D; d < plan.padded_d; ++d) row[d] = 0;
    largest[r] = never<A>, sum[r] = 0;
  }
  for (Index i = 0; i < plan.rows * Dv; ++i) y[i] = 0;

  const Index end = std::min((chunk + 1) * Plan::chunk, p.T_);
  for (Index t = chunk * Plan::chunk; t < end; t += step) {
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
    score_rows(s, step, q, plan.rows, key, stride, keys, plan.padded_d, p.scale);

    for (Index r = 0; r < plan.rows; ++r) {
      A* const line = s + r * step;
      const Index h = g * heads + r / p.S;
      const Position at = p.position(b, h, r % p.S, first);
      if (masked || rules.scores) rules.line(rules, line, keys, at, masked);
      const A old = softmax_line(line, keys, largest[r], sum[r]);
      for (Index i = 0; i < Dv; i += n) store(y + r * Dv + i, load(y + r * Dv + i) * old);
      if (p.dropout.active()) drop(line, 1, step, keys, 1, p.dropout, at, b * p.H + h);
    }

    const A* const value = v.at(t, first, last, stride);
    for (Index i = 0; i < keys; i += Plan::group)
      for (Index r = 0; r < plan.rows;) {
        const bool four = plan.rows - r >= 4;
        const Index depth = std::min(Plan::group, keys - i);
        A* const to = y + r * Dv;
        Product<A> product{s + r * step + i, step, 1, value + i * stride, stride, depth, to, Dv, to, Dv, ones<A>.value};
        for (Index c = 0; c < Dv;) {
          constexpr int N = ATTN_VECTOR_REGISTERS == 32 ? 4 : 2;
          const bool wide = Dv - c >= N * n;
          (four ? wide ? tile<A, 4, N> : tile<A, 4, 1> : wide ? tile<A, 1, N> : tile<A, 1, 1>)(product, nullptr, -1);
          const Index columns = wide ? N * n : n;
          c += columns, product.b += columns, product.c += columns, product.before += columns;
        }
        r += four ? 4 : 1;
      }
  }
}

/// Joins the chunks of one row, in the order of the keys: task is (b * H + h) * S + s.
template <class T>
void join_task(const AttentionProblem<T>& p, const DecodePlan<T>& plan, Index task, const AccumulatorOf<T>* partials,
               AccumulatorOf<T>* scratch) {
  using A = AccumulatorOf<T>;
  constexpr Index n = lanes<A>;
  const Index s = task % p.S, h = task / p.S % p.H, b = task / p.S / p.H, heads = p.H / p.G, g = h / heads;
  const Index row = h % heads * p.S + s, Dv = plan.padded_dv;
  const A* const first = partials + (b * p.G + g) * plan.chunks * plan.partial();
  A most = never<A>;
  for (Index c = 0; c < plan.chunks; ++c) {
    const A largest = first[c * plan.partial() + row];
    most = largest > most ? largest : most;
  }
  const Vec<A> shift = shift_of<A>(splat(most));
  for (Index i = 0; i < Dv; ++i) scratch[i] = 0;
  A sum = 0;
  for (Index c = 0; c < plan.chunks; ++c) {
    const A* const largest = first + c * plan.partial();
    const A* const y = largest + 2 * plan.rows + row * Dv;
    const Vec<A> factor = exp(splat(largest[row]) - shift);
    sum += largest[plan.rows + row] * factor[0];
    for (Index i = 0; i < Dv; i += n) store(scratch + i, load(scratch + i) + load(y + i) * factor);
  }
  const Vec<A> inverse = inverse_of<A>(splat(sum));
  for (Index i = 0; i < Dv; i += n) store(scratch + i, load(scratch + i) * inverse);
  convert(p.y.at(b, h, s), scratch, p.Dv);
  if (p.log_sum_exp != nullptr) p.log_sum_exp[task] = log_sum_exp(most, sum);
}
