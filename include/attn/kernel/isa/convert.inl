// Part of body.inl: elements stored in 16 bits, and their conversion.

// g++ is given the instruction by name: it takes a conversion apart into halves of vectors, or elements one by one (2 to 10 times as long).
#if ((defined(__x86_64__) && ATTN_VECTOR_BYTES >= 32) || defined(__aarch64__)) && !defined(__clang__)
#define ATTN_NAMED_CONVERSIONS
#endif
inline constexpr auto all_lanes = static_cast<unsigned short>(-1);

/// A vector of numbers of 16 bits without a sign.
ATTN_INLINE Bits<float> load_words(const void* from) {
  Simd<float>::Narrow narrow;
  __builtin_memcpy(&narrow, from, sizeof narrow);
#if !defined(ATTN_NAMED_CONVERSIONS)
  return __builtin_convertvector(narrow, Bits<float>);
#elif defined(__aarch64__)
  Bits<float> wide;
  __asm__("uxtl %0.4s, %1.4h" : "=w"(wide) : "w"(narrow));
  return wide;
#elif ATTN_VECTOR_BYTES == 64
  typedef short Words __attribute__((vector_size(32)));
  return __builtin_ia32_pmovzxwd512_mask(reinterpret_cast<Words>(narrow), Bits<float>{}, all_lanes);
#else
  typedef short Words __attribute__((vector_size(16)));
  return __builtin_ia32_pmovzxwd256(reinterpret_cast<Words>(narrow));
#endif
}
/// A vector of numbers of 8 bits with a sign.
ATTN_INLINE Bits<float> load_bytes(const void* from) {
#if !defined(ATTN_NAMED_CONVERSIONS)
  typedef std::int8_t Bytes __attribute__((vector_size(ATTN_VECTOR_BYTES / 4)));
  Bytes narrow;
  __builtin_memcpy(&narrow, from, sizeof narrow);
  return __builtin_convertvector(narrow, Bits<float>);
#elif defined(__aarch64__)
  float narrow;  // four bytes in a vector register
  __builtin_memcpy(&narrow, from, sizeof narrow);
  Bits<float> wide;
  __asm__("sxtl %0.8h, %1.8b\n\tsxtl %0.4s, %0.4h" : "=w"(wide) : "w"(narrow));
  return wide;
#else
  typedef char Bytes __attribute__((vector_size(16)));
  Bytes narrow = {};
  __builtin_memcpy(&narrow, from, lanes<float>);
#if ATTN_VECTOR_BYTES == 64
  return __builtin_ia32_pmovsxbd512_mask(narrow, Bits<float>{}, all_lanes);
#else
  return __builtin_ia32_pmovsxbd256(narrow);
#endif
#endif
}
/// The lower 8 bits of each lane.
ATTN_INLINE void store_bytes(void* to, Bits<float> numbers, Index n = lanes<float>) {
  typedef std::int16_t Words __attribute__((vector_size(ATTN_VECTOR_BYTES / 2)));
  typedef std::int8_t Bytes __attribute__((vector_size(ATTN_VECTOR_BYTES / 4)));
  const Bytes bytes = __builtin_convertvector(__builtin_convertvector(numbers, Words), Bytes);
  __builtin_memcpy(to, &bytes, static_cast<std::size_t>(n));
}
#undef ATTN_NAMED_CONVERSIONS

// Half and bfloat16 are converted where they are copied or read, by the CPU or by integer arithmetic: the results are the same.
ATTN_INLINE Vec<float> load(const Bfloat16* from) { return from_bits<float>(load_words(from) << 16); }
ATTN_INLINE void store(Bfloat16* to, Vec<float> v) {
  const Bits<float> b = bits<float>(v);
  const Bits<float> rounded = (b + 0x7FFF + ((b >> 16) & 1)) >> 16;  // to nearest, ties to even
  const Bits<float> nan = (b >> 16) | 0x40;
  const Simd<float>::Narrow narrow =
      __builtin_convertvector((b & 0x7FFFFFFF) > 0x7F800000 ? nan : rounded, Simd<float>::Narrow);
  __builtin_memcpy(to, &narrow, sizeof narrow);
}
#if defined(ATTN_REGION_HAS_TARGET)
// The CPU's own conversion, here and on AArch64: it keeps subnormal numbers whatever flush-to-zero says.
ATTN_INLINE Vec<float> load(const Half* from) {
#if ATTN_VECTOR_BYTES == 64
  typedef short Halves __attribute__((vector_size(32)));
  Halves narrow;
  __builtin_memcpy(&narrow, from, sizeof narrow);
#if defined(__clang__)
  constexpr unsigned short all = 0xFFFF;
#else
  constexpr short all = -1;  // as g++ declares it
#endif
  return __builtin_ia32_vcvtph2ps512_mask(narrow, Vec<float>{}, all, 4);  // 4: the CPU's rounding mode
#else
  typedef short Halves __attribute__((vector_size(16)));
  Halves narrow;
  __builtin_memcpy(&narrow, from, sizeof narrow);
  return __builtin_ia32_vcvtph2ps256(narrow);
#endif
}
ATTN_INLINE void store(Half* to, Vec<float> v) {
#if ATTN_VECTOR_BYTES == 64
  typedef short Halves __attribute__((vector_size(32)));
  const Halves narrow = __builtin_ia32_vcvtps2ph512_mask(v, 0, Halves{}, all_lanes);  // 0: to nearest, ties to even
#else
  const auto narrow = __builtin_ia32_vcvtps2ph256(v, 0);
#endif
  __builtin_memcpy(to, &narrow, sizeof narrow);
}
#else
ATTN_INLINE Vec<float> load(const Half* from) {
#if defined(__aarch64__)
  Simd<float>::Narrow narrow;
  __builtin_memcpy(&narrow, from, sizeof narrow);
  Vec<float> numbers;
  __asm__("fcvtl %0.4s, %1.4h" : "=w"(numbers) : "w"(narrow));
  return numbers;
#else
  const Bits<float> wide = load_words(from);
  const Bits<float> sign = (wide & 0x8000) << 16, magnitude = (wide & 0x7FFF) << 13;
  // The exponent is 112 too small. A subnormal becomes 2^-14 (1 + m), less 2^-14: no operand or result is subnormal, so
  // that flush-to-zero, which -Ofast programs set, leaves it alone. Infinity and NaN keep all exponent bits.
  const Bits<float> normal = magnitude + 0x38000000;
  const Bits<float> subnormal = bits<float>(opaque(from_bits<float>(normal + 0x00800000)) - splat(0x1p-14F));
  const Bits<float> special = magnitude | 0x7F800000;
  const Bits<float> finite = magnitude < 0x00800000 ? subnormal : normal;
  return from_bits<float>(sign | (magnitude >= 0x0F800000 ? special : finite));
#endif
}
ATTN_INLINE void store(Half* to, Vec<float> v) {
  const Bits<float> b = bits<float>(v), sign = (b >> 16) & 0x8000, magnitude = b & 0x7FFFFFFF;
  const Bits<float> normal = (magnitude - 0x38000000 + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
  // Below 2^-14, adding 0.5 leaves the half's denormal in the narrow bits, rounded by the addition.
  const Bits<float> denormal = bits<float>(opaque(from_bits<float>(magnitude) + splat(0.5F))) - 0x3F000000;
  Bits<float> half = magnitude < 0x38800000 ? denormal : normal;
  half = magnitude >= 0x477FF000 ? 0x7C00 - Bits<float>{} : half;  // 65520 and more round to infinity
  half = magnitude > 0x7F800000 ? 0x7E00 - Bits<float>{} : half;   // NaN
  const Simd<float>::Narrow narrow = __builtin_convertvector(half | sign, Simd<float>::Narrow);
  __builtin_memcpy(to, &narrow, sizeof narrow);
}
#endif

/// n elements from T to the type they are computed in, or back. n need not be a multiple of anything.
template <class To, class From>
__attribute__((noinline)) void convert(To* to, const From* from, Index n) {
  using A = std::conditional_t<std::is_same_v<From, double>, double, float>;
  constexpr Index step = lanes<A>;
  Index i = 0;
  for (; i + step <= n; i += step) store(to + i, load(from + i));
  if (i < n) {
    alignas(64) From in[std::size_t{step}] = {};
    alignas(64) To out[std::size_t{step}];
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
