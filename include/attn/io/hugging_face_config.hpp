// Edge. config.json of Hugging Face's models: what each layer's attention is made of.
#pragma once

#if !__has_include(<nlohmann/json.hpp>)
#error "attn: hugging_face.hpp needs nlohmann-json 3.11 (Debian: nlohmann-json3-dev)"
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../llama_attention_config.hpp"

namespace attn::detail {
inline namespace ATTN_EIGEN_ABI {

/// A config.json, read field by field with errors that name the field.
class HuggingFaceConfig {
 public:
  static constexpr auto fn = "HuggingFaceFolder";

  /// Errors: a type of model or a field that bears on attention and is not known.
  explicit HuggingFaceConfig(nlohmann::json config) : json_(std::move(config)) {
    require(json_.is_object(), fn, "config.json, expected an object");
    if (json_.contains("text_config") && text("model_type") == "gemma3") {
      json_ = nlohmann::json(json_["text_config"]);  // the part of a model that sees images, too
      require(json_.is_object(), fn, "config.json, text_config, expected an object");
      json_["model_type"] = "gemma3_text";
    }
    type_ = text("model_type");
    const std::array<std::string_view, 12> known{"llama",       "mistral", "qwen2",   "qwen3",   "gemma2",  "gemma3",
                                                 "gemma3_text", "phi3",    "gpt_oss", "smollm3", "granite", "olmo2"};
    require(std::find(known.begin(), known.end(), type_) != known.end(), fn,
            "config.json, model_type, expected llama, mistral, qwen2, qwen3, gemma2, gemma3, phi3, gpt_oss, smollm3, "
            "granite or olmo2, got ",
            std::string_view(type_));
    if (type_ == "gemma3") type_ = "gemma3_text";
    check_fields();
    require(layers() >= 1 && layers() <= 1 << 16, fn, "config.json, num_hidden_layers, expected 1 to 65536, got ",
            layers());
  }

  [[nodiscard]] const std::string& model_type() const { return type_; }
  [[nodiscard]] Index layers() const { return number<Index>("num_hidden_layers"); }
  [[nodiscard]] const nlohmann::json& json() const { return json_; }

  /// A number, or what stands for it where the field is missing or null.
  template <class Number>
  [[nodiscard]] Number number(const std::string& name, std::optional<Number> otherwise = {}) const {
    return number_in<Number>(json_, name, otherwise);
  }
  [[nodiscard]] bool flag(const std::string& name, bool otherwise = false) const {
    const auto found = json_.find(name);
    if (found == json_.end() || found->is_null()) return otherwise;
    require(found->is_boolean(), fn, "config.json, ", std::string_view(name), ", expected true or false");
    return found->get<bool>();
  }

  /// The attention of a layer, without dropout unless the model was trained with it.
  [[nodiscard]] LlamaAttentionConfig attention(Index layer) const {
    LlamaAttentionConfig c;
    c.hidden_size = number<Index>("hidden_size"), c.num_attention_heads = number<Index>("num_attention_heads");
    c.num_key_value_heads = number<Index>("num_key_value_heads", c.num_attention_heads);
    c.head_dim = number<Index>("head_dim", Index{0});
    if (c.head_dim == 0 && c.num_attention_heads > 0) c.head_dim = c.hidden_size / c.num_attention_heads;
    c.bias = type_ != "qwen2" && flag("attention_bias", type_ == "gpt_oss");
    if (type_ == "qwen2") c.query_bias = c.key_bias = c.value_bias = true;
    c.attention_dropout = number<double>("attention_dropout", 0.0), c.projection_dropout = 0.0;
    if (type_ == "gemma2" || type_ == "gemma3_text") {
      c.scale = 1.0 / std::sqrt(number<double>("query_pre_attn_scalar", 256.0));
      if (has("attn_logit_softcapping")) c.softcap = number<double>("attn_logit_softcapping");
    }
    if (type_ == "granite") c.scale = number<double>("attention_multiplier", 1.0);
    c.sinks = type_ == "gpt_oss";
    if (type_ == "qwen3") c.query_key_norm = QueryKeyNorm::per_head;
    if (type_ == "gemma3_text") c.query_key_norm = QueryKeyNorm::per_head_one_plus_weight;
    if (type_ == "olmo2") c.query_key_norm = QueryKeyNorm::whole_projection;
    c.norm_epsilon = number<double>("rms_norm_eps", 1e-6);
    const bool local = is_local(layer);
    if (local) c.window = number<Index>("sliding_window");
    if (has_rotary(layer)) c.rotary = rotary(local, c.head_dim);
    return c;
  }

 private:
  [[nodiscard]] bool has(const std::string& name) const {
    const auto found = json_.find(name);
    return found != json_.end() && !found->is_null();
  }
  [[nodiscard]] std::string text(const std::string& name) const {
    require(has(name) && json_[name].is_string(), fn, "config.json, ", std::string_view(name), ", expected a text");
    return json_[name].get<std::string>();
  }
  template <class Number>
  [[nodiscard]] static Number number_in(const nlohmann::json& object, const std::string& name,
                                        std::optional<Number> otherwise = {}) {
    const auto found = object.find(name);
    const bool given = found != object.end() && !found->is_null();
    require(given || otherwise.has_value(), fn, "config.json, ", std::string_view(name),
            ", expected a number, got none");
    if (!given) return *otherwise;
    const bool fits = std::is_same_v<Number, double> ? found->is_number() : found->is_number_integer();
    require(fits, fn, "config.json, ", std::string_view(name), ", expected a number");
    if (found->is_number_unsigned() && !std::is_same_v<Number, double>)
      require(found->template get<std::uint64_t>() <= 1U << 30, fn, "config.json, ", std::string_view(name),
              ", expected a number up to 2^30");
    return found->template get<Number>();
  }

  /// Refuses what bears on attention and is not known, and what is known to change it.
  void check_fields() const {
    constexpr std::array known{"attention_bias", "attention_dropout", "attn_logit_softcapping", "attention_multiplier",
                               "head_dim", "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
                               "max_window_layers", "rms_norm_eps", "rope_scaling", "rope_theta", "rope_parameters",
                               "rope_local_base_freq", "sliding_window", "use_sliding_window", "sliding_window_pattern",
                               "_sliding_window_pattern", "query_pre_attn_scalar", "original_max_position_embeddings",
                               "partial_rotary_factor", "no_rope_layers", "no_rope_layer_interval", "layer_types",
                               // not of the attention:
                               "lm_head_bias", "final_logit_softcapping", "logits_scaling", "embedding_multiplier",
                               "residual_multiplier", "full_attn_mod", "rope_interleaved"};
    constexpr std::array parts{"attention", "attn", "rope", "rotary",        "window",      "head",  "qk_",
                               "softcap",   "sink", "clip", "bidirectional", "layer_types", "alibi", "position"};
    for (const auto& [name, value] : json_.items()) {
      if (std::find(known.begin(), known.end(), name) != known.end() || value.is_null()) continue;
      if (value.is_boolean() && !value.get<bool>()) continue;  // a feature that is switched off
      for (const char* part : parts)
        require(name.find(part) == std::string::npos, fn,
                "config.json, expected no features of attention but those of ", std::string_view(type_), ", got ",
                std::string_view(name));
    }
    require(number<Index>("full_attn_mod", Index{1}) == 1, fn, "config.json, full_attn_mod, expected 1");
    require(!flag("rope_interleaved"), fn, "config.json, rope_interleaved, expected false");
    const bool caps = type_ == "gemma2" || type_ == "gemma3_text";
    require(caps || !has("attn_logit_softcapping"), fn, "config.json, attn_logit_softcapping, expected none in ",
            std::string_view(type_));
    require(type_ == "granite" || !has("attention_multiplier"), fn,
            "config.json, attention_multiplier, expected none in ", std::string_view(type_));
    require((type_ != "mistral" && type_ != "phi3" && type_ != "qwen2") || !flag("attention_bias"), fn,
            "config.json, attention_bias, expected false in ", std::string_view(type_));
  }

  /// Whether a layer sees a window of keys alone.
  [[nodiscard]] bool is_local(Index layer) const {
    if (!has("sliding_window")) return false;
    if (has("use_sliding_window") && !flag("use_sliding_window")) return false;
    if (has("layer_types")) {
      const nlohmann::json& types = json_["layer_types"];
      require(types.is_array() && std::ssize(types) >= layers(), fn,
              "config.json, layer_types, expected one for each layer");
      const nlohmann::json& type = types[static_cast<std::size_t>(layer)];
      require(type == "sliding_attention" || type == "full_attention", fn,
              "config.json, layer_types, expected sliding_attention or full_attention, got something else");
      return type == "sliding_attention";
    }
    if (type_ == "mistral" || type_ == "phi3") return true;
    if (type_ == "qwen2" || type_ == "qwen3" || type_ == "smollm3")
      return flag("use_sliding_window") && layer >= number<Index>("max_window_layers", Index{28});
    if (type_ == "gemma2" || type_ == "gpt_oss") return layer % 2 == 0;
    if (type_ == "gemma3_text") {
      const char* const name = has("sliding_window_pattern") ? "sliding_window_pattern" : "_sliding_window_pattern";
      return (layer + 1) % number<Index>(name, Index{6}) != 0;
    }
    fail(fn, "config.json, sliding_window, expected none in ", std::string_view(type_));
  }
  [[nodiscard]] bool has_rotary(Index layer) const {
    if (type_ != "smollm3") return true;
    if (!has("no_rope_layers")) return (layer + 1) % number<Index>("no_rope_layer_interval", Index{4}) != 0;
    const nlohmann::json& with = json_["no_rope_layers"];  // 1 where there is rotary, in spite of the name
    require(with.is_array() && std::ssize(with) >= layers(), fn,
            "config.json, no_rope_layers, expected one number for each layer");
    return with[static_cast<std::size_t>(layer)] == 1;
  }

  [[nodiscard]] RotaryConfig rotary(bool local, Index head_dim) const {
    RotaryConfig r;
    nlohmann::json scaling = nullptr;
    if (has("rope_parameters")) {  // theta and scaling together, in newer files
      const nlohmann::json& all = json_["rope_parameters"];
      const char* const kind = local ? "sliding_attention" : "full_attention";
      scaling = all.contains(kind) ? all[kind] : all;
      require(scaling.is_object(), fn, "config.json, rope_parameters, expected an object");
      r.theta = number_in<double>(scaling, "rope_theta", 10000.0);
    } else {
      const bool own_theta = type_ == "gemma3_text" && local;  // local layers have a base of their own and no scaling
      r.theta = own_theta ? number<double>("rope_local_base_freq", 10000.0) : number<double>("rope_theta", 10000.0);
      if (has("rope_scaling") && !own_theta) scaling = json_["rope_scaling"];
    }
    const double part = number<double>("partial_rotary_factor", 1.0);
    r.dimensions = part < 1.0 ? static_cast<Index>(static_cast<double>(head_dim) * part) : 0;
    if (!scaling.is_null()) r.scaling = scaling_of(scaling);
    return r;
  }
  [[nodiscard]] RotaryScaling scaling_of(const nlohmann::json& s) const {
    require(s.is_object(), fn, "config.json, rope_scaling, expected an object");
    std::string type = "default";
    for (const char* name : {"type", "rope_type"})
      if (s.contains(name) && s[name].is_string()) type = s[name].get<std::string>();
    for (const auto& [name, value] : s.items()) {
      constexpr std::array known{"type",
                                 "rope_type",
                                 "rope_theta",
                                 "factor",
                                 "low_freq_factor",
                                 "high_freq_factor",
                                 "original_max_position_embeddings",
                                 "beta_fast",
                                 "beta_slow",
                                 "truncate",
                                 "attention_factor",
                                 "short_factor",
                                 "long_factor",
                                 "partial_rotary_factor"};
      require(std::find(known.begin(), known.end(), name) != known.end() || value.is_null(), fn,
              "config.json, rope_scaling, expected no field but those of ", std::string_view(type), ", got ",
              std::string_view(name));
    }
    const auto real = [&](const char* name, std::optional<double> otherwise = {}) {
      return number_in<double>(s, name, otherwise);
    };
    const auto most = [&] { return number<Index>("max_position_embeddings"); };
    const auto original = [&] {
      const Index own = number<Index>("original_max_position_embeddings", Index{0});
      return number_in<Index>(s, "original_max_position_embeddings", own > 0 ? own : most());
    };
    const auto attention_factor = [&] {
      return s.contains("attention_factor") && !s["attention_factor"].is_null()
                 ? std::optional<double>(real("attention_factor"))
                 : std::nullopt;
    };
    if (type == "default") return std::monostate{};
    if (type == "linear") return LinearScaling{real("factor")};
    if (type == "dynamic") return DynamicNtkScaling{real("factor"), most()};
    if (type == "llama3")
      return Llama3Scaling{real("factor"), real("low_freq_factor"), real("high_freq_factor"), original()};
    if (type == "yarn")
      return YarnScaling{.factor = real("factor"),
                         .original_length = original(),
                         .beta_fast = real("beta_fast", 32.0),
                         .beta_slow = real("beta_slow", 1.0),
                         .attention_factor = attention_factor(),
                         .truncate = !s.contains("truncate") || s["truncate"] != false};
    if (type == "longrope" || type == "su") {
      const double longer = static_cast<double>(most()) / static_cast<double>(std::max<Index>(original(), 1));
      return LongRopeScaling{.short_factors = factors(s, "short_factor"),
                             .long_factors = factors(s, "long_factor"),
                             .original_length = original(),
                             .factor = real("factor", longer),
                             .attention_factor = attention_factor()};
    }
    fail(fn, "config.json, rope_type, expected default, linear, dynamic, llama3, yarn or longrope, got ",
         std::string_view(type));
  }
  [[nodiscard]] static std::vector<double> factors(const nlohmann::json& s, const char* name) {
    require(s.contains(name) && s[name].is_array(), fn, "config.json, ", name, ", expected an array of numbers");
    std::vector<double> all;
    for (const nlohmann::json& factor : s[name]) {
      require(factor.is_number(), fn, "config.json, ", name, ", expected an array of numbers");
      all.push_back(factor.get<double>());
    }
    return all;
  }

  nlohmann::json json_;
  std::string type_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn::detail
