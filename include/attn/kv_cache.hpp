// Floor 4. The cache of keys and values of earlier tokens, for decoding.
#pragma once

#include <algorithm>
#include <array>
#include <span>
#include <string_view>
#include <vector>

#include "math.hpp"
#include "memory.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// Keys [B,G,capacity,D], already rotated, and values [B,G,capacity,Dv] of B sequences that may differ in length.
///
/// For prompts of different lengths: pad them at the right, append them all, then `roll_back(b, padding of b)`.
/// A cache that was moved from holds no sequences.
template <Scalar T>
class KvCache {
 public:
  /// value_size: Dv; where it is 0, the same as D.
  /// Errors: sizes below 1 (batch and capacity may be 0), or that memory cannot hold.
  KvCache(Index batch, Index key_value_heads, Index capacity, Index head_size, Index value_size = 0)
      : held_(Held(batch, key_value_heads, capacity, head_size, value_size == 0 ? head_size : value_size)) {}

  [[nodiscard]] Index batch() const { return held_->keys.shape[0]; }
  [[nodiscard]] Index key_value_heads() const { return held_->keys.shape[1]; }
  [[nodiscard]] Index capacity() const { return held_->keys.shape[2]; }
  [[nodiscard]] Index head_size() const { return held_->keys.shape[3]; }
  [[nodiscard]] Index value_size() const { return held_->values.shape[3]; }

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
  /// Errors: more tokens than capacity.
  [[nodiscard]] View<const T, 4> keys(Index written = 0) const { return so_far(held_->keys, written); }
  [[nodiscard]] View<const T, 4> values(Index written = 0) const { return so_far(held_->values, written); }

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
  /// Keys or values. Aligned memory keeps rows within cache lines where their size allows: rows across lines are read 8 %
  /// slower.
  struct Rows {
    std::array<Index, 4> shape{};  ///< [B,G,capacity,D] or [B,G,capacity,Dv]
    Index size_of_all = 0;         ///< elements
    AlignedVector<T> memory;

    Rows() = default;
    /// Only checks, so that keys and values are both checked before either allocates.
    Rows(std::string_view what, const std::array<Index, 4>& sizes) : shape(sizes) {
      const auto& [batch, heads, capacity, size] = shape;
      detail::require(batch >= 0 && capacity >= 0 && heads >= 1 && size >= 1, "KvCache",
                      "expected at least one head and head size and no negative size, got ", detail::as_shape(shape));
      const Shape all = detail::as_shape(shape);
      size_of_all = detail::checked_size<T>("KvCache", what, all);
      detail::checked_size<T>("KvCache", what, all.subspan(1));  // strides, which exist for a batch of 0 too
    }
    void allocate() { memory.resize(static_cast<std::size_t>(size_of_all)); }
    T* at(Index b, Index g, Index t) { return memory.data() + ((b * shape[1] + g) * shape[2] + t) * shape[3]; }
  };
  struct Held {
    Rows keys;
    Rows values;
    std::vector<Index> lengths;  ///< tokens of each sequence

    Held() = default;
    Held(Index batch, Index heads, Index capacity, Index head_size, Index value_size)
        : keys("keys [B,G,capacity,D]", {batch, heads, capacity, head_size}),
          values("values [B,G,capacity,Dv]", {batch, heads, capacity, value_size}),
          lengths(static_cast<std::size_t>(
              detail::checked_size<Index>("KvCache", "batch", detail::as_shape(std::array<Index, 1>{batch})))) {
      keys.allocate();
      values.allocate();
    }
  };

  [[gnu::noinline]] View<const T, 4> so_far(const Rows& rows, Index written) const {
    check_room(written);
    const auto& [B, G, capacity, size] = rows.shape;
    return {rows.memory.data(), {B, G, max_length() + written, size}, {G * capacity * size, capacity * size, size, 1}};
  }
  /// Copies x [B,G,S,size] behind the tokens of each sequence.
  [[gnu::noinline]] void write_rows(const View<const T, 4>& x, Rows& to) const {
    const Index size = x.dimension(3), step = x.stride(3);
    for (Index b = 0; b < batch(); ++b)
      for (Index g = 0; g < key_value_heads(); ++g)
        for (Index s = 0; s < x.dimension(2); ++s) {
          const T* const row = x.data() + b * x.stride(0) + g * x.stride(1) + s * x.stride(2);
          T* const copy = to.at(b, g, lengths()[static_cast<std::size_t>(b)] + s);
          if (step == 1) {
            std::copy_n(row, size, copy);
          } else {
            for (Index d = 0; d < size; ++d) copy[d] = row[d * step];
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
