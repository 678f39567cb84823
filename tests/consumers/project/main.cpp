// The smallest program that uses attn from two translation units: main.cpp the module, second.cpp the function.
#include <attn/attn.hpp>

#include <cmath>
#include <iostream>

bool second_unit_is_right();

int main() {
  attn::LlamaAttention<float> attention(64, 8, 0.1);
  attention.eval();
  attn::Tensor<float, 3> x(2, 7, 64);
  x.setConstant(0.5f);
  const attn::Tensor<float, 3> y = attention.forward(x);

  std::cout << "attn " << attn::version << ": [" << y.dimension(0) << ',' << y.dimension(1) << ',' << y.dimension(2)
            << "]\n";
  bool right = y.dimension(0) == 2 && y.dimension(1) == 7 && y.dimension(2) == 64;
  for (attn::Index i = 0; i < y.size(); ++i) right = right && std::isfinite(y.data()[i]);
  return right && second_unit_is_right() ? 0 : 1;
}
