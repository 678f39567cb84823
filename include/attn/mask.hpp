// Floor 1. Masks: which keys a query may attend to. Small value types, no Eigen.
//
// A mask is any type with
//     bool keep(Position) const;       may this query attend to this key?
//     Coverage cover(Block) const;     does it keep nothing of this block of scores, everything, or some of it?
// `cover` makes a mask fast: a block that it calls empty is neither computed nor read, and a full one costs nothing.
// A mask may also have `bias(Position)`, a number added to every score that it keeps, in full blocks too (AdditiveMask
// has it; -inf there means "never attend"), and `check(function, batch, heads, queries, keys)`, which throws where the
// mask does not fit the call.
// Masks that refer to data (Padding, KeepMask, AdditiveMask) are views: the caller keeps the data.
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

namespace detail {

template <class M>
concept HasBias = requires(const M& mask, Position at) {
  mask.bias(at);
};

/// A mask or a score function that checks whether it fits a call.
template <class M>
concept HasCheck = requires(const M& mask) {
  mask.check("", Index{}, Index{}, Index{}, Index{});
};

/// A callable bool(Position).
template <class F>
concept PredicateFunction = !Mask<F> && requires(const F& function, Position at) {
  { function(at) } -> std::same_as<bool>;
};

/// A tensor whose elements T can be added to scores. Booleans cannot: it is KeepMask that takes them.
template <class X, class T>
concept TensorToAdd = TensorOfElement<X, T> && !std::same_as<T, bool>;

}  // namespace detail

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

/// A query sees itself and the keys before it.
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

/// A query sees exactly `width` keys, of which it is the last, and `ahead` more after it.
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
  /// At most 2^32, which is further than any two 32-bit positions are apart.
  static constexpr std::int64_t clamp(Index keys) { return std::clamp<std::int64_t>(keys, -1, std::int64_t{1} << 32); }

  std::int64_t behind_;  // keys before the query
  std::int64_t ahead_;   // keys after it
};

/// Keys from `lengths[b]` on are padding in batch entry b and are never read. Views the lengths; without lengths there is
/// no padding.
/// Errors (at the call): another number of lengths than batch entries, a length that is not from 0 to the number of keys.
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

/// The first `padding[b]` keys of batch entry b are padding and are never read: prompts of different lengths that end
/// together. Views the numbers; without any there is no padding.
/// Errors (at the call): another number of them than batch entries, one that is not from 0 to the number of keys.
class LeftPadding {
 public:
  constexpr LeftPadding() = default;
  explicit constexpr LeftPadding(std::span<const Index> padding) : padding_(padding) {}

  [[nodiscard]] constexpr bool keep(Position at) const { return at.key >= first(at.batch); }
  [[nodiscard]] constexpr Coverage cover(Block block) const {
    const Index keys = first(block.first.batch);
    if (block.last.key < keys) return Coverage::empty;
    return block.first.key >= keys ? Coverage::full : Coverage::mixed;
  }
  void check(std::string_view function, Index batch, Index, Index, Index keys) const {
    if (padding_.empty()) return;
    detail::require(std::ssize(padding_) == batch, function, "LeftPadding, expected one number for each of ", batch,
                    " batch entries, got ", std::ssize(padding_));
    for (const Index padding : padding_)
      detail::require(0 <= padding && padding <= keys, function, "LeftPadding, expected numbers from 0 to ", keys,
                      ", got ", padding);
  }

 private:
  [[nodiscard]] constexpr Index first(std::int32_t batch) const {
    return padding_.empty() ? 0 : padding_[static_cast<std::size_t>(batch)];
  }
  std::span<const Index> padding_;
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
 public:
  template <detail::TensorToAdd<T> X>
  explicit AdditiveMask(const X& bias) : bias_(bias) {}

  [[nodiscard]] static constexpr bool keep(Position) { return true; }  // -inf arrives through the bias
  [[nodiscard]] static constexpr Coverage cover(Block) { return Coverage::mixed; }
  [[nodiscard]] T bias(Position at) const { return bias_(at); }
  /// The tensor's shape, rank 4.
  [[nodiscard]] const std::array<Index, 4>& shape() const { return bias_.shape(); }
  void check(std::string_view function, Index batch, Index heads, Index queries, Index keys) const {
    bias_.check(function, "AdditiveMask", {batch, heads, queries, keys});
  }

 private:
  detail::BroadcastView<T> bias_;
};

template <detail::TensorLike X>
AdditiveMask(const X&) -> AdditiveMask<detail::Element<X>>;

/// A callable bool(Position) as a mask. It says nothing about blocks, so every score is computed and asked about.
template <detail::PredicateFunction F>
struct Predicate {
  F function;

  [[nodiscard]] constexpr bool keep(Position at) const { return function(at); }
  [[nodiscard]] static constexpr Coverage cover(Block) { return Coverage::mixed; }
};

template <class F>
Predicate(F) -> Predicate<F>;

/// Two masks joined: keeps what both keep, adds what either adds.
/// It and Predicate stand in attn, not in detail, so that argument-dependent lookup finds operator& for them.
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
  [[nodiscard]] constexpr auto bias(Position at) const requires detail::HasBias<A> || detail::HasBias<B> {
    if constexpr (!detail::HasBias<B>) {
      return a.bias(at);
    } else if constexpr (!detail::HasBias<A>) {
      return b.bias(at);
    } else {
      constexpr bool in_double =
          std::is_same_v<decltype(a.bias(at)), double> || std::is_same_v<decltype(b.bias(at)), double>;
      using Sum = std::conditional_t<in_double, double, float>;
      return static_cast<Sum>(a.bias(at)) + static_cast<Sum>(b.bias(at));  // half would overflow to -inf
    }
  }
  void check(std::string_view function, Index batch, Index heads, Index queries, Index keys) const {
    if constexpr (detail::HasCheck<A>) a.check(function, batch, heads, queries, keys);
    if constexpr (detail::HasCheck<B>) b.check(function, batch, heads, queries, keys);
  }
};

namespace detail {

/// How many additive masks are joined in M.
template <class M>
inline constexpr int additive_masks = 0;
template <class T>
inline constexpr int additive_masks<AdditiveMask<T>> = 1;
template <class A, class B>
inline constexpr int additive_masks<And<A, B>> = additive_masks<A> + additive_masks<B>;
/// The shape, rank 4, of the only one.
template <class T>
[[nodiscard]] std::array<Index, 4> additive_shape(const AdditiveMask<T>& mask) {
  return mask.shape();
}
template <class A, class B>
[[nodiscard]] std::array<Index, 4> additive_shape(const And<A, B>& mask) {
  if constexpr (additive_masks<A> == 1)
    return additive_shape(mask.a);
  else
    return additive_shape(mask.b);
}

template <class M>
inline constexpr bool is_boolean_tensor = false;
template <TensorOfElement<bool> M>
inline constexpr bool is_boolean_tensor<M> = true;

/// Whether M can be a mask.
template <class M>
inline constexpr bool is_mask_argument = Mask<M> || PredicateFunction<M> || (TensorLike<M> && !is_boolean_tensor<M>);

/// Stops the compilation with a sentence unless M can be a mask. Otherwise true, also after the sentence: a concept that
/// failed as well would add the compiler's own list of reasons.
template <class M>
constexpr bool explain_mask() {
  constexpr bool is_mask = is_mask_argument<M>;
  if constexpr (is_boolean_tensor<M>) {
    static_assert(is_mask,
                  "attn: libraries disagree on what true means in a boolean mask: write attn::KeepMask(tensor) "
                  "(true = keep)");
  } else if constexpr (std::invocable<const M&, Position>) {
    static_assert(is_mask, "attn: a function used as a mask returns bool, whether the query may attend to the key");
  } else if constexpr (std::invocable<const M&, float, Position>) {
    static_assert(is_mask, "attn: a score function in place of a mask; it comes after the mask: attn::NoMask{}, score");
  } else {
    static_assert(is_mask,
                  "attn: not a mask. A mask has bool keep(Position) and Coverage cover(Block), or is a callable "
                  "bool(Position), or a tensor that is added to the scores. A score function comes after the mask; so "
                  "does a cache: forward(x, attn::Causal{}, cache)");
  }
  return true;
}

}  // namespace detail

/// What functions take as a mask: a mask, a callable bool(Position), or a tensor that is added to the scores.
template <class M>
concept MaskArgument = detail::explain_mask<M>();

/// What the caller wrote, as a mask: a mask is itself, a callable becomes a Predicate, a tensor an AdditiveMask.
template <MaskArgument M>
[[nodiscard]] constexpr auto as_mask(const M& mask) {
  if constexpr (Mask<M>) {
    return mask;
  } else if constexpr (detail::PredicateFunction<M>) {
    return Predicate<std::decay_t<M>>{mask};  // a plain function becomes a pointer to it
  } else if constexpr (detail::TensorLike<M> && !detail::is_boolean_tensor<M>) {
    return AdditiveMask(mask);
  } else {
    return NoMask{};  // it was refused
  }
}

namespace detail {
template <class A, class B>
concept CanBeJoined = (Mask<A> && (Mask<B> || PredicateFunction<B>)) || (PredicateFunction<A> && Mask<B>);
}  // namespace detail

/// Joins masks; a callable may stand on either side.
template <class A, class B>
requires detail::CanBeJoined<A, B>
[[nodiscard]] constexpr auto operator&(const A& a, const B& b) {
  return And<decltype(as_mask(a)), decltype(as_mask(b))>{as_mask(a), as_mask(b)};
}

/// Joins all of these masks as a & b & c does, also where all of them are of the user's own types.
template <MaskArgument First, MaskArgument... Rest>
[[nodiscard]] constexpr auto all_of(const First& first, const Rest&... rest) {
  if constexpr (sizeof...(Rest) == 0) {
    return as_mask(first);
  } else {
    return as_mask(first) & all_of(rest...);
  }
}

}  // namespace attn
