// Edge, outside the umbrella. The attention of each layer of a model, from the config.json of a Hugging Face folder.
#pragma once

#if !__has_include(<nlohmann/json.hpp>)
#error "attn: hugging_face_config.hpp needs nlohmann-json 3.11 (Debian: nlohmann-json3-dev)"
#endif

#include <cmath>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../llama_attention_config.hpp"
#include "hugging_face_families.hpp"
#include "hugging_face_rotary.hpp"
#include "json_object.hpp"

namespace attn::detail {
inline namespace ATTN_EIGEN_ABI {

/// Reads the keys of one family into a config for each layer.
class HuggingFaceReader {
 public:
  HuggingFaceReader(JsonObject& json, const HuggingFaceFamily& family)
      : json_(json),
        family_(family),
        layers_(json.required("num_hidden_layers", json.integer("num_hidden_layers", 1, most_layers))) {}

  [[nodiscard]] std::vector<LlamaAttentionConfig> read() {
    const LlamaAttentionConfig shared = read_shared();
    const std::optional<Index> window = read_window();
    const std::vector<bool> rotated = read_rotated();
    const std::vector<bool> windowed = read_windowed(window.has_value(), rotated);
    const HuggingFaceRotary rotary(json_, family_, shared.head_dim);
    read_constants(window.has_value());
    std::vector<LlamaAttentionConfig> all(static_cast<std::size_t>(layers_), shared);
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (windowed[i]) all[i].window = window;
      if (rotated[i]) all[i].rotary = windowed[i] ? rotary.windowed() : rotary.whole();
    }
    return all;
  }

 private:
  static constexpr Index most_layers = 10000;  // more than any model has; a broken file takes no memory
  using Windows = HuggingFaceWindows;

  /// What all layers have in common.
  LlamaAttentionConfig read_shared() {
    LlamaAttentionConfig c;
    c.hidden_size = json_.required("hidden_size", json_.integer("hidden_size"));
    const auto heads = json_.integer("num_attention_heads");
    c.num_attention_heads =
        family_.heads > 0 ? heads.value_or(family_.heads) : json_.required("num_attention_heads", heads);
    const Index absent =
        json_.contains("num_key_value_heads") ? 0 : family_.key_value_heads;  // null: as many as of queries
    c.num_key_value_heads = json_.integer("num_key_value_heads").value_or(absent);
    const bool has_size = json_.contains("head_dim");
    c.head_dim = json_.integer("head_dim").value_or(has_size ? 0 : family_.head_dim);
    check_heads(c);
    complete_heads(c);
    c.attention_dropout = json_.number("attention_dropout").value_or(0.0);
    c.projection_dropout = family_.model_type == "phi3" ? json_.number("resid_pdrop").value_or(0.0) : 0.0;
    read_biases(c);
    c.query_key_norm = family_.norm;
    c.norm_epsilon = json_.number("rms_norm_eps").value_or(family_.epsilon);
    c.sinks = family_.sinks;
    read_scores(c);
    return c;
  }
  void check_heads(const LlamaAttentionConfig& c) const {
    if (c.num_key_value_heads > 0 && c.num_attention_heads % c.num_key_value_heads != 0)
      json_.refuse("num_key_value_heads", "a divisor of num_attention_heads");
    if (c.head_dim == 0 && c.hidden_size % c.num_attention_heads != 0)
      json_.refuse("head_dim", "a number, since hidden_size is no multiple of num_attention_heads");
  }
  void read_biases(LlamaAttentionConfig& c) {
    const bool by_key = family_.biases == HuggingFaceBiases::by_key;
    if (!by_key) json_.expect("attention_bias", false);
    c.bias = by_key && json_.boolean("attention_bias").value_or(family_.bias);
    if (family_.biases == HuggingFaceBiases::query_key_value) c.query_bias = c.key_bias = c.value_bias = true;
  }
  /// The factor on scores, and their cap.
  void read_scores(LlamaAttentionConfig& c) {
    if (family_.model_type == "granite") c.scale = json_.number("attention_multiplier").value_or(1.0);
    if (family_.model_type == "gemma2" || family_.model_type == "gemma3_text") {
      const double scalar = json_.number("query_pre_attn_scalar").value_or(256.0);
      if (!(scalar > 0.0)) json_.refuse("query_pre_attn_scalar", "a positive number");
      c.scale = 1.0 / std::sqrt(scalar);
    }
    if (family_.model_type != "gemma2") return;
    const bool has_cap = json_.contains("attn_logit_softcapping");  // null: none
    c.softcap = has_cap ? json_.number("attn_logit_softcapping") : std::optional<double>(50.0);
    if (c.softcap && !(*c.softcap > 0.0)) json_.refuse("attn_logit_softcapping", "a positive number");
  }

  /// How many keys a query sees in layers with a window; none where no layer has one.
  std::optional<Index> read_window() {
    if (family_.windows == Windows::none) return {};
    const bool has_window = json_.contains("sliding_window");  // null: none
    const auto given = json_.integer("sliding_window");
    std::optional<Index> window = has_window ? given : family_.window;
    if (family_.windows == Windows::last_layers || family_.windows == Windows::unrotated_layers) {
      const bool used = json_.boolean("use_sliding_window").value_or(false);
      if (used && !window) json_.refuse("sliding_window", "an integer, since use_sliding_window is true");
      return used ? window : std::nullopt;
    }
    const bool needed = family_.windows != Windows::all_layers;
    if (needed && !window) json_.refuse("sliding_window", "an integer");
    return window;
  }
  /// Which layers rotate queries and keys: all, but for SmolLM3.
  std::vector<bool> read_rotated() {
    std::vector<bool> rotated(static_cast<std::size_t>(layers_), true);
    if (family_.windows != Windows::unrotated_layers) return rotated;
    const Index interval = json_.integer("no_rope_layer_interval").value_or(4);
    const auto* const given = json_.array("no_rope_layers");  // in spite of its name, 1 where a layer rotates
    if (given != nullptr && std::ssize(*given) < layers_) json_.refuse("no_rope_layers", "an element for each layer");
    for (std::size_t i = 0; i < rotated.size(); ++i) {
      rotated[i] = (static_cast<Index>(i) + 1) % interval != 0;
      if (given == nullptr) continue;
      if ((*given)[i] != 0 && (*given)[i] != 1) json_.refuse("no_rope_layers", "elements of 0 and 1");
      rotated[i] = (*given)[i] == 1;
    }
    return rotated;
  }
  /// Which layers have the window: as layer_types says, else as the family has it.
  std::vector<bool> read_windowed(bool has_window, const std::vector<bool>& rotated) {
    const Index first =
        family_.windows == Windows::last_layers ? json_.integer("max_window_layers", 0).value_or(28) : 0;
    const Index pattern = read_pattern();
    std::vector<bool> windowed(static_cast<std::size_t>(layers_));
    for (std::size_t i = 0; i < windowed.size(); ++i) {
      const auto layer = static_cast<Index>(i);
      const bool chosen = family_.windows == Windows::unrotated_layers ? !rotated[i]
                          : family_.windows == Windows::pattern        ? (layer + 1) % pattern != 0
                                                                       : layer >= first;
      windowed[i] = has_window && chosen;
    }
    if (const auto* const types = json_.array("layer_types")) read_layer_types(*types, has_window, windowed);
    return windowed;
  }
  /// Every how many layers one sees all keys, in families where that is so.
  Index read_pattern() {
    if (family_.windows != Windows::pattern) return 1;
    if (family_.pattern == 2) return 2;
    const auto former = json_.integer("sliding_window_pattern"), later = json_.integer("_sliding_window_pattern");
    if (former && later && *former != *later) json_.refuse("_sliding_window_pattern", std::to_string(*former));
    return former.value_or(later.value_or(family_.pattern));
  }
  void read_layer_types(const std::vector<nlohmann::json>& types, bool has_window, std::vector<bool>& windowed) {
    if (std::ssize(types) != layers_)
      json_.refuse("layer_types", "one for each of " + std::to_string(layers_) + " layers");
    const bool fixed = family_.windows == Windows::none || family_.windows == Windows::all_layers;
    for (std::size_t i = 0; i < types.size(); ++i) {
      const bool windows = types[i] == "sliding_attention";
      if (!windows && types[i] != "full_attention") json_.refuse("layer_types", "full_attention and sliding_attention");
      if (windows && !has_window) json_.refuse("layer_types", "full_attention, since no window is in use");
      if (fixed && windows != windowed[i])
        json_.refuse("layer_types", "sliding_attention, since all layers of this model have a window");
      windowed[i] = windows;
    }
  }

  /// Keys that would change attention, in values that do not.
  void read_constants(bool has_window) {
    for (const char* key : {"rope_interleaved", "use_mrope", "use_qk_norm", "qk_layernorm",
                            "use_bidirectional_attention", "is_encoder_decoder", "add_cross_attention"})
      json_.expect(key, false);
    json_.expect("is_causal", true);
    json_.expect("full_attn_mod", 1);
    json_.expect("interpolate_factor", 1);
    json_.expect("pruned_heads", nlohmann::json::object());
    json_.expect("use_sliding_window", has_window);
    if (const auto window = json_.integer("sliding_window_size"))
      if (window != json_.integer("sliding_window")) json_.refuse("sliding_window_size", "the same as sliding_window");
    if (auto quantization = json_.object("quantization_config")) check_quantization(*quantization);
  }
  /// Quantised weights are refused, unless those of attention are not: gpt-oss.
  void check_quantization(JsonObject quantization) const {
    bool without = false;
    if (const auto* const modules = quantization.array("modules_to_not_convert"))
      for (const nlohmann::json& name : *modules)
        without = without || (name.is_string() && name.get_ref<const std::string&>().ends_with(".self_attn"));
    if (!without) json_.refuse("quantization_config", "none, or one whose modules_to_not_convert has all self_attn");
  }

  JsonObject& json_;
  const HuggingFaceFamily& family_;
  Index layers_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn::detail

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// The attention of each layer of a model, from the text of its config.json.
///
/// Model types: llama, mistral, qwen2, qwen3, gemma2, gemma3 (its text model), gemma3_text, phi3, gpt_oss, smollm3, granite,
/// olmo2. A key that is absent has the default of its model type in Hugging Face's transformers.
/// Conventions: `window` of a layer's config is its sliding window, so that forward(x, Causal{}) is what the model does.
/// Rotary is half-split. Rotary scalings that depend on the length need `max_length` with a cache.
/// Errors: other model types; values that attn does not compute; any key that is not known to leave attention alone: each
/// by name. `unrelated` names further keys that do.
class HuggingFaceConfig {
 public:
  /// `name` stands in messages, as a file's name does.
  explicit HuggingFaceConfig(std::string_view text, std::string name = "config.json",
                             std::vector<std::string> unrelated = {})
      : json_(detail::parse_object(fn, name, text)) {
    detail::JsonObject top(fn, name + ": ", json_);
    const std::string type = top.required("model_type", top.text("model_type"));
    if (type == "gemma3")
      read_inner(top, unrelated);
    else
      read(top, type, unrelated);
  }

  /// Of a model with parts, as gemma3, that of its text model: gemma3_text.
  [[nodiscard]] const std::string& model_type() const { return model_type_; }
  [[nodiscard]] Index layers() const { return std::ssize(attention_); }
  /// What the attention of layer 0, 1, ... is made of. Errors: a layer that does not exist.
  [[nodiscard]] const LlamaAttentionConfig& attention(Index layer) const {
    detail::require(0 <= layer && layer < layers(), "HuggingFaceConfig::attention", "layer, expected from 0 to ",
                    layers() - 1, ", got ", layer);
    return attention_[static_cast<std::size_t>(layer)];
  }
  /// All that the file says, of a model with parts about its text model.
  [[nodiscard]] const nlohmann::json& json() const { return is_inner_ ? json_.at("text_config") : json_; }

 private:
  static constexpr std::string_view fn = "HuggingFaceConfig";

  /// Gemma 3 with pictures: the text model's config stands inside.
  void read_inner(detail::JsonObject& top, const std::vector<std::string>& unrelated) {
    auto inner = top.object("text_config");
    if (!inner) top.refuse("text_config", "an object");
    for (const char* key : {"vision_config", "mm_tokens_per_image"}) static_cast<void>(top.take(key));
    top.refuse_others(detail::hugging_face_unrelated, unrelated);
    if (inner->text("model_type").value_or("gemma3_text") != "gemma3_text") inner->refuse("model_type", "gemma3_text");
    read(*inner, "gemma3_text", unrelated);
    is_inner_ = true;
  }
  void read(detail::JsonObject& json, const std::string& type, const std::vector<std::string>& unrelated) {
    const detail::HuggingFaceFamily* const family = detail::find_hugging_face_family(type);
    if (family == nullptr) json.refuse("model_type", detail::hugging_face_model_types());
    attention_ = detail::HuggingFaceReader(json, *family).read();
    json.refuse_others(detail::hugging_face_unrelated, unrelated);
    model_type_ = type;
  }

  nlohmann::json json_;
  bool is_inner_ = false;  // whether the text model's config stands inside
  std::string model_type_;
  std::vector<LlamaAttentionConfig> attention_;  // by layer
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
