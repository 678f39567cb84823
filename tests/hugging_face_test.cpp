// Folders of Hugging Face: what config.json says of the attention, and what is refused by name.
#include <attn/io/hugging_face.hpp>

#include <fstream>
#include <string>

#include "../examples/model_files.hpp"
#include "file_support.hpp"
#include "llama2c_support.hpp"
#include "llama2c_to_hugging_face.hpp"

namespace {

using attn::HuggingFaceFolder;
using attn::Index;
using attn::LlamaAttention;
using attn::LlamaAttentionConfig;
using attn::QueryKeyNorm;
using attn::SafetensorsWriter;
using attn::Tensor;
using attn_test::refusal;
using attn_test::TemporaryFolder;

/// The attention of a layer of a model of two layers, hidden size 24, 4 heads, with further fields.
LlamaAttentionConfig config_of(const std::string& type, const std::string& fields, Index layer = 0) {
  const std::string text = R"({"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "max_position_embeddings": 100, "model_type": ")" +
                           type + "\"" + fields + "}";
  return attn::detail::HuggingFaceConfig(nlohmann::json::parse(text)).attention(layer);
}
std::string refused(const std::string& type, const std::string& fields) {
  return refusal([&] { static_cast<void>(config_of(type, fields)); });
}
bool has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

TEST(HuggingFaceConfig, OfLlamaIsPlain) {
  const auto c = config_of("llama", R"(, "rope_theta": 5e5, "rms_norm_eps": 1e-05, "vocab_size": 7)");
  EXPECT_EQ(c.hidden_size, 24);
  EXPECT_EQ(c.num_key_value_heads, 2);
  EXPECT_EQ(c.head_dim, 6);
  EXPECT_FALSE(c.bias);
  EXPECT_FALSE(c.window.has_value());
  EXPECT_EQ(c.rotary->theta, 5e5);
  EXPECT_EQ(c.query_key_norm, QueryKeyNorm::none);
  EXPECT_TRUE(config_of("llama", R"(, "attention_bias": true)").bias);
}
TEST(HuggingFaceConfig, OfMistralHasAWindow) {
  EXPECT_EQ(config_of("mistral", R"(, "sliding_window": 4096)").window, 4096);
  EXPECT_FALSE(config_of("mistral", R"(, "sliding_window": null)").window.has_value());
}
TEST(HuggingFaceConfig, OfQwenHasItsBiasesAndNorms) {
  const auto c = config_of("qwen2", R"(, "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 1)");
  EXPECT_TRUE(c.query_bias == true && c.value_bias == true && !c.output_bias.has_value() && !c.bias);
  EXPECT_FALSE(c.window.has_value());
  EXPECT_EQ(
      config_of("qwen2", R"(, "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 1)", 1).window, 8);
  EXPECT_FALSE(
      config_of("qwen2", R"(, "sliding_window": 8, "use_sliding_window": false, "max_window_layers": 0)").window);
  const auto q3 = config_of("qwen3", R"(, "head_dim": 128, "rms_norm_eps": 1e-06)");
  EXPECT_EQ(q3.query_key_norm, QueryKeyNorm::per_head);
  EXPECT_EQ(q3.head_dim, 128);
  EXPECT_EQ(q3.norm_epsilon, 1e-6);
}
TEST(HuggingFaceConfig, OfGemmaHasItsCapScaleAndLayers) {
  const auto c =
      config_of("gemma2", R"(, "attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 16, "sliding_window": 9)");
  EXPECT_EQ(c.softcap.value(), 50.0);
  EXPECT_EQ(c.scale, 0.25);
  EXPECT_EQ(c.window, 9);
  EXPECT_FALSE(config_of("gemma2", R"(, "query_pre_attn_scalar": 16, "sliding_window": 9)", 1).window.has_value());
  const std::string fields = R"(, "sliding_window": 9, "sliding_window_pattern": 2, "rope_theta": 1e6,
    "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0})";
  const auto local = config_of("gemma3_text", fields), global = config_of("gemma3_text", fields, 1);
  EXPECT_EQ(local.query_key_norm, QueryKeyNorm::per_head_one_plus_weight);
  EXPECT_EQ(local.window, 9);
  EXPECT_EQ(local.rotary->theta, 1e4);
  EXPECT_TRUE(std::holds_alternative<std::monostate>(local.rotary->scaling));
  EXPECT_FALSE(global.window.has_value());
  EXPECT_EQ(global.rotary->theta, 1e6);
  EXPECT_EQ(std::get<attn::LinearScaling>(global.rotary->scaling).factor, 8.0);
}
TEST(HuggingFaceConfig, TakesRotaryParametersOfBothForms) {
  const std::string scaling = R"({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192)";
  const auto older = config_of("llama", R"(, "rope_theta": 5e5, "rope_scaling": )" + scaling + "}");
  const auto newer = config_of("llama", R"(, "rope_parameters": )" + scaling + R"(, "rope_theta": 5e5})");
  for (const auto& c : {older, newer}) {
    EXPECT_EQ(c.rotary->theta, 5e5);
    EXPECT_EQ(std::get<attn::Llama3Scaling>(c.rotary->scaling).original_length, 8192);
  }
  const auto by_kind = config_of("gemma3_text", R"(, "sliding_window": 9, "layer_types": ["sliding_attention",
    "full_attention"], "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}})");
  EXPECT_EQ(by_kind.rotary->theta, 1e4);
}
TEST(HuggingFaceConfig, OfTheOthersHasWhatTheyAdd) {
  const auto oss = config_of("gpt_oss", R"(, "sliding_window": 4, "rope_scaling": {"rope_type": "yarn", "factor": 32.0,
    "truncate": false, "original_max_position_embeddings": 64})");
  EXPECT_TRUE(oss.sinks && oss.bias);
  EXPECT_FALSE(std::get<attn::YarnScaling>(oss.rotary->scaling).truncate);
  EXPECT_FALSE(config_of("smollm3", R"(, "no_rope_layers": [1, 0])", 1).rotary);
  EXPECT_TRUE(config_of("smollm3", R"(, "no_rope_layers": [1, 0])", 0).rotary);
  EXPECT_EQ(config_of("granite", R"(, "attention_multiplier": 0.125)").scale, 0.125);
  EXPECT_EQ(config_of("olmo2", "").query_key_norm, QueryKeyNorm::whole_projection);
  const auto phi = config_of("phi3", R"(, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 50,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]})");
  EXPECT_EQ(phi.rotary->dimensions, 3);
  EXPECT_EQ(std::get<attn::LongRopeScaling>(phi.rotary->scaling).factor, 2.0);
}

TEST(HuggingFaceConfig, RefusesWhatItDoesNotKnowByName) {
  EXPECT_TRUE(has(refused("deepseek_v3", ""), "model_type")) << refused("deepseek_v3", "");
  for (const char* field :
       {"attention_chunk_size", "use_bidirectional_attention", "clip_qkv", "rope_style", "qk_layernorm"})
    EXPECT_TRUE(has(refused("llama", std::string(", \"") + field + "\": 3"), field)) << field;
  EXPECT_NO_THROW(static_cast<void>(config_of("llama", R"(, "use_bidirectional_attention": false, "clip_qkv": null)")));
  EXPECT_TRUE(has(refused("llama", R"(, "sliding_window": 5)"), "sliding_window"));
  EXPECT_TRUE(has(refused("llama", R"(, "attn_logit_softcapping": 30.0)"), "attn_logit_softcapping"));
  EXPECT_TRUE(has(refused("llama", R"(, "attention_multiplier": 2.0)"), "attention_multiplier"));
  EXPECT_TRUE(has(refused("qwen2", R"(, "attention_bias": true)"), "attention_bias"));
  EXPECT_TRUE(has(refused("llama", R"(, "rope_scaling": {"rope_type": "ntk2"})"), "ntk2"));
  EXPECT_TRUE(
      has(refused("llama", R"(, "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0})"), "mscale"));
  EXPECT_TRUE(
      has(refused("qwen3", R"(, "sliding_window": 4, "layer_types": ["chunked_attention", "x"])"), "layer_types"));
}
TEST(HuggingFaceConfig, RefusesFieldsOfAnotherKind) {
  EXPECT_TRUE(has(refused("llama", R"(, "rope_theta": "x")"), "rope_theta"));
  EXPECT_TRUE(has(refused("llama", R"(, "head_dim": 1.5)"), "head_dim"));
  EXPECT_TRUE(has(refused("llama", R"(, "head_dim": 99999999999)"), "head_dim"));
  EXPECT_TRUE(has(refused("llama", R"(, "attention_bias": 1)"), "attention_bias"));
  EXPECT_TRUE(has(refused("llama", R"(, "rope_scaling": 3)"), "rope_scaling"));
  EXPECT_TRUE(has(refusal([] { attn::detail::HuggingFaceConfig c(nlohmann::json::array()); }), "object"));
}

// ---- Folders ----------------------------------------------------------------------------------------------------

/// A Llama of one layer whose tensors are numbered.
class SmallFolder {
 public:
  SmallFolder() { config(); }
  void config(const std::string& more = "") const {
    std::ofstream(path() / "config.json") << R"({"model_type": "llama", "hidden_size": 4, "num_attention_heads": 2,
      "num_hidden_layers": 1, "max_position_embeddings": 9)"
                                          << more << "}";
  }
  void add(const std::string& name, Index out, Index in) {
    auto weight = attn::detail::make_tensor<float, 2>({out, in});
    for (Index i = 0; i < weight.size(); ++i) weight.data()[i] = 0.1F * static_cast<float>(i % 7) - 0.2F;
    writer_.add("model.layers.0.self_attn." + name, weight);
  }
  void add_all() {
    for (const char* name : {"q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"}) add(name, 4, 4);
  }
  void write(const std::string& name = "model.safetensors") const { writer_.write(path() / name); }
  [[nodiscard]] const std::filesystem::path& path() const { return folder_.path(); }

 private:
  TemporaryFolder folder_;
  SafetensorsWriter writer_;
};

TEST(HuggingFaceFolder, ConvertsItsRotaryForAnInterleavedModule) {
  SmallFolder files;
  files.add_all(), files.write();
  const HuggingFaceFolder folder(files.path());
  auto config = folder.attention_config(0);
  config.rotary->layout = attn::RotaryLayout::interleaved;
  LlamaAttention<double> interleaved(config);
  folder.load_attention(0, interleaved);
  interleaved.eval();
  Tensor<double, 3> x(1, 5, 4);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = std::sin(static_cast<double>(i));
  const auto a = interleaved.forward(x, attn::Causal{}), b = folder.attention<double>(0).forward(x, attn::Causal{});
  for (Index i = 0; i < a.size(); ++i) EXPECT_NEAR(a.data()[i], b.data()[i], 1e-12);
}
TEST(HuggingFaceFolder, RefusesTensorsThatAreMissingOrMoreThanItTakes) {
  SmallFolder files;
  files.add("q_proj.weight", 4, 4), files.add("k_proj.weight", 4, 4), files.add("o_proj.weight", 4, 4), files.write();
  const auto load = [&] { static_cast<void>(HuggingFaceFolder(files.path()).attention<float>(0)); };
  EXPECT_TRUE(has(refusal(load), "v_proj.weight"));
  files.add("v_proj.weight", 4, 4), files.add("q_norm.weight", 1, 2), files.write();
  EXPECT_TRUE(has(refusal(load), "q_norm.weight"));
}
TEST(HuggingFaceFolder, LeavesAModuleAsItWasWhereATensorDoesNotFit) {
  SmallFolder files;
  files.add("q_proj.weight", 4, 4), files.add("k_proj.weight", 4, 4), files.add("v_proj.weight", 4, 4);
  files.add("o_proj.weight", 4, 5), files.write();
  const HuggingFaceFolder folder(files.path());
  LlamaAttention<float> module(folder.attention_config(0));
  const auto before = module.query().weight();
  EXPECT_TRUE(has(refusal([&] { folder.load_attention(0, module); }), "got [4,5]"));
  const auto after = module.query().weight();
  for (Index i = 0; i < before.size(); ++i) EXPECT_EQ(before.data()[i], after.data()[i]);
}
TEST(HuggingFaceFolder, RefusesFilesThatAreNotThereOrNotItsOwn) {
  SmallFolder files;
  EXPECT_TRUE(has(refusal([&] { HuggingFaceFolder folder(files.path()); }), "index.json"));
  const auto with_index = [&](const std::string& text) {
    std::ofstream(files.path() / "model.safetensors.index.json") << text;
    return refusal([&] { HuggingFaceFolder folder(files.path()); });
  };
  EXPECT_TRUE(has(with_index("{"), "JSON"));
  EXPECT_TRUE(has(with_index("{}"), "weight_map"));
  EXPECT_TRUE(has(with_index(R"({"weight_map": {"x": "../model.safetensors"}})"), "weight_map"));
  EXPECT_TRUE(has(with_index(R"({"weight_map": {"x": "a.safetensors"}})"), "a.safetensors"));
  files.add_all(), files.write("a.safetensors");
  EXPECT_TRUE(has(with_index(R"({"weight_map": {"x": "a.safetensors"}})"), "got x"));
  std::string deep;
  for (int i = 0; i < 1000; ++i) deep += '[';
  EXPECT_TRUE(has(with_index(deep), "levels"));
}

// ---- A whole model ----------------------------------------------------------------------------------------------

TEST(HuggingFaceFolder, TellsTheCheckpointsStoryWordForWord) {
  using namespace attn_test::llama2c;
  const std::filesystem::path model = std::filesystem::path(ATTN_SHARED_DATA_DIR) / "stories260K";
  if (!std::filesystem::exists(model / "checkpoint_legacy.bin"))
    GTEST_SKIP() << "stories260K is not at hand: no " << model / "checkpoint_legacy.bin";
  const TemporaryFolder folder;
  attn_test::llama2c_to_hugging_face(model / "checkpoint_legacy.bin", folder.path());
  const attn::examples::LoadedModel loaded = attn::examples::load_model(folder.path());
  EXPECT_FALSE(loaded.tokenizer.has_value());
  const Tokenizer tokenizer(model / "tokenizer.bin");
  const std::string expected = text_of(load_checkpoint(model / "checkpoint_legacy.bin"), tokenizer, Sampler(0.0F), 256);
  ASSERT_GT(expected.size(), 500U);
  EXPECT_EQ(text_of(loaded.llama, tokenizer, Sampler(0.0F), 256), expected);
}

}  // namespace
