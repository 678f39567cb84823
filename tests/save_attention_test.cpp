// A module saved to a file and loaded again is the same to the bit.
#if __has_include(<nlohmann/json.hpp>)

#include <attn/io/save_attention.hpp>

#include <filesystem>
#include <functional>
#include <string>

#include "file_support.hpp"
#include "module_support.hpp"

namespace {

using attn::Causal;
using attn::Index;
using attn::LlamaAttention;
using attn::LlamaAttentionConfig;
using attn::Tensor;
using attn::WeightFormat;
using attn_test::expect_error;
using attn_test::random_tensor;
using attn_test::same_bits;
using attn_test::TemporaryFolder;

/// A file in a folder of its own, removed at the end.
class TemporaryFile {
 public:
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_.path() / "attention.safetensors";
};

LlamaAttentionConfig everything() {
  LlamaAttentionConfig config{.hidden_size = 64, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 8};
  config.value_head_dim = 16, config.scale = 0.3, config.softcap = 2.5, config.sinks = true, config.output_gate = true;
  config.query_key_norm = attn::QueryKeyNorm::whole_projection, config.key_bias = false, config.window = 5;
  config.rotary =
      attn::RotaryConfig{.layout = attn::RotaryLayout::interleaved,
                         .theta = 12345.678,
                         .scaling = attn::YarnScaling{.factor = 1.7, .original_length = 100, .attention_factor = 1.1}};
  return config;
}
template <class T>
void expect_same_parameters(LlamaAttention<T>& a, LlamaAttention<T>& b) {
  const auto of_a = a.parameters(), of_b = b.parameters();
  ASSERT_EQ(of_a.size(), of_b.size());
  for (std::size_t i = 0; i < of_a.size(); ++i) {
    EXPECT_EQ(of_a[i].name(), of_b[i].name());
    EXPECT_TRUE(std::ranges::equal(of_a[i].values(), of_b[i].values())) << of_a[i].name();
    EXPECT_TRUE(std::ranges::equal(of_a[i].gradient(), of_b[i].gradient())) << of_a[i].name();
  }
}

template <class T>
class SavedAttention : public testing::Test {};
using Types = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(SavedAttention, Types);

TYPED_TEST(SavedAttention, IsTheSameWithItsTrainingState) {
  using T = TypeParam;
  LlamaAttention<T> module(everything());
  module.set_sinks(random_tensor<T, 1>({4}, 1));
  module.query_norm().set_weight(random_tensor<T, 1>({32}, 2));
  const auto x = random_tensor<T, 3>({2, 7, 64}, 3);
  typename LlamaAttention<T>::Activations saved;
  const auto y = module.forward(x, Causal{}, saved);  // with dropout, which counts its calls
  static_cast<void>(module.backward(y, saved));

  const TemporaryFile file;
  attn::save(module, file.path());
  auto loaded = attn::load<T>(file.path());
  expect_same_parameters(module, loaded);
  EXPECT_TRUE(loaded.is_training());
  typename LlamaAttention<T>::Activations of_module, of_loaded;
  EXPECT_TRUE(same_bits(module.forward(x, Causal{}, of_module), loaded.forward(x, Causal{}, of_loaded)));
  EXPECT_TRUE(same_bits(module.backward(y, of_module), loaded.backward(y, of_loaded)));
  expect_same_parameters(module, loaded);
}

TEST(SavedAttentionFile, KeepsEveryFieldOfTheConfiguration) {
  const TemporaryFile file;
  for (const attn::RotaryScaling& scaling :
       {attn::RotaryScaling{}, attn::RotaryScaling{attn::LinearScaling{2.5}},
        attn::RotaryScaling{attn::DynamicNtkScaling{2.0, 17}}, attn::RotaryScaling{attn::Llama3Scaling{}},
        attn::RotaryScaling{attn::LongRopeScaling{{1, 2, 3, 4}, {5, 6, 7, 8.125}, 30, 2.0}}}) {
    auto config = everything();
    config.seed = 0xFEDCBA9876543210U, config.max_length = 33;
    config.rotary->scaling = scaling;
    const LlamaAttention<float> module(config);
    attn::save(module, file.path());
    const auto loaded = attn::load<float>(file.path());
    EXPECT_EQ(attn::detail::to_json(loaded.config()), attn::detail::to_json(module.config()));
    EXPECT_EQ(loaded.config().seed, config.seed);
    EXPECT_EQ(loaded.config().rotary->scaling.index(), scaling.index());
  }
  LlamaAttentionConfig crossed{.hidden_size = 8, .num_attention_heads = 2};
  crossed.context_size = 6;
  attn::save(LlamaAttention<float>(crossed), file.path());
  EXPECT_EQ(attn::load<float>(file.path()).key().in_features(), 6);
}

TEST(SavedAttentionFile, KeepsWeightsInFewerBits) {
  const TemporaryFile file;
  const auto x = random_tensor<float, 3>({1, 5, 64}, 4);
  for (const auto format : {WeightFormat::bfloat16, WeightFormat::half, WeightFormat::int8, WeightFormat::int4}) {
    LlamaAttention<float> module(everything());
    module.eval();
    module.store_weights(format);
    attn::save(module, file.path());
    const auto loaded = attn::load<float>(file.path());
    EXPECT_EQ(loaded.query().weight_format(), format);
    EXPECT_FALSE(loaded.is_training());
    EXPECT_TRUE(same_bits(loaded.forward(x, Causal{}), module.forward(x, Causal{})));
  }
}

TEST(SavedAttentionFile, KeepsGroupsThatAreNotFull) {
  const TemporaryFile file;
  const auto x = random_tensor<float, 3>({1, 5, 40}, 4);
  for (const auto format : {WeightFormat::int8, WeightFormat::int4}) {
    LlamaAttention<float> module({.hidden_size = 40, .num_attention_heads = 2});
    module.store_weights(format);
    attn::save(module, file.path());
    EXPECT_TRUE(same_bits(attn::load<float>(file.path()).forward(x, Causal{}), module.forward(x, Causal{})));
  }
}

TEST(SavedAttentionFile, KeepsProjectionsTied) {
  LlamaAttentionConfig config{.hidden_size = 8, .num_attention_heads = 2};
  LlamaAttention<float> module(config);
  module.value().share(module.key());
  const TemporaryFile file;
  attn::save(module, file.path());
  const auto loaded = attn::load<float>(file.path());
  EXPECT_TRUE(loaded.value().shares_with(loaded.key()));
  EXPECT_TRUE(same_bits(loaded.value().weight(), module.value().weight()));
}

TEST(SavedAttentionFile, HasWeightsThatOthersCanRead) {
  const LlamaAttention<float> module(LlamaAttentionConfig{.hidden_size = 8, .num_attention_heads = 2});
  const TemporaryFile file;
  attn::save(module, file.path());
  const attn::SafetensorsFile plain(file.path());
  EXPECT_TRUE(same_bits(plain.read<float, 2>("out_proj.weight"), module.out_proj().weight()));
  EXPECT_FALSE(plain.contains("query.weight.gradient")) << "there is none";
}

/// A file without tensors that says what another one says of its module.
attn::SafetensorsWriter with_metadata_of(const attn::SafetensorsFile& file) {
  attn::SafetensorsWriter writer;
  for (const auto& [name, text] : file.metadata()) writer.set_metadata(name, text);
  return writer;
}

TEST(SavedAttentionFile, IsRefusedIfItIsAnother) {
  const TemporaryFile file;
  attn::save(LlamaAttention<float>(LlamaAttentionConfig{.hidden_size = 8, .num_attention_heads = 2}), file.path());
  expect_error([&] { static_cast<void>(attn::load<double>(file.path())); }, {"[attn::load] module", "F64", "F32"});
  attn::SafetensorsWriter writer;
  writer.add("x", random_tensor<float, 1>({3}, 1));
  writer.write(file.path());
  expect_error([&] { static_cast<void>(attn::load<float>(file.path())); }, {"[attn::load] file", "attn::save"});
  writer.set_metadata("format", "attn.LlamaAttention");
  writer.set_metadata("scalar", "F32");
  writer.write(file.path());
  expect_error([&] { static_cast<void>(attn::load<float>(file.path())); }, {"[attn::load] metadata", "JSON"});
  writer.set_metadata("formats", R"({"query": 3})");
  writer.write(file.path());
  expect_error([&] { static_cast<void>(attn::load<float>(file.path())); }, {"[attn::load] metadata", "query"});
  for (const char* name : {"config", "formats", "tied", "dropout"}) writer.set_metadata(name, "{}");
  writer.write(file.path());
  expect_error([&] { static_cast<void>(attn::load<float>(file.path())); }, {"[attn::load] configuration"});
}

TEST(SavedAttentionFile, IsRefusedIfANumberDoesNotFit) {
  const TemporaryFile file;
  attn::save(LlamaAttention<float>(LlamaAttentionConfig{.hidden_size = 8, .num_attention_heads = 2}), file.path());
  const attn::SafetensorsFile saved(file.path());
  const auto refused = [&](const char* metadata, const char* pointer, const nlohmann::json& value,
                           std::initializer_list<std::string_view> parts) {
    attn::SafetensorsWriter writer = with_metadata_of(saved);
    auto changed = nlohmann::json::parse(saved.metadata().at(metadata));
    changed[nlohmann::json::json_pointer(pointer)] = value;
    writer.set_metadata(metadata, changed.dump());
    const TemporaryFile other;
    writer.write(other.path());
    expect_error([&] { static_cast<void>(attn::load<float>(other.path())); }, parts);
  };
  refused("config", "/hidden_size", 1e30, {"[attn::load] hidden_size", "got 1e+30"});
  refused("config", "/hidden_size", 8.5, {"[attn::load] hidden_size", "got 8.5"});
  refused("config", "/max_length", "9", {"[attn::load] max_length", "got string"});
  refused("config", "/query_key_norm", 257, {"[attn::load] query_key_norm", "from 0 to 255, got 257"});
  refused("config", "/seed", -1, {"[attn::load] seed", "got -1"});
  const auto states = nlohmann::json::parse(saved.metadata().at("dropout"));
  auto changed = states;
  changed[0]["call"] = std::int64_t{1} << 32;
  EXPECT_NO_THROW((void)attn::detail::dropout_states_of("load", states));
  expect_error([&] { (void)attn::detail::dropout_states_of("load", changed); },
               {"[attn::load] call", "got 4294967296"});
}

TEST(SavedAttentionFile, IsRefusedIfAGradientHasAnotherShape) {
  const TemporaryFile file;
  LlamaAttention<float> module(LlamaAttentionConfig{.hidden_size = 8, .num_attention_heads = 2});
  attn::save(module, file.path());
  const attn::SafetensorsFile saved(file.path());
  const auto refused = [&](const char* name, const auto& gradient, std::initializer_list<std::string_view> parts) {
    attn::SafetensorsWriter writer = with_metadata_of(saved);
    for (const std::string& tensor : saved.names()) {
      const auto shape = saved.tensor(tensor).shape;
      if (shape.size() == 2)
        writer.add(tensor, saved.read<float, 2>(tensor));
      else
        writer.add(tensor, saved.read<float, 1>(tensor));
    }
    writer.add(name, gradient);
    const TemporaryFile other;
    writer.write(other.path());
    expect_error([&] { static_cast<void>(attn::load<float>(other.path())); }, parts);
  };
  refused("query.bias.gradient", random_tensor<float, 1>({1000}, 1),
          {"[attn::load] query.bias.gradient", "[8]", "got [1000]"});
  refused("query.weight.gradient", random_tensor<float, 2>({9, 8}, 1),
          {"[attn::load] query.weight.gradient", "[8,8]", "got [9,8]"});
  refused("query.weight.gradient", random_tensor<float, 2>({800, 800}, 1), {"got [800,800]"});
  refused("query.weight.gradient", random_tensor<float, 1>({64}, 1), {"got [64]"});
}

TEST(SavedAttentionFile, IsRefusedBeforeItAllocatesWhatItCannotHold) {
  const TemporaryFile file;
  attn::save(LlamaAttention<float>(LlamaAttentionConfig{.hidden_size = 8, .num_attention_heads = 2}), file.path());
  const attn::SafetensorsFile saved(file.path());
  attn::SafetensorsWriter writer = with_metadata_of(saved);
  auto config = nlohmann::json::parse(saved.metadata().at("config"));
  config["hidden_size"] = std::int64_t{1} << 40;
  writer.set_metadata("config", config.dump());
  const TemporaryFile other;
  writer.write(other.path());
  expect_error([&] { static_cast<void>(attn::load<float>(other.path())); },
               {"[attn::load] configuration", "weights are in the file"});
}

TEST(SavedAttentionFile, LeavesWhatWasThereIfItCannotBeWritten) {
  const LlamaAttention<float> module(LlamaAttentionConfig{.hidden_size = 8, .num_attention_heads = 2});
  expect_error([&] { attn::save(module, "/nowhere/that/exists/x.safetensors"); }, {"[attn::SafetensorsWriter::write]"});
}

}  // namespace

#else
#include <gtest/gtest.h>
TEST(SavedAttentionFile, NeedsNlohmannJson) { GTEST_SKIP() << "nlohmann-json is not installed (nlohmann-json3-dev)"; }
#endif
