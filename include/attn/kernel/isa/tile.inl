// Part of body.inl: the matrix tile.

/// The tile's rows, and its columns in vectors: sums fill 24 of 32 registers, or 12 of 16. 6 x 4 and 12 x 2 are equal in
/// cache (0.98 of the peak from depth 192 on); with 3 vectors the panel and the rows leave room in an L1 of 32 KB.
inline constexpr int tile_rows = ATTN_VECTOR_REGISTERS == 32 ? 8 : 4;
inline constexpr int tile_vectors = 3;
template <class A>
inline constexpr Index tile_columns = tile_vectors* lanes<A>;

/// One tile of a product, R rows by N vectors of columns, all sums in registers. Every product of floats, of doubles and, in
/// attention, of pairs of bfloat16 is this loop. Each a is broadcast to N products, each b serves R. Prefetches as Tiles says. A
/// little over 40 lines, since sums that pass through another function would leave their registers.
template <class A, int R, int N, class B, class Operand>
ATTN_INLINE void run_tile(const Product<Operand, A, B>& product, const char* prefetch, Index prefetch_mask) {
  const Operand* a[std::size_t{R}];
  const B* b = product.b;
  ATTN_UNROLL
  for (int r = 0; r < R; ++r) a[r] = product.a + r * product.a_row;
  const Index a_step = product.a_step, b_row = product.b_row;
  Vec<A> sum[std::size_t{R}][std::size_t{N}] = {};
  for (Index i = product.depth, at = 0; i > 0; --i, at += a_step, b += b_row) {
    Vec<Operand> column[std::size_t{N}];
    ATTN_UNROLL
    for (int n = 0; n < N; ++n) column[n] = load(b + n * lanes<A>);
    if ((i & prefetch_mask) == 0) {
      __builtin_prefetch(prefetch);
      prefetch += 64;
    }
    ATTN_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vec<Operand> x = splat(a[r][at]);
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) sum[r][n] = multiply_add(x, column[n], sum[r][n]);
    }
  }
  // Copy the fields first: the compiler must assume that a store through c changes `product`.
  A* c = product.c;
  const A* before = product.before;
  const Index c_row = product.c_row, before_row = product.before_row;
  Vec<A> factor[std::size_t{N}];
  ATTN_UNROLL
  for (int n = 0; n < N; ++n) factor[n] = load(product.factor + n * lanes<A>);
  if (before == nullptr) {
    ATTN_UNROLL
    for (int r = 0; r < R; ++r, c += c_row) {
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) store(c + n * lanes<A>, sum[r][n] * factor[n]);
    }
  } else {
    ATTN_UNROLL
    for (int r = 0; r < R; ++r, c += c_row, before += before_row) {
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) {
        const Vec<A> earlier = load(before + n * lanes<A>);
        store(c + n * lanes<A>, multiply_add(earlier, factor[n], sum[r][n]));
      }
    }
  }
}

template <class A, int R, int N, class B = A>
__attribute__((noinline)) void tile(const Product<A, A, B>& product, const char* prefetch, Index prefetch_mask) {
  run_tile<A, R, N>(product, prefetch, prefetch_mask);
}

/// The tiles of a panel.
template <class A, int N>
inline constexpr Tiles<A> panel_tiles{tile_rows, N* lanes<A>, tile<A, tile_rows, N>, tile<A, 1, N>};
