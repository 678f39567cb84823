// The attention of open models, from their own files: what PyTorch computes with small ones of eleven families.
#include <attn/io/hugging_face.hpp>

#include <filesystem>
#include <string>

#include "module_support.hpp"

namespace {

using attn::Causal;
using attn::HuggingFaceFolder;
using attn::Index;
using attn::LlamaAttention;
using attn::LlamaAttentionConfig;
using attn::SafetensorsFile;
using attn::Tensor;
using attn_test::cast;
using attn_test::max_difference;
using attn_test::rows_of;

std::filesystem::path folder_of(const std::string& family) {
  return std::filesystem::path(ATTN_TEST_DATA_DIR) / "families" / family;
}

class ModelFamily : public testing::TestWithParam<const char*> {
 protected:
  HuggingFaceFolder folder_{folder_of(GetParam())};
  SafetensorsFile case_{folder_of(GetParam()) / "case.safetensors"};
  Tensor<float, 3> x_ = case_.read<float, 3>("x");

  /// A part of the case: "layers.N.", or "prefix.N." for the first tokens alone.
  [[nodiscard]] Tensor<double, 3> expected(const std::string& part) const { return case_.read<double, 3>(part + "y"); }
  /// Twice PyTorch's own error in float32, the worst of several orders of summation; where that is next to nothing, some ulp
  /// of the largest output.
  [[nodiscard]] double bar(const std::string& part) const {
    return std::max(2 * case_.read<double, 0>(part + "reordered_float32_error")(),
                    4 * attn_test::float_epsilon * attn_test::largest(expected(part)));
  }
};

TEST_P(ModelFamily, HasPyTorchsNumbersInEveryLayer) {
  for (Index layer = 0; layer < folder_.layers(); ++layer) {
    SCOPED_TRACE(layer);
    const auto module = folder_.attention<float>(layer);
    EXPECT_FALSE(module.is_training());
    const std::string part = "layers." + std::to_string(layer) + '.';
    EXPECT_GT(bar(part), 0.0);
    EXPECT_LE(max_difference(module.forward(x_, Causal{}), expected(part)), bar(part));
    const std::string prefix = "prefix." + std::to_string(layer) + '.';
    if (!case_.contains(prefix + "y")) continue;
    const Index tokens = expected(prefix).dimension(1);
    EXPECT_LE(max_difference(module.forward(rows_of(x_, 0, tokens), Causal{}), expected(prefix)), bar(prefix));
  }
}

TEST_P(ModelFamily, HasTheFormulasNumbersInDouble) {
  for (Index layer = 0; layer < folder_.layers(); ++layer) {
    const auto module = folder_.attention<double>(layer);
    const auto y = expected("layers." + std::to_string(layer) + '.');
    // Rotary's cosines and sines are float32, as PyTorch's are.
    EXPECT_LE(max_difference(module.forward(cast<double>(x_), Causal{}), y), 1e-6 * attn_test::largest(y)) << layer;
  }
}

TEST_P(ModelFamily, DecodesTokenByTokenWhatItPrefills) {
  for (Index layer = 0; layer < folder_.layers(); ++layer) {
    SCOPED_TRACE(layer);
    auto config = folder_.attention_config(layer);
    config.max_length = x_.dimension(1);  // of scalings that depend on the length
    LlamaAttention<float> module(config);
    folder_.load_attention(layer, module);
    module.eval();
    const auto prefilled = module.forward(x_, Causal{});
    auto cache = module.make_cache(1, x_.dimension(1));
    const double tolerance = bar("layers." + std::to_string(layer) + '.');
    for (Index s = 0; s < x_.dimension(1); ++s)
      EXPECT_LE(max_difference(module.forward(rows_of(x_, s, 1), Causal{}, cache), rows_of(prefilled, s, 1)),
                tolerance);
  }
}

TEST_P(ModelFamily, GivesItsNumbersFromPagesAndWindowsToo) {
  for (Index layer = 0; layer < folder_.layers(); ++layer) {
    auto config = folder_.attention_config(layer);
    config.max_length = 128;
    LlamaAttention<float> module(config);
    folder_.load_attention(layer, module);
    module.eval();
    auto plain = module.make_cache(1, 128);
    attn::KvCacheOptions options{.page = 64};
    if (config.window) options.window = *config.window;
    auto pages = module.make_cache(1, 128, options);
    for (Index s = 0; s < x_.dimension(1); ++s)
      EXPECT_TRUE(attn_test::same_bits(module.forward(rows_of(x_, s, 1), Causal{}, pages),
                                       module.forward(rows_of(x_, s, 1), Causal{}, plain)))
          << layer << ", token " << s;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, ModelFamily,
                         testing::Values("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt_oss",
                                         "smollm3", "granite", "olmo2"),
                         [](const auto& family) { return std::string(family.param); });

}  // namespace
