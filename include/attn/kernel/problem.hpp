// Floor 2. What a kernel is told: pointers, sizes, strides. The same for every instruction set.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../error.hpp"
#include "../position.hpp"
#include "../philox.hpp"

namespace attn::kernel {

/// Elements that are stored in 16 bits and computed in float.
struct Half {
  std::uint16_t bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};

template <class T>
using AccumulatorOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// Outputs side by side in a panel of a packed weight: 192 bytes of floats (or doubles), which is the widest tile of
/// all instruction sets and whole tiles of the others, so that the layout does not depend on the one in use.
template <class T>
inline constexpr Index panel_width = std::is_same_v<T, double> ? 24 : 48;

/// y [rows, out] = x [rows, in] wT + bias. Weight: [ceil(out / panel_width)][in][panel_width], zeros past the last output.
template <class T>
struct LinearProblem {
  const T* x;
  const T* weight;
  const T* bias;  // or null
  T* y;
  Index rows, in, out;
  Index x_row, y_row;  // from one row to the next
};

/// Rows of a [B,H,S,D] tensor; the last axis is contiguous.
template <class T>
struct Heads {
  T* data;
  Index batch, head, row;  // strides, in elements

  [[nodiscard]] T* at(Index b, Index h, Index s) const { return data + b * batch + h * head + s * row; }
};

/// Attention of all heads; the letters of the design.
template <class T>
struct AttentionProblem {
  Index B, H, G, S, T_, D, Dv;
  Heads<const T> q, k, v;
  Heads<T> y;
  AccumulatorOf<T>* log_sum_exp;  // [B,H,S], or null
  T* weights;                     // [B,H,S,T], or null
  AccumulatorOf<T> scale;
  DropoutRule dropout;
  const Index* query_start;  // [B], or null: T - S

  [[nodiscard]] Position position(Index b, Index h, Index s, Index t) const {
    const Index start = query_start == nullptr ? T_ - S : query_start[b];
    return {static_cast<std::int32_t>(b), static_cast<std::int32_t>(h), static_cast<std::int32_t>(s),
            static_cast<std::int32_t>(start + s), static_cast<std::int32_t>(t)};
  }
};

}  // namespace attn::kernel
