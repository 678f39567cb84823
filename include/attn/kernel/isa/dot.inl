// Part of body.inl: products of inputs and weights of 8 and 4 bits, by dot products of bytes. Only for CPUs that have the
// instruction, which is named in assembly: a function's target need not include it, and no region of its own is compiled.

#if defined(__x86_64__) && ATTN_VECTOR_BYTES >= 32
#define ATTN_DOT_INSTRUCTION
#define ATTN_DOT_TARGET
/// sum + the products of four numbers from 0 to 255 and four from -128 to 127, in each lane.
ATTN_INLINE Bits<float> add_dot(Bits<float> sum, Bits<float> weights, Bits<float> inputs) {
#if ATTN_VECTOR_BYTES == 64
  __asm__("vpdpbusd {%2, %1, %0|%0, %1, %2}" : "+v"(sum) : "v"(weights), "v"(inputs));
#else
  __asm__("%{vex%} vpdpbusd {%2, %1, %0|%0, %1, %2}" : "+x"(sum) : "x"(weights), "x"(inputs));
#endif
  return sum;
}
/// What numbers of W are too large by, as add_dot takes them.
template <class W>
inline constexpr int dot_zero = W::zero;
template <class W>
ATTN_INLINE Bits<float> dot_words(const std::byte* from) {
  return load_group_words(from);
}
#elif defined(__aarch64__)
#define ATTN_DOT_INSTRUCTION
#define ATTN_DOT_TARGET ATTN_EXTENSION("dotprod")
/// sum + the products of four numbers from -128 to 127 and four more, in each lane.
ATTN_INLINE Bits<float> add_dot(Bits<float> sum, Bits<float> weights, Bits<float> inputs) {
  __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(weights), "w"(inputs));
  return sum;
}
template <class W>
inline constexpr int dot_zero = std::is_same_v<W, Int8> ? 0 : W::zero;
template <class W>
ATTN_INLINE Bits<float> dot_words(const std::byte* from) {
  const Bits<float> words = load_group_words(from);
  if constexpr (std::is_same_v<W, Int8>) return words ^ static_cast<std::int32_t>(0x80808080);  // less 128
  return words;
}
#endif

#if defined(ATTN_DOT_INSTRUCTION)
/// Rows of a tile: sums of integers and of floats are both in registers, 12 + 12 of 32 or 6 + 6 of 16.
inline constexpr int dot_rows = ATTN_VECTOR_REGISTERS == 32 ? 4 : 2;

/// Adds `weights`, words of four numbers, times those of each row's `quad`.
template <int R, int N>
ATTN_INLINE void add_quad(Bits<float> (&sum)[std::size_t{R}][std::size_t{N}],
                          const Bits<float> (&weights)[std::size_t{N}], const InputGroup* const (&x)[std::size_t{R}],
                          int quad) {
  ATTN_UNROLL
  for (int r = 0; r < R; ++r) {
    std::int32_t inputs;
    __builtin_memcpy(&inputs, x[r]->number + 4 * quad, sizeof inputs);
    ATTN_UNROLL
    for (int n = 0; n < N; ++n) sum[r][n] = add_dot(sum[r][n], weights[n], inputs - Bits<float>{});
  }
}

/// One tile, R rows by N vectors of outputs. Group by group, whole numbers are summed up exactly and join a sum in float.
template <class W, int R, int N>
ATTN_DOT_TARGET __attribute__((noinline)) void dot_tile(const WeightProduct<InputGroup>& product, Index row,
                                                        int output) {
  const InputGroup* x[std::size_t{R}];
  ATTN_UNROLL
  for (int r = 0; r < R; ++r) x[r] = product.x + (row + r) * product.x_row;
  const std::byte* word = product.weights.values + output * 4;
  const Half* scales = product.weights.scales + output;
  const char* prefetch = row == 0 && output == 0 ? product.prefetch : nullptr;
  Vec<float> sum[std::size_t{R}][std::size_t{N}] = {};
  for (Index group = 0; group < product.inputs; ++group, scales += panel_outputs) {
    Bits<float> numbers[std::size_t{R}][std::size_t{N}];
    ATTN_UNROLL
    for (int r = 0; r < R; ++r) {
      const std::int32_t start = -dot_zero<W> * x[r]->sum;
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) numbers[r][n] = start - Bits<float>{};
    }
    for (int w = 0; w < weight_bits<W>; ++w, word += panel_outputs * 4) {
      Bits<float> words[std::size_t{N}];
      ATTN_UNROLL
      for (int n = 0; n < N; ++n) words[n] = dot_words<W>(word + n * static_cast<int>(sizeof(Bits<float>)));
      prefetch_words(prefetch);
      if constexpr (weight_bits<W> == 8) {
        add_quad<R, N>(numbers, words, x, w);
      } else {
        Bits<float> half[std::size_t{N}];
        ATTN_UNROLL
        for (int n = 0; n < N; ++n) half[n] = words[n] & 0x0F0F0F0F;
        add_quad<R, N>(numbers, half, x, 2 * w);
        ATTN_UNROLL
        for (int n = 0; n < N; ++n) half[n] = (words[n] >> 4) & 0x0F0F0F0F;
        add_quad<R, N>(numbers, half, x, 2 * w + 1);
      }
    }
    ATTN_UNROLL
    for (int n = 0; n < N; ++n) {
      const Vec<float> scale = load(scales + n * lanes<float>);
      ATTN_UNROLL
      for (int r = 0; r < R; ++r)
        sum[r][n] =
            multiply_add(__builtin_convertvector(numbers[r][n], Vec<float>) * scale, splat(x[r]->scale), sum[r][n]);
    }
    ATTN_UNROLL
    for (int r = 0; r < R; ++r) ++x[r];
  }
  add_sums<R, N>(product, row, output, sum);
}

/// A product with a panel of weights.
template <class W>
void multiply_groups(const WeightProduct<InputGroup>& product) {
  for (int output = 0; output < panel_outputs; output += tile_vectors * lanes<float>) {
    Index row = 0;
    for (; row + dot_rows <= product.rows; row += dot_rows) dot_tile<W, dot_rows, tile_vectors>(product, row, output);
    for (; row < product.rows; ++row) dot_tile<W, 1, tile_vectors>(product, row, output);
  }
}
#endif

/// The function above; null for formats without groups, and where there is no instruction.
template <class W>
constexpr GroupProduct group_product() {
#if defined(ATTN_DOT_INSTRUCTION)
  if constexpr (is_grouped<W>) return multiply_groups<W>;
#endif
  return nullptr;
}
#undef ATTN_DOT_INSTRUCTION
#undef ATTN_DOT_TARGET
