// LlamaAttention, and torch.nn.MultiheadAttention, against PyTorch. Cases: data/README.md. The bar: torch_support.hpp.
#include "torch_support.hpp"

namespace {

using attn::Index;
using attn::Tensor;
using attn_test::Bar;
using attn_test::max_difference;
using attn_test::module_of;
using attn_test::to_tensor;
using attn_test::torch_cases;
using attn_test::TorchCase;
using attn_test::with_mask;

template <class T>
class TorchModule : public testing::Test {};
TYPED_TEST_SUITE(TorchModule, attn_test::FloatAndDouble);

template <class T>
Tensor<T, 3> output_of(const TorchCase& c) {
  const auto module = module_of<T>(c);
  const auto x = to_tensor<T, 3>(c.tensor("x"));
  Tensor<T, 3> y;
  if (c.has_tensor("mask"))
    with_mask<T>(c, "mask", [&](const auto& mask) { y = module.forward(x, mask); });
  else
    y = module.forward(x);
  return y;
}

/// Whole rows of -1e9: float64 still sees the scores beside it (to 1e-7), float32 does not.
bool has_filled_rows(const TorchCase& c) {
  return c.has_tensor("output_float32") && c.param("mask") != "causal" && c.param("mask") != "padding";
}

TYPED_TEST(TorchModule, GivesItsOutput) {
  Bar bar(std::string("module ") + attn_test::type_name<TypeParam>);
  for (const TorchCase& c : torch_cases("module"))
    if (!has_filled_rows(c)) bar.expect(c, output_of<TypeParam>(c), to_tensor<double, 3>(c.tensor("output")));
}

// An ordinary number: in float, scores vanish beside -1e9 and the row becomes the mean of v, as PyTorch's does; in
// double they are kept as far as doubles near 1e9 go.
TYPED_TEST(TorchModule, GivesItsOutputForRowsOfAFiniteFiller) {
  for (const TorchCase& c : torch_cases("module")) {
    if (!has_filled_rows(c)) continue;
    const auto y = output_of<TypeParam>(c);
    if constexpr (std::same_as<TypeParam, double>)
      EXPECT_LE(max_difference(y, to_tensor<double, 3>(c.tensor("output"))), 1e-6) << c;
    else
      EXPECT_LE(max_difference(y, to_tensor<double, 3>(c.tensor("output_float32"))), 1e-6) << c;
  }
}

template <class T>
class TorchMha : public testing::Test {};
TYPED_TEST_SUITE(TorchMha, attn_test::FloatAndDouble);

/// PyTorch's boolean mask (true = do not attend) as ours (true = keep).
Tensor<bool, 2> kept(const attn_test::TorchTensor& dropped) {
  Tensor<bool, 2> result(dropped.dims[0], dropped.dims[1]);
  for (Index i = 0; i < result.size(); ++i) result.data()[i] = dropped.values[static_cast<std::size_t>(i)] == 0.0;
  return result;
}

TYPED_TEST(TorchMha, GivesItsOutputAndItsWeights) {
  using T = TypeParam;
  Bar bar(std::string("mha ") + attn_test::type_name<T>);
  for (const TorchCase& c : torch_cases("mha")) {
    const auto module = module_of<T>(c);
    const auto x = to_tensor<T, 3>(c.tensor("x"));
    const Index B = x.dimension(0), S = x.dimension(1), H = c.param<Index>("H");
    const auto expect = [&](const auto& mask) {
      const auto [output, weights] = module.forward_with_weights(x, mask);
      bar.expect(c, output, to_tensor<double, 3>(c.tensor("output")));
      bar.expect(c, weights, to_tensor<double, 4>(c.tensor("weights")), "weights");
    };
    if (c.has_tensor("attn_mask")) {
      const auto mask = c.tensor("attn_mask");
      if (mask.dims.size() == 3)
        expect(to_tensor<T, 4>(mask, {B, H, S, S}));  // PyTorch writes it [B*H,S,S]
      else
        expect(to_tensor<T, 2>(mask));
    } else if (c.has_tensor("key_padding_mask")) {
      const auto lengths = c.param<std::vector<Index>>("lengths");
      if (c.has_tensor("attn_mask_bool"))
        expect(attn::KeepMask(kept(c.tensor("attn_mask_bool"))) & attn::Padding(lengths));
      else
        expect(attn::Padding(lengths));
    } else if (c.has_tensor("attn_mask_bool")) {
      const auto keep = kept(c.tensor("attn_mask_bool"));
      expect(attn::KeepMask(keep));
    } else {
      expect(attn::NoMask{});
    }
  }
}

}  // namespace
