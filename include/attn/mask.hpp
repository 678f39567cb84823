// Floor 1. Masks: which keys a query may attend. Small value types, no Eigen.
//
// A mask is any type with
//     bool keep(Position) const;       may this query attend this key?
//     Coverage cover(Block) const;     what of this block of scores does it keep: nothing, everything, or some?
// `cover` is what makes a mask fast: blocks it calls empty are never computed nor read, blocks it calls full pay
// nothing for it. A mask may also have `bias(Position)`, a number added to every score that it keeps, in full blocks too
// (AdditiveMask has it; -inf there means "never attend"). It may have
// `check(function, batch, heads, queries, keys)`, which throws where the mask does not fit the call.
// Masks that refer to data (Padding, KeepMask, AdditiveMask) are views: they hold a pointer to what you keep.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>

#include "error.hpp"
#include "position.hpp"
#include "view.hpp"

namespace attn {

template <class M>
concept Mask = requires(const M& mask, Position at, Block block) {
  { mask.keep(at) } -> std::same_as<bool>;
  { mask.cover(block) } -> std::same_as<Coverage>;
};

template <class M>
concept HasBias = requires(const M& mask, Position at) {
  mask.bias(at);
};

template <class M>
concept HasCheck = requires(const M& mask) {
  mask.check("", Index{}, Index{}, Index{}, Index{});
};

/// Keeps everything.
struct NoMask {
  [[nodiscard]] static constexpr bool keep(Position) { return true; }
  [[nodiscard]] static constexpr Coverage cover(Block) { return Coverage::full; }
};

/// How queries line up with keys where there are more keys than queries.
enum class Align : std::uint8_t {
  lower_right,  ///< the last query sees every key: decoding with a cache
  top_left,     ///< the first query sees the first key alone
};

/// A query sees itself and what stands before it.
struct Causal {
  Align align = Align::lower_right;

  [[nodiscard]] constexpr bool keep(Position at) const { return at.key <= limit(at); }
  [[nodiscard]] constexpr Coverage cover(Block block) const {
    if (block.first.key > limit(block.last)) return Coverage::empty;
    return block.last.key <= limit(block.first) ? Coverage::full : Coverage::mixed;
  }

 private:
  [[nodiscard]] constexpr std::int32_t limit(Position at) const {
    return align == Align::lower_right ? at.query : at.row;
  }
};

/// A query sees exactly `width` keys, itself included and last; `ahead` more may follow it.
/// Errors: width < 1 or ahead < 0.
class SlidingWindow {
 public:
  explicit constexpr SlidingWindow(Index width, Index ahead = 0) : behind_(clamp(width) - 1), ahead_(clamp(ahead)) {
    detail::require(width >= 1, "SlidingWindow", "window width, expected at least 1, got ", width);
    detail::require(ahead >= 0, "SlidingWindow", "keys ahead of the query, expected at least 0, got ", ahead);
  }

  /// The window that keeps everything.
  [[nodiscard]] static constexpr SlidingWindow unlimited() {
    return SlidingWindow(std::numeric_limits<Index>::max(), std::numeric_limits<Index>::max());
  }

  [[nodiscard]] constexpr bool keep(Position at) const {
    const auto distance = std::int64_t{at.query} - at.key;
    return distance <= behind_ && -distance <= ahead_;
  }
  [[nodiscard]] constexpr Coverage cover(Block block) const {
    const auto furthest_back = std::int64_t{block.last.query} - block.first.key;
    const auto nearest_back = std::int64_t{block.first.query} - block.last.key;
    if (nearest_back > behind_ || -furthest_back > ahead_) return Coverage::empty;
    return furthest_back <= behind_ && -nearest_back <= ahead_ ? Coverage::full : Coverage::mixed;
  }

 private:
  static constexpr std::int64_t clamp(Index keys) {  // 2^32 is further than any two 32-bit positions lie apart
    return std::clamp<std::int64_t>(keys, -1, std::int64_t{1} << 32);
  }
  std::int64_t behind_, ahead_;
};

/// Keys from `lengths[b]` on are padding in batch entry b: they are never read. Views the lengths; without any, nothing
/// is padding. Errors (at the call): as many lengths as batch entries, each from 0 to the number of keys.
class Padding {
 public:
  constexpr Padding() = default;
  explicit constexpr Padding(std::span<const Index> lengths) : lengths_(lengths) {}

  [[nodiscard]] constexpr bool keep(Position at) const { return at.key < length(at.batch); }
  [[nodiscard]] constexpr Coverage cover(Block block) const {
    const Index keys = length(block.first.batch);
    if (block.first.key >= keys) return Coverage::empty;
    return block.last.key < keys ? Coverage::full : Coverage::mixed;
  }
  void check(std::string_view function, Index batch, Index, Index, Index keys) const {
    if (lengths_.empty()) return;
    detail::require(std::ssize(lengths_) == batch, function, "Padding, expected one length for each of ", batch,
                    " batch entries, got ", std::ssize(lengths_));
    for (const Index length : lengths_)
      detail::require(0 <= length && length <= keys, function, "Padding, expected lengths from 0 to ", keys, ", got ",
                      length);
  }

 private:
  [[nodiscard]] constexpr Index length(std::int32_t batch) const {
    return lengths_.empty() ? std::numeric_limits<Index>::max() : lengths_[static_cast<std::size_t>(batch)];
  }
  std::span<const Index> lengths_;
};

/// A boolean tensor of rank 1 to 4, broadcast to [B,H,S,T]: true = this key may be attended.
class KeepMask {
 public:
  template <detail::TensorOfElement<bool> X>
  explicit KeepMask(const X& keep) : keep_(keep) {}

  [[nodiscard]] bool keep(Position at) const { return keep_(at); }
  [[nodiscard]] static constexpr Coverage cover(Block) { return Coverage::mixed; }
  void check(std::string_view function, Index batch, Index heads, Index queries, Index keys) const {
    keep_.check(function, "KeepMask", {batch, heads, queries, keys});
  }

 private:
  detail::BroadcastView<bool> keep_;
};

/// A tensor of rank 1 to 4, broadcast to [B,H,S,T] and added to the score. -inf means "never attend"; a finite filler
/// such as -1e9 is an ordinary number.
template <class T>
class AdditiveMask {
  static_assert(!std::same_as<T, bool>, "attn: what is added to a score is a number; KeepMask takes booleans");

 public:
  template <detail::TensorOfElement<T> X>
  explicit AdditiveMask(const X& bias) : bias_(bias) {}

  [[nodiscard]] static constexpr bool keep(Position) { return true; }  // -inf arrives through the bias
  [[nodiscard]] static constexpr Coverage cover(Block) { return Coverage::mixed; }
  [[nodiscard]] T bias(Position at) const { return bias_(at); }
  void check(std::string_view function, Index batch, Index heads, Index queries, Index keys) const {
    bias_.check(function, "AdditiveMask", {batch, heads, queries, keys});
  }

 private:
  detail::BroadcastView<T> bias_;
};

template <detail::TensorLike X>
AdditiveMask(const X&) -> AdditiveMask<detail::Element<X>>;

/// A callable `bool(Position)` as a mask. It says nothing of whole blocks, so every score is computed and asked for.
template <class F>
struct Predicate {
  F function;

  [[nodiscard]] constexpr bool keep(Position at) const { return function(at); }
  [[nodiscard]] static constexpr Coverage cover(Block) { return Coverage::mixed; }
};

template <class F>
Predicate(F) -> Predicate<F>;

template <class F>
concept PredicateFunction = !Mask<F> && requires(const F& function, Position at) {
  { function(at) } -> std::same_as<bool>;
};

/// Both masks: keeps what both keep, adds what either adds.
template <Mask A, Mask B>
struct And {
  A a;
  B b;

  [[nodiscard]] constexpr bool keep(Position at) const { return a.keep(at) && b.keep(at); }
  [[nodiscard]] constexpr Coverage cover(Block block) const {
    const Coverage of_a = a.cover(block);
    if (of_a == Coverage::empty) return Coverage::empty;
    const Coverage of_b = b.cover(block);
    if (of_b == Coverage::empty) return Coverage::empty;
    return of_a == Coverage::full && of_b == Coverage::full ? Coverage::full : Coverage::mixed;
  }
  [[nodiscard]] constexpr auto bias(Position at) const requires HasBias<A> || HasBias<B> {
    if constexpr (!HasBias<B>) {
      return a.bias(at);
    } else if constexpr (!HasBias<A>) {
      return b.bias(at);
    } else {
      using Sum = std::conditional_t<std::is_same_v<decltype(a.bias(at)), double>, double, float>;
      return static_cast<Sum>(a.bias(at)) + static_cast<Sum>(b.bias(at));  // half would overflow to -inf
    }
  }
  void check(std::string_view function, Index batch, Index heads, Index queries, Index keys) const {
    if constexpr (HasCheck<A>) a.check(function, batch, heads, queries, keys);
    if constexpr (HasCheck<B>) b.check(function, batch, heads, queries, keys);
  }
};

/// What the caller wrote, as a mask: a mask is itself, a callable becomes a Predicate, a tensor an AdditiveMask.
template <class M>
[[nodiscard]] constexpr auto as_mask(const M& mask) {
  if constexpr (Mask<M>) {
    return mask;
  } else if constexpr (PredicateFunction<M>) {
    return Predicate<std::decay_t<M>>{mask};  // a plain function becomes a pointer to it
  } else if constexpr (detail::TensorLike<M>) {
    static_assert(!std::same_as<detail::Element<M>, bool>,
                  "attn: libraries disagree on what true means in a boolean mask: write attn::KeepMask(tensor) "
                  "(true = keep)");
    return AdditiveMask(mask);
  } else {
    static_assert(Mask<M>,
                  "attn: not a mask. A mask has bool keep(Position) and Coverage cover(Block), or is a callable "
                  "bool(Position), or a tensor that is added to the scores. A score function comes after the mask; so "
                  "does a cache: forward(x, attn::Causal{}, cache)");
    return NoMask{};
  }
}

/// Joins masks; a callable may stand on either side.
template <class A, class B>
requires(Mask<A> && (Mask<B> || PredicateFunction<B>)) ||
    (PredicateFunction<A> && Mask<B>) [[nodiscard]] constexpr auto operator&(const A& a, const B& b) {
  return And<decltype(as_mask(a)), decltype(as_mask(b))>{as_mask(a), as_mask(b)};
}

/// All of these masks: as a & b & c, also for masks and callables that are all of the user's own.
template <class First, class... Rest>
[[nodiscard]] constexpr auto all_of(const First& first, const Rest&... rest) {
  if constexpr (sizeof...(Rest) == 0) {
    return as_mask(first);
  } else {
    return as_mask(first) & all_of(rest...);
  }
}

}  // namespace attn
