// Part of body.inl: a cap on scores, before masks and score functions.

/// cap tanh(x / cap) of n scores, n in whole vectors and at most 8 of them; and, where asked for, the derivative of each.
template <class A>
ATTN_INLINE void cap_vectors(A* scores, A* slopes, Index n, A cap) {
  alignas(64) A x[std::size_t{8 * lanes<A>}];  // a copy, which no other memory overlaps, so that loops become vectors
  const Vec<A> inverse = splat(1 / cap);
  for (Index i = 0; i < n; i += lanes<A>) store(x + i, load(scores + i) * inverse);
  for (Index i = 0; i < n; ++i) x[i] = detail::tanh(x[i]);
  for (Index i = 0; i < n; i += lanes<A>) {
    const Vec<A> y = load(x + i);
    store(scores + i, y * cap);
    if (slopes != nullptr) store(slopes + i, 1 - y * y);
  }
}
/// The same of float scores that are all small, by a polynomial alone: a sixth of the time. Returns false where some are not.
ATTN_INLINE bool cap_small_vectors(float* scores, float* slopes, Index n, float cap) {
  constexpr Index step = lanes<float>;
  const Vec<float> inverse = splat(1 / cap);
  const Bits<float> sign = bits<float>(splat(-0.F));
  Vec<float> largest = {};
  for (Index i = 0; i < n; i += step)
    largest = larger<float>(largest, from_bits<float>(bits<float>(load(scores + i)) & ~sign));
  float most = 0;
  for (int i = 0; i < step; ++i) most = largest[i] > most ? largest[i] : most;
  if (!(most < detail::small_tanh * cap)) return false;
  for (Index i = 0; i < n; i += step) {
    const Vec<float> x = load(scores + i) * inverse, square = x * x;
    Vec<float> p = square * -5.70498872745e-3F + 2.06390887954e-2F;
    p = p * square - 5.37397155531e-2F;
    p = p * square + 1.33314422036e-1F;
    p = p * square - 3.33332819422e-1F;
    const Vec<float> y = p * square * x + x;
    store(scores + i, y * cap);
    if (slopes != nullptr) store(slopes + i, 1 - y * y);
  }
  return true;
}

/// cap tanh(x / cap) of n scores in whole vectors; and, where asked for, the derivative of each.
template <class A>
void cap_scores(A* scores, A* slopes, Index n, A cap) {
  constexpr Index most = 8 * lanes<A>;
  for (Index first = 0; first < n; first += most) {
    const Index count = n - first < most ? n - first : most;
    A* const to = slopes != nullptr ? slopes + first : nullptr;
    if constexpr (std::is_same_v<A, float>) {
      if (cap_small_vectors(scores + first, to, count, cap)) continue;
    }
    cap_vectors(scores + first, to, count, cap);
  }
}
