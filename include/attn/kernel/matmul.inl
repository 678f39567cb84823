// Part of body.inl: the matrix tile, and the linear layer on it.

/// A product: c(r, n) = before(r, n) * factor(n) + sum over i below depth of a(r, i) b(i, n); or, where there is no
/// `before`, the sum times factor(n).
template <class A>
struct Product {
  const A* a;
  Index a_row, a_step;  // a(r, i) is a[r * a_row + i * a_step]: rows that lie anywhere, or a transposed matrix
  const A* b;
  Index b_row, depth;  // b(i, n) is b[i * b_row + n]
  A* c;
  Index c_row;
  const A* before;  // c itself, or what c starts from, or null; before_row 0: one row for all
  Index before_row;
  const A* factor;
};

/// Memory that is wanted soon, in bytes: `rows` stretches of `size`.
struct Wanted {
  const char* row = nullptr;
  Index stride = 0, size = 0, rows = 0;

  template <class T>
  static Wanted of(const T* first, Index stride, Index size, Index rows) {
    constexpr Index bytes = sizeof(T);
    return {reinterpret_cast<const char*>(first), stride * bytes, size * bytes, rows};
  }
};

/// The tile's rows, and its columns in vectors: sums fill 24 of 32 registers, or 12 of 16. 6 x 4 and 12 x 2 are equal in
/// cache (0.98 of the peak from depth 192 on); with 3 vectors the panel and the rows leave room in an L1 of 32 KB.
inline constexpr int tile_rows = ATTN_VECTOR_REGISTERS == 32 ? 8 : 4;
inline constexpr int tile_vectors = 3;
template <class A>
inline constexpr Index tile_columns = tile_vectors* lanes<A>;

template <class A>
struct Ones {
  A value[4 * lanes<A>];
  constexpr Ones() : value() {
    for (A& v : value) v = 1;
  }
};
template <class A>
inline constexpr Ones<A> ones{};

/// Asks for `bytes` from `from` on to be brought near: what is read next, while this is computed. Into L1, that is: asked
/// into L2 alone it came too late (AMD Zen 4: 10 % of an attention at E = 4096).
ATTN_INLINE void prefetch(const void* from, Index bytes) {
  for (Index i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

/// One tile of a product, R rows by N vectors of columns, all sums in registers. Every product of matrices in attn is this
/// loop. Each a is broadcast to N products, each b serves R. Meanwhile the lines from `next` on are asked for, one whenever
/// the number of steps left has none of the bits of `mask`. Of a stream, whose b is read once, `next` is a row of b further
/// on instead, and every step asks for one.
template <class A, int R, int N, bool stream = false>
__attribute__((noinline)) void tile(const Product<A>& product, const char* next, Index mask) {
  const A *a[R], *b = product.b;
  ATTN_UNROLL
  for (int r = 0; r < R; ++r) a[r] = product.a + r * product.a_row;
  const Index a_step = product.a_step, b_row = product.b_row;
  Vec<A> sum[R][N] = {};
  for (Index i = product.depth, at = 0; i > 0; --i, at += a_step, b += b_row) {
    Vec<A> column[N];
    ATTN_UNROLL
    for (int n = 0; n < N; ++n) {
      column[n] = load(b + n * lanes<A>);
      if constexpr (stream) __builtin_prefetch(next + n * ATTN_VECTOR_BYTES);
    }
    if constexpr (stream) {
      next += b_row * static_cast<Index>(sizeof(A));
    } else if ((i & mask) == 0) {
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
void multiply(const Product<A>& product, Index rows, Index columns, const Wanted& wanted = {}) {
  (columns > 2 * lanes<A> ? multiply<A, 3>
   : columns > lanes<A>   ? multiply<A, 2>
                          : multiply<A, 1>)(product, rows, wanted);
}

/// How a linear layer is cut into tasks. A task is a block of rows of x by a group of panels of the weight:
///   for each stretch of `depth` inputs:  bring its part of x into scratch (packed, converted): up to 384 KB, in L2
///     for each panel of the group:       its part of the weight, up to 96 KB, comes from memory once, ahead of time
///       for each tile:                   y += x w
/// Sums run in the order of the inputs whatever the cut, so it may depend on the number of threads.
template <class T>
struct LinearPlan {
  static constexpr bool low = !std::is_same_v<T, AccumulatorOf<T>>;
  static constexpr Index width = panel_width<T>;
  static constexpr Index most_depth = 512;  // 128: 4 % slower, each tile of y is read and written too often; 256: 2 %
  static constexpr Index most_rows = 192;   // 384: 1 % slower
  Index depth, block_rows, block_panels, row_blocks, panel_blocks;

  LinearPlan(const LinearProblem<T>& p, Index threads) {
    const Index panels = (p.out + width - 1) / width, stretches = (p.in + most_depth - 1) / most_depth;
    depth = !low && p.rows == 1 ? p.in : ((p.in + stretches - 1) / stretches + 7) / 8 * 8;
    row_blocks = (p.rows + most_rows - 1) / most_rows;
    block_rows = (p.rows + row_blocks - 1) / row_blocks;
    block_rows = (block_rows + tile_rows - 1) / tile_rows * tile_rows;
    row_blocks = (p.rows + block_rows - 1) / block_rows;
    // Few large groups save copies of x, many small ones keep threads busy to the end: the fewest groups that give each
    // thread two tasks or more and leave less than 1 in 16 of the time idle.
    Index groups = 1;
    while (groups < panels) {
      const Index tasks = row_blocks * groups, rounds = (tasks + threads - 1) / threads;
      if (tasks >= 2 * threads && (rounds * threads - tasks) * 16 <= tasks) break;
      ++groups;
    }
    block_panels = (panels + groups - 1) / groups;
    panel_blocks = (panels + block_panels - 1) / block_panels;
  }
  [[nodiscard]] Index tasks() const { return row_blocks * panel_blocks; }
  /// Scratch memory per thread, in accumulators.
  [[nodiscard]] Index scratch() const {
    return block_rows * depth + block_rows * width * (low ? block_panels : 1) + (low ? depth * width : 0);
  }
};

template <class T>
void linear_task(const LinearProblem<T>& p, const LinearPlan<T>& plan, Index task, AccumulatorOf<T>* scratch) {
  using A = AccumulatorOf<T>;
  using Plan = LinearPlan<T>;
  constexpr Index width = Plan::width;
  const Index first_row = task % plan.row_blocks * plan.block_rows;
  const Index rows = std::min(plan.block_rows, p.rows - first_row);
  const Index first_panel = task / plan.row_blocks * plan.block_panels;
  const Index last_panel = std::min(first_panel + plan.block_panels, (p.out + width - 1) / width);
  A* const packed_x = scratch;
  A* const sums = packed_x + plan.block_rows * plan.depth;  // of y, where its own memory cannot hold them
  [[maybe_unused]] A* const own_weight = sums + plan.block_rows * width * plan.block_panels;

  for (Index i = 0; i < p.in; i += plan.depth) {
    const Index depth = std::min(plan.depth, p.in - i);
    const bool last = i + depth == p.in;
    for (Index r = 0; r < rows; ++r) convert(packed_x + r * depth, p.x + (first_row + r) * p.in + i, depth);

    for (Index panel = first_panel; panel < last_panel; ++panel) {
      const Index columns = std::min(width, p.out - panel * width);
      const T* const stored = p.weight + (panel * p.in + i) * width;
      const T* const next =
          panel + 1 < last_panel ? stored + p.in * width : p.weight + (first_panel * p.in + i + depth) * width;
      T* const y = p.y + first_row * p.out + panel * width;
      A* to = sums + (Plan::low ? (panel - first_panel) * plan.block_rows * width : 0);
      Index to_row = width;
      const A* weight = own_weight;
      if constexpr (Plan::low) {
        convert(own_weight, stored, depth * width);
      } else {
        weight = stored;
        if (columns == width)
          to = y, to_row = p.out;
        else
          for (Index r = 0; i > 0 && r < rows; ++r) convert(to + r * width, y + r * p.out, columns);
      }
      alignas(64) A bias[width] = {};
      if (i == 0 && p.bias != nullptr) convert(bias, p.bias + panel * width, columns);

      Product<A> product{
          packed_x, depth, 1, weight, width, depth, to, to_row, i == 0 ? bias : to, i == 0 ? 0 : to_row, ones<A>.value};
      const Wanted next_panel =
          Wanted::of(next, 0, depth * width / ((columns + tile_columns<A> - 1) / tile_columns<A>), 1);
      for (Index column = 0; column < columns; column += tile_columns<A>) {
        if (rows == 1)  // decoding: limited by reading the weight
          tile<A, 1, tile_vectors, true>(product, reinterpret_cast<const char*>(product.b + 16 * width), 0);
        else
          multiply(product, rows, columns - column, next_panel);
        product.b += tile_columns<A>, product.c += tile_columns<A>, product.before += tile_columns<A>;
      }
      if (to != static_cast<void*>(y) && (!Plan::low || last))
        for (Index r = 0; r < rows; ++r) convert(y + r * p.out, to + r * width, columns);
    }
  }
}
