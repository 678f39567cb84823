// Part of body.inl: what masks and score functions do to scores.

/// Which derivatives of a score are asked for: none, with respect to the score before, or to a ScoreBias.
enum class Slopes : std::uint8_t { none, score, bias };

template <class A, class M, class F>
struct RulesOf {
  static void panel(const Rules<A>& rules, A* s, Index keys, Index rows, Position first, bool masked) {
    constexpr int width = static_cast<int>(tile_columns<A>);
    for (Index t = 0; t < keys; ++t, ++first.key) {
      if constexpr (!scored && !detail::HasBias<M>)
        mask_only<1, 0, width>(rules, s + t * width, static_cast<std::int32_t>(rows), first);
      else if ((masked && !kept_in_full(rules, first, rows)) || rows < width)
        score_and_mask<1, 0, width>(rules, s + t * width, static_cast<std::int32_t>(rows), first, masked);
      else
        score_only<1, 0, width>(rules, s + t * width, first);
    }
  }
  /// The same, and the derivative of each score that is kept, with respect to the score before or to a ScoreBias.
  template <Slopes wanted>
  static void panel_and_slopes(const Rules<A>& rules, A* s, A* slopes, Index keys, Index rows, Position first,
                               bool masked) {
    constexpr int width = static_cast<int>(tile_columns<A>);
    for (Index t = 0; t < keys; ++t, ++first.key, s += width, slopes += width) {
      if ((masked && !kept_in_full(rules, first, rows)) || rows < width)
        score_and_mask<1, 0, width, wanted>(rules, s, static_cast<std::int32_t>(rows), first, masked, slopes);
      else
        score_only<1, 0, width, wanted>(rules, s, first, slopes);
    }
  }
  static void line(const Rules<A>& rules, A* s, Index keys, Position first, bool masked) {
    constexpr int width = lanes<A>;
    for (Index t = 0; t < keys; t += width, first.key += width) {
      if constexpr (!scored && !detail::HasBias<M>)
        mask_only<0, 1, width>(rules, s + t, static_cast<std::int32_t>(keys - t), first);
      else if (masked || keys - t < width)
        score_and_mask<0, 1, width>(rules, s + t, static_cast<std::int32_t>(keys - t), first, masked);
      else
        score_only<0, 1, width>(rules, s + t, first);
    }
  }

 private:
  static constexpr bool scored = !std::is_same_v<F, NoScore>;

  template <int row_step, int key_step>
  static ATTN_INLINE Position place(Position first, std::int32_t i) {
    return {first.batch, first.head, first.row + row_step * i, first.query + row_step * i, first.key + key_step * i};
  }
  /// Whether the mask keeps a key for all of these rows, and adds nothing.
  static ATTN_INLINE bool kept_in_full(const Rules<A>& rules, Position first, Index rows) {
    const Block block{first, place<1, 0>(first, static_cast<std::int32_t>(rows - 1))};
    return !detail::HasBias<M> && static_cast<const M*>(rules.mask)->cover(block) == Coverage::full;
  }
  static ATTN_INLINE A score_of(const Rules<A>& rules, A value, Position at) {
    if constexpr (scored) value = static_cast<A>((*static_cast<const F*>(rules.score))(value, at));
    return value;
  }
  template <Slopes wanted>
  static ATTN_INLINE Dual<A> dual_score_of(const Rules<A>& rules, A value, Position at) {
    const F& score = *static_cast<const F*>(rules.score);
    if constexpr (wanted == Slopes::bias)
      return detail::score_with_bias_derivative<A>(score, value, at);
    else
      return detail::score_with_derivative<A>(score, value, at);
  }

  // Each works on a local copy, which memory of the mask or of the function cannot overlap, so that loops become vectors.
  // It is aligned because g++ 12 with -march=x86-64-v4 reads it with aligned loads wherever it puts it.

  /// The score function on n scores, each a row or a key further than the one before; its derivatives where asked for.
  template <int row_step, int key_step, int n, Slopes wanted = Slopes::none>
  static ATTN_INLINE void score_only(const Rules<A>& rules, A* s, Position first, A* slopes = nullptr) {
    alignas(64) A x[std::size_t{n}];
    __builtin_memcpy(x, s, sizeof x);
    if constexpr (wanted != Slopes::none) {
      alignas(64) A slope[std::size_t{n}];
      for (std::int32_t i = 0; i < n; ++i) {
        const auto value = dual_score_of<wanted>(rules, x[i], place<row_step, key_step>(first, i));
        x[i] = attended(value.value);
        slope[i] = value.derivative;
      }
      __builtin_memcpy(slopes, slope, sizeof slope);
    } else {
      for (std::int32_t i = 0; i < n; ++i) x[i] = attended(score_of(rules, x[i], place<row_step, key_step>(first, i)));
    }
    __builtin_memcpy(s, x, sizeof x);
  }

  /// The mask alone on n scores, of which the first `count` exist; the others are not used.
  template <int row_step, int key_step, int n>
  static ATTN_INLINE void mask_only(const Rules<A>& rules, A* s, std::int32_t count, Position first) {
    const M& mask = *static_cast<const M*>(rules.mask);
    alignas(64) A x[std::size_t{n}];
    __builtin_memcpy(x, s, sizeof x);
    for (std::int32_t i = 0; i < n; ++i) {
      const std::int32_t existing = i < count ? i : count - 1;
      x[i] = mask.keep(place<row_step, key_step>(first, existing)) ? x[i] : masked_score<A>;
    }
    __builtin_memcpy(s, x, sizeof x);
  }

  /// The score function and the mask on the first `count` of n scores. Where the mask keeps a score, the score function
  /// and the bias see its value and position; elsewhere they see those of a kept score again.
  template <int row_step, int key_step, int n, Slopes wanted = Slopes::none>
  static ATTN_INLINE void score_and_mask(const Rules<A>& rules, A* s, std::int32_t count, Position first, bool masked,
                                         A* slopes = nullptr) {
    const M& mask = *static_cast<const M*>(rules.mask);
    alignas(64) A x[std::size_t{n}];
    alignas(64) std::int32_t kept[std::size_t{n}];  // -1 or 0
    const std::int32_t last = (count < n ? count : n) - 1;
    __builtin_memcpy(x, s, sizeof x);
    if (masked) {
      for (std::int32_t i = 0; i < n; ++i) {
        const bool keep = mask.keep(place<row_step, key_step>(first, i < last ? i : last));
        kept[i] = (keep & (i <= last)) ? -1 : 0;
      }
    } else {
      for (std::int32_t i = 0; i < n; ++i) kept[i] = i <= last ? -1 : 0;
    }
    std::int32_t stand_in = last;
    while (stand_in > 0 && kept[stand_in] == 0) --stand_in;
    if (kept[stand_in] == 0) {
      for (int i = 0; i < n; ++i) s[i] = masked_score<A>;
      for (int i = 0; i < n && wanted != Slopes::none; ++i) slopes[i] = 0;
      return;
    }
    const A spare = x[stand_in];
    alignas(64) A real[std::size_t{n}];  // not x: g++ would store into it through a mask; the next loop would wait
    alignas(64) A slope[wanted != Slopes::none ? std::size_t{n} : 1];
    for (std::int32_t i = 0; i < n; ++i) real[i] = kept[i] != 0 ? x[i] : spare;
    for (std::int32_t i = 0; i < n; ++i) {
      const Position at = place<row_step, key_step>(first, stand_in ^ ((i ^ stand_in) & kept[i]));
      A value;
      if constexpr (wanted != Slopes::none) {
        const Dual<A> result = dual_score_of<wanted>(rules, real[i], at);
        value = result.value;
        slope[i] = result.derivative;
      } else {
        value = score_of(rules, real[i], at);
      }
      if constexpr (detail::HasBias<M>) value += static_cast<A>(mask.bias(at));
      x[i] = attended(value);
    }
    if constexpr (wanted != Slopes::none) __builtin_memcpy(slopes, slope, sizeof slope);
    for (std::int32_t i = 0; i < n; ++i) x[i] = kept[i] != 0 ? x[i] : masked_score<A>;
    __builtin_memcpy(s, x, sizeof x);
  }
};
