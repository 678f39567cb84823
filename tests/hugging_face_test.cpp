// Configs and folders as Hugging Face has them: what is read from them, and what is refused by name.
#include "families_support.hpp"
#include "file_support.hpp"

#include <functional>
#include <nlohmann/json.hpp>

#include "../examples/model_files.hpp"
#include "llama2c_support.hpp"
#include "llama2c_to_hugging_face.hpp"

namespace {

using namespace attn_test;
using attn::HuggingFaceConfig;
using attn::HuggingFaceFolder;
using attn::LlamaAttention;
using attn::LlamaAttentionConfig;
using attn::QueryKeyNorm;
using attn::RotaryConfig;
using nlohmann::json;

json config_of(const std::string& family) { return json::parse(contents_of(family_folder(family) / "config.json")); }

/// The config of a family after a change.
HuggingFaceConfig changed(const std::string& family, const std::function<void(json&)>& change) {
  json config = config_of(family);
  change(config);
  return HuggingFaceConfig(config.dump());
}
HuggingFaceConfig with(const std::string& family, const std::string& key, const json& value) {
  return changed(family, [&](json& c) { c[key] = value; });
}
/// A change of one key is refused, and the text has the key and these parts.
void expect_refusal(const std::string& family, const std::string& key, const json& value,
                    std::initializer_list<std::string_view> parts = {}) {
  const std::string text = error_of([&] { with(family, key, value); });
  EXPECT_TRUE(reads(text, {"[attn::HuggingFaceConfig] config.json: ", key})) << family << value;
  EXPECT_TRUE(reads(text, parts));
}

/// Sizes, biases and the window of a layer.
void expect_sizes(const LlamaAttentionConfig& c, std::array<Index, 4> sizes, std::array<bool, 4> biases,
                  std::optional<Index> window) {
  EXPECT_EQ((std::array<Index, 4>{c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim}), sizes);
  EXPECT_EQ((std::array<bool, 4>{c.query_bias.value_or(c.bias), c.key_bias.value_or(c.bias),
                                 c.value_bias.value_or(c.bias), c.output_bias.value_or(c.bias)}),
            biases);
  EXPECT_EQ(c.window, window);
}
constexpr std::array<bool, 4> no_bias{};

template <class S>
const S& scaling_of(const LlamaAttentionConfig& c) {
  return std::get<S>(c.rotary->scaling);
}

// ---- What each family's config becomes ---------------------------------------------------------------------------

TEST(HuggingFaceConfig, ReadsLlama) {
  const HuggingFaceConfig config(config_of("llama").dump());
  EXPECT_EQ(config.model_type(), "llama");
  EXPECT_EQ(config.layers(), 2);
  const LlamaAttentionConfig& c = config.attention(1);
  expect_sizes(c, {40, 4, 2, 10}, no_bias, {});
  EXPECT_EQ(c.rotary->theta, 100.0);
  EXPECT_EQ(c.rotary->layout, attn::RotaryLayout::half_split);
  const auto& s = scaling_of<attn::Llama3Scaling>(c);
  EXPECT_EQ((std::array{s.factor, s.low_frequency_factor, s.high_frequency_factor}), (std::array{8.0, 1.0, 4.0}));
  EXPECT_EQ(s.original_length, 48);
  EXPECT_FALSE(c.scale || c.softcap || c.sinks || c.query_key_norm != QueryKeyNorm::none);
  EXPECT_EQ(c.attention_dropout, 0.0);
  EXPECT_EQ(c.projection_dropout, 0.0);
  expect_sizes(with("llama", "attention_bias", true).attention(0), {40, 4, 2, 10}, {true, true, true, true}, {});
}

TEST(HuggingFaceConfig, ReadsMistral) {
  const HuggingFaceConfig config(config_of("mistral").dump());
  for (Index i : {0, 1}) expect_sizes(config.attention(i), {36, 6, 3, 14}, no_bias, 5);
  EXPECT_FALSE(with("mistral", "sliding_window", nullptr).attention(0).window);
  EXPECT_EQ(changed("mistral", [](json& c) { c.erase("sliding_window"); }).attention(0).window, 4096);
}

TEST(HuggingFaceConfig, ReadsQwen2) {
  const HuggingFaceConfig config(config_of("qwen2").dump());
  expect_sizes(config.attention(0), {42, 7, 1, 6}, {true, true, true, false}, {});
  expect_sizes(config.attention(1), {42, 7, 1, 6}, {true, true, true, false}, 4);
  EXPECT_FALSE(with("qwen2", "use_sliding_window", false).attention(1).window);
  EXPECT_EQ(with("qwen2", "layer_types", {"sliding_attention", "full_attention"}).attention(0).window, 4);
}

TEST(HuggingFaceConfig, ReadsQwen3) {
  const LlamaAttentionConfig c = HuggingFaceConfig(config_of("qwen3").dump()).attention(0);
  expect_sizes(c, {32, 4, 2, 12}, no_bias, {});
  EXPECT_EQ(c.query_key_norm, QueryKeyNorm::per_head);
  EXPECT_EQ(c.norm_epsilon, 0.02);
  EXPECT_EQ(changed("qwen3", [](json& x) { x.erase("head_dim"); }).attention(0).head_dim, 128);
  EXPECT_EQ(with("qwen3", "head_dim", nullptr).attention(0).head_dim, 8);
}

TEST(HuggingFaceConfig, ReadsGemma2) {
  const HuggingFaceConfig config(config_of("gemma2").dump());
  expect_sizes(config.attention(0), {36, 4, 2, 8}, no_bias, 4);
  expect_sizes(config.attention(1), {36, 4, 2, 8}, no_bias, {});
  EXPECT_EQ(config.attention(0).softcap.value(), 50.0);
  EXPECT_EQ(config.attention(0).scale, 1.0 / 3.0);
  EXPECT_FALSE(with("gemma2", "attn_logit_softcapping", nullptr).attention(0).softcap);
  const auto bare =
      changed("gemma2", [](json& c) { c.erase("attn_logit_softcapping"), c.erase("query_pre_attn_scalar"); });
  EXPECT_EQ(bare.attention(0).softcap.value(), 50.0);
  EXPECT_EQ(bare.attention(0).scale, 1.0 / 16.0);
}

TEST(HuggingFaceConfig, ReadsGemma3) {
  const HuggingFaceConfig config(config_of("gemma3").dump());
  EXPECT_EQ(config.layers(), 6);
  for (Index i = 0; i < 6; ++i) {
    const LlamaAttentionConfig& c = config.attention(i);
    expect_sizes(c, {20, 2, 1, 24}, no_bias, i < 5 ? std::optional<Index>(5) : std::nullopt);
    EXPECT_EQ(c.query_key_norm, QueryKeyNorm::per_head_one_plus_weight);
    EXPECT_EQ(c.rotary->theta, i < 5 ? 1e4 : 1e6);
    EXPECT_EQ(c.rotary->scaling.index(), i < 5 ? 0U : 1U);
    EXPECT_FALSE(c.softcap);
  }
  EXPECT_EQ(scaling_of<attn::LinearScaling>(config.attention(5)).factor, 8.0);
}

// Published configs of Gemma 3 leave out what their class has as a default.
TEST(HuggingFaceConfig, ReadsGemma3WithPictures) {
  const HuggingFaceConfig config(R"({
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
    "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
                    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
    "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model", "num_hidden_layers": 27}})");
  EXPECT_EQ(config.model_type(), "gemma3_text");
  EXPECT_EQ(config.layers(), 34);
  expect_sizes(config.attention(4), {2560, 8, 4, 256}, no_bias, 1024);
  expect_sizes(config.attention(5), {2560, 8, 4, 256}, no_bias, {});
  expect_sizes(config.attention(33), {2560, 8, 4, 256}, no_bias, 1024);
  EXPECT_EQ(config.attention(4).rotary->theta, 1e4);
  EXPECT_EQ(config.attention(5).rotary->theta, 1e6);
  EXPECT_EQ(config.attention(5).scale, 1.0 / 16.0);
}

TEST(HuggingFaceConfig, ReadsRopeParametersByLayerType) {
  const auto config = changed("gemma3", [](json& c) {
    c.erase("rope_scaling"), c.erase("rope_theta"), c.erase("rope_local_base_freq"), c.erase("sliding_window_pattern");
    c["layer_types"] = {"full_attention",    "sliding_attention", "sliding_attention",
                        "sliding_attention", "sliding_attention", "sliding_attention"};
    c["rope_parameters"] = {{"full_attention", {{"factor", 4.0}, {"rope_theta", 2e6}, {"rope_type", "linear"}}},
                            {"sliding_attention", {{"rope_theta", 2e4}, {"rope_type", "default"}}}};
  });
  EXPECT_FALSE(config.attention(0).window);
  EXPECT_EQ(config.attention(0).rotary->theta, 2e6);
  EXPECT_EQ(scaling_of<attn::LinearScaling>(config.attention(0)).factor, 4.0);
  EXPECT_EQ(config.attention(5).window, 5);
  EXPECT_EQ(config.attention(5).rotary->theta, 2e4);
  EXPECT_EQ(config.attention(5).rotary->scaling.index(), 0U);
}

TEST(HuggingFaceConfig, ReadsPhi3) {
  const HuggingFaceConfig config(config_of("phi3").dump());
  const LlamaAttentionConfig& c = config.attention(1);
  expect_sizes(c, {48, 4, 2, 12}, no_bias, 6);
  EXPECT_EQ(c.rotary->dimensions, 6);
  const auto& s = scaling_of<attn::LongRopeScaling>(c);
  EXPECT_EQ(s.short_factors, (std::vector{1.0, 1.25, 1.5}));
  EXPECT_EQ(s.long_factors, (std::vector{1.1, 2.5, 4.0}));
  EXPECT_EQ(s.original_length, 8);
  EXPECT_EQ(s.factor, 4.0);
  EXPECT_EQ(with("phi3", "resid_pdrop", 0.25).attention(0).projection_dropout, 0.25);
  const auto inside = changed("phi3", [](json& x) {  // as transformers 5 writes it
    x["rope_parameters"] = x["rope_scaling"];
    x["rope_parameters"].update(
        {{"partial_rotary_factor", 0.5}, {"rope_theta", 10000.0}, {"original_max_position_embeddings", 8}});
    for (const char* key : {"rope_scaling", "partial_rotary_factor", "rope_theta"}) x.erase(key);
  });
  EXPECT_EQ(inside.attention(0).rotary->dimensions, 6);
  EXPECT_EQ(scaling_of<attn::LongRopeScaling>(inside.attention(0)).factor, 4.0);
  for (const char* name : {"su", "yarn"}) {
    const auto former = changed("phi3", [&](json& x) { x["rope_scaling"]["type"] = name; });
    EXPECT_EQ(scaling_of<attn::LongRopeScaling>(former.attention(0)).factor, 4.0);
  }
}

TEST(HuggingFaceConfig, ReadsGptOss) {
  const HuggingFaceConfig config(config_of("gpt_oss").dump());
  expect_sizes(config.attention(0), {24, 6, 2, 14}, {true, true, true, true}, 4);
  expect_sizes(config.attention(1), {24, 6, 2, 14}, {true, true, true, true}, {});
  EXPECT_TRUE(config.attention(0).sinks);
  const auto& s = scaling_of<attn::YarnScaling>(config.attention(0));
  EXPECT_EQ((std::array{s.factor, s.beta_fast, s.beta_slow}), (std::array{32.0, 32.0, 1.0}));
  EXPECT_EQ(s.original_length, 64);
  EXPECT_FALSE(s.truncate);
  EXPECT_FALSE(s.attention_factor);
  EXPECT_EQ(changed("gpt_oss", [](json& c) { c.erase("layer_types"); }).attention(0).window, 4);
  EXPECT_EQ(changed("gpt_oss", [](json& c) { c.erase("attention_bias"); }).attention(0).bias, true);
}

TEST(HuggingFaceConfig, ReadsSmolLm3) {
  const HuggingFaceConfig config(config_of("smollm3").dump());
  expect_sizes(config.attention(0), {32, 4, 1, 8}, no_bias, {});
  EXPECT_EQ(config.attention(0).rotary->theta, 5e6);
  EXPECT_FALSE(config.attention(1).rotary);
  const auto by_interval = changed("smollm3", [](json& c) {
    for (const char* key : {"no_rope_layers", "no_rope_layer_interval", "layer_types"}) c.erase(key);
    c["num_hidden_layers"] = 8, c["use_sliding_window"] = true, c["sliding_window"] = 16;
  });
  for (Index i = 0; i < 8; ++i) {
    EXPECT_EQ(by_interval.attention(i).rotary.has_value(), i != 3 && i != 7) << i;
    EXPECT_EQ(by_interval.attention(i).window.has_value(), i == 3 || i == 7) << i;
  }
}

TEST(HuggingFaceConfig, ReadsGranite) {
  const LlamaAttentionConfig c = HuggingFaceConfig(config_of("granite").dump()).attention(0);
  expect_sizes(c, {30, 3, 1, 10}, no_bias, {});
  EXPECT_EQ(c.scale, 0.171875);
  EXPECT_EQ(c.attention_dropout, 0.1);
}

TEST(HuggingFaceConfig, ReadsOlmo2) {
  const LlamaAttentionConfig c = HuggingFaceConfig(config_of("olmo2").dump()).attention(1);
  expect_sizes(c, {36, 3, 1, 12}, no_bias, {});
  EXPECT_EQ(c.query_key_norm, QueryKeyNorm::whole_projection);
  EXPECT_EQ(changed("olmo2", [](json& x) { x.erase("rms_norm_eps"); }).attention(0).norm_epsilon, 1e-5);
}

TEST(HuggingFaceConfig, TakesNullAsAbsent) {
  const auto config =
      changed("llama", [](json& c) { c["head_dim"] = c["num_key_value_heads"] = c["clip_qkv"] = nullptr; });
  EXPECT_EQ(config.attention(0).num_key_value_heads, 4);
  EXPECT_EQ(config.attention(0).head_dim, 10);
}

TEST(HuggingFaceConfig, ReadsRotaryScalingsInBothForms) {
  const json scaling = {
      {"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32}, {"attention_factor", 1.5}};
  const auto former = with("qwen2", "rope_scaling", scaling), later = changed("qwen2", [&](json&c) {
                                                                c["rope_parameters"] = scaling;
                                                                c["rope_parameters"]["rope_theta"] = c["rope_theta"];
                                                                c.erase("rope_theta");
                                                              });
  for (const HuggingFaceConfig* config : {&former, &later}) {
    const auto& s = scaling_of<attn::YarnScaling>(config->attention(0));
    EXPECT_EQ(s.factor, 4.0);
    EXPECT_EQ(s.original_length, 32);
    EXPECT_EQ(s.attention_factor, 1.5);
    EXPECT_TRUE(s.truncate);
    EXPECT_EQ(config->attention(0).rotary->theta, 1e6);
  }
  const auto dynamic = with("llama", "rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2.0}}).attention(0);
  EXPECT_EQ(scaling_of<attn::DynamicNtkScaling>(dynamic).original_length, 384);
}

// ---- What is refused ---------------------------------------------------------------------------------------------

TEST(HuggingFaceConfig, RefusesOtherModelTypes) {
  for (const char* type : {"deepseek_v3", "qwen3_moe", "LLAMA", ""})
    expect_refusal("llama", "model_type", type, {"gemma3", "olmo2"});
  expect_error([] { HuggingFaceConfig("{}", "x/config.json"); }, {"x/config.json: model_type", "got nothing"});
}

TEST(HuggingFaceConfig, RefusesTextThatIsNoObject) {
  for (const char* text : {"", "[1]", "{", "{} x", "\x80", "12"})
    expect_error([&] { HuggingFaceConfig(text, "config.json"); }, {"config.json, expected a JSON object"});
}

TEST(HuggingFaceConfig, RefusesTextThatIsTooDeep) {
  for (const std::string& deep : {std::string(100000, '['), R"({"rope_scaling": )" + std::string(100000, '[')})
    expect_error([&] { HuggingFaceConfig(deep, "config.json"); }, {"config.json", "32 levels"});
}

TEST(HuggingFaceConfig, RefusesKeysItDoesNotKnow) {
  expect_refusal("llama", "sliding_window", 128);
  expect_refusal("llama", "attn_logit_softcapping", 50.0);
  expect_refusal("gemma3", "attn_logit_softcapping", 50.0);
  expect_refusal("llama", "query_pre_attn_scalar", 256);
  expect_refusal("mistral", "attention_multiplier", 0.1);
  expect_refusal("olmo2", "clip_qkv", 8.0);
  expect_refusal("llama", "no_rope_layers", {0, 1});
  expect_refusal("qwen3", "dflash_config", json::object());
}

TEST(HuggingFaceConfig, TakesKeysThatItsUserKnows) {
  json config = config_of("llama");
  config["my_note"] = "x";
  EXPECT_EQ(HuggingFaceConfig(config.dump(), "config.json", {"my_note"}).layers(), 2);
  expect_error([&] { HuggingFaceConfig(config.dump(), "config.json", {"my_notes"}); }, {"my_note"});
}

TEST(HuggingFaceConfig, RefusesFeaturesByTheirValue) {
  expect_refusal("mistral", "attention_bias", true);
  expect_refusal("qwen2", "attention_bias", true);
  expect_refusal("llama", "attention_bias", "qkv", {"true or false"});
  expect_refusal("llama", "rope_interleaved", true);
  expect_refusal("qwen2", "use_mrope", true);
  expect_refusal("qwen3", "is_causal", false);
  expect_refusal("gemma2", "use_bidirectional_attention", true);
  expect_refusal("llama", "partial_rotary_factor", 0.5);
  expect_refusal("phi3", "full_attn_mod", 2);
  expect_refusal("mistral", "use_sliding_window", false);
  expect_refusal("gemma2", "sliding_window_size", 8);
  expect_refusal("llama", "use_sliding_window", true);
  expect_refusal("llama", "add_cross_attention", true);
}

TEST(HuggingFaceConfig, RefusesRotaryItDoesNotKnow) {
  const auto refuse = [](const char* family, const json& scaling, std::initializer_list<std::string_view> parts) {
    expect_refusal(family, "rope_scaling", scaling, parts);
  };
  refuse("llama", {{"rope_type", "ntk"}, {"factor", 2.0}}, {"rope_scaling.rope_type", "llama3", "\"ntk\""});
  refuse("llama", {{"type", "mrope"}, {"mrope_section", {1, 2}}}, {"rope_scaling.type"});
  refuse("llama", {{"rope_type", "linear"}, {"type", "dynamic"}, {"factor", 2.0}}, {"rope_scaling.type"});
  refuse("llama", {{"rope_type", "linear"}}, {"rope_scaling.factor", "got nothing"});
  refuse("llama", {{"rope_type", "linear"}, {"factor", "2"}}, {"rope_scaling.factor", "a number"});
  refuse("llama", {{"rope_type", "linear"}, {"factor", -2}}, {"rope_scaling.factor", "positive"});
  refuse("llama", {{"rope_type", "linear"}, {"factor", 2}, {"mscale", 1.0}}, {"rope_scaling.mscale"});
  refuse("llama", {{"rope_type", "llama3"}, {"factor", 2}}, {"rope_scaling.", "got nothing"});
  refuse("llama", {{"factor", 2}}, {"rope_scaling.factor"});
  refuse("llama", "linear", {"an object"});
  refuse("phi3", {{"type", "longrope"}, {"long_factor", {1, 1, 1}}, {"short_factor", {1, 1}}},
         {"short_factor", "3 positive"});
  refuse("phi3", {{"type", "longrope"}, {"long_factor", {1, 1, 0}}, {"short_factor", {1, 1, 1}}},
         {"long_factor", "3 positive"});
  refuse("gpt_oss", nullptr, {"an object"});
  expect_refusal("llama", "rope_parameters", {{"rope_theta", 100.0}}, {"rope_scaling"});
  expect_refusal("qwen2", "rope_parameters", {{"rope_theta", 5.0}}, {"rope_parameters.rope_theta", "the same"});
  expect_refusal("qwen2", "rope_parameters", {{"full_attention", json::object()}}, {"rope_parameters.full_attention"});
  expect_refusal("mistral", "rope_theta", 0, {"positive"});
  expect_refusal("phi3", "partial_rotary_factor", 0.3, {"even"});
}

TEST(HuggingFaceConfig, RefusesSizesThatAreNone) {
  for (const char* key :
       {"hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers", "sliding_window"})
    for (const json& value :
         {json(0), json(-3), json(1.5), json("7"), json(true), json(std::uint64_t{1} << 63), json::array()})
      expect_refusal("mistral", key, value, {"expected an integer"});
  for (const char* key : {"hidden_size", "num_attention_heads", "num_hidden_layers"})
    expect_error([&] { changed("llama", [&](json& c) { c.erase(key); }); }, {key, "got nothing"});
  expect_refusal("mistral", "num_hidden_layers", 1000000, {"10000"});
  expect_refusal("mistral", "num_key_value_heads", 4, {"a divisor"});
  expect_refusal("qwen3", "head_dim", "x");
}

TEST(HuggingFaceConfig, RefusesLayersOfOtherKinds) {
  expect_refusal("gpt_oss", "layer_types", {"sliding_attention"}, {"each of 2 layers"});
  expect_refusal("gpt_oss", "layer_types", {"sliding_attention", "chunked_attention"}, {"full_attention and sliding"});
  expect_refusal("gpt_oss", "layer_types", {1, 2});
  expect_refusal("llama", "layer_types", {"sliding_attention", "full_attention"});
  expect_refusal("mistral", "layer_types", {"sliding_attention", "full_attention"}, {"all layers"});
  expect_refusal("qwen3", "layer_types", {"sliding_attention", "full_attention"}, {"no window"});
  expect_refusal("smollm3", "no_rope_layers", {1}, {"each layer"});
  expect_refusal("smollm3", "no_rope_layers", {1, 2}, {"0 and 1"});
  expect_refusal("gemma2", "sliding_window", nullptr);
  expect_refusal("gemma3", "_sliding_window_pattern", 5, {"6"});
}

TEST(HuggingFaceConfig, RefusesQuantisedAttention) {
  const json mxfp4 = {{"quant_method", "mxfp4"}, {"modules_to_not_convert", {"model.layers.*.self_attn", "lm_head"}}};
  EXPECT_EQ(with("gpt_oss", "quantization_config", mxfp4).layers(), 2);
  expect_refusal("gpt_oss", "quantization_config", {{"quant_method", "mxfp4"}}, {"self_attn"});
  expect_refusal("llama", "quantization_config", {{"quant_method", "fp8"}, {"modules_to_not_convert", {"lm_head"}}});
}

TEST(HuggingFaceConfig, RefusesLayersThatDoNotExist) {
  const HuggingFaceConfig config(config_of("llama").dump());
  for (Index layer : {-1, 2}) expect_error([&] { static_cast<void>(config.attention(layer)); }, {"from 0 to 1"});
}

// ---- Folders -----------------------------------------------------------------------------------------------------

/// A copy of a family's folder, to be changed.
class FolderCopy {
 public:
  explicit FolderCopy(const std::string& family) {
    for (const auto& entry : std::filesystem::directory_iterator(family_folder(family)))
      std::filesystem::copy(entry.path(), path());
  }
  [[nodiscard]] const std::filesystem::path& path() const { return folder_.path(); }
  void write(std::string_view name, std::string_view text) const { folder_.write(name, text); }
  /// Writes model.safetensors anew, with tensors left out, renamed (to) or added.
  void rewrite(const std::function<void(std::map<std::string, attn::SafetensorsTensor>&)>& change) const {
    const attn::SafetensorsFile from(path() / "model.safetensors");
    std::map<std::string, attn::SafetensorsTensor> tensors;
    for (const std::string& name : from.names()) tensors[name] = from.tensor(name);
    change(tensors);
    attn::SafetensorsWriter writer;
    for (const auto& [name, t] : tensors) writer.add_bytes(name, t.dtype, t.shape, t.bytes);
    writer.write(path() / "model.safetensors");
  }
  [[nodiscard]] HuggingFaceFolder open() const { return HuggingFaceFolder(path()); }

 private:
  TemporaryFolder folder_;
};

const std::string layer0 = "model.layers.0.self_attn.";

TEST(HuggingFaceFolder, LoadsEachTensorByItsName) {
  const HuggingFaceFolder folder(family_folder("gpt_oss"));
  const auto module = folder.attention<float>(1);
  const std::string at = "model.layers.1.self_attn.";
  EXPECT_TRUE(same_bits(module.query().weight(), folder.read<float, 2>(at + "q_proj.weight")));
  EXPECT_TRUE(same_bits(module.key().weight(), folder.read<float, 2>(at + "k_proj.weight")));
  EXPECT_TRUE(same_bits(module.value().weight(), folder.read<float, 2>(at + "v_proj.weight")));
  EXPECT_TRUE(same_bits(module.out_proj().weight(), folder.read<float, 2>(at + "o_proj.weight")));
  EXPECT_TRUE(same_bits(module.query().bias(), folder.read<float, 1>(at + "q_proj.bias")));
  EXPECT_TRUE(same_bits(module.out_proj().bias(), folder.read<float, 1>(at + "o_proj.bias")));
  EXPECT_TRUE(same_bits(module.sinks(), folder.read<float, 1>(at + "sinks")));
  EXPECT_FALSE(module.is_training());
}

TEST(HuggingFaceFolder, LoadsTypesOtherThanItsOwn) {
  const HuggingFaceFolder folder(family_folder("gemma3"));
  EXPECT_EQ(folder.tensor(layer0 + "q_norm.weight").dtype, "BF16");
  const auto exact = folder.attention<double>(0).key_norm().weight();
  EXPECT_EQ(max_difference(cast<double>(folder.attention<Eigen::bfloat16>(0).key_norm().weight()), exact), 0.0);
  EXPECT_EQ(max_difference(cast<double>(folder.attention<float>(0).key_norm().weight()), exact), 0.0);
  EXPECT_LT(max_difference(cast<double>(folder.attention<Eigen::half>(0).key_norm().weight()), exact), 1e-3);
}

TEST(HuggingFaceFolder, ReadsWhatStandsAroundAttention) {
  const HuggingFaceFolder folder(family_folder("qwen3"));
  EXPECT_EQ(folder.prefix(), "model.");
  EXPECT_EQ(folder.names().size(), 14U);
  EXPECT_TRUE(folder.contains("model.layers.1.input_layernorm.weight"));
  EXPECT_EQ((folder.read<float, 1>("model.layers.1.input_layernorm.weight"))(31), 1.0F);
  EXPECT_EQ(folder.config().json()["vocab_size"], 64);
  EXPECT_EQ(folder.model_type(), "qwen3");
  EXPECT_EQ(folder.size("vocab_size"), 64);
  EXPECT_EQ(folder.number("rms_norm_eps"), 0.02);
  EXPECT_TRUE(folder.flag("use_cache", false));
  EXPECT_TRUE(folder.flag("mlp_bias", true));
  expect_error([&] { static_cast<void>(folder.size("n_ctx")); }, {"config.json: n_ctx", "nothing"});
  expect_error([&] { static_cast<void>(folder.number("model_type")); }, {"config.json: model_type", "a number"});
  expect_error([&] { static_cast<void>(folder.read<float, 1>("model.norm.weight")); }, {"model.norm.weight"});
}

TEST(HuggingFaceFolder, FindsTextModelsInsideOthers) {
  const auto expected = HuggingFaceFolder(family_folder("gemma3")).attention<float>(0).query().weight();
  for (const std::string prefix : {"language_model.model.", "model.language_model.", "language_model.", ""}) {
    const FolderCopy copy("gemma3");
    copy.write("config.json", json{{"model_type", "gemma3"}, {"text_config", config_of("gemma3")}}.dump());
    copy.rewrite([&](auto& tensors) {
      const auto all = std::exchange(tensors, {});
      for (const auto& [name, t] : all) tensors[prefix + name.substr(6)] = t;
      tensors["vision_tower.encoder.layers.0.self_attn.q_proj.bias"] = all.begin()->second;
    });
    EXPECT_EQ(copy.open().prefix(), prefix);
    EXPECT_EQ(copy.open().size("vocab_size"), 64);
    EXPECT_TRUE(same_bits(copy.open().attention<float>(0).query().weight(), expected)) << prefix;
  }
}

TEST(HuggingFaceFolder, RefusesFoldersWithoutFiles) {
  const TemporaryFolder folder;
  expect_error([&] { HuggingFaceFolder{folder.path()}; }, {"config.json"});
  folder.write("config.json", config_of("llama").dump());
  expect_error([&] { HuggingFaceFolder{folder.path()}; }, {"model.safetensors.index.json", "neither"});
  folder.write("config.json", std::string((std::size_t{1} << 24) + 1, ' '));
  expect_error([&] { HuggingFaceFolder{folder.path()}; }, {"config.json", "at most 16777216 bytes"});
}

TEST(HuggingFaceFolder, NamesTensorsThatAreMissing) {
  for (const char* part : {"k_proj.weight", "v_proj.bias", "sinks"}) {
    const FolderCopy copy("gpt_oss");
    copy.rewrite([&](auto& tensors) { tensors.erase(layer0 + part); });
    expect_error([&] { static_cast<void>(copy.open().attention<float>(0)); }, {layer0 + part});
    static_cast<void>(copy.open().attention<float>(1));
  }
  const FolderCopy copy("qwen2");
  copy.rewrite([&](auto& tensors) { tensors.erase(layer0 + "o_proj.weight"); });
  expect_error([&] { static_cast<void>(copy.open()); }, {layer0 + "o_proj.weight"});
}

TEST(HuggingFaceFolder, NamesTensorsThatAreTooMany) {
  for (const char* part :
       {"o_proj.bias", "q_norm.weight", "q_proj.weight_scale_inv", "q_proj.lora_A.weight", "rotary_emb.inv_freq"}) {
    const FolderCopy copy("qwen2");
    copy.rewrite([&](auto& tensors) { tensors[layer0 + part] = tensors[layer0 + "k_proj.bias"]; });
    expect_error([&] { static_cast<void>(copy.open().attention<float>(0)); }, {layer0 + part, "expected"});
  }
  const FolderCopy copy("qwen2");
  copy.rewrite(
      [&](auto& tensors) { tensors["model.layers.2.self_attn.o_proj.weight"] = tensors[layer0 + "o_proj.weight"]; });
  expect_error([&] { static_cast<void>(copy.open()); }, {"2 layers", "model.layers.2.self_attn.o_proj.weight"});
}

TEST(HuggingFaceFolder, PassesTheFrequenciesOfFirstLlamas) {
  const FolderCopy copy("qwen2");
  const std::array<float, 3> frequencies{1.0F, 0.01F, 0.0001F};
  copy.rewrite([&](auto& tensors) {
    tensors[layer0 + "rotary_emb.inv_freq"] = {"F32", {3}, std::as_bytes(std::span(frequencies))};
  });
  const auto expected = HuggingFaceFolder(family_folder("qwen2")).attention<float>(0).query().weight();
  EXPECT_TRUE(same_bits(copy.open().attention<float>(0).query().weight(), expected));
}

TEST(HuggingFaceFolder, NamesTensorsOfOtherShapesAndTypes) {
  const FolderCopy copy("qwen2");
  const std::vector<std::byte> bytes(std::size_t{6} * 42);
  copy.rewrite([&](auto& tensors) { tensors[layer0 + "k_proj.weight"].shape = {42, 6}; });
  expect_error([&] { static_cast<void>(copy.open().attention<float>(0)); },
               {layer0 + "k_proj.weight", "[6,42]", "[42,6]"});
  copy.rewrite([&](auto& tensors) { tensors[layer0 + "k_proj.weight"] = {"F8_E4M3", {6, 42}, bytes}; });
  expect_error([&] { static_cast<void>(copy.open().attention<float>(0)); }, {layer0 + "k_proj.weight", "F8_E4M3"});
  copy.rewrite([&](auto& tensors) { tensors[layer0 + "k_proj.weight"] = {"I8", {6, 42}, bytes}; });
  expect_error([&] { static_cast<void>(copy.open().attention<float>(0)); }, {layer0 + "k_proj.weight", "I8"});
}

TEST(HuggingFaceFolder, LeavesModulesAloneThatDoNotFit) {
  const FolderCopy copy("qwen2");
  copy.rewrite([&](auto& tensors) { tensors.erase(layer0 + "v_proj.bias"); });
  LlamaAttention<float> module(copy.open().attention_config(0));
  const auto before = module.query().weight();
  expect_error([&] { copy.open().load_attention(0, module); }, {"v_proj.bias"});
  EXPECT_TRUE(same_bits(module.query().weight(), before));
}

TEST(HuggingFaceFolder, RefusesModulesThatComputeOtherThings) {
  const HuggingFaceFolder folder(family_folder("gemma2"));
  const auto refuse = [&](const std::function<void(LlamaAttentionConfig&)>& change, std::string_view what) {
    LlamaAttentionConfig config = folder.attention_config(0);
    change(config);
    LlamaAttention<float> module(config);
    expect_error([&] { folder.load_attention(0, module); }, {"load_attention", "module", what});
  };
  refuse([](auto& c) { c.hidden_size = 40; }, "hidden_size = 36, got 40");
  refuse([](auto& c) { c.num_attention_heads = 2; }, "num_attention_heads");
  refuse([](auto& c) { c.num_key_value_heads = 1; }, "num_key_value_heads");
  refuse([](auto& c) { c.head_dim = 4; }, "head_dim");
  refuse([](auto& c) { c.value_head_dim = 4; }, "value_head_dim");
  refuse([](auto& c) { c.key_bias = true; }, "key_bias");
  refuse([](auto& c) { c.scale.reset(); }, "scale");
  refuse([](auto& c) { c.softcap.reset(); }, "softcap");
  refuse([](auto& c) { c.window.reset(); }, "window");
  refuse([](auto& c) { c.sinks = true; }, "sinks");
  refuse([](auto& c) { c.query_key_norm = QueryKeyNorm::per_head; }, "query_key_norm");
  refuse([](auto& c) { c.output_gate = true; }, "output_gate");
  refuse([](auto& c) { c.rotary.reset(); }, "rotary");
  refuse([](auto& c) { c.rotary = RotaryConfig{.theta = 1e5}; }, "rotary");
  refuse([](auto& c) { c.rotary = RotaryConfig{.scaling = attn::LinearScaling{1.0}}; }, "rotary");
}

TEST(HuggingFaceFolder, RefusesInterleavingPartsOfHeads) {
  const HuggingFaceFolder folder(family_folder("phi3"));
  LlamaAttentionConfig config = folder.attention_config(0);
  config.rotary->layout = attn::RotaryLayout::interleaved;
  LlamaAttention<float> module(config);
  expect_error([&] { folder.load_attention(0, module); }, {"half-split"});
}

TEST(HuggingFaceFolder, LoadsIntoStoredWeights) {
  const HuggingFaceFolder folder(family_folder("mistral"));
  LlamaAttention<float> module(folder.attention_config(0));
  module.store_weights(attn::WeightFormat::int8);
  folder.load_attention(0, module);
  EXPECT_LT(max_difference(module.query().weight(), cast<double>(folder.attention<float>(0).query().weight())), 0.01);
}

// ---- Several files -----------------------------------------------------------------------------------------------

void expect_index_error(const std::function<void(json&)>& change, std::initializer_list<std::string_view> parts) {
  const FolderCopy copy("qwen3");
  json index = json::parse(contents_of(copy.path() / "model.safetensors.index.json"));
  change(index);
  copy.write("model.safetensors.index.json", index.dump());
  expect_error([&] { static_cast<void>(copy.open()); }, parts);
}

TEST(HuggingFaceIndex, MustNameFilesInTheFolder) {
  const std::string name = layer0 + "q_proj.weight";
  for (const json& file :
       {json("../model.safetensors"), json("/tmp/x.safetensors"), json("a\\b.safetensors"), json("model.bin"), json(3)})
    expect_index_error([&](json& index) { index["weight_map"][name] = file; }, {"index.json", name, "in the folder"});
  expect_index_error([&](json& index) { index["weight_map"][name] = "none.safetensors"; }, {"none.safetensors"});
}
TEST(HuggingFaceIndex, MustNameTensorsWhereTheyAre) {
  const std::string name = layer0 + "q_proj.weight";
  expect_index_error([&](json& index) { index["weight_map"]["other"] = index["weight_map"][name]; },
                     {"other", "got none"});
  expect_index_error([&](json& index) { index["weight_map"].erase(name); }, {"weight_map", name});
}
TEST(HuggingFaceIndex, MustBeAnIndex) {
  expect_index_error([](json& index) { index.erase("weight_map"); }, {"index.json: weight_map", "an object"});
  expect_index_error([](json& index) { index = json::array(); }, {"index.json", "a JSON object"});
}
TEST(HuggingFaceIndex, MustHaveItsFiles) {
  const FolderCopy copy("qwen3");
  std::filesystem::remove(copy.path() / "model-00002-of-00002.safetensors");
  expect_error([&] { static_cast<void>(copy.open()); }, {"model-00002-of-00002.safetensors"});
}

// ---- A whole model -----------------------------------------------------------------------------------------------

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
