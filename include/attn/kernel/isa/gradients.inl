// Part of body.inl: what the backward pass of attention does to scores.

/// The logarithm of the least weight that backward does not take for 0. Products with smaller ones, 1e-26 in float, would
/// be subnormal, with which CPUs compute slowly: 2.6 times the time of a pass over scores that fall off with distance.
template <class A>
inline constexpr A least_log_weight = std::is_same_v<A, float> ? -60 : -600;

/// One panel; whether weights were dropped and whether the score function has slopes are known when it is compiled.
template <class A, bool dropped, bool sloped>
ATTN_INLINE void score_gradients_of(const ScoreGradients<A>& panel, Index keys, Index vectors) {
  constexpr Index stride = tile_columns<A>;
  for (Index n = 0; n < vectors * lanes<A>; n += lanes<A>) {
    const Vec<A> shift = load(panel.shift + n), delta = load(panel.delta + n);
    for (Index key = 0; key < keys; ++key) {
      const Index from = key * stride + n, to = key * panel.row + n;
      const Vec<A> p = exp<false>(load(panel.scores + from) - shift, least_log_weight<A>);
      Vec<A> of_weight = load(panel.of_weights + from), kept = p;
      if constexpr (dropped) {
        const Vec<A> factor = load(panel.factors + from);
        of_weight = of_weight * factor;
        kept = p * factor;
      }
      Vec<A> gradient = p * (of_weight - delta);
      if constexpr (sloped) gradient = gradient * load(panel.slopes + from);
      store(panel.weights + to, kept);
      store(panel.gradients + to, from_bits<A>(bits<A>(gradient) & (bits<A>(p) != Bits<A>{})));
    }
  }
}
template <class A>
void score_gradients(const ScoreGradients<A>& panel, Index keys, Index vectors) {
  if (panel.factors != nullptr && panel.slopes != nullptr)
    return score_gradients_of<A, true, true>(panel, keys, vectors);
  if (panel.factors != nullptr) return score_gradients_of<A, true, false>(panel, keys, vectors);
  if (panel.slopes != nullptr) return score_gradients_of<A, false, true>(panel, keys, vectors);
  score_gradients_of<A, false, false>(panel, keys, vectors);
}

/// sums[row] = the sum of a[row][i] b[row][i]; n in whole vectors.
template <class A>
void row_products(A* sums, const A* a, Index a_row, const A* b, Index b_row, Index rows, Index n) {
  for (Index row = 0; row < rows; ++row, a += a_row, b += b_row) {
    Vec<A> sum = {};
    for (Index i = 0; i < n; i += lanes<A>) sum = multiply_add(load(a + i), load(b + i), sum);
    sums[row] = sum_of<A>(sum);
  }
}
