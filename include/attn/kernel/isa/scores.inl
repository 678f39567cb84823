// Part of body.inl: queries turned, scores of few queries, and what masks and score functions do to scores.

/// to[column][row] = from[row][column]. Up to the next multiple of `lanes` rows, zeros are written. Blocks at the edges go
/// through memory of their own, so that all loops over a block unroll and it stays in registers (42 -> 18 ns for 16 x 16).
template <class A, class T>
__attribute__((noinline)) void turn(A* to, Index to_row, const T* from, Index from_row, Index rows, Index columns) {
  constexpr Index n = lanes<A>;
  for (Index row = 0; row < rows; row += n)
    for (Index column = 0; column < columns; column += n) {
      const Index height = std::min(n, rows - row), width = std::min(n, columns - column);
      const T* in = from + row * from_row + column;
      A* out = to + column * to_row + row;
      Index in_row = from_row, out_row = to_row;
      T edge_in[std::size_t{n * n}];
      A edge_out[std::size_t{n * n}];
      if (height < n || width < n) {
        __builtin_memset(static_cast<void*>(edge_in), 0, sizeof edge_in);
        for (Index i = 0; i < height; ++i)
          __builtin_memcpy(static_cast<void*>(edge_in + i * n), in + i * from_row,
                           static_cast<std::size_t>(width) * sizeof(T));
        in = edge_in, in_row = n;
      }
      if (width < n) out = edge_out, out_row = n;
      Vec<A> block[std::size_t{n}];
      ATTN_UNROLL
      for (int i = 0; i < n; ++i, in += in_row) block[i] = load(in);
      transpose<A>(block);
      ATTN_UNROLL
      for (int i = 0; i < n; ++i, out += out_row) store(out, block[i]);
      if (width < n)
        for (Index i = 0; i < width; ++i)
          __builtin_memcpy(to + (column + i) * to_row + row, edge_out + i * n, sizeof block[0]);
    }
}

/// The sums of the lanes of n vectors, side by side in every n-th part of one vector: a tree of perfect shuffles.
template <class A, std::size_t n>
ATTN_INLINE Vec<A> sum_lanes(const Vec<A> (&v)[n]) {
  if constexpr (n == 1) {
    return v[0];
  } else {
    Vec<A> half[n / 2];
    ATTN_UNROLL
    for (std::size_t i = 0; i < n / 2; ++i) {
      Vec<A> low, high;
      interleave<A>(v[i], v[i + n / 2], low, high, std::make_integer_sequence<int, lanes<A>>{});
      half[i] = low + high;
    }
    return sum_lanes<A>(half);
  }
}

/// s[row][key] = q k * scale, for `keys` keys; q and k padded to whole vectors. As many sums as a vector has lanes, of 2 rows
/// with some keys, are in registers; their lanes are added up together. Reading keys from memory is the limit, and what
/// a core looks ahead: with 4 rows at a time, more is computed between two keys, and two cores read 22 GB/s, not 30 (AMD
/// Zen 4). Keys are read one after the other, as they lie: two side by side gave 9, and asking for them ahead, or for
/// values meanwhile, took 10 % off.
template <class A>
__attribute__((noinline)) void score_rows(A* s, Index s_row, const A* q, Index rows, const A* k, Index k_row,
                                          Index keys, Index D, A scale) {
  constexpr int n = lanes<A>, R = 2, K = n / R;
  for (Index t = 0; t < keys; t += K)
    for (Index r = 0; r < rows; r += R) {
      const A* row[std::size_t{R}];
      ATTN_UNROLL
      for (int i = 0; i < R; ++i) row[i] = q + std::min<Index>(r + i, rows - 1) * D;
      Vec<A> sum[std::size_t{n}] = {};
      ATTN_UNROLL
      for (int j = 0; j < K; ++j) {
        const A* const key = k + std::min<Index>(t + j, keys - 1) * k_row;
        for (Index d = 0; d < D; d += n) {
          const Vec<A> y = load(key + d);
          ATTN_UNROLL
          for (int i = 0; i < R; ++i) sum[i * K + j] += load(row[i] + d) * y;
        }
      }
      A sums[std::size_t{n}];
      store(sums, sum_lanes<A>(sum) * scale);
      for (Index i = 0; i < R && r + i < rows; ++i)
        __builtin_memcpy(s + (r + i) * s_row + t, sums + i * K, K * sizeof(A));
    }
}

template <class A, class M, class F>
struct RulesOf {
  static void panel(const Rules<A>& rules, A* s, Index keys, Index rows, Position first, bool masked) {
    constexpr int width = static_cast<int>(tile_columns<A>);
    for (Index t = 0; t < keys; ++t, ++first.key) {
      if constexpr (!scored && !HasBias<M>)
        keep<1, 0, width>(rules, s + t * width, static_cast<std::int32_t>(rows), first);
      else if ((masked && !kept_in_full(rules, first, rows)) || rows < width)
        some<1, 0, width>(rules, s + t * width, static_cast<std::int32_t>(rows), first, masked);
      else
        all<1, 0, width>(rules, s + t * width, first);
    }
  }
  static void line(const Rules<A>& rules, A* s, Index keys, Position first, bool masked) {
    constexpr int width = lanes<A>;
    for (Index t = 0; t < keys; t += width, first.key += width) {
      if constexpr (!scored && !HasBias<M>)
        keep<0, 1, width>(rules, s + t, static_cast<std::int32_t>(keys - t), first);
      else if (masked || keys - t < width)
        some<0, 1, width>(rules, s + t, static_cast<std::int32_t>(keys - t), first, masked);
      else
        all<0, 1, width>(rules, s + t, first);
    }
  }

 private:
  static constexpr bool scored = !std::is_same_v<F, NoScore>;

  template <int row_step, int key_step>
  static ATTN_INLINE Position place(Position first, std::int32_t i) {
    return {first.batch, first.head, first.row + row_step * i, first.query + row_step * i, first.key + key_step * i};
  }
  /// Whether the mask keeps a key for all of these rows, and adds nothing.
  static ATTN_INLINE bool kept_in_full(const Rules<A>& rules, Position first, Index rows) {
    const Block block{first, place<1, 0>(first, static_cast<std::int32_t>(rows - 1))};
    return !HasBias<M> && static_cast<const M*>(rules.mask)->cover(block) == Coverage::full;
  }
  static ATTN_INLINE A score_of(const Rules<A>& rules, A value, Position at) {
    if constexpr (scored) value = static_cast<A>((*static_cast<const F*>(rules.score))(value, at));
    return value;
  }

  // Each works on a local copy: memory of the mask's or the function's own cannot overlap it, so that loops become vectors.
  // Aligned because g++ 12 with -march=x86-64-v4 reads it with aligned loads wherever it puts it.

  /// The score function on n scores, each a row or a key further than the one before.
  template <int row_step, int key_step, int n>
  static ATTN_INLINE void all(const Rules<A>& rules, A* s, Position first) {
    alignas(64) A x[std::size_t{n}];
    __builtin_memcpy(x, s, sizeof x);
    for (std::int32_t i = 0; i < n; ++i) x[i] = live(score_of(rules, x[i], place<row_step, key_step>(first, i)));
    __builtin_memcpy(s, x, sizeof x);
  }

  /// The mask alone on n scores, of which the first `count` exist: the others are not used.
  template <int row_step, int key_step, int n>
  static ATTN_INLINE void keep(const Rules<A>& rules, A* s, std::int32_t count, Position first) {
    const M& mask = *static_cast<const M*>(rules.mask);
    alignas(64) A x[std::size_t{n}];
    __builtin_memcpy(x, s, sizeof x);
    for (std::int32_t i = 0; i < n; ++i) {
      const std::int32_t existing = i < count ? i : count - 1;
      x[i] = mask.keep(place<row_step, key_step>(first, existing)) ? x[i] : never<A>;
    }
    __builtin_memcpy(s, x, sizeof x);
  }

  /// The score function and the mask on those of n scores that exist, the first `count`. Where the mask keeps a score, the
  /// score function and the bias see its value and position; elsewhere they see those of a kept one once more.
  template <int row_step, int key_step, int n>
  static ATTN_INLINE void some(const Rules<A>& rules, A* s, std::int32_t count, Position first, bool masked) {
    const M& mask = *static_cast<const M*>(rules.mask);
    alignas(64) A x[std::size_t{n}];
    alignas(64) std::int32_t kept[std::size_t{n}];  // -1 or 0
    const std::int32_t last = (count < n ? count : n) - 1;
    __builtin_memcpy(x, s, sizeof x);
    if (masked) {
      for (std::int32_t i = 0; i < n; ++i) {
        const bool keep = mask.keep(place<row_step, key_step>(first, i < last ? i : last));
        kept[i] = (keep & (i <= last)) ? -1 : 0;
      }
    } else {
      for (std::int32_t i = 0; i < n; ++i) kept[i] = i <= last ? -1 : 0;
    }
    std::int32_t stand_in = last;
    while (stand_in > 0 && kept[stand_in] == 0) --stand_in;
    if (kept[stand_in] == 0) {
      for (int i = 0; i < n; ++i) s[i] = never<A>;
      return;
    }
    const A spare = x[stand_in];
    alignas(64) A real[std::size_t{n}];  // not x: g++ would store into it through a mask; the next loop would wait
    for (std::int32_t i = 0; i < n; ++i) real[i] = kept[i] != 0 ? x[i] : spare;
    for (std::int32_t i = 0; i < n; ++i) {
      const Position at = place<row_step, key_step>(first, stand_in ^ ((i ^ stand_in) & kept[i]));
      A value = score_of(rules, real[i], at);
      if constexpr (HasBias<M>) value += static_cast<A>(mask.bias(at));
      x[i] = live(value);
    }
    for (std::int32_t i = 0; i < n; ++i) x[i] = kept[i] != 0 ? x[i] : never<A>;
    __builtin_memcpy(s, x, sizeof x);
  }
};
