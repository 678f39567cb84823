// Floor 4. Keys and values of the tokens so far, for decoding.
#pragma once

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "memory.hpp"
#include "tensor.hpp"

namespace attn::inline ATTN_EIGEN_ABI {

/// Keys [B,G,capacity,D], already rotated, and values [B,G,capacity,Dv] of B sequences that may differ in length.
///
/// Prompts of unlike length: pad them at the right, append them all, then `roll_back(b, padding of b)`.
template <Scalar T>
class KvCache {
 public:
  /// Errors: sizes below 1 (batch and capacity may be 0).
  KvCache(Index batch, Index key_value_heads, Index capacity, Index head_size, Index value_size = 0)
      : keys_(batch, key_value_heads, capacity, head_size),
        values_(batch, key_value_heads, capacity, value_size == 0 ? head_size : value_size),
        lengths_(static_cast<std::size_t>(batch), 0) {}

  [[nodiscard]] Index batch() const { return keys_.shape[0]; }
  [[nodiscard]] Index key_value_heads() const { return keys_.shape[1]; }
  [[nodiscard]] Index capacity() const { return keys_.shape[2]; }
  [[nodiscard]] Index head_size() const { return keys_.shape[3]; }
  [[nodiscard]] Index value_size() const { return values_.shape[3]; }

  /// How many tokens each sequence holds.
  [[nodiscard]] std::span<const Index> lengths() const { return lengths_; }
  [[nodiscard]] Index length(Index sequence) const {
    check_sequence("KvCache::length", sequence);
    return lengths_[static_cast<std::size_t>(sequence)];
  }
  /// The length of the longest.
  [[nodiscard]] Index max_length() const {
    Index longest = 0;
    for (const Index length : lengths()) longest = std::max(longest, length);
    return longest;
  }

  /// Keys [B,G,max_length,D] and values [B,G,max_length,Dv]. Those past a sequence's length are not to be read.
  [[nodiscard]] View<const T, 4> keys() const { return so_far(keys_); }
  [[nodiscard]] View<const T, 4> values() const { return so_far(values_); }

  /// Throws unless S more tokens fit every sequence.
  void check_room(Index tokens) const {
    detail::require(tokens <= capacity() - max_length(), "KvCache::append", "capacity, expected room for ", tokens,
                    " more tokens, got ", max_length(), " of ", capacity(), " in use");
  }

  /// Appends keys [B,G,S,D] and values [B,G,S,Dv] to every sequence.
  /// Errors: shapes that do not fit; more than capacity. The cache is then as it was.
  void append(View<const T, 4> keys, View<const T, 4> values) {
    const Index S = keys.dimension(2);
    detail::require_shape("KvCache::append", "keys [B,G,S,D]", keys, {batch(), key_value_heads(), S, head_size()});
    detail::require_shape("KvCache::append", "values [B,G,S,Dv]", values,
                          {batch(), key_value_heads(), S, value_size()});
    check_room(S);
    for (Index b = 0; b < batch(); ++b) {
      Index& length = lengths_[static_cast<std::size_t>(b)];
      for (Index g = 0; g < key_value_heads(); ++g)
        for (Index s = 0; s < S; ++s) {
          copy_row(keys, b, g, s, keys_, length + s);
          copy_row(values, b, g, s, values_, length + s);
        }
      length += S;
    }
  }

  /// Forgets the last `tokens` of every sequence, or of one.
  /// Errors: a negative number, or more than a sequence holds. The cache is then as it was.
  void roll_back(Index tokens) {
    for (const Index length : lengths_) check_roll_back(tokens, length);
    for (Index& length : lengths_) length -= tokens;
  }
  void roll_back(Index sequence, Index tokens) {
    check_sequence("KvCache::roll_back", sequence);
    Index& length = lengths_[static_cast<std::size_t>(sequence)];
    check_roll_back(tokens, length);
    length -= tokens;
  }

  /// Forgets everything, or one sequence.
  void reset() { std::fill(lengths_.begin(), lengths_.end(), Index{0}); }
  void reset(Index sequence) {
    check_sequence("KvCache::reset", sequence);
    lengths_[static_cast<std::size_t>(sequence)] = 0;
  }

 private:
  /// Keys or values. Rows in whole cache lines where their size allows: across lines they are read 8 % slower.
  struct Rows {
    Rows(Index batch, Index heads, Index capacity, Index size) : shape{batch, heads, capacity, size} {
      detail::require(batch >= 0 && capacity >= 0 && heads >= 1 && size >= 1, "KvCache",
                      "expected at least one head and head size and no negative size, got ", detail::as_shape(shape));
      memory.resize(static_cast<std::size_t>(batch * heads * capacity * size));
    }
    T* at(Index b, Index g, Index t) { return memory.data() + ((b * shape[1] + g) * shape[2] + t) * shape[3]; }

    std::array<Index, 4> shape;
    AlignedVector<T> memory;
  };

  View<const T, 4> so_far(const Rows& rows) const {
    const auto& [B, G, capacity, size] = rows.shape;
    return {rows.memory.data(), {B, G, max_length(), size}, {G * capacity * size, capacity * size, size, 1}};
  }
  static void copy_row(View<const T, 4> from, Index b, Index g, Index s, Rows& to, Index at) {
    const T* row = from.data() + b * from.stride(0) + g * from.stride(1) + s * from.stride(2);
    std::copy_n(row, from.dimension(3), to.at(b, g, at));
  }
  void check_sequence(std::string_view fn, Index sequence) const {
    detail::require(sequence >= 0 && sequence < batch(), fn, "sequence, expected one of ", batch(), ", got ", sequence);
  }
  static void check_roll_back(Index tokens, Index length) {
    detail::require(tokens >= 0 && tokens <= length, "KvCache::roll_back", "tokens, expected from 0 to the ", length,
                    " held, got ", tokens);
  }

  Rows keys_, values_;
  std::vector<Index> lengths_;
};

}  // namespace attn::inline ATTN_EIGEN_ABI
