// Part of body.inl: scores of few queries.

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
          for (int i = 0; i < R; ++i) sum[i * K + j] = multiply_add(load(row[i] + d), y, sum[i * K + j]);
        }
      }
      alignas(64) A sums[std::size_t{n}];
      store(sums, sum_lanes<A>(sum) * scale);
      for (Index i = 0; i < R && r + i < rows; ++i)
        __builtin_memcpy(s + (r + i) * s_row + t, sums + i * K, K * sizeof(A));
    }
}
