// Part of body.inl: weights that are stored in 16, 8 or 4 bits, and inputs in 8.

inline constexpr int panel_outputs = static_cast<int>(panel_width<float>);
/// Inputs in a word of grouped weights.
template <class W>
inline constexpr int word_inputs = 32 / weight_bits<W>;

/// One input's weights out of a vector of words. All three steps are exact: a number has 8 bits, a scale 11.
template <class W>
ATTN_INLINE Vec<float> weights_at(Bits<float> words, int input, Vec<float> scales) {
  constexpr int mask = (1 << weight_bits<W>)-1;
  const Bits<float> numbers = ((words >> first_bit_of(input)) & mask) - W::zero;
  return __builtin_convertvector(numbers, Vec<float>) * scales;
}
/// A vector of words of grouped weights: of some outputs, four or eight inputs each.
ATTN_INLINE Bits<float> load_group_words(const std::byte* from) {
  Bits<float> words;
  __builtin_memcpy(&words, from, sizeof words);
  return words;
}

/// to[input][output] = the weights of a panel, in whole groups where there are groups.
template <class W>
__attribute__((noinline)) void load_weights(float* to, const WeightPart& part, Index inputs) {
  if constexpr (is_grouped<W>) {
    const std::byte* word = part.values;
    const Half* scales = part.scales;
    for (; inputs > 0; inputs -= group_inputs, scales += panel_outputs)
      for (int w = 0; w < weight_bits<W>; ++w, to += word_inputs<W> * panel_outputs)
        for (int o = 0; o < panel_outputs; o += lanes<float>, word += sizeof(Bits<float>)) {
          const Bits<float> words = load_group_words(word);
          const Vec<float> scale = load(scales + o);
          ATTN_UNROLL
          for (int i = 0; i < word_inputs<W>; ++i) store(to + i * panel_outputs + o, weights_at<W>(words, i, scale));
        }
  } else {
    convert(to, static_cast<const W*>(static_cast<const void*>(part.values)), inputs * panel_outputs);
  }
}

/// Adds the sums of a tile, of any kind of product, to what c starts from. Unrolled, int8 would gain 2 % and int4 lose 7 % (g++ 12).
template <int R, int N, class Product>
ATTN_INLINE void add_sums(const Product& product, Index row, int output,
                          const Vec<float> (&sum)[std::size_t{R}][std::size_t{N}]) {
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) {
      const Index o = output + n * lanes<float>;
      const Vec<float> before = load(product.before + (row + r) * product.before_row + o);
      store(product.c + (row + r) * product.c_row + o, before + sum[r][n]);
    }
  }
}
/// Prefetches as many bytes as a row of 32-bit words of a panel has.
ATTN_INLINE void prefetch_words(const char*& from) {
  if (from == nullptr) return;
  for (int line = 0; line < panel_outputs * 4; line += 64) __builtin_prefetch(from + line);
  from += panel_outputs * 4;
}

/// One tile of a product with grouped weights, R rows by N vectors of outputs from `output` on: the sums of `tile` over a
/// copy of the weights, bit for bit.
template <class W, int R, int N>
__attribute__((noinline)) void grouped_tile(const WeightProduct<float>& product, Index row, int output) {
  const float* const x = product.x + row * product.x_row;
  const std::byte* word = product.weights.values + output * 4;
  const Half* scales = product.weights.scales + output;
  const char* prefetch = row == 0 && output == 0 ? product.prefetch : nullptr;
  Vec<float> sum[std::size_t{R}][std::size_t{N}] = {};
  Index input = 0;
  for (; input < product.inputs; scales += panel_outputs) {
    Vec<float> scale[std::size_t{N}];
    ATTN_UNROLL
    for (int n = 0; n < N; ++n) scale[n] = load(scales + n * lanes<float>);
    for (int w = 0; w < weight_bits<W>; ++w, word += panel_outputs * 4) {
      Bits<float> words[std::size_t{N}];
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) words[n] = load_group_words(word + n * static_cast<int>(sizeof(Bits<float>)));
      prefetch_words(prefetch);
      ATTN_UNROLL
      for (int i = 0; i < word_inputs<W>; ++i, ++input) {
        Vec<float> column[std::size_t{N}];
        ATTN_UNROLL
        for (int n = 0; n < N; ++n) column[n] = weights_at<W>(words[n], i, scale[n]);
        ATTN_UNROLL
        for (int r = 0; r < R; ++r) {
          const Vec<float> xs = splat(x[r * product.x_row + input]);
          ATTN_UNROLL
          for (int n = 0; n < N; ++n) sum[r][n] = multiply_add(xs, column[n], sum[r][n]);
        }
      }
    }
  }
  add_sums<R, N>(product, row, output, sum);
}

/// A tile of a product with weights of any format.
template <class W, int R>
ATTN_INLINE void weight_tile(const WeightProduct<float>& product, Index row, int output) {
  if constexpr (is_grouped<W>) {
    grouped_tile<W, R, tile_vectors>(product, row, output);
  } else {
    const bool reads = row == 0 && output == 0 && product.prefetch != nullptr;  // later tiles find the weights in L1
    tile<float, R, tile_vectors, W>(
        Product<float, float, W>{.a = product.x + row * product.x_row,
                                 .a_row = product.x_row,
                                 .b = static_cast<const W*>(static_cast<const void*>(product.weights.values)) + output,
                                 .b_row = panel_outputs,
                                 .depth = product.inputs,
                                 .c = product.c + row * product.c_row + output,
                                 .c_row = product.c_row,
                                 .before = product.before + row * product.before_row + output,
                                 .before_row = product.before_row,
                                 .factor = ones<float>.value},
        product.prefetch, reads ? 0 : -1);
  }
}

/// A product of few rows with a panel of weights.
template <class W>
void multiply_weights(const WeightProduct<float>& product) {
  constexpr int rows = is_grouped<W> ? 4 : tile_rows;  // of a tile; 8 would take longer to compile
  for (int output = 0; output < panel_outputs; output += tile_vectors * lanes<float>) {
    Index row = 0;
    for (; row + rows <= product.rows; row += rows) weight_tile<W, rows>(product, row, output);
    for (; row < product.rows; ++row) weight_tile<W, 1>(product, row, output);
  }
}

/// Rounds a row of n inputs to 8 bits, and fills its last group with zeros.
inline void round_inputs(InputGroup* to, const float* from, Index n) {
  constexpr std::int32_t infinity = 0x7F800000, least = 0x0D800000, nan = 0x7FC00000;  // least: 2^-100, taken for 0
  for (; n > 0; n -= group_inputs, from += group_inputs, ++to) {
    alignas(64) float last[static_cast<std::size_t>(group_inputs)] = {};
    if (n < group_inputs) __builtin_memcpy(last, from, static_cast<std::size_t>(n) * sizeof(float));
    const float* const x = n < group_inputs ? last : from;
    const std::int32_t largest = largest_magnitude(x, group_inputs);
    const bool rounds = largest > least && largest < infinity;
    std::int32_t scale = largest < infinity ? 0 : nan;
    if (rounds)  // to 16 bits, upwards, so that no number passes 127
      scale = (__builtin_bit_cast(std::int32_t, __builtin_bit_cast(float, largest) / 127) + 0xFF) & ~0xFF;
    const float factor = rounds ? 1 / __builtin_bit_cast(float, scale) : 0.F;
    Bits<float> sums = {};
    for (int i = 0; i < static_cast<int>(group_inputs); i += lanes<float>) {
      const Bits<float> numbers = rounds ? nearest(load(x + i) * factor) : Bits<float>{};
      store_bytes(to->number + i, numbers);
      sums += numbers;
    }
    to->sum = 0;
    for (int i = 0; i < lanes<float>; ++i) to->sum += sums[i];
    __builtin_memcpy(&to->scale, &scale, sizeof scale);
  }
}
