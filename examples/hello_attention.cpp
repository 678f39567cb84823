#include <attn/attn.hpp>

#include <iostream>

int main() {
  attn::LlamaAttention<float> attention(64, 8);  // hidden size, heads; random weights, as PyTorch draws them
  attention.eval();                              // a new module is in training mode: this switches dropout off

  attn::Tensor<float, 3> x(2, 10, 64);  // [batch, sequence, hidden], a row-major Eigen::Tensor
  x.setRandom();

  const attn::Tensor<float, 3> y = attention.forward(x, attn::Causal{});
  std::cout << "y is [" << y.dimension(0) << ',' << y.dimension(1) << ',' << y.dimension(2) << "]\n";
}
