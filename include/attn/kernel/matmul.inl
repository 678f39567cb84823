// Part of body.inl: the matrix tile, and the linear layer on it.

/// Rows that lie anywhere, each contiguous along the sum. Rows past the last may repeat it.
template <class A, int R>
struct RowPointers {
  const A* row[R];
  ATTN_INLINE A operator()(int r, Index i) const { return row[r][i]; }
};
/// Rows side by side: the sum runs along a column of a transposed matrix with `stride` elements per row.
template <class A, Index stride>
struct AdjacentRows {
  const A* first;
  ATTN_INLINE A operator()(int r, Index i) const { return first[i * stride + r]; }
};

/// acc[r][n] += sum over i < k of a(r, i) * b[i * b_stride + lanes of n]: R rows by N vectors of columns, all in
/// registers. Every product of matrices in attn is this loop. Each a is broadcast to N products, each b serves R.
/// Unrolling it by 2 or 4 gained nothing.
template <class A, int R, int N, class Rows>
ATTN_INLINE void multiply(Vec<A> (&acc)[R][N], const Rows& a, const A* b, Index b_stride, Index k) {
  for (Index i = 0; i < k; ++i, b += b_stride) {
    Vec<A> column[N];
    ATTN_UNROLL
    for (int n = 0; n < N; ++n) column[n] = load(b + n * lanes<A>);
    ATTN_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vec<A> x = splat(a(r, i));
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) acc[r][n] += x * column[n];
    }
  }
}

/// Asks for `bytes` from `from` on to be brought near: what is read next, while this is computed. Level 2 is the L2 cache.
template <int level, class T>
ATTN_INLINE void prefetch(const T* from, Index bytes) {
  const char* const at = reinterpret_cast<const char*>(from);
  for (Index i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 0, level == 1 ? 3 : 2);
}

/// How a linear layer is cut into tasks. A task is a block of rows of x by a group of panels of the weight:
///   for each stretch of `depth` inputs:  bring its part of x into scratch (packed, converted): 192 KB, stays in L2
///     for each panel of the group:       its part of the weight, 32 KB, comes from memory once, ahead of time
///       for each tile of 6 rows:         y += x w
/// Sums run in the order of the inputs whatever the cut, so it may depend on the number of threads.
template <class T>
struct LinearPlan {
  static constexpr bool low = !std::is_same_v<T, AccumulatorOf<T>>;
  static constexpr Index width = panel_width<T>;
  static constexpr Index depth = 128;  // a panel's part, 32 KB, stays in L1 (256: 3 to 5 % slower, 512: 5 %)
  static constexpr Index max_rows = 384;
  Index block_rows, block_panels, row_blocks, panel_blocks;

  LinearPlan(const LinearProblem<T>& p, Index threads) {
    const Index panels = (p.out + width - 1) / width;
    row_blocks = (p.rows + max_rows - 1) / max_rows;
    block_rows = ((p.rows + row_blocks - 1) / row_blocks + 5) / 6 * 6;
    // Few large groups save traffic, many small ones keep threads busy to the end: some 2 tasks per thread.
    const Index groups = std::max<Index>(1, std::min(panels, (2 * threads + row_blocks - 1) / row_blocks));
    block_panels = std::min<Index>((panels + groups - 1) / groups, 16);
    panel_blocks = (panels + block_panels - 1) / block_panels;
  }
  [[nodiscard]] Index tasks() const { return row_blocks * panel_blocks; }
  /// Scratch memory per thread, in accumulators.
  [[nodiscard]] Index scratch() const {
    return block_rows * depth + (low ? depth * width + block_rows * width * block_panels : block_rows * width);
  }
};

/// One tile of y: R rows from `row` on (those past `rows` are computed twice and not stored), N vectors of columns.
template <class A, int R, int N>
ATTN_INLINE void linear_tile(const A* x, Index x_stride, Index row, Index rows, const A* weight, Index depth, A* y,
                             Index y_stride, const A* bias, bool first) {
  RowPointers<A, R> a;
  ATTN_UNROLL
  for (int r = 0; r < R; ++r) {
    const Index at = std::min<Index>(row + r, rows - 1);
    a.row[r] = x + at * x_stride;
    prefetch<1>(y + at * y_stride, N * lanes<A> * static_cast<Index>(sizeof(A)));
  }
  Vec<A> acc[R][N] = {};
  multiply<A, R, N>(acc, a, weight, panel_width<A>, depth);
  ATTN_UNROLL
  for (int r = 0; r < R; ++r) {
    if (row + r >= rows) break;
    A* const to = y + (row + r) * y_stride;
    ATTN_UNROLL
    for (int n = 0; n < N; ++n) {
      Vec<A> sum = acc[r][n];
      if (!first) sum += load(to + n * lanes<A>);
      if (bias != nullptr) sum += load(bias + n * lanes<A>);
      store(to + n * lanes<A>, sum);
    }
  }
}

template <class T>
void linear_task(const LinearProblem<T>& p, const LinearPlan<T>& plan, Index task, AccumulatorOf<T>* scratch) {
  using A = AccumulatorOf<T>;
  using Plan = LinearPlan<T>;
  constexpr Index width = Plan::width;
  constexpr int R = 6, N = ATTN_VECTOR_REGISTERS == 32 ? 4 : 2;
  const Index first_row = task % plan.row_blocks * plan.block_rows;
  const Index rows = std::min(plan.block_rows, p.rows - first_row);
  const Index first_panel = task / plan.row_blocks * plan.block_panels;
  const Index last_panel = std::min(first_panel + plan.block_panels, (p.out + width - 1) / width);
  A* const x = scratch;
  A* const own_y = x + plan.block_rows * Plan::depth;  // for panels that y has no full room for
  [[maybe_unused]] A* const own_weight = own_y + plan.block_rows * width * (Plan::low ? plan.block_panels : 1);

  for (Index i = 0; i < p.in; i += Plan::depth) {
    const Index depth = std::min(Plan::depth, p.in - i);
    const bool last = i + depth == p.in;
    for (Index r = 0; r < rows; ++r) convert(x + r * depth, p.x + (first_row + r) * p.in + i, depth);

    for (Index panel = first_panel; panel < last_panel; ++panel) {
      // The next stretch of x comes nearer meanwhile, each panel asking for its share of the rows.
      const Index ahead = std::min(Plan::depth, p.in - i - depth),
                  row_share = (rows + plan.block_panels - 1) / plan.block_panels;
      for (Index r = (panel - first_panel) * row_share; r < std::min(rows, (panel - first_panel + 1) * row_share); ++r)
        prefetch<2>(p.x + (first_row + r) * p.in + i + depth, ahead * static_cast<Index>(sizeof(T)));
      const Index columns = std::min(width, p.out - panel * width);
      alignas(64) A bias[width] = {};
      if (last && p.bias != nullptr) convert(bias, p.bias + panel * width, columns);
      T* const to = p.y + first_row * p.out + panel * width;
      A* y = own_y + (Plan::low ? (panel - first_panel) * plan.block_rows * width : 0);
      Index y_stride = width;
      const T* const stored = p.weight + (panel * p.in + i) * width;
      const T* const next = panel + 1 < last_panel ? stored + p.in * width
                            : last                 ? stored
                                                   : p.weight + (first_panel * p.in + i + depth) * width;
      const A* weight;
      if constexpr (Plan::low) {
        convert(own_weight, stored, depth * width);
        weight = own_weight;
      } else {
        weight = stored;
        if (columns == width)
          y = to, y_stride = p.out;
        else
          for (Index r = 0; i > 0 && r < rows; ++r) convert(y + r * width, to + r * p.out, columns);
      }
      const Index share = depth * width * static_cast<Index>(sizeof(T)) / ((rows + R - 1) / R);  // of `next`, per tile
      for (Index column = 0; column < columns; column += N * lanes<A>) {
        const A* const b = last ? bias + column : nullptr;
        Index r = 0;
        for (; r + 1 < rows; r += R) {
          if (column == 0) prefetch<2>(reinterpret_cast<const char*>(next) + r / R * share, share);
          linear_tile<A, R, N>(x, depth, r, rows, weight + column, depth, y + column, y_stride, b, i == 0);
        }
        for (; r < rows; ++r)  // decoding: one row, limited by reading the weight
          linear_tile<A, 1, N>(x, depth, r, rows, weight + column, depth, y + column, y_stride, b, i == 0);
      }
      if (y_stride == width && (!Plan::low || last) && y != static_cast<void*>(to))
        for (Index r = 0; r < rows; ++r) convert(to + r * p.out, y + r * width, columns);
    }
  }
}
