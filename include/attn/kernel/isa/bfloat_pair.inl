// Part of body.inl: pairs of bfloat16 as operands of the matrix tile. Only for CPUs that have the instruction, which is named in
// assembly, as in dot.inl: functions that use it are marked ATTN_PAIR_TARGET.

#if defined(__x86_64__) && ATTN_VECTOR_BYTES == 64
#define ATTN_PAIR_INSTRUCTION
#define ATTN_PAIR_TARGET
#elif defined(__aarch64__)
#define ATTN_PAIR_INSTRUCTION
#define ATTN_PAIR_TARGET ATTN_EXTENSION("bf16")
#endif

#if defined(ATTN_PAIR_INSTRUCTION)
template <>
struct Simd<BfloatPair> {
  typedef Simd<float>::I V;
};
ATTN_INLINE Vec<BfloatPair> splat(BfloatPair x) { return __builtin_bit_cast(std::int32_t, x) - Vec<BfloatPair>{}; }
/// z + the products of two numbers and two others, in each lane.
ATTN_INLINE Vec<float> multiply_add(Vec<BfloatPair> x, Vec<BfloatPair> y, Vec<float> z) {
#if defined(__x86_64__)
  __asm__("vdpbf16ps {%2, %1, %0|%0, %1, %2}" : "+v"(z) : "v"(y), "v"(x));
#else
  __asm__("bfdot %0.4s, %1.8h, %2.8h" : "+w"(z) : "w"(x), "w"(y));
#endif
  return z;
}
/// Two vectors rounded to bfloat16, to nearest, ties to even, and lane by lane side by side. x86 takes subnormal numbers for 0.
ATTN_INLINE Vec<BfloatPair> round_to_pairs(Vec<float> first, Vec<float> second) {
  Vec<BfloatPair> pairs;
#if defined(__x86_64__)
  typedef std::int16_t Words __attribute__((vector_size(64)));
  constexpr Words side_by_side{0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                               8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  Words words;
  __asm__("vcvtne2ps2bf16 {%1, %2, %0|%0, %2, %1}" : "=v"(words) : "v"(first), "v"(second));
  __asm__("vpermw {%1, %2, %0|%0, %2, %1}" : "=v"(pairs) : "v"(words), "v"(side_by_side));
#else
  Vec<BfloatPair> of_first, of_second;
  __asm__("bfcvtn %0.4h, %1.4s" : "=w"(of_first) : "w"(first));
  __asm__("bfcvtn %0.4h, %1.4s" : "=w"(of_second) : "w"(second));
  __asm__("zip1 %0.8h, %1.8h, %2.8h" : "=w"(pairs) : "w"(of_first), "w"(of_second));
#endif
  return pairs;
}
#endif
