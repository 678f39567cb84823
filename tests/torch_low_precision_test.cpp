// LlamaAttention in half and bfloat16, on PyTorch's cases. Weights and input are rounded to the type first; the
// truth is the definition in double on these; the bar is twice the error of the definition in float with the same
// roundings (q, k, v, the heads' output and y are stored in the type), and one rounding of the output.
#include "torch_support.hpp"

namespace {

using attn::Index;
using attn::Tensor;
using attn_test::cast;
using attn_test::max_difference;
using attn_test::plain_linear;
using attn_test::TorchCase;

template <class T>
class TorchLowPrecision : public testing::Test {};
using Low = testing::Types<Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(TorchLowPrecision, Low);

/// Rounded to T, as the module stores it.
template <class T>
Tensor<float, 3> stored(const Tensor<float, 3>& x) {
  return cast<float>(cast<T>(x));
}

template <class T, class M>
Tensor<float, 3> with_roundings(const attn::LlamaAttention<T>& module, const Tensor<T, 3>& x, const M& mask) {
  const Index heads = module.config().num_attention_heads;
  const auto input = cast<float>(x);
  auto q = stored<T>(plain_linear<float>(module.query(), input)),
       k = stored<T>(plain_linear<float>(module.key(), input)),
       v = stored<T>(plain_linear<float>(module.value(), input));
  Tensor<float, 3> context(x.dimensions());
  const attn::AttentionOutputs<float> out{attn::split_heads(context, heads), {}, {}};
  attn::reference::scaled_dot_product_attention_into<float>(out, attn::split_heads(q, heads),
                                                            attn::split_heads(k, heads), attn::split_heads(v, heads),
                                                            mask, attn::NoScore(), {});
  return stored<T>(plain_linear<float>(module.out_proj(), stored<T>(context)));
}

TYPED_TEST(TorchLowPrecision, RoundsOnlyWhereTensorsAreStored) {
  using T = TypeParam;
  double worst = 0.0;
  std::string where;
  for (const TorchCase& c : attn_test::torch_cases("module")) {
    const auto module = attn_test::module_of<T>(c);
    const auto x = attn_test::to_tensor<T, 3>(c.tensor("x"));
    const auto expect = [&](const auto& mask) {
      const auto exact = attn_test::plain_module<double>(module, x, mask);
      const double rounded = max_difference(with_roundings(module, x, mask), exact);
      const double error = max_difference(module.forward(x, mask), exact);
      EXPECT_LE(error, 2.0 * rounded + attn_test::storage_error<T> * attn_test::magnitude(exact)) << c;
      if (rounded > 0.0 && error / rounded > worst) worst = error / rounded, where = c.name();
    };
    if (c.has_tensor("output_float32")) continue;  // the definition in double sees scores beside -1e9, float does not
    if (c.has_tensor("mask"))
      attn_test::with_mask<float>(c, "mask", [&](const auto& mask) { expect(attn::AdditiveMask(mask)); });
    else
      expect(attn::NoMask{});
  }
  std::printf("[ PyTorch  ] module %s: worst ratio to the definition with the same roundings %.3g (%s)\n",
              std::same_as<T, Eigen::half> ? "half" : "bfloat16", worst, where.c_str());
}

}  // namespace
