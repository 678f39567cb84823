// Floor 1. Score functions, which change a scaled score before the mask and the softmax.
//
// A score function is any callable (score, Position) -> score, a lambda included; it is compiled into the kernel.
// Scores are float, for double tensors double. Score functions run in the order written, after scaling and before the
// mask. A result of -inf means "never attend".
#pragma once

#include <array>
#include <cmath>
#include <concepts>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "dual.hpp"
#include "mask.hpp"
#include "math.hpp"

namespace attn {

/// A score function for scores of type A.
template <class F, class A>
concept ScoreFunction = requires(const F& score, A value, Position at) {
  { score(value, at) } -> std::convertible_to<A>;
};

/// Leaves scores as they are.
struct NoScore {
  template <class A>
  constexpr A operator()(A score, Position) const {
    return score;
  }
  template <class A>
  constexpr A derivative(A, Position) const {
    return A{1};
  }
};

namespace detail {

/// A function that says its own derivative with respect to the score.
template <class F, class A>
concept HasDerivative = requires(const F& score, A value, Position at) {
  { score.derivative(value, at) } -> std::convertible_to<A>;
};
/// A score function that a backward pass can go through.
template <class F, class A>
concept Differentiable = HasDerivative<F, A> || std::invocable<const F&, Dual<A>, Position>;

/// The score function of a value that depends on another one: by its own derivative where it has one, else by dual numbers.
template <class A, class F>
[[nodiscard]] constexpr Dual<A> apply(const F& score, Dual<A> value, Position at) {
  if constexpr (HasDerivative<F, A>) {
    return {static_cast<A>(score(value.value, at)),
            static_cast<A>(score.derivative(value.value, at)) * value.derivative};
  } else if constexpr (Differentiable<F, A>) {
    return score(value, at);
  } else {
    return {};  // it was refused
  }
}
/// A score function's result and its derivative.
template <class A, class F>
[[nodiscard]] constexpr Dual<A> score_with_derivative(const F& score, A value, Position at) {
  return apply<A>(score, Dual<A>(value, A{1}), at);
}
/// Stops the compilation with a sentence unless F has a derivative.
template <class F, class A>
constexpr bool explain_derivative() {
  constexpr bool has_derivative = !ScoreFunction<F, A> || Differentiable<F, A>;
  static_assert(has_derivative,
                "attn: a score function without a derivative; take its score as `auto`, so that dual numbers can pass "
                "through it, or give it a member derivative(score, at)");
  return true;
}

/// Stops the compilation with a sentence unless F can be a score function for scores of type A. Otherwise true, also after
/// the sentence: a concept that failed as well would add the compiler's own list of reasons.
template <class F, class A>
constexpr bool explain_score() {
  constexpr bool is_score = ScoreFunction<F, A>;
  if constexpr (std::invocable<const F&, A, Position>) {
    static_assert(is_score, "attn: a score function returns the new score, a number");
  } else if constexpr (Mask<F> || PredicateFunction<F> || TensorLike<F>) {
    static_assert(is_score,
                  "attn: a mask in place of a score function; masks come first, joined by &, then the score function");
  } else {
    static_assert(
        is_score,
        "attn: not a score function; expected a callable (auto score, attn::Position at) that returns the new score");
  }
  return true;
}

/// What the caller wrote, as a score function: itself, or a pointer to it where it is a plain function.
template <class A, class F>
[[nodiscard]] constexpr decltype(auto) as_score(const F& score) {
  if constexpr (!ScoreFunction<F, A>) {
    return NoScore{};  // it was refused
  } else if constexpr (std::is_function_v<F>) {
    return &score;
  } else {
    return (score);
  }
}

}  // namespace detail

/// What functions take as a score function, for scores of type A.
template <class F, class A>
concept ScoreArgument = detail::explain_score<F, A>();

/// What Chain takes as a score function, whose type of scores is not known yet.
template <class F>
concept ScoreLink = ScoreFunction<F, double> || detail::explain_score<F, float>();

/// cap * tanh(score / cap), which keeps scores within (-cap, cap), as in Gemma 2 (cap 50).
/// Errors: a cap that is not a positive number.
class SoftCap {
 public:
  explicit SoftCap(float cap) : cap_(cap) {
    detail::require(detail::is_positive(cap), "SoftCap", "cap, expected a positive number, got ", cap);
  }

  [[nodiscard]] float cap() const { return cap_; }

  template <class A>
  A operator()(A score, Position) const {
    const auto cap = static_cast<A>(cap_);
    return cap * detail::tanh(score / cap);
  }
  template <class A>
  A derivative(A score, Position) const {
    const A y = detail::tanh(score / static_cast<A>(cap_));
    return 1 - y * y;
  }

 private:
  float cap_;
};

/// score - slope[head] * (query - key): attention with linear biases. Where the number of heads is a power of two, the
/// slopes are 2^(-8/H), 2^(-16/H), ... Otherwise they are those of the next lower power of two, followed by every other
/// one of the next higher, as published with the paper.
/// Errors: fewer than one head.
/// Source: Press, Smith, Lewis, "Train short, test long", 2021.
class Alibi {
 public:
  explicit Alibi(Index heads) {
    detail::require(heads >= 1, "Alibi", "heads, expected at least 1, got ", heads);
    Index power = 1;
    while (power <= heads / 2) power *= 2;
    const auto slope = [](Index i, Index count) {
      return std::exp2(-8.0 * static_cast<double>(i) / static_cast<double>(count));
    };
    slopes_.reserve(static_cast<std::size_t>(heads));
    for (Index i = 1; i <= power; ++i) slopes_.push_back(slope(i, power));
    for (Index i = 1; std::ssize(slopes_) < heads; i += 2) slopes_.push_back(slope(i, 2 * power));
  }

  template <class A>
  A operator()(A score, Position at) const {
    const auto slope = static_cast<A>(slopes_[static_cast<std::size_t>(at.head)]);
    return score - slope * static_cast<A>(at.query - at.key);
  }
  template <class A>
  A derivative(A, Position) const {
    return A{1};
  }
  void check(std::string_view function, Index, Index heads, Index, Index) const {
    detail::require(std::ssize(slopes_) == heads, function, "Alibi, expected slopes for ", heads, " heads, got ",
                    std::ssize(slopes_));
  }

 private:
  std::vector<double> slopes_;
};

/// A tensor of rank 1 to 4, broadcast to [B,H,S,T] and added to the score, for example a table of relative positions.
/// Views the tensor. It differs from AdditiveMask in the order: score functions written after it see the sum.
template <class T>
class ScoreBias {
 public:
  template <detail::TensorToAdd<T> X>
  explicit ScoreBias(const X& bias) : bias_(bias) {}

  template <class A>
  A operator()(A score, Position at) const {
    return score + static_cast<A>(bias_(at));
  }
  template <class A>
  A derivative(A, Position) const {
    return A{1};
  }
  /// The tensor's shape, rank 4.
  [[nodiscard]] const std::array<Index, 4>& shape() const { return bias_.shape(); }
  void check(std::string_view function, Index batch, Index heads, Index queries, Index keys) const {
    bias_.check(function, "ScoreBias", {batch, heads, queries, keys});
  }

 private:
  detail::BroadcastView<T> bias_;
};

template <detail::TensorLike X>
ScoreBias(const X&) -> ScoreBias<detail::Element<X>>;

/// Several score functions applied in the order written: `Chain{SoftCap{50.F}, Alibi{8}, my_function}`.
template <ScoreLink... Functions>
class Chain {
 public:
  explicit constexpr Chain(Functions... functions) : functions_(std::move(functions)...) {}

  template <class A>
  constexpr A operator()(A score, Position at) const requires(...&& std::invocable<const Functions&, A, Position>) {
    std::apply([&](const auto&... function) { ((score = static_cast<A>(function(score, at))), ...); }, functions_);
    return score;
  }
  template <class A>
  constexpr Dual<A> operator()(Dual<A> score, Position at) const requires(...&& detail::Differentiable<Functions, A>) {
    std::apply([&](const auto&... function) { ((score = detail::apply<A>(function, score, at)), ...); }, functions_);
    return score;
  }
  /// The functions, in their order.
  [[nodiscard]] constexpr const std::tuple<Functions...>& functions() const { return functions_; }
  void check(std::string_view function, Index batch, Index heads, Index queries, Index keys) const {
    const auto one = [&](const auto& score) {
      if constexpr (detail::HasCheck<std::remove_cvref_t<decltype(score)>>)
        score.check(function, batch, heads, queries, keys);
    };
    std::apply([&](const auto&... score) { (one(score), ...); }, functions_);
  }

 private:
  std::tuple<Functions...> functions_;
};

namespace detail {

/// How many ScoreBias there are in a score function.
template <class F>
inline constexpr int score_biases = 0;
template <class T>
inline constexpr int score_biases<ScoreBias<T>> = 1;
template <class... Functions>
inline constexpr int score_biases<Chain<Functions...>> = (0 + ... + score_biases<Functions>);

/// A score function of one ScoreBias: its result, and the derivative with respect to the bias.
template <class A, class T>
[[nodiscard]] Dual<A> apply_to_bias(const ScoreBias<T>& score, Dual<A> value, Position at) {
  return {score(value.value, at), A{1}};
}
template <class A, class... Functions>
[[nodiscard]] Dual<A> apply_to_bias(const Chain<Functions...>& chain, Dual<A> value, Position at) {
  const auto one = [&](const auto& score) {
    if constexpr (score_biases<std::remove_cvref_t<decltype(score)>> == 1)
      value = apply_to_bias<A>(score, value, at);
    else
      value = apply<A>(score, value, at);
  };
  std::apply([&](const auto&... score) { (one(score), ...); }, chain.functions());
  return value;
}
template <class A, class F>
[[nodiscard]] Dual<A> score_with_bias_derivative(const F& score, A value, Position at) {
  return apply_to_bias<A>(score, Dual<A>(value, A{0}), at);
}
/// The shape, rank 4, of the only ScoreBias.
template <class T>
[[nodiscard]] std::array<Index, 4> bias_shape(const ScoreBias<T>& score) {
  return score.shape();
}
template <class... Functions>
[[nodiscard]] std::array<Index, 4> bias_shape(const Chain<Functions...>& chain) {
  std::array<Index, 4> shape{};
  const auto one = [&](const auto& score) {
    if constexpr (score_biases<std::remove_cvref_t<decltype(score)>> == 1) shape = bias_shape(score);
  };
  std::apply([&](const auto&... score) { (one(score), ...); }, chain.functions());
  return shape;
}

}  // namespace detail

}  // namespace attn
