// Part of body.inl: products of bfloat16 in pairs: of inputs, outputs and rows in a linear layer and its backward pass; of
// elements of queries and keys, and of keys, in attention.

/// Two rows as stored, side by side in 32-bit words; where there is no second one, its elements count as 0.
ATTN_INLINE Bits<float> interleave_pairs(const Bfloat16* first, const Bfloat16* second) {
  const Bits<float> words = load_words(first);
  return second != nullptr ? words | load_words(second) << 16 : words;
}
/// Rows two by two, element by element. The last of an odd number is paired with zeros.
__attribute__((noinline)) inline void interleave_rows(BfloatPair* to, Index to_row, const Bfloat16* from,
                                                      Index from_row, Index rows, Index n) {
  for (; rows > 0; rows -= 2, to += to_row, from += 2 * from_row) {
    const Bfloat16* const second = rows > 1 ? from + from_row : nullptr;
    Index i = 0;
    for (; i + lanes<float> <= n; i += lanes<float>) {
      const Bits<float> pairs = interleave_pairs(from + i, second == nullptr ? nullptr : second + i);
      __builtin_memcpy(to + i, &pairs, sizeof pairs);
    }
    for (; i < n; ++i) {
      const std::uint32_t pair = from[i].bits | (second == nullptr ? 0U : std::uint32_t{second[i].bits} << 16);
      __builtin_memcpy(to + i, &pair, sizeof pair);
    }
  }
}

#if defined(ATTN_PAIR_INSTRUCTION)
/// One tile, R rows by N vectors of outputs from `output` on.
template <bool is_copied, int R, int N>
ATTN_PAIR_TARGET __attribute__((noinline)) void pair_tile(const PairProduct& product, Index row, int output) {
  const Bfloat16* x[std::size_t{R}];
  ATTN_UNROLL
  for (int r = 0; r < R; ++r) x[r] = product.x + (row + r) * product.x_row;
  // Both lie as far apart from one pair to the next: two rows of 16 bits, or one of 32.
  const void* const weights = is_copied ? static_cast<const void*>(product.pairs + output) : product.weights + output;
  const auto* at = static_cast<const std::byte*>(weights);
  const char* prefetch = row == 0 && output == 0 ? product.prefetch : nullptr;
  Vec<float> sum[std::size_t{R}][std::size_t{N}] = {};
  for (Index i = 0; i < product.inputs; i += 2, at += 4 * panel_outputs) {
    const bool whole = i + 1 < product.inputs;
    Bits<float> pair[std::size_t{N}];
    ATTN_UNROLL
    for (int n = 0; n < N; ++n) {
      if constexpr (is_copied) {
        pair[n] = load_group_words(at + n * static_cast<int>(sizeof pair[n]));
      } else {
        const auto* const first = static_cast<const Bfloat16*>(static_cast<const void*>(at)) + n * lanes<float>;
        pair[n] = interleave_pairs(first, whole ? first + panel_outputs : nullptr);
      }
    }
    prefetch_words(prefetch);
    ATTN_UNROLL
    for (int r = 0; r < R; ++r) {
      std::int32_t inputs = 0;
      if (whole)
        __builtin_memcpy(&inputs, x[r] + i, 4);
      else
        __builtin_memcpy(&inputs, x[r] + i, 2);
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) sum[r][n] = multiply_add(inputs - Bits<float>{}, pair[n], sum[r][n]);
    }
  }
  add_sums<R, N>(product, row, output, sum);
}
template <bool is_copied>
ATTN_INLINE void multiply_rows_of_pairs(const PairProduct& product) {
  for (int output = 0; output < panel_outputs; output += tile_vectors * lanes<float>) {
    Index row = 0;
    for (; row + tile_rows <= product.rows; row += tile_rows)
      pair_tile<is_copied, tile_rows, tile_vectors>(product, row, output);
    for (; row < product.rows; ++row) pair_tile<is_copied, 1, tile_vectors>(product, row, output);
  }
}
inline void multiply_pairs(const PairProduct& product) {
  if (product.pairs != nullptr) return multiply_rows_of_pairs<true>(product);
  multiply_rows_of_pairs<false>(product);
}
template <int R, int N>
ATTN_PAIR_TARGET __attribute__((noinline)) void pair_panel_tile(const Product<BfloatPair, float, BfloatPair>& product,
                                                                const char* prefetch, Index prefetch_mask) {
  run_tile<float, R, N>(product, prefetch, prefetch_mask);
}
template <int N>
inline constexpr Tiles<BfloatPair, float, BfloatPair> pair_panel_tiles{
    tile_rows, N* lanes<float>, pair_panel_tile<tile_rows, N>, pair_panel_tile<1, N>};
inline constexpr PairArithmetic pair_arithmetic{
    .interleave = interleave_rows,
    .multiply = multiply_pairs,
    .panel_tiles = {pair_panel_tiles<1>, pair_panel_tiles<2>, pair_panel_tiles<3>}};

// ---- Attention ----

/// Rows of keys as they are: an even number of elements.
inline void copy_key_rows(float* to, Index to_row, const std::byte* from, Index from_row, Index rows, Index n) {
  for (; rows > 0; --rows, to += to_row, from += from_row)
    __builtin_memcpy(to, from, static_cast<std::size_t>(n) * sizeof(Bfloat16));
}
/// Rows of values, as a RowSource copies them.
inline void pair_value_rows(float* to, Index to_row, const std::byte* from, Index from_row, Index rows, Index n) {
  constexpr Index element = sizeof(Bfloat16);
  interleave_rows(reinterpret_cast<BfloatPair*>(to), 2 * to_row,
                  static_cast<const Bfloat16*>(static_cast<const void*>(from)), from_row / element, rows, n);
}
ATTN_PAIR_TARGET inline void round_weights(BfloatPair* to, const float* first, const float* second, Index row,
                                           Index pairs, Index n) {
  for (Index pair = 0; pair < pairs; ++pair, to += n, first += row, second += row)
    for (Index i = 0; i < n; i += lanes<float>) {
      const Vec<BfloatPair> rounded = round_to_pairs(load(first + i), load(second + i));
      __builtin_memcpy(to + i, &rounded, sizeof rounded);
    }
}
constexpr RowFormat<float> pair_rows(decltype(RowFormat<float>::load) load) {
  return {.converted = true,
          .scaled = false,
          .element = sizeof(Bfloat16),
          .load = load,
          .score_rows = nullptr,
          .weigh_rows = nullptr,
          .store = nullptr};
}
inline constexpr PairAttention pair_attention_functions{.arithmetic = pair_arithmetic,
                                                        .keys = pair_rows(copy_key_rows),
                                                        .values = pair_rows(pair_value_rows),
                                                        .round_weights = round_weights};
inline constexpr const PairAttention* pair_attention = &pair_attention_functions;
#else
inline constexpr PairArithmetic pair_arithmetic{.interleave = interleave_rows, .multiply = nullptr, .panel_tiles = {}};
inline constexpr const PairAttention* pair_attention = nullptr;
#endif
#undef ATTN_PAIR_INSTRUCTION
#undef ATTN_PAIR_TARGET
