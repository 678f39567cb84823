// What codegen/baseline_only.sh disassembles: the module, and a user's own mask and score function.
#include <attn/attn.hpp>

void run_module(attn::LlamaAttention<float>& attention, const attn::Tensor<float, 3>& x, attn::Tensor<float, 3>& y) {
  attention.forward_into(y, x, attn::Causal{});
}

void run_function(const attn::Tensor<float, 4>& q, const attn::Tensor<float, 4>& k, attn::Tensor<float, 4>& y,
                  float slope) {
  attn::scaled_dot_product_attention_into(
      y, q, k, k, [](attn::Position at) { return at.key % 7 != 3 || at.key == at.query; },
      [slope](float score, attn::Position at) { return score * 0.5F - slope * at.distance(); });
}
