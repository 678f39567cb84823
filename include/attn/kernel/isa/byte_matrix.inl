// Part of body.inl: products of inputs and weights of 8 and 4 bits, by AArch64's matrix products of bytes. Only for CPUs that
// have the instruction, which is named in assembly, as in dot.inl.

#if defined(__aarch64__)
/// sum + the products of two outputs' eight numbers from 0 to 255 and two rows' eight from -128 to 127. In the lanes: output 0
/// by rows 0 and 1, output 1 by rows 0 and 1.
ATTN_INLINE Bits<float> add_byte_matrix(Bits<float> sum, Bits<float> outputs, Bits<float> rows) {
  __asm__("usmmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(outputs), "w"(rows));
  return sum;
}
/// Puts the lanes of two vectors side by side: those of the first two outputs, and those of the other two.
template <class V>
ATTN_INLINE void interleave_outputs(V a, V b, V (&outputs)[2]) {
  __asm__("zip1 %0.4s, %1.4s, %2.4s" : "=w"(outputs[0]) : "w"(a), "w"(b));
  __asm__("zip2 %0.4s, %1.4s, %2.4s" : "=w"(outputs[1]) : "w"(a), "w"(b));
}
/// The even lanes of two vectors, and the odd ones.
template <class V>
ATTN_INLINE void separate_lanes(V a, V b, V& even, V& odd) {
  __asm__("uzp1 %0.4s, %1.4s, %2.4s" : "=w"(even) : "w"(a), "w"(b));
  __asm__("uzp2 %0.4s, %1.4s, %2.4s" : "=w"(odd) : "w"(a), "w"(b));
}

/// Sixteen weights of each of four outputs: of inputs 0 to 3 and 8 to 11, and of inputs 4 to 7 and 12 to 15. In this order, which
/// rows take as well, words are interleaved as they are stored; those of int4 before they are split, two for the price of one.
template <class W>
ATTN_INLINE void load_outputs(const std::byte* words, Bits<float> (&first)[2], Bits<float> (&second)[2]) {
  constexpr int next = panel_outputs * 4;
  if constexpr (weight_bits<W> == 8) {
    interleave_outputs(load_group_words(words), load_group_words(words + 2 * next), first);
    interleave_outputs(load_group_words(words + next), load_group_words(words + 3 * next), second);
  } else {
    typedef std::uint8_t Bytes __attribute__((vector_size(16)));
    interleave_outputs(load_group_words(words), load_group_words(words + next), first);
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      second[i] = reinterpret_cast<Bits<float>>(reinterpret_cast<Bytes>(first[i]) >> 4);
      first[i] &= 0x0F0F0F0F;
    }
  }
}
/// Adds half a group: the products of `words` and of 16 inputs from `input` on.
template <class W, int P, int N>
ATTN_INLINE void add_half_group(Bits<float> (&sum)[std::size_t{P}][std::size_t{2 * N}], const std::byte* words,
                                const InputGroup* const (&x)[std::size_t{2 * P}], int input) {
  Bits<float> even[std::size_t{P}], odd[std::size_t{P}];  // words of inputs, of two rows each
  ATTN_UNROLL
  for (int p = 0; p < P; ++p) {
    Bits<float> row[2];
    __builtin_memcpy(&row[0], x[2 * p]->number + input, sizeof row[0]);
    __builtin_memcpy(&row[1], x[2 * p + 1]->number + input, sizeof row[1]);
    separate_lanes(row[0], row[1], even[p], odd[p]);
  }
  ATTN_UNROLL
  for (int n = 0; n < N; ++n) {
    Bits<float> first[2], second[2];
    load_outputs<W>(words + n * static_cast<int>(sizeof(Bits<float>)), first, second);
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      ATTN_UNROLL
      for (int p = 0; p < P; ++p) sum[p][2 * n + i] = add_byte_matrix(sum[p][2 * n + i], first[i], even[p]);
      ATTN_UNROLL
      for (int p = 0; p < P; ++p) sum[p][2 * n + i] = add_byte_matrix(sum[p][2 * n + i], second[i], odd[p]);
    }
  }
}
/// Adds the whole numbers of a group, times both scales, to sums in float: in the order of dot_tile.
template <int P, int N>
ATTN_INLINE void add_group(Vec<float> (&sum)[std::size_t{P}][std::size_t{2 * N}],
                           const Bits<float> (&numbers)[std::size_t{P}][std::size_t{2 * N}], const Half* scales,
                           const InputGroup* const (&x)[std::size_t{2 * P}]) {
  ATTN_UNROLL
  for (int n = 0; n < N; ++n) {
    const Vec<float> scale = load(scales + n * lanes<float>);
    Vec<float> twice[2];
    interleave_outputs(scale, scale, twice);
    ATTN_UNROLL
    for (int p = 0; p < P; ++p) {
      const float even = x[2 * p]->scale, odd = x[2 * p + 1]->scale;
      ATTN_UNROLL
      for (int i = 0; i < 2; ++i)
        sum[p][2 * n + i] = multiply_add(__builtin_convertvector(numbers[p][2 * n + i], Vec<float>) * twice[i],
                                         Vec<float>{even, odd, even, odd}, sum[p][2 * n + i]);
    }
  }
}

/// One tile, P pairs of rows by N vectors of outputs: the sums of dot_tile, bit for bit. Those of 4 rows by 12 outputs, 12 vectors
/// of integers and 12 of floats, leave 8 registers to operands; g++ 12 keeps one of them in memory where weights have 4 bits.
template <class W, int P, int N>
ATTN_EXTENSION("i8mm")
__attribute__((noinline)) void byte_matrix_tile(const WeightProduct<InputGroup>& product, Index row, int output) {
  const InputGroup* x[std::size_t{2 * P}];
  ATTN_UNROLL
  for (int r = 0; r < 2 * P; ++r) x[r] = product.x + (row + r) * product.x_row;
  constexpr int words = weight_bits<W> / 2;  // of half a group
  const std::byte* word = product.weights.values + output * 4;
  const Half* scales = product.weights.scales + output;
  const char* prefetch = row == 0 && output == 0 ? product.prefetch : nullptr;
  Vec<float> sum[std::size_t{P}][std::size_t{2 * N}] = {};
  for (Index group = 0; group < product.inputs; ++group, scales += panel_outputs) {
    Bits<float> numbers[std::size_t{P}][std::size_t{2 * N}];
    ATTN_UNROLL
    for (int p = 0; p < P; ++p) {
      const std::int32_t even = -W::zero * x[2 * p]->sum, odd = -W::zero * x[2 * p + 1]->sum;
      ATTN_UNROLL
      for (int n = 0; n < 2 * N; ++n) numbers[p][n] = Bits<float>{even, odd, even, odd};
    }
    for (int input = 0; input < static_cast<int>(group_inputs); input += 16, word += words * panel_outputs * 4) {
      for (int w = 0; w < words && prefetch != nullptr; ++w) prefetch_words(prefetch);
      add_half_group<W, P, N>(numbers, word, x, input);
    }
    add_group<P, N>(sum, numbers, scales, x);
    ATTN_UNROLL
    for (int r = 0; r < 2 * P; ++r) ++x[r];
  }
  Vec<float> sums[std::size_t{2 * P}][std::size_t{N}];
  ATTN_UNROLL
  for (int p = 0; p < P; ++p) {
    ATTN_UNROLL
    for (int n = 0; n < N; ++n) separate_lanes(sum[p][2 * n], sum[p][2 * n + 1], sums[2 * p][n], sums[2 * p + 1][n]);
  }
  add_sums<2 * P, N>(product, row, output, sums);
}

/// A product with a panel of weights. A row that is left over is multiplied by dot products.
template <class W>
void multiply_groups_by_matrices(const WeightProduct<InputGroup>& product) {
  for (int output = 0; output < panel_outputs; output += tile_vectors * lanes<float>) {
    Index row = 0;
    for (; row + 4 <= product.rows; row += 4) byte_matrix_tile<W, 2, tile_vectors>(product, row, output);
    for (; row + 2 <= product.rows; row += 2) byte_matrix_tile<W, 1, tile_vectors>(product, row, output);
    if (row < product.rows) dot_tile<W, 1, tile_vectors>(product, row, output);
  }
}
#endif

/// The function above; null for formats without groups, and where there is no instruction.
template <class W>
constexpr GroupProduct matrix_group_product() {
#if defined(__aarch64__)
  if constexpr (is_grouped<W>) return multiply_groups_by_matrices<W>;
#endif
  return nullptr;
}
