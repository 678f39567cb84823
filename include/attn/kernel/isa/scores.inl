// Part of body.inl: attention of few queries, over rows of keys and values as they are stored.

/// A vector of a row; of ScaledBytes without the scale.
template <class A, class Storage>
ATTN_INLINE Vec<A> load_stored(const std::byte* from) {
  if constexpr (std::is_same_v<Storage, ScaledBytes>)
    return __builtin_convertvector(load_bytes(from), Vec<float>);
  else
    return load(static_cast<const Storage*>(static_cast<const void*>(from)));
}
ATTN_INLINE void prefetch_row(const std::byte* row, Index bytes) {
  for (Index i = 0; i < bytes; i += 64) __builtin_prefetch(row + i);
}

/// The sums of the lanes of as many vectors, side by side in one: a tree whose first steps stay within 16 bytes, where shuffles
/// cost least.
template <class A, int group = 1, std::size_t n>
ATTN_INLINE Vec<A> sum_lanes(const Vec<A> (&v)[n]) {
  if constexpr (n == 1) {
    return v[0];
  } else {
    constexpr int part = 16 / static_cast<int>(sizeof(A)), span = group < part ? part : lanes<A>;
    Vec<A> half[n / 2];
    ATTN_UNROLL
    for (std::size_t i = 0; i < n / 2; ++i) {
      Vec<A> low, high;
      interleave<A, group, span>(v[2 * i], v[2 * i + 1], low, high, std::make_integer_sequence<int, lanes<A>>{});
      half[i] = low + high;
    }
    return sum_lanes<A, 2 * group>(half);
  }
}

/// s[row][key] = q k * scale, for `keys` keys; q and k padded to whole vectors. As many sums as a vector has lanes, of R rows
/// with some keys, are in registers; their lanes are added up together, in the same order for any R. Keys are read, and
/// prefetched, one after the other, as they lie: two side by side gave 9 GB/s where one gave 30 (two cores of AMD Zen 4).
template <class A, class Storage, int R>
__attribute__((noinline)) void score_rows_of(const RowScores<A>& call) {
  constexpr int n = lanes<A>, K = n / R;
  const Index D = call.size, rows = call.rows, bytes = D * Index{sizeof(Storage)};
  for (Index t = 0; t < call.keys; t += K)
    for (Index r = 0; r < rows; r += R) {
      const A* row[std::size_t{R}];
      ATTN_UNROLL
      for (int i = 0; i < R; ++i) row[i] = call.q + std::min<Index>(r + i, rows - 1) * D;
      Vec<A> sum[std::size_t{n}] = {};
      alignas(64) A scales[std::size_t{n}];
      ATTN_UNROLL
      for (int j = 0; j < K; ++j) {
        const std::byte* const key = call.k + std::min<Index>(t + j, call.keys - 1) * call.k_row;
        if (r == 0 && call.ahead != 0) prefetch_row(key + call.ahead, bytes);
        for (Index d = 0; d < D; d += n) {
          const Vec<A> y = load_stored<A, Storage>(key + d * Index{sizeof(Storage)});
          ATTN_UNROLL
          for (int i = 0; i < R; ++i) sum[i * K + j] = multiply_add(load(row[i] + d), y, sum[i * K + j]);
        }
        for (int i = 0; i < R; ++i) scales[i * K + j] = scale_of_row<A, Storage>(key, call.size);
      }
      Vec<A> scaled = sum_lanes<A>(sum) * call.scale;
      if constexpr (std::is_same_v<Storage, ScaledBytes>) scaled = scaled * load(scales);
      alignas(64) A sums[std::size_t{n}];
      store(sums, scaled);
      for (Index i = 0; i < R && r + i < rows; ++i)
        __builtin_memcpy(call.scores + (r + i) * call.scores_row + t, sums + i * K, K * sizeof(A));
    }
}
/// A key serves four rows while it is in a register; two where vectors have fewer than 8 lanes, or keys are neither converted
/// nor prefetched: with less work between keys a core looks further ahead (30 GB/s, not 22; two cores of AMD Zen 4).
template <class A, class Storage>
void score_rows(const RowScores<A>& call) {
  constexpr int most = lanes<A> < 8 ? 2 : 4;
  if constexpr (std::is_same_v<A, Storage> && most > 2)
    if (call.ahead == 0) return score_rows_of<A, Storage, 2>(call);
  score_rows_of<A, Storage, most>(call);
}

/// y[row][element] += weights v of R rows and N vectors of elements: each sum in a register, each v converted once.
template <class A, class Storage, int R, int N>
__attribute__((noinline)) void weigh_tile(const RowAverage<A>& call, Index r, Index element, bool reads) {
  const std::byte* v = call.v + element * Index{sizeof(Storage)};
  const A* weights[std::size_t{R}];
  ATTN_UNROLL
  for (int row = 0; row < R; ++row) weights[row] = call.weights + (r + row) * call.weights_row;
  const Index keys = call.keys, v_row = call.v_row, ahead = call.ahead, size = call.size - element;
  Vec<A> sum[std::size_t{R}][std::size_t{N}] = {};
  for (Index i = 0; i < keys; ++i, v += v_row) {
    if (reads) {
      ATTN_UNROLL
      for (int byte = 0; byte < N * lanes<A> * static_cast<int>(sizeof(Storage)); byte += 64)
        __builtin_prefetch(v + ahead + byte);
    }
    Vec<A> column[std::size_t{N}];
    ATTN_UNROLL
    for (int n = 0; n < N; ++n) column[n] = load_stored<A, Storage>(v + n * lanes<A> * Index{sizeof(Storage)});
    if constexpr (std::is_same_v<Storage, ScaledBytes>) {
      const Vec<A> scale = splat(scale_of_row<A, Storage>(v, size));
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) column[n] = column[n] * scale;
    }
    ATTN_UNROLL
    for (int row = 0; row < R; ++row) {
      const Vec<A> x = splat(weights[row][i]);
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) sum[row][n] = multiply_add(x, column[n], sum[row][n]);
    }
  }
  A* y = call.y + r * call.size + element;
  const Index y_row = call.size;
  ATTN_UNROLL
  for (int row = 0; row < R; ++row, y += y_row) {
    ATTN_UNROLL
    for (int n = 0; n < N; ++n) store(y + n * lanes<A>, load(y + n * lanes<A>) + sum[row][n]);
  }
}
template <class A, class Storage, int R, int N>
ATTN_INLINE void weigh_columns(const RowAverage<A>& call, Index element) {
  Index r = 0;
  for (; r + R <= call.rows; r += R) weigh_tile<A, Storage, R, N>(call, r, element, call.ahead != 0 && r == 0);
  for (; r < call.rows; ++r) weigh_tile<A, Storage, 1, N>(call, r, element, call.ahead != 0 && r == 0);
}
/// All rows and elements, in tiles as wide as they fit: rows of 512 bytes read whole gave 20 GB/s, halves of them 15 (one core
/// of AMD Zen 4).
template <class A, class Storage>
void weigh_rows(const RowAverage<A>& call) {
  constexpr int widest = ATTN_VECTOR_REGISTERS == 32 ? 8 : 4, n = lanes<A>;
  Index element = 0;
  if constexpr (std::is_same_v<A, Storage>)
    for (; element + widest * n <= call.size; element += widest * n)
      weigh_columns<A, Storage, 2, widest>(call, element);
  for (; element + widest / 2 * n <= call.size; element += widest / 2 * n)
    weigh_columns<A, Storage, 4, widest / 2>(call, element);
  for (; element < call.size; element += n) weigh_columns<A, Storage, 4, 1>(call, element);
}

/// Both functions; null for doubles in fewer bits, whose rows are always copied.
template <class A, class Storage>
constexpr auto stored_scores() -> void (*)(const RowScores<A>&) {
  if constexpr (std::is_same_v<A, float> || std::is_same_v<A, Storage>) return score_rows<A, Storage>;
  return nullptr;
}
template <class A, class Storage>
constexpr auto stored_averages() -> void (*)(const RowAverage<A>&) {
  if constexpr (std::is_same_v<A, float> || std::is_same_v<A, Storage>) return weigh_rows<A, Storage>;
  return nullptr;
}
