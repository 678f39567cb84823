// Part of body.inl: transposition.

/// Which element of two vectors, counted through both, lands at `at` when they are interleaved as below.
template <class A>
constexpr int interleaved_from(int at, int group, int span) {
  const int vector = at / group % 2, pair = at % span / (2 * group);
  return vector * lanes<A> + at / span * span + pair * group + at % group;
}
/// Interleaves two vectors, group by group, within every `span` elements: the first halves of spans in `low`, the second halves
/// in `high`.
template <class A, int group, int span, int... i>
ATTN_INLINE void interleave(Vec<A> a, Vec<A> b, Vec<A>& low, Vec<A>& high, std::integer_sequence<int, i...>) {
#if __has_builtin(__builtin_shufflevector)
  low = __builtin_shufflevector(a, b, interleaved_from<A>(i, group, span)...);
  high = __builtin_shufflevector(a, b, (interleaved_from<A>(i, group, span) + span / 2)...);
#else  // g++ 11
  low = __builtin_shuffle(a, b, Bits<A>{interleaved_from<A>(i, group, span)...});
  high = __builtin_shuffle(a, b, Bits<A>{(interleaved_from<A>(i, group, span) + span / 2)...});
#endif
}
/// Transposes a lanes x lanes block by perfect shuffles: log2(lanes) rounds, one shuffle for each vector.
template <class A>
ATTN_INLINE void transpose(Vec<A> (&rows)[lanes<A>]) {
  constexpr int n = lanes<A>;
  ATTN_UNROLL
  for (int round = 1; round < n; round *= 2) {
    Vec<A> next[std::size_t{n}];
    ATTN_UNROLL
    for (int i = 0; i < n / 2; ++i)
      interleave<A, 1, n>(rows[i], rows[i + n / 2], next[2 * i], next[2 * i + 1], std::make_integer_sequence<int, n>{});
    ATTN_UNROLL
    for (int i = 0; i < n; ++i) rows[i] = next[i];
  }
}

/// to[column][row] = from[row][column], and 0 for the rows that fill the last vector. Blocks at the edges go through local
/// arrays, so that all loops over a block unroll and it stays in registers (42 -> 18 ns for 16 x 16).
template <class A, class T>
__attribute__((noinline)) void transpose_rows(A* to, Index to_row, const T* from, Index from_row, Index rows,
                                              Index columns) {
  constexpr Index n = lanes<A>;
  for (Index row = 0; row < rows; row += n)
    for (Index column = 0; column < columns; column += n) {
      const Index height = std::min(n, rows - row), width = std::min(n, columns - column);
      const T* in = from + row * from_row + column;
      A* out = to + column * to_row + row;
      Index in_row = from_row, out_row = to_row;
      alignas(64) T edge_in[std::size_t{n * n}];
      alignas(64) A edge_out[std::size_t{n * n}];
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
