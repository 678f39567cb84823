// Part of body.inl: rows of keys and values in the formats that they are stored in.

/// The largest magnitude of n floats, as its bits, which order infinity and NaN above all numbers.
ATTN_INLINE std::int32_t largest_magnitude(const float* x, Index n) {
  const Bits<float> all_but_sign = 0x7FFFFFFF - Bits<float>{};
  Bits<float> magnitudes = {};
  Index i = 0;
  for (; i + lanes<float> <= n; i += lanes<float>) {
    const Bits<float> magnitude = bits<float>(load(x + i)) & all_but_sign;
    magnitudes = magnitude > magnitudes ? magnitude : magnitudes;
  }
  std::int32_t largest = 0;
  for (int lane = 0; lane < lanes<float>; ++lane) largest = std::max<std::int32_t>(largest, magnitudes[lane]);
  for (; i < n; ++i) largest = std::max(largest, __builtin_bit_cast(std::int32_t, x[i]) & 0x7FFFFFFF);
  return largest;
}
/// The nearest whole numbers, ties to even: adding 1.5 2^23 leaves them in the lower bits.
ATTN_INLINE Bits<float> nearest(Vec<float> x) {
  return bits<float>(opaque(x + 0x1.8p23F)) - bits<float>(splat(0x1.8p23F));
}

/// The scale of a row of n bytes, which lies behind them.
[[nodiscard]] ATTN_INLINE Index scale_offset(Index n) { return round_up(n, sizeof(float)); }

/// What a row is multiplied by, besides: the scale behind its n bytes, or 1.
template <class A, class Storage>
ATTN_INLINE A scale_of_row(const std::byte* row, Index n) {
  if constexpr (!std::is_same_v<Storage, ScaledBytes>) return A{1};
  float scale;
  __builtin_memcpy(&scale, row + scale_offset(n), sizeof scale);
  return static_cast<A>(scale);
}

/// Loads n elements of a row as floats, from `first` on, out of a row of `row_size`.
template <class Storage>
ATTN_INLINE void load_elements(float* to, const std::byte* row, Index first, Index n, Index row_size) {
  if constexpr (!std::is_same_v<Storage, ScaledBytes>)
    return convert(to, static_cast<const Storage*>(static_cast<const void*>(row)) + first, n);
  const auto scale = scale_of_row<float, Storage>(row, row_size);
  row += first;
  Index i = 0;
  for (; i + lanes<float> <= n; i += lanes<float>)
    store(to + i, __builtin_convertvector(load_bytes(row + i), Vec<float>) * scale);
  for (; i < n; ++i) to[i] = static_cast<float>(static_cast<std::int8_t>(row[i])) * scale;
}

/// Rounds a row to bytes and a scale.
inline void store_scaled_bytes(std::byte* to, const float* from, Index n) {
  constexpr std::int32_t infinity = 0x7F800000, least = 0x0D800000, nan = 0x7FC00000;  // least: 2^-100, taken for 0
  const std::int32_t largest = largest_magnitude(from, n);
  const bool rounds = largest > least && largest < infinity;
  const float most = __builtin_bit_cast(float, largest), factor = rounds ? 127 / most : 0.F;
  std::int32_t scale = largest < infinity ? 0 : nan;
  if (rounds) scale = __builtin_bit_cast(std::int32_t, most / 127);
  __builtin_memcpy(to + scale_offset(n), &scale, sizeof scale);
  for (Index i = 0; i < n; i += lanes<float>) {
    const Index count = std::min<Index>(lanes<float>, n - i);
    Vec<float> x = {};
    if (rounds) __builtin_memcpy(&x, from + i, static_cast<std::size_t>(count) * sizeof(float));
    store_bytes(to + i, nearest(x * factor), count);
  }
}

/// Rows of any format. Doubles that are stored in fewer bits pass through float.
template <class A, class Storage>
__attribute__((noinline)) void load_rows(A* to, Index to_row, const std::byte* from, Index from_row, Index rows,
                                         Index n) {
  for (; rows > 0; --rows, to += to_row, from += from_row) {
    if constexpr (std::is_same_v<A, Storage>) {
      convert(to, static_cast<const Storage*>(static_cast<const void*>(from)), n);
    } else if constexpr (std::is_same_v<A, float>) {
      load_elements<Storage>(to, from, 0, n, n);
    } else {
      float part[64];
      for (Index first = 0, count = 0; first < n; first += count) {
        count = std::min<Index>(64, n - first);
        load_elements<Storage>(part, from, first, count, n);
        for (Index i = 0; i < count; ++i) to[first + i] = static_cast<A>(part[i]);
      }
    }
  }
}
/// Stores a row in fewer bits than it has.
template <class Storage>
void store_row(std::byte* to, const float* from, Index n) {
  if constexpr (std::is_same_v<Storage, ScaledBytes>)
    store_scaled_bytes(to, from, n);
  else
    convert(static_cast<Storage*>(static_cast<void*>(to)), from, n);
}

/// The same as a pointer; null for types that sums are in, whose rows are copied.
template <class Storage>
constexpr auto row_store() -> void (*)(std::byte*, const float*, Index) {
  if constexpr (!std::is_same_v<Storage, float> && !std::is_same_v<Storage, double>) return store_row<Storage>;
  return nullptr;
}
