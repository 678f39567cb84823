// Floor 2. What a kernel is told: pointers, sizes, strides. The same for every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../error.hpp"
#include "../philox.hpp"
#include "../position.hpp"
#include "codec.hpp"

namespace attn::kernel {

/// Outputs side by side in a panel of a packed weight: 192 bytes of floats (or doubles), which is the widest tile of
/// all instruction sets and whole tiles of the others, so that the layout does not depend on the one in use.
template <class T>
inline constexpr Index panel_width = std::is_same_v<T, double> ? 24 : 48;

/// y [rows, out] = x [rows, in] wT + bias. The weight is passed separately: its format may differ from that of x.
template <class X>
struct LinearProblem {
  const X* x;
  const X* bias;  ///< [out], or null
  X* y;
  Index rows, in, out;
  Index x_row, y_row;  ///< from one row to the next
  bool add = false;    ///< to what y holds, in place of the bias
};

/// The backward pass of a linear layer: grad_x = grad_y w, weight_gradient += grad_yT x, bias_gradient += the sum of the
/// rows of grad_y.
template <class X, class W>
struct LinearBackwardProblem {
  using A = AccumulatorOf<X>;

  const X* x;
  const W* weight;  ///< [ceil(out / panel_width)][in][panel_width], zeros past the last output
  const X* grad_y;
  X* grad_x;           ///< [rows, in], or null
  A* weight_gradient;  ///< in the same order
  A* bias_gradient;    ///< [out], or null
  Index rows, in, out;
  Index x_row, grad_y_row, grad_x_row;  ///< from one row to the next
  bool add = false;                     ///< to what grad_x holds
};

/// Rows of a [B,H,S,D] tensor; the last axis is contiguous.
template <class T>
struct Heads {
  T* data;
  Index batch, head, row;  ///< strides, in elements

  [[nodiscard]] T* at(Index b, Index h, Index s) const { return data + b * batch + h * head + s * row; }
};

/// Keys of a run: a page of a cache is one run or several, and a step of a kernel lies in one.
inline constexpr Index run_keys = 64;

/// Rows of one head of keys or values: one after another, or in runs that each lie somewhere.
struct HeadRows {
  const std::byte* first;                  ///< the first row, where there are no runs
  const std::byte* const* runs = nullptr;  ///< where each run of the sequence lies; null where nothing is held
  Index offset = 0;                        ///< bytes from there to the head's rows

  bool operator==(const HeadRows&) const = default;
};

/// Rows of keys or values [B,G,T,size] in some format; strides are in bytes, the last axis is contiguous.
struct StoredRows {
  const std::byte* data;
  Index batch, head, row;
  const std::byte* const* runs = nullptr;  ///< [B][runs_row], or null; `data` and `batch` are then not looked at
  Index runs_row = 0;                      ///< runs from one sequence to the next

  [[nodiscard]] HeadRows of_head(Index b, Index g) const {
    if (runs == nullptr) return {data + b * batch + g * head};
    return {nullptr, runs + b * runs_row, g * head};
  }
};

/// Attention of all heads. Queries and outputs are stored as Q, keys and values each in a format of their own.
template <class Q>
struct AttentionProblem {
  using A = AccumulatorOf<Q>;

  Index B;      ///< batch entries
  Index H, G;   ///< query heads, key/value heads
  Index S, T;   ///< queries, keys
  Index D, Dv;  ///< head size of q and k, and of v
  Heads<const Q> q;
  StoredRows k, v;
  Heads<Q> y;
  A* log_sum_exp;  ///< [B,H,S], or null
  Q* weights;      ///< [B,H,S,T], or null
  A scale;
  DropoutRule dropout;
  const Index* query_start;  ///< [B], or null: T - S
  const double* sinks;       ///< [H], or null

  [[nodiscard]] Position position(Index b, Index h, Index s, Index t) const {
    const Index start = query_start == nullptr ? T - S : query_start[b];
    return {static_cast<std::int32_t>(b), static_cast<std::int32_t>(h), static_cast<std::int32_t>(s),
            static_cast<std::int32_t>(start + s), static_cast<std::int32_t>(t)};
  }
  /// Multiplications of both products, about; as a number that cannot overflow.
  [[nodiscard]] double work() const {
    return static_cast<double>(B * H * S) * static_cast<double>(T) * static_cast<double>(D + Dv);
  }
};

/// The backward pass of an attention: the forward problem, its results, and where the gradients go.
template <class Q>
struct AttentionBackwardProblem {
  using A = AccumulatorOf<Q>;

  AttentionProblem<Q> forward;  ///< its outputs are not looked at
  Heads<const Q> y;
  const A* log_sum_exp;  ///< [B,H,S]
  Heads<const Q> grad_y;
  const A* grad_log_sum_exp;  ///< [B,H,S], or null
  Heads<Q> grad_q, grad_k, grad_v;
};

}  // namespace attn::kernel
