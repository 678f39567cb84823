// Floor 0. Small arithmetic: rounding of counts, sizes that cannot overflow, tests of numbers by their bits, and tanh.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>
#include <type_traits>

#include "error.hpp"

namespace attn::detail {

/// How many groups of `group` hold n: n / group, rounded up.
[[nodiscard]] constexpr Index ceil_div(Index n, Index group) { return (n + group - 1) / group; }
/// n rounded up to a multiple of `multiple`.
[[nodiscard]] constexpr Index round_up(Index n, Index multiple) { return ceil_div(n, multiple) * multiple; }

/// The number of elements of a shape.
/// Errors: a negative size, or elements that take more bytes than an Index can count.
template <class T>
constexpr Index checked_size(std::string_view function, std::string_view what, Shape shape) {
  constexpr Index most = std::numeric_limits<Index>::max() / static_cast<Index>(sizeof(T));
  Index elements = 1;
  bool empty = false;
  for (const Index size : shape) {
    require(size >= 0, function, what, ", expected no negative size, got ", shape);
    empty = empty || size == 0;
  }
  for (const Index size : shape) {
    require(empty || elements <= most / size, function, what, ", expected a size that memory can hold, got ", shape);
    elements = empty ? 0 : elements * size;
  }
  return elements;
}

/// The sum of the products of x and y, in eight sums side by side, which compilers turn into vectors.
template <class A>
[[nodiscard]] A dot(const A* x, const A* y, Index n) {
  constexpr Index sums = 8;
  A sum[sums] = {};
  Index i = 0;
  for (; i + sums <= n; i += sums)
    for (Index j = 0; j < sums; ++j) sum[j] += x[i + j] * y[i + j];
  for (; i < n; ++i) sum[i % sums] += x[i] * y[i];
  for (Index half = sums / 2; half > 0; half /= 2)
    for (Index j = 0; j < half; ++j) sum[j] += sum[j + half];
  return sum[0];
}

// Comparisons by bits: -ffast-math (and -Ofast) may drop comparisons that only infinities or NaN would fail, also in
// units compiled without it when the linker merges functions. Integer comparisons stay.

/// The bits of a floating-point number.
template <class A>
[[nodiscard]] constexpr auto bits_of(A x) {
  return __builtin_bit_cast(std::conditional_t<sizeof(A) == 4, std::uint32_t, std::uint64_t>, x);
}
/// The bits of |x|: as integers they are in the order of the numbers, infinity above all finite ones, NaN above that.
template <class A>
[[nodiscard]] constexpr auto magnitude_bits(A x) {
  using Bits = decltype(bits_of(x));
  return static_cast<Bits>(bits_of(x) & (static_cast<Bits>(~Bits{0}) >> 1));
}
template <class A>
[[nodiscard]] constexpr bool is_nan(A x) {
  return magnitude_bits(x) > bits_of(std::numeric_limits<A>::infinity());
}
template <class A>
[[nodiscard]] constexpr bool is_finite(A x) {
  return magnitude_bits(x) < bits_of(std::numeric_limits<A>::infinity());
}
/// Whether x is a finite number above 0.
template <class A>
[[nodiscard]] constexpr bool is_positive(A x) {
  return bits_of(x) == magnitude_bits(x) && bits_of(x) != 0 && is_finite(x);
}
/// Whether x is a number from 0 to 1.
[[nodiscard]] constexpr bool is_probability(double x) {
  return magnitude_bits(x) == 0 || (bits_of(x) == magnitude_bits(x) && bits_of(x) <= bits_of(1.0));
}

/// Where tanh's two formulas meet.
inline constexpr float small_tanh = 0.625F;

/// tanh, at most 3 ULP off. Up to 0.625 an odd polynomial (Cephes), above it 1 - 2 / (e^2|x| + 1); NaN stays NaN.
/// Both are computed and chosen by bits, without a branch or a call, so that compilers vectorise loops over it: g++ 12 -O2
/// does not where a ?: is on floats. std::tanh took 5 times as long.
inline float tanh(float x) {
  const std::uint32_t magnitude = magnitude_bits(x);
  const float square = x * x;
  float p = -5.70498872745e-3F * square + 2.06390887954e-2F;
  p = p * square - 5.37397155531e-2F;
  p = p * square + 1.33314422036e-1F;
  p = p * square - 3.33332819422e-1F;
  const float by_polynomial = p * square * x + x;

  const std::uint32_t most = bits_of(10.F);  // tanh(10) is 1 in float
  const float y = 2.F * __builtin_bit_cast(float, magnitude < most ? magnitude : most);
  const int n = static_cast<int>(y * 1.44269504F + 0.5F);
  const auto whole = static_cast<float>(n);
  const float r = (y - whole * 0.693359375F) + whole * 2.12194440e-4F;
  float e = 1.3843644056e-3F * r + 8.3741633919e-3F;  // e^r, as the kernel's exp
  e = e * r + 4.1668002576e-2F;
  e = e * r + 1.6666431170e-1F;
  e = e * r + 4.9999994206e-1F;
  e = e * r + 1.F;
  e = e * r + 1.F;
  const float by_exponential = 1.F - 2.F / (e * __builtin_bit_cast(float, (n + 127) << 23) + 1.F);
  // From 0.625 to infinity. NaN takes the polynomial, which is NaN.
  const std::uint32_t from = bits_of(small_tanh), infinity = bits_of(std::numeric_limits<float>::infinity());
  const std::uint32_t beyond = magnitude - from <= infinity - from ? ~std::uint32_t{0} : 0;
  const std::uint32_t sign = bits_of(x) & 0x80000000U;
  return __builtin_bit_cast(float, (beyond & (bits_of(by_exponential) | sign)) | (~beyond & bits_of(by_polynomial)));
}
inline double tanh(double x) { return std::tanh(x); }

}  // namespace attn::detail
