// Part of body.inl: the matrix tile.

/// The tile's rows, and its columns in vectors: sums fill 24 of 32 registers, or 12 of 16. 6 x 4 and 12 x 2 are equal in
/// cache (0.98 of the peak from depth 192 on); with 3 vectors the panel and the rows leave room in an L1 of 32 KB.
inline constexpr int tile_rows = ATTN_VECTOR_REGISTERS == 32 ? 8 : 4;
inline constexpr int tile_vectors = 3;
template <class A>
inline constexpr Index tile_columns = tile_vectors* lanes<A>;

/// One tile of a product, R rows by N vectors of columns, all sums in registers. Every product of matrices in attn is this
/// loop. Each a is broadcast to N products, each b serves R. Meanwhile the lines from `next` on are asked for, one whenever
/// the number of steps left has none of the bits of `mask`.
template <class A, int R, int N>
__attribute__((noinline)) void tile(const Product<A>& product, const char* next, Index mask) {
  const A *a[R], *b = product.b;
  ATTN_UNROLL
  for (int r = 0; r < R; ++r) a[r] = product.a + r * product.a_row;
  const Index a_step = product.a_step, b_row = product.b_row;
  Vec<A> sum[R][N] = {};
  for (Index i = product.depth, at = 0; i > 0; --i, at += a_step, b += b_row) {
    Vec<A> column[N];
    ATTN_UNROLL
    for (int n = 0; n < N; ++n) column[n] = load(b + n * lanes<A>);
    if ((i & mask) == 0) {
      __builtin_prefetch(next);
      next += 64;
    }
    ATTN_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vec<A> x = splat(a[r][at]);
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) sum[r][n] += x * column[n];
    }
  }
  // All that is read of the product is read before the first store, which could change it, for all the compiler knows.
  A* c = product.c;
  const A* before = product.before;
  const Index c_row = product.c_row, before_row = product.before_row;
  Vec<A> factor[N];
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
      for (int n = 0; n < N; ++n) store(c + n * lanes<A>, sum[r][n] + load(before + n * lanes<A>) * factor[n]);
    }
  }
}

/// Rows of a product, tile by tile, as many columns as N vectors have. Rows that fill no tile are computed one by one, which
/// takes no longer than a tile would. What is wanted comes nearer meanwhile, spread over all steps: a burst of it would
/// hold up the loads of the tile (7 % of an attention).
template <class A, int N>
__attribute__((noinline)) void multiply(Product<A> product, Index rows, Wanted wanted) {
  const Index lines = wanted.rows * ((wanted.size + 63) / 64), depth = product.depth;
  Index every = 1, column = 0;  // steps from one line to the next; bytes asked for of the wanted row
  while (every < 16 && 2 * every * lines * tile_rows <= depth * rows) every *= 2;
  while (rows > 0) {
    const bool whole = rows >= tile_rows;
    const Index done = whole ? tile_rows : 1;
    if (product.c_row != tile_columns<A>)  // the caller's memory
      for (Index r = 0; r < done; ++r) prefetch(product.c + r * product.c_row, N * ATTN_VECTOR_BYTES);
    (whole ? tile<A, tile_rows, N> : tile<A, 1, N>)(product, wanted.row + column, wanted.rows > 0 ? every - 1 : -1);
    if (whole)
      for (column += depth / every * 64; column >= wanted.size && wanted.rows > 0; column -= wanted.size) {
        wanted.row += wanted.stride;
        if (--wanted.rows > 0 && column > wanted.size) prefetch(wanted.row, wanted.size);
      }
    product.a += done * product.a_row;
    product.c += done * product.c_row;
    if (product.before != nullptr) product.before += done * product.before_row;
    rows -= done;
  }
}
/// The same for as many vectors as `columns` need.
template <class A>
void multiply(const Product<A>& product, Index rows, Index columns, const Wanted& wanted) {
  (columns > 2 * lanes<A> ? multiply<A, 3>
   : columns > lanes<A>   ? multiply<A, 2>
                          : multiply<A, 1>)(product, rows, wanted);
}

/// N vectors of columns of a product of few rows; returns how many columns these are.
template <class A, int R, int N>
__attribute__((noinline)) Index multiply_few(Product<A> product, Index rows) {
  while (rows > 0) {
    const Index done = rows >= R ? R : 1;
    (done == R ? tile<A, R, N> : tile<A, 1, N>)(product, nullptr, -1);
    product.a += done * product.a_row, product.c += done * product.c_row, product.before += done * product.before_row;
    rows -= done;
  }
  return N * lanes<A>;
}
/// A product of few rows, as in decoding, without factors. Reading b is the limit, and it wants to be read as it lies: rows
/// of 512 bytes whole gave 20 GB/s where halves of them gave 15 (one core of AMD Zen 4).
template <class A>
void multiply_few(const Product<A>& given, Index rows, Index columns) {
  constexpr int wide = ATTN_VECTOR_REGISTERS == 32 ? 8 : 4;
  Product<A> product = given;
  product.factor = ones<A>.value;
  while (columns > 0) {
    const Index done = columns >= wide * lanes<A>       ? multiply_few<A, 2, wide>(product, rows)
                       : columns >= wide / 2 * lanes<A> ? multiply_few<A, 4, wide / 2>(product, rows)
                                                        : multiply_few<A, 4, 1>(product, rows);
    product.b += done, product.c += done, product.before += done;
    columns -= done;
  }
}
