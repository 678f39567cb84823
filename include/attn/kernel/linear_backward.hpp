// Floor 2. The backward pass of the linear layer.
#pragma once

#include "../error.hpp"
#include "problem.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

template <class X, class W>
void linear_backward(const LinearBackwardProblem<X, W>& p) {
  using A = AccumulatorOf<X>;
  constexpr Index width = panel_width<W>;
  for (Index r = 0; r < p.rows; ++r)
    for (Index o = 0; o < p.out; ++o) {
      const A g = static_cast<A>(p.grad_y[r * p.grad_y_row + o]);
      if (p.bias_gradient != nullptr) p.bias_gradient[o] += g;
      for (Index i = 0; i < p.in; ++i) {
        const Index at = (o / width * p.in + i) * width + o % width;
        p.weight_gradient[at] += g * static_cast<A>(p.x[r * p.x_row + i]);
      }
    }
  for (Index r = 0; r < p.rows && p.grad_x != nullptr; ++r)
    for (Index i = 0; i < p.in; ++i) {
      A sum = p.add ? static_cast<A>(p.grad_x[r * p.grad_x_row + i]) : A{0};
      for (Index o = 0; o < p.out; ++o)
        sum += static_cast<A>(p.grad_y[r * p.grad_y_row + o]) *
               static_cast<A>(p.weight[(o / width * p.in + i) * width + o % width]);
      p.grad_x[r * p.grad_x_row + i] = static_cast<X>(sum);
    }
}

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
