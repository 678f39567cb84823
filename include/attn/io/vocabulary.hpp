// Floor 1. What tokenizers share: a table of pieces, special tokens found in a text, and the merging of neighbours.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <queue>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../error.hpp"

namespace attn {

/// A piece's number in a vocabulary.
using TokenId = std::int32_t;

/// What becomes of special tokens. Encoding: a text that spells one is that token, or text like any other. Decoding:
/// they are spelled out, or left out.
enum class SpecialTokens : std::uint8_t { keep, drop };

}  // namespace attn

namespace attn::detail {

inline constexpr TokenId no_token = -1;

/// Pieces by number and by text, all in one string.
class PieceTable {
 public:
  /// Eight times as many as any model has; they take 24 bytes each besides their text.
  static constexpr std::size_t most = std::size_t{1} << 21;

  /// Errors: more pieces than ids.
  PieceTable(std::string_view fn, std::size_t pieces) {
    require(pieces <= most, fn, "pieces, expected at most ", most, ", got ", pieces);
    ends_.reserve(pieces);
    std::size_t slots = 16;
    while (slots < 2 * pieces) slots *= 2;
    slots_.assign(slots, no_token);
  }

  [[nodiscard]] std::size_t size() const { return ends_.size(); }
  [[nodiscard]] std::string_view operator[](TokenId id) const {
    const auto i = static_cast<std::size_t>(id);
    const std::size_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(texts_).substr(begin, ends_[i] - begin);
  }
  /// Adds a piece; `is_text`: one that texts are made of, so that `find` finds it. Of equal ones it finds the first.
  void add(std::string_view piece, bool is_text) {
    texts_ += piece;
    ends_.push_back(texts_.size());
    if (!is_text || piece.empty()) return;
    TokenId& slot = slots_[slot_of(piece)];
    if (slot == no_token) slot = static_cast<TokenId>(size()) - 1;
    longest_ = std::max(longest_, piece.size());
  }
  /// The piece of a text, or no_token.
  [[nodiscard]] TokenId find(std::string_view text) const {
    return text.size() > longest_ ? no_token : slots_[slot_of(text)];
  }
  void require_token(std::string_view fn, std::string_view what, TokenId id) const {
    require(id >= 0 && static_cast<std::size_t>(id) < size(), fn, what, ", expected 0 to ",
            static_cast<Index>(size()) - 1, ", got ", id);
  }

 private:
  /// Where a text is in the table, or would be.
  [[nodiscard]] std::size_t slot_of(std::string_view text) const {
    std::size_t slot = std::hash<std::string_view>()(text) & (slots_.size() - 1);
    while (slots_[slot] != no_token && (*this)[slots_[slot]] != text) slot = (slot + 1) & (slots_.size() - 1);
    return slot;
  }

  std::string texts_;
  std::vector<std::size_t> ends_;
  std::vector<TokenId> slots_;  // at least twice as many as pieces
  std::size_t longest_ = 0;     // bytes of a piece that can be found
};

/// Special tokens, which a text spells. The longest that begins at a place counts.
class SpecialTable {
 public:
  /// Bytes of a special token; longer ones would make a search as long as the product of both.
  static constexpr std::size_t longest = 256;

  SpecialTable() = default;
  /// Errors: one that is longer than 256 bytes. Empty ones are never found; of equal ones, the first.
  SpecialTable(std::string_view fn, const PieceTable& pieces, std::vector<TokenId> ids) : ids_(std::move(ids)) {
    std::erase_if(ids_, [&](TokenId id) { return pieces[id].empty(); });
    std::sort(ids_.begin(), ids_.end(),
              [&](TokenId a, TokenId b) { return std::pair(pieces[a], a) < std::pair(pieces[b], b); });
    const auto equal = [&](TokenId a, TokenId b) { return pieces[a] == pieces[b]; };
    ids_.erase(std::unique(ids_.begin(), ids_.end(), equal), ids_.end());
    for (const TokenId id : ids_) {
      require(pieces[id].size() <= longest, fn, "special token ", id, ", expected at most 256 bytes, got ",
              pieces[id].size());
      begins_[static_cast<unsigned char>(pieces[id][0])] = true;
    }
  }

  /// The first special token from a place on: where it begins, and which. No token: where the text ends.
  [[nodiscard]] std::pair<std::size_t, TokenId> find(const PieceTable& pieces, std::string_view text,
                                                     std::size_t at) const {
    for (; at < text.size(); ++at)
      if (begins_[static_cast<unsigned char>(text[at])])
        if (const TokenId id = match(pieces, text.substr(at, longest)); id != no_token) return {at, id};
    return {text.size(), no_token};
  }

 private:
  /// The longest special token that the text begins with. Narrows down which ones share a beginning with it.
  [[nodiscard]] TokenId match(const PieceTable& pieces, std::string_view text) const {
    TokenId found = no_token;
    auto first = ids_.begin(), end = ids_.end();
    for (std::size_t i = 0; i < text.size() && first != end; ++i) {
      const auto byte_of = [&](TokenId id) { return static_cast<int>(static_cast<unsigned char>(pieces[id][i])); };
      const int byte = static_cast<unsigned char>(text[i]);
      // One that ended before this byte comes first, and only one, since no two are equal.
      if (pieces[*first].size() <= i) ++first;
      first = std::lower_bound(first, end, byte, [&](TokenId id, int b) { return byte_of(id) < b; });
      end = std::upper_bound(first, end, byte, [&](int b, TokenId id) { return b < byte_of(id); });
      if (first != end && pieces[*first].size() == i + 1) found = *first;
    }
    return found;
  }

  std::vector<TokenId> ids_;  // in alphabetical order of their texts
  bool begins_[256] = {};     // whether one begins with this byte
};

/// A part of a text while neighbours merge. Parts are linked, since those in between go.
struct MergePart {
  std::uint32_t begin, end;      // in the text
  std::uint32_t previous, next;  // none: `no_part`
  TokenId id;                    // or no_token
};
inline constexpr std::uint32_t no_part = std::numeric_limits<std::uint32_t>::max();

/// What two neighbours become; the smallest key goes first.
template <class Key>
struct MergeInto {
  TokenId id = no_token;  ///< or none
  Key key{};
};

/// Links parts that follow each other.
inline void link_parts(std::vector<MergePart>& parts) {
  for (std::size_t i = 0; i < parts.size(); ++i) {
    parts[i].previous = i == 0 ? no_part : static_cast<std::uint32_t>(i - 1);
    parts[i].next = i + 1 == parts.size() ? no_part : static_cast<std::uint32_t>(i + 1);
  }
}

/// Merges neighbours, the pair with the smallest key first, of equals the leftmost, until none is left. `into(left,
/// right)` tells what two parts become. Each merge asks about two new pairs: n log n steps for n parts.
template <class Key, class Into>
void merge_parts(std::vector<MergePart>& parts, const Into& into) {
  struct Candidate {
    Key key;
    std::uint32_t left, middle, end;  // the left part; where the two meet, and end
    TokenId id;

    bool operator<(const Candidate& other) const {  // the queue's first is its largest
      return key != other.key ? key > other.key : left > other.left;
    }
  };
  std::priority_queue<Candidate> queue;
  const auto offer = [&](std::uint32_t left) {
    const std::uint32_t right = parts[left].next;
    if (right == no_part) return;
    const MergeInto<Key> merged = into(parts[left], parts[right]);
    if (merged.id != no_token) queue.push({merged.key, left, parts[left].end, parts[right].end, merged.id});
  };
  for (std::uint32_t i = 0; i + 1 < parts.size(); ++i) offer(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    MergePart& left = parts[best.left];
    const std::uint32_t right = left.next;
    // A pair that has changed since: one of its parts has merged with another.
    if (left.begin == left.end || right == no_part || left.end != best.middle || parts[right].end != best.end) continue;
    left.end = best.end;
    left.id = best.id;
    left.next = parts[right].next;
    if (left.next != no_part) parts[left.next].previous = best.left;
    parts[right].begin = parts[right].end;  // gone
    if (left.previous != no_part) offer(left.previous);
    offer(best.left);
  }
}

}  // namespace attn::detail
