// Floor 4. The cache of keys and values of earlier tokens, for decoding.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "kernel/isa/targets.hpp"
#include "kernel/row_source.hpp"
#include "math.hpp"
#include "memory.hpp"
#include "stored_heads.hpp"
#include "tensor.hpp"
#include "tensor_argument.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// How a cache stores keys or values.
enum class CacheFormat : std::uint8_t {
  native,  ///< in the cache's own type
  bfloat16,
  half,
  int8,  ///< 8 bits, and a scale as float for each row of a head
};

[[nodiscard]] constexpr std::string_view cache_format_name(CacheFormat format) {
  constexpr std::array<std::string_view, 4> names{"native", "bfloat16", "half", "int8"};
  const auto i = static_cast<std::size_t>(format);
  return i < names.size() ? names[i] : "unknown";
}

/// Keys [B,G,capacity,D], already rotated, and values [B,G,capacity,Dv] of B sequences that may differ in length.
///
/// Keys and values may each be stored in fewer bits, rounded to nearest when they are appended: attention then reads fewer
/// bytes. In int8 the largest number of a row becomes 127; a row with infinities or NaN becomes NaN.
/// For prompts of different lengths: pad them at the right, append them all, then `roll_back(b, padding of b)`.
/// A cache that was moved from holds no sequences.
template <Scalar T>
class KvCache {
 public:
  /// value_size: Dv; where it is 0, the same as D.
  /// Errors: sizes below 1 (batch and capacity may be 0), or that memory cannot hold.
  KvCache(Index batch, Index key_value_heads, Index capacity, Index head_size, Index value_size = 0)
      : held_(Held({batch, key_value_heads, capacity, head_size}, value_size, {}, {}, native)) {}
  /// The same with keys and values each in a format. Errors: besides, formats that do not exist.
  KvCache(Index batch, Index key_value_heads, Index capacity, Index head_size, Index value_size, CacheFormat keys,
          CacheFormat values)
      : held_(Held({batch, key_value_heads, capacity, head_size}, value_size, keys, values, format_of)) {}

  [[nodiscard]] Index batch() const { return held_->keys.shape[0]; }
  [[nodiscard]] Index key_value_heads() const { return held_->keys.shape[1]; }
  [[nodiscard]] Index capacity() const { return held_->keys.shape[2]; }
  [[nodiscard]] Index head_size() const { return held_->keys.shape[3]; }
  [[nodiscard]] Index value_size() const { return held_->values.shape[3]; }
  [[nodiscard]] CacheFormat key_format() const { return held_->keys.format; }
  [[nodiscard]] CacheFormat value_format() const { return held_->values.format; }

  /// How many tokens each sequence holds, or one of them. Errors: a sequence that does not exist.
  [[nodiscard]] std::span<const Index> lengths() const { return held_->lengths; }
  [[nodiscard]] Index length(Index sequence) const {
    check_sequence("KvCache::length", sequence);
    return held_->lengths[static_cast<std::size_t>(sequence)];
  }
  /// The length of the longest sequence.
  [[nodiscard]] Index max_length() const {
    Index longest = 0;
    for (const Index length : lengths()) longest = std::max(longest, length);
    return longest;
  }

  /// Keys [B,G,max_length,D] and values [B,G,max_length,Dv]. Those past a sequence's length are not to be read.
  /// `written` makes the views longer by tokens that were written and not yet committed.
  /// Errors: more tokens than capacity; a format other than native, which read_keys and read_values convert.
  [[nodiscard]] View<const T, 4> keys(Index written = 0) const { return so_far("KvCache::keys", held_->keys, written); }
  [[nodiscard]] View<const T, 4> values(Index written = 0) const {
    return so_far("KvCache::values", held_->values, written);
  }
  /// Copies of keys [B,G,max_length,D] and values [B,G,max_length,Dv], as attention reads them. Those past a sequence's
  /// length are 0.
  [[nodiscard]] Tensor<T, 4> read_keys() const { return read(held_->keys); }
  [[nodiscard]] Tensor<T, 4> read_values() const { return read(held_->values); }

  /// Keys and values as kernels read them.
  [[nodiscard]] detail::StoredHeads<Accumulator<T>> stored_keys(Isa isa) const { return held_->keys.stored(isa); }
  [[nodiscard]] detail::StoredHeads<Accumulator<T>> stored_values(Isa isa) const { return held_->values.stored(isa); }

  /// Throws unless every sequence has room for `tokens` more.
  void check_room(Index tokens) const {
    detail::require(tokens >= 0 && tokens <= capacity() - max_length(), "KvCache::append",
                    "capacity, expected room for ", tokens, " more tokens, got ", max_length(), " of ", capacity(),
                    " in use");
  }

  /// Appends keys [B,G,S,D] and values [B,G,S,Dv] to every sequence.
  /// Errors: shapes that do not fit; more than capacity. The cache is then as it was.
  void append(View<const T, 4> keys, View<const T, 4> values) {
    write(keys, values);
    commit(keys.dimension(2));
  }

  /// Writes keys and values behind the tokens of each sequence without counting them, so that a call that attends to them
  /// may still fail and leave the cache as it was. `commit` completes what is then an `append`.
  /// Errors: as `append`.
  void write(View<const T, 4> keys, View<const T, 4> values) {
    const Index S = keys.dimension(2);
    detail::require_shape("KvCache::append", "keys [B,G,S,D]", keys, {batch(), key_value_heads(), S, head_size()});
    detail::require_shape("KvCache::append", "values [B,G,S,Dv]", values,
                          {batch(), key_value_heads(), S, value_size()});
    check_room(S);
    write_rows(keys, held_->keys);
    write_rows(values, held_->values);
  }
  /// Counts `tokens` tokens that were written. Errors: more than capacity.
  void commit(Index tokens) {
    check_room(tokens);
    for (Index& length : held_->lengths) length += tokens;
  }

  /// Forgets the last `tokens` of every sequence, or of one.
  /// Errors: a negative number, or more than a sequence holds. The cache is then as it was.
  void roll_back(Index tokens) {
    for (const Index length : lengths()) check_roll_back(tokens, length);
    for (Index& length : held_->lengths) length -= tokens;
  }
  void roll_back(Index sequence, Index tokens) {
    check_sequence("KvCache::roll_back", sequence);
    Index& length = held_->lengths[static_cast<std::size_t>(sequence)];
    check_roll_back(tokens, length);
    length -= tokens;
  }

  /// Forgets all sequences, or one. Errors: a sequence that does not exist.
  void reset() { std::fill(held_->lengths.begin(), held_->lengths.end(), Index{0}); }
  void reset(Index sequence) {
    check_sequence("KvCache::reset", sequence);
    held_->lengths[static_cast<std::size_t>(sequence)] = 0;
  }

 private:
  using A = Accumulator<T>;
  using Format = const kernel::RowFormat<A>& (*)(CacheFormat format, Isa isa);

  /// The formats of kernels. A pointer to this one is kept by caches that need it, so that programs which have none compile
  /// none of them.
  [[nodiscard]] static const kernel::RowFormat<A>& format_of(CacheFormat format, Isa isa) {
    switch (format) {
      case CacheFormat::bfloat16:
        return kernel::row_format_of<A, kernel::Bfloat16>(isa);
      case CacheFormat::half:
        return kernel::row_format_of<A, kernel::Half>(isa);
      case CacheFormat::int8:
        return kernel::row_format_of<A, kernel::ScaledBytes>(isa);
      case CacheFormat::native:
        break;
    }
    return native(format, isa);
  }
  [[nodiscard]] static const kernel::RowFormat<A>& native(CacheFormat, Isa isa) {
    return kernel::row_format_of<A, kernel::Stored<T>>(isa);
  }

  /// Keys or values. Aligned memory keeps rows within cache lines where their size allows: rows across lines are read 8 %
  /// slower.
  struct Rows {
    std::array<Index, 4> shape{};  ///< [B,G,capacity,D] or [B,G,capacity,Dv]
    CacheFormat format = CacheFormat::native;
    Format kernels = native;
    Index row_bytes = 0;
    Index size_of_all = 0;  ///< bytes
    AlignedVector<std::byte> memory;

    Rows() = default;
    /// Only checks, so that keys and values are both checked before either allocates.
    Rows(std::string_view what, const std::array<Index, 4>& sizes, CacheFormat as, Format formats)
        : shape(sizes), format(as), kernels(formats) {
      const auto& [batch, heads, capacity, size] = shape;
      detail::require(as <= CacheFormat::int8, "KvCache", what,
                      " in a format, expected native, bfloat16, half or int8, got CacheFormat(", static_cast<Index>(as),
                      ")");
      detail::require(batch >= 0 && capacity >= 0 && heads >= 1 && size >= 1, "KvCache",
                      "expected at least one head and head size and no negative size, got ", detail::as_shape(shape));
      using Most = std::array<std::byte, sizeof(A) + 2 * sizeof(float)>;  // an element takes, with a scale for each row
      const Shape all = detail::as_shape(shape);
      detail::checked_size<Most>("KvCache", what, all);
      detail::checked_size<Most>("KvCache", what, all.subspan(1));  // strides, which exist for a batch of 0 too
      row_bytes = kernels(format, Isa::baseline).row_bytes(size);
      size_of_all = batch * heads * capacity * row_bytes;
    }
    void allocate() { memory.resize(static_cast<std::size_t>(size_of_all)); }
    [[nodiscard]] Index offset(Index b, Index g, Index t) const {
      return ((b * shape[1] + g) * shape[2] + t) * row_bytes;
    }
    [[nodiscard]] detail::StoredHeads<A> stored(Isa isa) const {
      return {{.data = memory.data(),
               .batch = shape[1] * shape[2] * row_bytes,
               .head = shape[2] * row_bytes,
               .row = row_bytes},
              &kernels(format, isa)};
    }
  };
  struct Held {
    Rows keys;
    Rows values;
    std::vector<Index> lengths;  ///< tokens of each sequence

    Held() = default;
    Held(const std::array<Index, 4>& sizes, Index value_size, CacheFormat key_format, CacheFormat value_format,
         Format formats)
        : keys("keys [B,G,capacity,D]", sizes, key_format, formats),
          values("values [B,G,capacity,Dv]", {sizes[0], sizes[1], sizes[2], value_size == 0 ? sizes[3] : value_size},
                 value_format, formats),
          lengths(static_cast<std::size_t>(
              detail::checked_size<Index>("KvCache", "batch", detail::as_shape(std::array<Index, 1>{sizes[0]})))) {
      keys.allocate();
      values.allocate();
    }
  };

  [[gnu::noinline]] View<const T, 4> so_far(std::string_view fn, const Rows& rows, Index written) const {
    check_room(written);
    detail::require(rows.format == CacheFormat::native, fn,
                    "cache, expected one in the format native to view it (read_keys and read_values copy), got ",
                    cache_format_name(rows.format));
    const auto& [B, G, capacity, size] = rows.shape;
    const void* const first = rows.memory.data();
    return {static_cast<const T*>(first),
            {B, G, max_length() + written, size},
            {G * capacity * size, capacity * size, size, 1}};
  }
  [[nodiscard]] Tensor<T, 4> read(const Rows& rows) const {
    const auto& [B, G, capacity, size] = rows.shape;
    auto all = detail::make_tensor<T, 4>({B, G, max_length(), size});
    all.setZero();
    std::vector<A> row(static_cast<std::size_t>(size));
    const kernel::RowFormat<A>& format = rows.kernels(rows.format, active_isa());
    for (Index b = 0; b < B; ++b)
      for (Index g = 0; g < G; ++g)
        for (Index t = 0; t < lengths()[static_cast<std::size_t>(b)]; ++t) {
          format.load(row.data(), size, rows.memory.data() + rows.offset(b, g, t), rows.row_bytes, 1, size);
          for (Index d = 0; d < size; ++d) all(b, g, t, d) = static_cast<T>(row[static_cast<std::size_t>(d)]);
        }
    return all;
  }
  /// Stores x [B,G,S,size] behind the tokens of each sequence.
  [[gnu::noinline]] void write_rows(const View<const T, 4>& x, Rows& to) const {
    const Index size = x.dimension(3), step = x.stride(3);
    const bool copies = to.format == CacheFormat::native;
    const Workspace::Frame frame;
    float* const numbers = frame.take<float>(copies ? 0 : size);
    const kernel::RowFormat<A>& format = to.kernels(to.format, active_isa());
    for (Index b = 0; b < batch(); ++b)
      for (Index g = 0; g < key_value_heads(); ++g)
        for (Index s = 0; s < x.dimension(2); ++s) {
          const T* const row = x.data() + b * x.stride(0) + g * x.stride(1) + s * x.stride(2);
          void* const copy = to.memory.data() + to.offset(b, g, lengths()[static_cast<std::size_t>(b)] + s);
          if (!copies) {
            for (Index d = 0; d < size; ++d) numbers[d] = static_cast<float>(row[d * step]);
            format.store(static_cast<std::byte*>(copy), numbers, size);
          } else if (step == 1) {
            std::copy_n(row, size, static_cast<T*>(copy));
          } else {
            for (Index d = 0; d < size; ++d) static_cast<T*>(copy)[d] = row[d * step];
          }
        }
  }
  void check_sequence(std::string_view fn, Index sequence) const {
    detail::require(sequence >= 0 && sequence < batch(), fn, "sequence, expected one of ", batch(), ", got ", sequence);
  }
  static void check_roll_back(Index tokens, Index length) {
    detail::require(tokens >= 0 && tokens <= length, "KvCache::roll_back", "tokens, expected from 0 to the ", length,
                    " held, got ", tokens);
  }

  detail::EmptyWhenMoved<Held> held_;
};

/// The cache argument of LlamaAttention::forward: a KvCache, a pointer to one, or nothing.
template <Scalar T>
class CacheRef {
 public:
  CacheRef() = default;
  CacheRef(KvCache<T>& cache) : cache_(&cache) {}  // NOLINT: caches and pointers convert
  CacheRef(KvCache<T>* cache) : cache_(cache) {}   // NOLINT: the same
  /// The cache, or null.
  [[nodiscard]] KvCache<T>* get() const { return cache_; }

 private:
  KvCache<T>* cache_ = nullptr;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn

namespace attn::detail {
template <Scalar T>
inline constexpr bool has_overload<KvCache<T>> = true;
}  // namespace attn::detail
