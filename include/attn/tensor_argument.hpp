// Floor 3. The tensor parameters of public functions, whose misuse a compiler reports in one sentence.
#pragma once

#include <concepts>
#include <type_traits>

#include "tensor.hpp"
#include "view.hpp"

namespace attn::detail {

/// The element type of a tensor that attn computes with; float for anything else, which has been refused by then.
template <class X>
struct ScalarOfArgument {
  using type = float;
};
template <TensorLike X>
requires Scalar<Element<X>>
struct ScalarOfArgument<X> {
  using type = Element<X>;
};
template <class X>
using ScalarOf = typename ScalarOfArgument<std::remove_cvref_t<X>>::type;

/// Stops the compilation with a sentence unless X is a row-major tensor of this rank, with elements T where T is given.
/// Otherwise true, also after the sentence: a concept that failed as well would add the compiler's own list of reasons.
template <class X, int Rank, class T>
constexpr bool explain_tensor() {
  if constexpr (!TensorLike<X>) {
    static_assert(TensorLike<X>,
                  "attn: not a tensor; expected a row-major Eigen::Tensor or TensorMap, or an attn::View");
  } else if constexpr (int{X::NumDimensions} != Rank) {
    constexpr int given = int{X::NumDimensions}, expected = Rank;
    static_assert(given == expected,
                  "attn: a tensor of the wrong rank; the comparison is of its rank and the expected one");
  } else if constexpr (!Scalar<Element<X>>) {
    static_assert(Scalar<Element<X>>, "attn: elements are float, double, Eigen::half or Eigen::bfloat16");
  } else if constexpr (!std::is_void_v<T> && !std::same_as<Element<X>, T>) {
    static_assert(std::same_as<Element<X>, T>,
                  "attn: a tensor of the wrong element type; the comparison is of its type and the expected one");
  } else if constexpr (!is_row_major<X>) {
    static_assert(is_row_major<X>, "attn: row-major tensors only, Eigen::Tensor<T, Rank, Eigen::RowMajor>");
  }
  return true;
}

/// A tensor, TensorMap or View that a function takes: row-major, of rank `Rank`, with elements T unless T is void.
template <class X, int Rank, class T = void>
concept TensorArgument = explain_tensor<std::remove_cvref_t<X>, Rank, T>();

/// The view of an argument; an empty one of an argument that was refused, so that nothing but the sentence is reported.
template <class T, int Rank, class X>
[[nodiscard]] View<const T, Rank> view_of_argument(const X& x) {
  if constexpr (TensorOfElement<X, T>) {
    if constexpr (int{X::NumDimensions} == Rank && is_row_major<X>) return x;
  }
  return {};
}

}  // namespace attn::detail
