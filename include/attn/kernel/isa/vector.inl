// Part of body.inl: the vector type. Included once per instruction set, inside its namespace; no #include here.

template <class A>
struct Simd;
template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(ATTN_VECTOR_BYTES)));         // lanes
  typedef std::int32_t I __attribute__((vector_size(ATTN_VECTOR_BYTES)));  // masks (0 or -1), bits
  typedef std::uint32_t U __attribute__((vector_size(ATTN_VECTOR_BYTES)));
  typedef std::uint16_t Low __attribute__((vector_size(ATTN_VECTOR_BYTES / 2)));
  static constexpr int lanes = ATTN_VECTOR_BYTES / 4;
};
template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(ATTN_VECTOR_BYTES)));
  typedef std::int64_t I __attribute__((vector_size(ATTN_VECTOR_BYTES)));
  typedef std::uint64_t U __attribute__((vector_size(ATTN_VECTOR_BYTES)));
  static constexpr int lanes = ATTN_VECTOR_BYTES / 8;
};
template <class A>
using Vec = typename Simd<A>::V;
template <class A>
using Bits = typename Simd<A>::I;
template <class A>
inline constexpr int lanes = Simd<A>::lanes;

/// n rounded up to whole vectors.
template <class A>
ATTN_INLINE Index padded(Index n) {
  return (n + lanes<A> - 1) / lanes<A> * lanes<A>;
}

template <class A>
ATTN_INLINE Vec<A> load(const A* from) {
  Vec<A> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
template <class A>
ATTN_INLINE void store(A* to, Vec<A> v) {
  __builtin_memcpy(to, &v, sizeof v);
}
template <class A>
ATTN_INLINE Vec<A> splat(A x) {
  return x - Vec<A>{};  // x - 0 is x, signed zeros and NaN included: compilers make it a broadcast
}
template <class A>
ATTN_INLINE Bits<A> bits(Vec<A> v) {
  return reinterpret_cast<Bits<A>>(v);
}
template <class A>
ATTN_INLINE Vec<A> from_bits(Bits<A> b) {
  return reinterpret_cast<Vec<A>>(b);
}

/// Keeps the compiler from simplifying across v, which -ffast-math would do to (x + big) - big.
template <class V>
ATTN_INLINE V opaque(V v) {
  __asm__("" : "+" ATTN_VECTOR_CONSTRAINT(v));
  return v;
}

// Half and bfloat16. They are converted where keys, values and weights are brought into scratch memory, so plain
// integer arithmetic is fast enough on every instruction set.
ATTN_INLINE Vec<float> load(const Bfloat16* from) {
  Simd<float>::Low low;
  __builtin_memcpy(&low, from, sizeof low);
  return from_bits<float>(__builtin_convertvector(low, Bits<float>) << 16);
}
ATTN_INLINE Vec<float> load(const Half* from) {
  Simd<float>::Low low;
  __builtin_memcpy(&low, from, sizeof low);
  const Bits<float> wide = __builtin_convertvector(low, Bits<float>);
  const Bits<float> sign = (wide & 0x8000) << 16, magnitude = (wide & 0x7FFF) << 13;
  // The exponent is 112 too small. A subnormal becomes 2^-14 (1 + m), less 2^-14: no operand or result is subnormal, so
  // that flush-to-zero, which -Ofast programs set, leaves it alone. Infinity and NaN keep all exponent bits.
  const Bits<float> normal = magnitude + 0x38000000;
  const Bits<float> subnormal = bits<float>(opaque(from_bits<float>(normal + 0x00800000)) - splat(0x1p-14F));
  const Bits<float> special = magnitude | 0x7F800000;
  const Bits<float> finite = magnitude < 0x00800000 ? subnormal : normal;
  return from_bits<float>(sign | (magnitude >= 0x0F800000 ? special : finite));
}
ATTN_INLINE void store(Bfloat16* to, Vec<float> v) {
  const Bits<float> b = bits<float>(v);
  const Bits<float> rounded = (b + 0x7FFF + ((b >> 16) & 1)) >> 16;  // to nearest, ties to even
  const Bits<float> nan = (b >> 16) | 0x40;
  const Simd<float>::Low low = __builtin_convertvector((b & 0x7FFFFFFF) > 0x7F800000 ? nan : rounded, Simd<float>::Low);
  __builtin_memcpy(to, &low, sizeof low);
}
ATTN_INLINE void store(Half* to, Vec<float> v) {
  const Bits<float> b = bits<float>(v), sign = (b >> 16) & 0x8000, magnitude = b & 0x7FFFFFFF;
  const Bits<float> normal = (magnitude - 0x38000000 + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
  // Below 2^-14, adding 0.5 leaves the half's denormal in the low bits, rounded by the addition.
  const Bits<float> denormal = bits<float>(opaque(from_bits<float>(magnitude) + splat(0.5F))) - 0x3F000000;
  Bits<float> half = magnitude < 0x38800000 ? denormal : normal;
  half = magnitude >= 0x477FF000 ? 0x7C00 - Bits<float>{} : half;  // 65520 and more round to infinity
  half = magnitude > 0x7F800000 ? 0x7E00 - Bits<float>{} : half;   // NaN
  const Simd<float>::Low low = __builtin_convertvector(half | sign, Simd<float>::Low);
  __builtin_memcpy(to, &low, sizeof low);
}

/// n elements from T to the type they are computed in, or back. n need not be a multiple of anything.
template <class To, class From>
__attribute__((noinline)) void convert(To* to, const From* from, Index n) {
  using A = std::conditional_t<std::is_same_v<From, double>, double, float>;
  constexpr Index step = lanes<A>;
  Index i = 0;
  for (; i + step <= n; i += step) store(to + i, load(from + i));
  if (i < n) {
    From in[std::size_t{step}] = {};
    To out[std::size_t{step}];
    __builtin_memcpy(in, from + i, static_cast<std::size_t>(n - i) * sizeof(From));
    store(out, load(in));
    __builtin_memcpy(to + i, out, static_cast<std::size_t>(n - i) * sizeof(To));
  }
}

/// The same for `rows` rows of n.
template <class To, class From>
void convert_rows(To* to, Index to_row, const From* from, Index from_row, Index rows, Index n) {
  for (; rows > 0; --rows, to += to_row, from += from_row) convert(to, from, n);
}

/// x[row][i] *= factor[i], n a multiple of `lanes`. Returns whether all products are finite, judged by their bits.
template <class A>
bool scale_rows(A* x, Index x_row, Index rows, Index n, const A* factor) {
  const Bits<A> infinity = bits<A>(splat(std::numeric_limits<A>::infinity()));
  const auto all_but_sign = reinterpret_cast<Bits<A>>(~typename Simd<A>::U{} >> 1);
  Bits<A> largest = {};
  for (; rows > 0; --rows, x += x_row)
    for (Index i = 0; i < n; i += lanes<A>) {
      const Vec<A> product = load(x + i) * load(factor + i);
      store(x + i, product);
      const Bits<A> magnitude = bits<A>(product) & all_but_sign;
      largest = magnitude > largest ? magnitude : largest;
    }
  const Bits<A> finite = largest < infinity;
  bool all = true;
  for (int i = 0; i < lanes<A>; ++i) all = all && finite[i] != 0;
  return all;
}

// Transposition of a lanes x lanes block by perfect shuffles: log2(lanes) rounds, one shuffle per vector each.
template <class A, int... i>
ATTN_INLINE void interleave(Vec<A> a, Vec<A> b, Vec<A>& low, Vec<A>& high, std::integer_sequence<int, i...>) {
  constexpr int n = lanes<A>;
#if __has_builtin(__builtin_shufflevector)
  low = __builtin_shufflevector(a, b, (i % 2 == 0 ? i / 2 : n + i / 2)...);
  high = __builtin_shufflevector(a, b, (i % 2 == 0 ? (n + i) / 2 : n + (n + i) / 2)...);
#else  // g++ 11
  low = __builtin_shuffle(a, b, Bits<A>{(i % 2 == 0 ? i / 2 : n + i / 2)...});
  high = __builtin_shuffle(a, b, Bits<A>{(i % 2 == 0 ? (n + i) / 2 : n + (n + i) / 2)...});
#endif
}
template <class A>
ATTN_INLINE void transpose(Vec<A> (&rows)[lanes<A>]) {
  constexpr int n = lanes<A>;
  ATTN_UNROLL
  for (int round = 1; round < n; round *= 2) {
    Vec<A> next[std::size_t{n}];
    ATTN_UNROLL
    for (int i = 0; i < n / 2; ++i)
      interleave<A>(rows[i], rows[i + n / 2], next[2 * i], next[2 * i + 1], std::make_integer_sequence<int, n>{});
    ATTN_UNROLL
    for (int i = 0; i < n; ++i) rows[i] = next[i];
  }
}
