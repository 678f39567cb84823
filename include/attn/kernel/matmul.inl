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

/// How much of a linear layer one task does, and the scratch memory (in accumulators) it needs.
template <class T>
struct LinearPlan {
  static constexpr bool low = !std::is_same_v<T, AccumulatorOf<T>>;
  static constexpr Index width = panel_width<T>;
  static constexpr Index depth = 256;  // inputs per pass: a panel's part stays in the nearer caches
  Index block_rows, block_panels, row_blocks, panel_blocks;

  explicit LinearPlan(const LinearProblem<T>& p) {
    const Index panels = (p.out + width - 1) / width;
    block_rows = std::min<Index>(p.rows, low ? 96 : 384);
    // Low precision converts its rows once per task, so that a task should have some panels.
    block_panels = low && p.rows > 4 ? std::min<Index>(panels, 4) : 1;
    row_blocks = (p.rows + block_rows - 1) / block_rows;
    panel_blocks = (panels + block_panels - 1) / block_panels;
  }
  [[nodiscard]] Index tasks() const { return row_blocks * panel_blocks; }
  [[nodiscard]] Index scratch(const LinearProblem<T>& p) const {
    return block_rows * width + (low ? block_rows * p.in + depth * width : 0);
  }
};

/// One tile of y: R rows from `row` on (those past `rows` are computed twice and not stored), N vectors of columns.
template <class A, int R, int N>
ATTN_INLINE void linear_tile(const A* x, Index x_stride, Index row, Index rows, const A* weight, Index depth, A* y,
                             Index y_stride, const A* bias, bool first) {
  RowPointers<A, R> a;
  ATTN_UNROLL
  for (int r = 0; r < R; ++r) a.row[r] = x + std::min<Index>(row + r, rows - 1) * x_stride;
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

  A* const own_y = scratch;
  const A* x;
  A* converted_weight = nullptr;
  if constexpr (Plan::low) {
    A* const converted_x = scratch + plan.block_rows * width;
    converted_weight = converted_x + plan.block_rows * p.in;
    for (Index r = 0; r < rows; ++r) convert(converted_x + r * p.in, p.x + (first_row + r) * p.in, p.in);
    x = converted_x;
  } else {
    x = p.x + first_row * p.in;
  }

  for (Index panel = first_panel; panel < last_panel; ++panel) {
    const Index columns = std::min(width, p.out - panel * width);
    alignas(64) A bias[width] = {};
    if (p.bias != nullptr) convert(bias, p.bias + panel * width, columns);
    T* const to = p.y + first_row * p.out + panel * width;
    A* y = own_y;
    Index y_stride = width;
    if constexpr (!Plan::low) {
      if (columns == width) y = to, y_stride = p.out;
    }
    for (Index i = 0; i < p.in; i += Plan::depth) {
      const Index depth = std::min(Plan::depth, p.in - i);
      const bool last = i + depth == p.in;
      const T* const stored = p.weight + (panel * p.in + i) * width;
      const A* weight;
      if constexpr (Plan::low) {
        convert(converted_weight, stored, depth * width);
        weight = converted_weight;
      } else {
        weight = stored;
      }
      for (Index column = 0; column < columns; column += N * lanes<A>) {
        const A* const b = last ? bias + column : nullptr;
        Index r = 0;
        for (; r + 1 < rows; r += R)
          linear_tile<A, R, N>(x + i, p.in, r, rows, weight + column, depth, y + column, y_stride, b, i == 0);
        for (; r < rows; ++r)  // decoding: one row, limited by reading the weight
          linear_tile<A, 1, N>(x + i, p.in, r, rows, weight + column, depth, y + column, y_stride, b, i == 0);
      }
    }
    if (y == own_y)
      for (Index r = 0; r < rows; ++r) convert(to + r * p.out, y + r * width, columns);
  }
}
