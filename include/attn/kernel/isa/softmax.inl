// Part of body.inl: exp, and softmax of a row, of a panel of queries, of a line of scores.

/// y, or 0 where x < lowest, -inf included; y where x is NaN. Compares bits, which -ffast-math cannot break: an offset
/// maps the bits of -inf to the largest integer, so that one signed comparison suffices.
template <class A>
ATTN_INLINE Vec<A> zero_below(A lowest, Vec<A> x, Vec<A> y) {
  using U = typename Simd<A>::U;
  const U up = ~U{} / 2 - reinterpret_cast<U>(splat(-std::numeric_limits<A>::infinity()));
  const Bits<A> kept = reinterpret_cast<Bits<A>>(reinterpret_cast<U>(x) + up) <=
                       reinterpret_cast<Bits<A>>(reinterpret_cast<U>(splat(lowest)) + up);
  return from_bits<A>(bits<A>(y) & kept);
}

/// e^x for x in [-87, 88], at most 1 ULP off (0.91; tested over every float from -87 to 0); 0 below `lowest`, and for -inf;
/// NaN stays NaN. x = n ln2 + r with |r| <= ln2 / 2; e^r by a polynomial (minimax, relative error 2e-9); times 2^n.
/// Softmax never asks for x > 0, so there is no clamp above.
/// exact = false is for weights that are summed: ln2 is one float, which is like a relative change of x by 2.7e-9, a
/// twentieth of its rounding: 1.25 ULP down to x = -16, 4.5 at -87. It takes 8 % off a softmax.
template <bool exact = true>
ATTN_INLINE Vec<float> exp(Vec<float> x, float lowest = -87.F) {
  const Vec<float> shifted = opaque(x * 1.44269504F + 12583039.F);  // 1.5 * 2^23 + 127: n + 127 in the low bits
  const Vec<float> n = opaque(shifted - 12583039.F);
  Vec<float> r, high;
  if constexpr (exact || !ATTN_FUSED_MULTIPLY) {
    high = opaque(x - n * 0.693359375F);  // ln2 in two parts; the first has few bits: n times it is exact
    r = high + n * 2.12194440e-4F;
  } else {
    r = x - n * 0.693147182F;
  }
  Vec<float> y = r * 1.38189387508e-3F + 8.36870353669e-3F;
  y = y * r + 4.16682884097e-2F;
  y = y * r + 1.66665211320e-1F;
  y = y * r + 4.99999940395e-1F;
#if ATTN_FUSED_MULTIPLY
  y = y * r + 1.F;
  y = y * r + 1.F;
#else  // 1.18 ULP as above without fused products
  y = y * (r * r) + n * 2.12194440e-4F;
  y = y + high;
  y = y + 1.F;
#endif
  return zero_below(lowest, x, y * from_bits<float>(bits<float>(shifted) << 23));
}
/// The same in double, always exact, for x in [-708, 709], by the Taylor series to the 13th power (error 4e-18).
template <bool exact = true>
ATTN_INLINE Vec<double> exp(Vec<double> x, double lowest = -708.0) {
  const Vec<double> shifted = opaque(x * 1.4426950408889634 + 6755399441056767.0);  // 1.5 * 2^52 + 1023
  const Vec<double> n = opaque(shifted - 6755399441056767.0);
  Vec<double> r = opaque(x - n * 0.693147180369123816490);
  r = r - n * 1.90821492927058770002e-10;
  constexpr double factorial[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
                                  1.0 / 362880,     1.0 / 40320,     1.0 / 5040,     1.0 / 720,
                                  1.0 / 120,        1.0 / 24,        1.0 / 6,        1.0 / 2};
  Vec<double> y = splat(factorial[0]);
  for (int i = 1; i < 12; ++i) y = y * r + factorial[i];
  y = y * (r * r) + r;
  y = y + 1.0;
  return zero_below(lowest, x, y * from_bits<double>(bits<double>(shifted) << 52));
}

/// A score as softmax takes it: -inf becomes `masked_score`, and a score that equals `masked_score` the number above it,
/// so that a filler of -FLT_MAX stays an ordinary number. Both are found by their bits.
ATTN_INLINE float attended(float score) {
  const auto b = __builtin_bit_cast(std::uint32_t, score);
  return b == 0xFF800000U ? masked_score<float> : b == 0xFF7FFFFFU ? -0x1.fffffcp127F : score;
}
ATTN_INLINE double attended(double score) {
  const auto b = __builtin_bit_cast(std::uint64_t, score);
  return b == 0xFFF0000000000000U ? masked_score<double> : b == 0xFFEFFFFFFFFFFFFFU ? -0x1.ffffffffffffep1023 : score;
}
template <class A>
ATTN_INLINE Vec<A> attended(Vec<A> score) {
  const Vec<A> above = splat(std::is_same_v<A, float> ? A(-0x1.fffffcp127) : A(-0x1.ffffffffffffep1023));
  const Vec<A> kept = bits<A>(score) == bits<A>(splat(masked_score<A>)) ? above : score;
  return bits<A>(score) == bits<A>(splat(-std::numeric_limits<A>::infinity())) ? splat(masked_score<A>) : kept;
}
/// What is subtracted from scores before exp: their maximum, or 0 where all are masked, so that these give 0.
template <class A>
ATTN_INLINE Vec<A> shift_of(Vec<A> row_max) {
  return row_max == masked_score<A> ? Vec<A>{} : row_max;
}
template <class A>
ATTN_INLINE Vec<A> larger(Vec<A> a, Vec<A> b) {
  return b > a ? b : a;  // a NaN in b does not win: it reaches the sum through exp
}

/// The sum of the lanes, in pairs of pairs: half the error of one after the other.
template <class A>
ATTN_INLINE A sum_of(Vec<A> v) {
  alignas(64) A lane[lanes<A>];
  store(lane, v);
  for (int n = lanes<A> / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) lane[i] += lane[i + n];
  return lane[0];
}

/// y = softmax(x) of one row of n; x and y may be the same. scratch: n rounded up to whole vectors.
template <class T>
void softmax_row(const T* x, T* y, Index n, AccumulatorOf<T>* scratch) {
  using A = AccumulatorOf<T>;
  constexpr Index step = lanes<A>;
  const Index end = padded<A>(n);
  convert(scratch, x, n);
  for (Index i = 0; i < end; i += step) store(scratch + i, attended<A>(load(scratch + i)));
  for (Index i = n; i < end; ++i) scratch[i] = masked_score<A>;

  Vec<A> largest = splat(masked_score<A>);
  for (Index i = 0; i < end; i += step) largest = larger<A>(largest, load(scratch + i));
  A max = masked_score<A>;
  for (int i = 0; i < step; ++i) max = largest[i] > max ? largest[i] : max;

  const Vec<A> shift = shift_of<A>(splat(max));
  Vec<A> sums = {}, lost = {};  // Kahan's sum of parts: one chain over a wide row would lose the small addends
  for (Index first = 0; first < end; first += 64 * step) {
    Vec<A> part = {};
    for (Index i = first; i < std::min(end, first + 64 * step); i += step) {
      const Vec<A> p = exp(load(scratch + i) - shift);
      part += p;
      store(scratch + i, p);
    }
    if (end <= 64 * step) {
      sums = part;  // all of the row
    } else {
      part -= lost;
      const Vec<A> next = opaque(sums + part);
      lost = opaque(next - sums) - part;
      sums = next;
    }
  }
  const A sum = sum_of<A>(sums);
  const Vec<A> divisor = splat(is_zero(sum) ? A{1} : sum);  // all masked: 0, not NaN
  for (Index i = 0; i < end; i += step) store(scratch + i, load(scratch + i) / divisor);
  convert(y, scratch, n);
}

/// One step of the online softmax. Keys go in pairs, so that two chains of maxima and sums overlap (3.4 ns per 16 scores
/// without, 3.2 with).
template <class A>
void softmax_panel(A* scores, Index keys, Index vectors, A* row_max, A* row_sum, A* rescale) {
  constexpr Index stride = tile_columns<A>, pair = 2 * stride;
  for (Index n = 0; n < vectors * lanes<A>; n += lanes<A>) {
    A* const column = scores + n;
    A* const end = column + keys * stride;
    if (keys % 2 != 0) store(end, splat(masked_score<A>));
    const Vec<A> before = load(row_max + n);
    Vec<A> max = before, max2 = before;
    for (A* at = column; at < end; at += pair) {
      max = larger<A>(max, load(at));
      max2 = larger<A>(max2, load(at + stride));
    }
    max = larger<A>(max, max2);
    const Vec<A> shift = shift_of<A>(max), factor = exp<false>(before - shift);
    Vec<A> total = {}, total2 = {};  // of this step alone: adding key by key to the running row_sum loses small addends
    for (A* at = column; at < end; at += pair) {
      const Vec<A> p = exp<false>(load(at) - shift), p2 = exp<false>(load(at + stride) - shift);
      total += p;
      total2 += p2;
      store(at, p);
      store(at + stride, p2);
    }
    store(row_max + n, max);
    store(row_sum + n, load(row_sum + n) * factor + (total + total2));
    store(rescale + n, factor);
  }
}

/// The same of one line of scores, its end filled with `masked_score`; returns the factor for what was summed before.
template <class A>
A softmax_line(A* line, Index keys, A& row_max, A& row_sum) {
  constexpr Index n = lanes<A>;
  const Index end = padded<A>(keys);
  for (Index i = keys; i < end; ++i) line[i] = masked_score<A>;
  Vec<A> max = splat(row_max);
  for (Index i = 0; i < end; i += n) max = larger<A>(max, load(line + i));
  A most = row_max;
  for (Index i = 0; i < n; ++i) most = max[i] > most ? max[i] : most;
  const Vec<A> shift = shift_of<A>(splat(most)), factor = exp(splat(row_max) - shift);
  Vec<A> total = {};
  for (Index i = 0; i < end; i += n) {
    const Vec<A> p = exp(load(line + i) - shift);
    total += p;
    store(line + i, p);
  }
  row_sum = row_sum * factor[0] + sum_of<A>(total);
  row_max = most;
  return factor[0];
}
