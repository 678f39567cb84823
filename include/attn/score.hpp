// Floor 1. Score functions: what is done to a scaled score before the mask and the softmax.
//
// A score function is any callable `(score, Position) -> score`, a lambda included; it is compiled into the kernel.
// Scores are float (double for double tensors). Score functions run in the order written, after scaling, before the
// mask. A result of -inf means "never attend".
#pragma once

#include <cmath>
#include <concepts>
#include <tuple>
#include <vector>

#include "mask.hpp"

namespace attn {

template <class S, class A>
concept ScoreFunction = requires(const S& score, A value, Position at) {
  { score(value, at) } -> std::convertible_to<A>;
};

/// Leaves scores as they are.
struct NoScore {
  template <class A>
  constexpr A operator()(A score, Position) const {
    return score;
  }
};

/// cap * tanh(score / cap): keeps scores within (-cap, cap), as in Gemma 2 (cap 50).
/// Errors: a cap that is not a positive number.
class SoftCap {
 public:
  explicit SoftCap(float cap) : cap_(cap) {
    detail::require(cap > 0.F && std::isfinite(cap), "SoftCap", "cap, expected a positive number, got ", cap);
  }

  template <class A>
  A operator()(A score, Position) const {
    const auto cap = static_cast<A>(cap_);
    return cap * std::tanh(score / cap);
  }

 private:
  float cap_;
};

/// score - slope[head] * (query - key): attention with linear biases. For a power of two of heads the slopes are
/// 2^(-8/H), 2^(-16/H), ...; other counts take the slopes of the next lower power of two, then every other one of the
/// next higher, as published with the paper.
/// Errors: fewer than one head.
/// Source: Press, Smith, Lewis, "Train short, test long", 2021.
class Alibi {
 public:
  explicit Alibi(Index heads) {
    detail::require(heads >= 1, "Alibi", "heads, expected at least 1, got ", heads);
    Index power = 1;
    while (2 * power <= heads) power *= 2;
    const auto slope = [](Index i, Index count) {
      return static_cast<float>(std::exp2(-8.0 * static_cast<double>(i) / static_cast<double>(count)));
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
  void check(std::string_view function, Index, Index heads, Index, Index) const {
    detail::require(std::ssize(slopes_) == heads, function, "Alibi, expected slopes for ", heads, " heads, got ",
                    std::ssize(slopes_));
  }

 private:
  std::vector<float> slopes_;
};

/// A tensor of rank 1 to 4, broadcast to [B,H,S,T] and added to the score: relative position tables and the like.
/// Views the tensor. It differs from AdditiveMask in its place: before score functions written after it.
template <class T>
class ScoreBias {
 public:
  template <detail::TensorLike X>
    requires std::same_as<detail::Element<X>, T>
  explicit ScoreBias(const X& bias) : bias_(bias) {}

  template <class A>
  A operator()(A score, Position at) const {
    return score + static_cast<A>(bias_(at));
  }
  void check(std::string_view function, Index batch, Index heads, Index queries, Index keys) const {
    bias_.check(function, "ScoreBias", {batch, heads, queries, keys});
  }

 private:
  detail::BroadcastView<T> bias_;
};

template <detail::TensorLike X>
ScoreBias(const X&) -> ScoreBias<detail::Element<X>>;

/// Score functions one after the other, in the order written: `Chain{SoftCap{50.F}, Alibi{8}, my_function}`.
template <class... Functions>
class Chain {
 public:
  explicit constexpr Chain(Functions... functions) : functions_(std::move(functions)...) {}

  template <class A>
  constexpr A operator()(A score, Position at) const {
    std::apply([&](const auto&... function) { ((score = function(score, at)), ...); }, functions_);
    return score;
  }
  void check(std::string_view function, Index batch, Index heads, Index queries, Index keys) const {
    const auto one = [&](const auto& score) {
      if constexpr (HasCheck<std::remove_cvref_t<decltype(score)>>) score.check(function, batch, heads, queries, keys);
    };
    std::apply([&](const auto&... score) { (one(score), ...); }, functions_);
  }

 private:
  std::tuple<Functions...> functions_;
};

}  // namespace attn
