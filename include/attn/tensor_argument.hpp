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

/// Types that overloads take where others take a tensor: no sentence about these.
template <class X>
inline constexpr bool has_overload = false;

/// Stops the compilation with a sentence unless X is a row-major tensor of this rank, with elements T where T is given.
/// Otherwise true, also after the sentence: a concept that failed as well would add the compiler's own list of reasons.
template <class X, int Rank, class T>
constexpr bool explain_tensor() {
  static_assert(Rank == 3 || Rank == 4, "attn: a sentence for each rank");
  if constexpr (has_overload<X>) {
    return false;
  } else if constexpr (!TensorLike<X>) {
    static_assert(TensorLike<X>,
                  "attn: not a tensor, expected a row-major Eigen::Tensor or TensorMap, or an attn::View");
  } else if constexpr (int{X::NumDimensions} != Rank) {
    static_assert(Rank != 3, "attn: a tensor of the wrong rank, expected one of rank 3");
    static_assert(Rank != 4, "attn: a tensor of the wrong rank, expected one of rank 4");
  } else if constexpr (!Scalar<Element<X>>) {
    static_assert(Scalar<Element<X>>,
                  "attn: elements of an unknown type, expected float, double, Eigen::half or Eigen::bfloat16");
  } else if constexpr (Scalar<T> && !std::same_as<Element<X>, T>) {
    static_assert(!std::same_as<T, float>, "attn: elements of the wrong type, expected float");
    static_assert(!std::same_as<T, double>, "attn: elements of the wrong type, expected double");
    static_assert(!std::same_as<T, Eigen::half>, "attn: elements of the wrong type, expected Eigen::half");
    static_assert(!std::same_as<T, Eigen::bfloat16>, "attn: elements of the wrong type, expected Eigen::bfloat16");
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
