// Floor 1. Dual numbers: a value and its derivative, computed together.
#pragma once

#include <cmath>
#include <concepts>
#include <type_traits>

#include "math.hpp"

namespace attn {

/// A value that depends on a score, and its derivative with respect to it. A score function that takes its score as `auto`
/// computes with dual numbers as with numbers: + - * /, comparisons (of the values), and the functions below, which are
/// found without naming a namespace. Without branches, so that loops over dual numbers become vectors.
template <std::floating_point A>
struct Dual {
  A value = 0;
  A derivative = 0;

  constexpr Dual() = default;
  constexpr Dual(A v, A d) : value(v), derivative(d) {}
  /// A number that does not depend on the score.
  template <class N>
  requires std::is_arithmetic_v<N>
  constexpr Dual(N number) : value(static_cast<A>(number)) {}  // NOLINT: a number is a dual number

  friend constexpr Dual operator+(Dual x) { return x; }
  friend constexpr Dual operator-(Dual x) { return {-x.value, -x.derivative}; }
  friend constexpr Dual operator+(Dual x, Dual y) { return {x.value + y.value, x.derivative + y.derivative}; }
  friend constexpr Dual operator-(Dual x, Dual y) { return {x.value - y.value, x.derivative - y.derivative}; }
  friend constexpr Dual operator*(Dual x, Dual y) {
    return {x.value * y.value, x.derivative * y.value + x.value * y.derivative};
  }
  friend constexpr Dual operator/(Dual x, Dual y) {
    const A quotient = x.value / y.value;
    return {quotient, (x.derivative - quotient * y.derivative) / y.value};
  }
  constexpr Dual& operator+=(Dual x) { return *this = *this + x; }
  constexpr Dual& operator-=(Dual x) { return *this = *this - x; }
  constexpr Dual& operator*=(Dual x) { return *this = *this * x; }
  constexpr Dual& operator/=(Dual x) { return *this = *this / x; }

  friend constexpr bool operator==(Dual x, Dual y) { return x.value == y.value; }
  friend constexpr auto operator<=>(Dual x, Dual y) { return x.value <=> y.value; }

  friend Dual exp(Dual x) {
    const A y = std::exp(x.value);
    return {y, y * x.derivative};
  }
  friend Dual exp2(Dual x) {
    const A y = std::exp2(x.value);
    return {y, A(0.69314718055994530942) * y * x.derivative};
  }
  friend Dual expm1(Dual x) { return {std::expm1(x.value), std::exp(x.value) * x.derivative}; }
  friend Dual log(Dual x) { return {std::log(x.value), x.derivative / x.value}; }
  friend Dual log1p(Dual x) { return {std::log1p(x.value), x.derivative / (1 + x.value)}; }
  friend Dual sqrt(Dual x) {
    const A y = std::sqrt(x.value);
    return {y, x.derivative / (2 * y)};
  }
  /// x to the power of a number.
  template <class N>
  requires std::is_arithmetic_v<N>
  friend Dual pow(Dual x, N exponent) {
    const auto n = static_cast<A>(exponent);
    const A slope = n == 0 ? A{0} : n * std::pow(x.value, n - 1);  // at x = 0, too
    return {std::pow(x.value, n), slope * x.derivative};
  }
  friend Dual sin(Dual x) { return {std::sin(x.value), std::cos(x.value) * x.derivative}; }
  friend Dual cos(Dual x) { return {std::cos(x.value), -std::sin(x.value) * x.derivative}; }
  friend Dual tanh(Dual x) {
    const A y = detail::tanh(x.value);
    return {y, (1 - y * y) * x.derivative};
  }
  friend Dual erf(Dual x) {
    return {std::erf(x.value), A(1.12837916709551257390) * std::exp(-x.value * x.value) * x.derivative};
  }
  /// At 0 the derivative is 1, that of the right.
  friend constexpr Dual abs(Dual x) { return x.value < 0 ? -x : x; }
  friend constexpr Dual fabs(Dual x) { return abs(x); }
  friend constexpr Dual min(Dual x, Dual y) { return y.value < x.value ? y : x; }
  friend constexpr Dual max(Dual x, Dual y) { return x.value < y.value ? y : x; }
  friend constexpr Dual fma(Dual x, Dual y, Dual z) { return x * y + z; }
};

}  // namespace attn
