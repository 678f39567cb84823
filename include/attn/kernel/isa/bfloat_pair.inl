// Part of body.inl: pairs of bfloat16 as operands of the matrix tile. Only for CPUs that have the instruction, which is named in
// assembly, as in dot.inl.

#if defined(__x86_64__) && ATTN_VECTOR_BYTES == 64
template <>
struct Simd<BfloatPair> {
  typedef Simd<float>::I V;
};
ATTN_INLINE Vec<BfloatPair> splat(BfloatPair x) { return __builtin_bit_cast(std::int32_t, x) - Vec<BfloatPair>{}; }
/// z + the products of two numbers and two others, in each lane.
ATTN_INLINE Vec<float> multiply_add(Vec<BfloatPair> x, Vec<BfloatPair> y, Vec<float> z) {
  __asm__("vdpbf16ps {%2, %1, %0|%0, %1, %2}" : "+v"(z) : "v"(y), "v"(x));
  return z;
}
/// Two vectors rounded to bfloat16, to nearest, ties to even, and lane by lane side by side. Subnormal numbers become 0.
ATTN_INLINE Vec<BfloatPair> round_to_pairs(Vec<float> first, Vec<float> second) {
  typedef std::int16_t Words __attribute__((vector_size(64)));
  constexpr Words side_by_side{0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                               8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  Words words;
  __asm__("vcvtne2ps2bf16 {%1, %2, %0|%0, %2, %1}" : "=v"(words) : "v"(first), "v"(second));
  Vec<BfloatPair> pairs;
  __asm__("vpermw {%1, %2, %0|%0, %2, %1}" : "=v"(pairs) : "v"(words), "v"(side_by_side));
  return pairs;
}
#endif
