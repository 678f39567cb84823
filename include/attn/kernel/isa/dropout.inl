// Part of body.inl: dropout's random numbers, many at a time.

typedef std::uint64_t Wide __attribute__((vector_size(ATTN_VECTOR_BYTES)));

/// The products of the lower halves of each pair of elements. g++ is given the instruction by name: it would multiply 64 bits by
/// 64, which takes three times as long.
ATTN_INLINE Wide multiply_low_halves(Wide a, Wide b) {
#if defined(__clang__) || !defined(__x86_64__)
  return (a & 0xFFFFFFFFU) * (b & 0xFFFFFFFFU);
#elif ATTN_VECTOR_BYTES == 64
  typedef int Pairs __attribute__((vector_size(64)));
  typedef long long Products __attribute__((vector_size(64)));
  return reinterpret_cast<Wide>(__builtin_ia32_pmuludq512_mask(reinterpret_cast<Pairs>(a), reinterpret_cast<Pairs>(b),
                                                               Products{}, static_cast<unsigned char>(-1)));
#elif ATTN_VECTOR_BYTES == 32
  typedef int Pairs __attribute__((vector_size(32)));
  return reinterpret_cast<Wide>(__builtin_ia32_pmuludq256(reinterpret_cast<Pairs>(a), reinterpret_cast<Pairs>(b)));
#else
  typedef int Pairs __attribute__((vector_size(16)));
  return reinterpret_cast<Wide>(__builtin_ia32_pmuludq128(reinterpret_cast<Pairs>(a), reinterpret_cast<Pairs>(b)));
#endif
}

/// x times a factor: the lower and the upper halves of the products.
ATTN_INLINE void multiply_wide(Simd<float>::U x, std::uint32_t factor, Simd<float>::U& low, Simd<float>::U& high) {
  const Wide pairs = reinterpret_cast<Wide>(x), factors = factor - Wide{}, lower = 0xFFFFFFFFU - Wide{};
  const Wide even = multiply_low_halves(pairs, factors), odd = multiply_low_halves(pairs >> 32, factors);
  low = reinterpret_cast<Simd<float>::U>((even & lower) | odd << 32);
  high = reinterpret_cast<Simd<float>::U>(even >> 32 | (odd & ~lower));
}

/// What dropout multiplies 64 elements by, its scale or 0: factors[w * 16 + i] is for the w-th of four columns from
/// `first` on, 16 times, each time some columns and rows further.
template <class A>
void dropout_factors(A* factors, const DropoutRule& rule, DropoutPlace first, DropoutPlace step) {
  using U = Simd<float>::U;
  constexpr int n = 16, width = lanes<float>;
  std::uint32_t columns[n], rows[n], words[4][n];
  for (std::uint32_t i = 0; i < n; ++i) {
    columns[i] = first.column / 4 + i * (step.column / 4);
    rows[i] = first.row + i * step.row;
  }
  for (int i = 0; i < n; i += width) {
    U c[4] = {{}, {}, first.plane - U{}, rule.call - U{}};
    __builtin_memcpy(&c[0], columns + i, sizeof(U));
    __builtin_memcpy(&c[1], rows + i, sizeof(U));
    auto key = rule.key();
    for (int round = 0; round < 10; ++round, key = detail::philox_next(key)) {
      U a, b, a_high, b_high;
      multiply_wide(c[0], 0xD2511F53U, a, a_high);
      multiply_wide(c[2], 0xCD9E8D57U, b, b_high);
      c[0] = b_high ^ c[1] ^ key[0], c[1] = b;
      c[2] = a_high ^ c[3] ^ key[1], c[3] = a;
    }
    for (int w = 0; w < 4; ++w) __builtin_memcpy(words[w] + i, &c[w], sizeof(U));
  }
  const auto last_dropped = static_cast<std::uint32_t>(rule.threshold - 1);
  const auto scale = static_cast<A>(rule.scale);
  for (int w = 0; w < 4; ++w)
    for (int i = 0; i < n; ++i) factors[w * n + i] = words[w][i] > last_dropped ? scale : A{0};
}
