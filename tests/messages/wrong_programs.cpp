// Programs that misuse a public function in one way each, chosen by a macro; without one, a program that is right.
#include <attn/attn.hpp>

#include <string>

using attn::Position;

int main() {
  [[maybe_unused]] const attn::LlamaAttention<float> module(16, 2);
  [[maybe_unused]] const attn::Tensor<float, 3> x(1, 4, 16);
  [[maybe_unused]] const attn::Tensor<float, 4> q(1, 2, 4, 8);
  [[maybe_unused]] const attn::Tensor<bool, 2> booleans(4, 4);
#if defined(MASK_OF_AN_INT)
  (void)module.forward(x, [](int key) { return key < 2; });
#elif defined(MASK_RETURNS_INT)
  (void)module.forward(x, [](Position at) { return at.key; });
#elif defined(FUNCTION_MASK_RETURNS_INT)
  (void)attn::scaled_dot_product_attention(q, q, q, [](Position at) { return at.key; });
#elif defined(MASK_IS_BOOLEANS)
  (void)module.forward(x, booleans);
#elif defined(MASK_IS_A_SCORE)
  (void)attn::scaled_dot_product_attention(q, q, q, [](float score, Position) { return score; });
#elif defined(MASK_IS_A_SOFT_CAP)
  (void)attn::scaled_dot_product_attention(q, q, q, attn::SoftCap(50.F));
#elif defined(MASK_IS_A_CACHE)
  auto cache = module.make_cache(1, 8);
  (void)module.forward(x, cache);
#elif defined(SCORE_WITHOUT_A_POSITION)
  (void)attn::scaled_dot_product_attention(q, q, q, attn::NoMask{}, [](float score) { return score; });
#elif defined(SCORE_RETURNS_A_STRING)
  (void)attn::scaled_dot_product_attention(q, q, q, attn::NoMask{}, [](float, Position) { return std::string(); });
#elif defined(SCORE_IS_A_MASK)
  (void)attn::scaled_dot_product_attention(q, q, q, attn::NoMask{}, attn::Causal{});
#elif defined(LINK_RETURNS_A_STRING)
  (void)attn::Chain(attn::SoftCap(50.F), [](float, Position) { return std::string(); });
#elif defined(SCORE_WITHOUT_A_DERIVATIVE)
  const attn::AttentionResult<float> result{q, {}, {}};
  (void)attn::scaled_dot_product_attention_backward(q, q, q, q, result, attn::NoMask{},
                                                    [](float score, Position) { return score; });
#elif defined(LINK_WITHOUT_A_DERIVATIVE)
  const attn::AttentionResult<float> result{q, {}, {}};
  const attn::Chain chain(attn::SoftCap(50.F), [](float score, Position) { return score; });
  (void)attn::scaled_dot_product_attention_backward(q, q, q, q, result, attn::NoMask{}, chain);
#elif defined(ACTIVATIONS_WITH_A_CACHE)
  auto cache = module.make_cache(1, 8);
  attn::LlamaAttention<float>::Activations saved;
  (void)module.forward(x, attn::Causal{}, cache, saved);
#elif defined(QUERIES_ARE_COLUMN_MAJOR)
  (void)attn::scaled_dot_product_attention(Eigen::Tensor<float, 4>(1, 2, 4, 8), q, q);
#elif defined(QUERIES_ARE_OF_RANK_3)
  (void)attn::scaled_dot_product_attention(x, q, q);
#elif defined(QUERIES_ARE_INTEGERS)
  (void)attn::scaled_dot_product_attention(attn::Tensor<int, 4>(1, 2, 4, 8), q, q);
#elif defined(QUERIES_ARE_A_NUMBER)
  (void)attn::scaled_dot_product_attention(1.F, q, q);
#elif defined(KEYS_ARE_OF_ANOTHER_TYPE)
  (void)attn::scaled_dot_product_attention(q, attn::Tensor<double, 4>(1, 2, 4, 8), q);
#elif defined(ROTATED_TENSOR_IS_OF_RANK_3)
  attn::Tensor<float, 3> heads(2, 4, 8);
  const attn::Index start[] = {0};
  attn::Rotary(8).apply(heads, start);
#elif defined(OUTPUT_IS_OF_RANK_3)
  attn::Tensor<float, 3> y(1, 4, 16);
  attn::scaled_dot_product_attention_into(y, q, q, q);
#elif defined(INPUT_IS_OF_RANK_2)
  (void)module.forward(attn::Tensor<float, 2>(4, 16));
#elif defined(INPUT_IS_COLUMN_MAJOR)
  (void)module.forward(Eigen::Tensor<float, 3>(1, 4, 16), attn::Causal{});
#elif defined(INPUT_IS_OF_ANOTHER_TYPE)
  (void)module(attn::Tensor<double, 3>(1, 4, 16));
#else
  (void)module.forward(x, [](Position at) { return at.key < 2; });
  (void)attn::scaled_dot_product_attention(q, q, q, attn::KeepMask(booleans),
                                           [](auto score, Position) { return score; });
#endif
}
