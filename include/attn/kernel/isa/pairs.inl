// Part of body.inl: products of bfloat16 in pairs of inputs. Only for CPUs that have the instruction, which is named in
// assembly, as in dot.inl.

/// Two rows of a panel as stored, side by side in 32-bit words; `second` may be past the last row, whose inputs count as 0.
ATTN_INLINE Bits<float> interleave_pairs(const Bfloat16* first, bool second) {
  const Bits<float> words = load_words(first);
  return second ? words | load_words(first + panel_outputs) << 16 : words;
}
inline void load_pairs(std::uint32_t* to, const Bfloat16* weights, Index inputs) {
  for (Index i = 0; i < inputs; i += 2, weights += 2 * panel_outputs, to += panel_outputs)
    for (int o = 0; o < panel_outputs; o += lanes<float>) {
      const Bits<float> pair = interleave_pairs(weights + o, i + 1 < inputs);
      __builtin_memcpy(to + o, &pair, sizeof pair);
    }
}

#if defined(__x86_64__) && ATTN_VECTOR_BYTES == 64
/// sum + the products of two numbers and two more, in each lane.
ATTN_INLINE Vec<float> add_pair(Vec<float> sum, Bits<float> weights, Bits<float> inputs) {
  __asm__("vdpbf16ps {%2, %1, %0|%0, %1, %2}" : "+v"(sum) : "v"(weights), "v"(inputs));
  return sum;
}
/// One tile, R rows by N vectors of outputs from `output` on.
template <bool is_copied, int R, int N>
__attribute__((noinline)) void pair_tile(const PairProduct& product, Index row, int output) {
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
      if constexpr (is_copied)
        pair[n] = load_group_words(at + n * static_cast<int>(sizeof pair[n]));
      else
        pair[n] =
            interleave_pairs(static_cast<const Bfloat16*>(static_cast<const void*>(at)) + n * lanes<float>, whole);
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
      for (int n = 0; n < N; ++n) sum[r][n] = add_pair(sum[r][n], pair[n], inputs - Bits<float>{});
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
inline constexpr PairReader pair_reader{.load = load_pairs, .multiply = multiply_pairs};
#else
inline constexpr PairReader pair_reader{.load = load_pairs, .multiply = nullptr};
#endif
