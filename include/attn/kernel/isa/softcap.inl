// Part of body.inl: a cap on scores, before masks and score functions.

/// x = cap tanh(x / cap) of n scores in whole vectors; and, where asked for, the derivative of each.
template <class A>
void cap_scores(A* scores, A* slopes, Index n, A cap) {
  constexpr int width = 2 * lanes<A>;
  const A inverse = 1 / cap;
  for (Index first = 0; first < n; first += width) {
    const int count = n - first < width ? lanes<A> : width;
    alignas(64) A x[std::size_t{width}] = {};  // a copy, which no other memory overlaps: loops over it become vectors
    __builtin_memcpy(x, scores + first, static_cast<std::size_t>(count) * sizeof(A));
    for (int i = 0; i < width; ++i) x[i] = detail::tanh(x[i] * inverse);
    for (int i = 0; i < count && slopes != nullptr; ++i) slopes[first + i] = 1 - x[i] * x[i];
    for (int i = 0; i < count; ++i) scores[first + i] = cap * x[i];
  }
}
