// Part of body.inl: the vector type.

template <class A>
struct Simd;
template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(ATTN_VECTOR_BYTES)));         // lanes
  typedef std::int32_t I __attribute__((vector_size(ATTN_VECTOR_BYTES)));  // masks (0 or -1), bits
  typedef std::uint32_t U __attribute__((vector_size(ATTN_VECTOR_BYTES)));
  typedef std::uint16_t Narrow __attribute__((vector_size(ATTN_VECTOR_BYTES / 2)));
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
  return round_up(n, lanes<A>);
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

/// x y + z, rounded once where the instruction set can. g++ for x86 is given the instruction by name: tuned for no CPU in
/// particular, it leaves some sums in two instructions (g++ 13), and a row alone would round unlike the same row among others.
#if ATTN_FUSED_MULTIPLY && defined(__x86_64__) && !defined(__clang__)
ATTN_INLINE Vec<float> multiply_add(Vec<float> x, Vec<float> y, Vec<float> z) {
#if ATTN_VECTOR_BYTES == 64
  return __builtin_ia32_vfmaddps512_mask(x, y, z, -1, 4);  // 4: the CPU's rounding mode
#elif ATTN_VECTOR_BYTES == 32
  return __builtin_ia32_vfmaddps256(x, y, z);
#else
  return __builtin_ia32_vfmaddps(x, y, z);
#endif
}
ATTN_INLINE Vec<double> multiply_add(Vec<double> x, Vec<double> y, Vec<double> z) {
#if ATTN_VECTOR_BYTES == 64
  return __builtin_ia32_vfmaddpd512_mask(x, y, z, static_cast<unsigned char>(-1), 4);
#elif ATTN_VECTOR_BYTES == 32
  return __builtin_ia32_vfmaddpd256(x, y, z);
#else
  return __builtin_ia32_vfmaddpd(x, y, z);
#endif
}
#else
template <class V>
ATTN_INLINE V multiply_add(V x, V y, V z) {
  return x * y + z;
}
#endif

/// Keeps the compiler from simplifying across v, which -ffast-math would do to (x + big) - big.
template <class V>
ATTN_INLINE V opaque(V v) {
  __asm__("" : "+" ATTN_VECTOR_CONSTRAINT(v));
  return v;
}

/// x[row][i] *= factor[i], n in whole vectors. Returns whether all products are finite, judged by their bits.
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
