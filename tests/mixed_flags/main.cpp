#include "layer.hpp"

// A tensor made here is read there, and one made there is freed here; many sizes, so that a heap that is not the same
// for both would break.
int main() {
  for (attn::Index n = 1; n < 60; ++n) {
    attn::Linear<float> layer(n, n, false);
    attn::Tensor<float, 2> identity(n, n), x(3, n);
    identity.setZero();
    for (attn::Index i = 0; i < n; ++i) identity(i, i) = 2.F;
    layer.set_weight(identity);
    x.setConstant(0.25F);
    attn::Tensor<float, 2> y = apply_twice(layer, x);
    for (attn::Index i = 0; i < y.size(); ++i)
      if (y.data()[i] != 1.F) return 1;
    x = apply_twice(layer, y);
    y = std::move(x);
    if (y(2, n - 1) != 4.F) return 2;
  }
  return 0;
}
