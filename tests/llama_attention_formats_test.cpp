// The module with weights in fewer bits.
#include "module_support.hpp"

#include <limits>

namespace {

using attn::Index;
using attn::LlamaAttention;
using attn::LlamaAttentionConfig;
using attn::WeightFormat;
using attn_test::difference;
using attn_test::expect_error;
using attn_test::filled;
using attn_test::random_tensor;
using attn_test::same_bits;

constexpr WeightFormat formats[] = {WeightFormat::bfloat16, WeightFormat::half, WeightFormat::int8, WeightFormat::int4};

LlamaAttention<float> small_module() {
  return LlamaAttention<float>(LlamaAttentionConfig{.hidden_size = 96,
                                                    .num_attention_heads = 6,
                                                    .num_key_value_heads = 2,
                                                    .rotary = attn::RotaryConfig{},
                                                    .seed = 1});
}

TEST(StoredModule, ComputesWhatRoundedWeightsGive) {
  const auto x = random_tensor<float, 3>({2, 11, 96}, 2);
  for (const WeightFormat format : formats) {
    LlamaAttention<float> stored = small_module();
    stored.store_weights(format);
    EXPECT_EQ(stored.query().weight_format(), format);
    EXPECT_EQ(stored.out_proj().weight_format(), format);
    LlamaAttention<float> rounded = stored;  // the same numbers, as floats
    rounded.store_weights(WeightFormat::native);
    const auto y = stored.forward(x, attn::Causal()), expected = rounded.forward(x, attn::Causal());
    const bool rounds_inputs = format == WeightFormat::int8 || format == WeightFormat::int4;
    EXPECT_LE(difference(y, expected).rms,
              (rounds_inputs ? 2e-2 : 1e-6) * difference(y, filled<float, 3>({2, 11, 96}, 0.F)).rms)
        << weight_format_name(format);
  }
}

TEST(StoredModule, DecodesAsItReadsAPrompt) {
  for (const WeightFormat format : formats) {
    LlamaAttention<float> module = small_module();
    module.store_weights(format);
    module.eval();
    const auto x = random_tensor<float, 3>({1, 9, 96}, 3);
    const auto at_once = module.forward(x, attn::Causal());
    auto cache = module.make_cache(1, 9);
    for (Index s = 0; s < 9; ++s) {
      const attn::Tensor<float, 3> token = x.slice(std::array<Index, 3>{0, s, 0}, std::array<Index, 3>{1, 1, 96});
      const auto y = module.forward(token, attn::Causal(), cache);
      for (Index e = 0; e < 96; ++e) ASSERT_NEAR(y(0, 0, e), at_once(0, s, e), 1e-2F) << weight_format_name(format);
    }
  }
}

TEST(StoredModule, KeepsTiedProjectionsTied) {
  LlamaAttention<float> module = small_module();
  module.value().share(module.key());
  module.store_weights(WeightFormat::int8);
  EXPECT_TRUE(module.value().shares_with(module.key()));
  EXPECT_EQ(module.value().weight_format(), WeightFormat::int8);
}

TEST(StoredModule, IsAsItWasWhereOneWeightCannotBeStored) {
  LlamaAttention<float> module = small_module();
  auto weight = module.out_proj().weight();
  weight(3, 5) = std::numeric_limits<float>::infinity();
  module.out_proj().set_weight(weight);
  expect_error([&] { module.store_weights(WeightFormat::int8); }, {"int8 can hold, got inf of output 3, input 5"});
  EXPECT_EQ(module.query().weight_format(), WeightFormat::native);
}

TEST(StoredModule, RefusesToTrain) {
  LlamaAttention<float> module = small_module();
  const auto x = random_tensor<float, 3>({1, 4, 96}, 2);
  LlamaAttention<float>::Activations saved;
  const auto y = module.forward(x, attn::Causal(), saved);
  module.store_weights(WeightFormat::int4);
  expect_error([&] { static_cast<void>(module.backward(y, saved)); },
               {"[attn::LlamaAttention::backward]", "store_weights(WeightFormat::native)", "got int4"});
  expect_error([&] { static_cast<void>(module.forward(x, attn::Causal(), saved)); },
               {"[attn::LlamaAttention::forward]", "store_weights(WeightFormat::native)", "got int4"});
  expect_error([&] { static_cast<void>(module.parameters()); }, {"got int4"});
  module.store_weights(WeightFormat::native);
  static_cast<void>(module.forward(x, attn::Causal(), saved));
  static_cast<void>(module.backward(y, saved));
}

}  // namespace
