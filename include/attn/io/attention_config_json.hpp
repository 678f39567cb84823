// Edge. LlamaAttentionConfig as JSON, and back.
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "../dropout.hpp"
#include "../llama_attention_config.hpp"
#include "../stored_weight.hpp"
#include "json_object.hpp"

namespace attn::detail {
inline namespace ATTN_EIGEN_ABI {

template <class X>
[[nodiscard]] nlohmann::json optional_json(const std::optional<X>& x) {
  return x ? nlohmann::json(*x) : nlohmann::json();
}
/// A field of an object. Errors: one that is missing, of another type, or an integer that X does not hold.
template <class X>
[[nodiscard]] X field_of(std::string_view fn, const nlohmann::json& object, const char* name) {
  if constexpr (std::integral<X> && !std::same_as<X, bool>)
    return integer_of<X>(fn, name, object.at(name));
  else
    return object.at(name).get<X>();
}
template <class X>
[[nodiscard]] std::optional<X> optional_of(std::string_view fn, const nlohmann::json& object, const char* name) {
  return object.at(name).is_null() ? std::nullopt : std::optional<X>(field_of<X>(fn, object, name));
}

/// Parses a text, or throws attn::Error.
[[nodiscard]] inline nlohmann::json parse_json(std::string_view fn, std::string_view text) {
  nlohmann::json result = nlohmann::json::parse(text, nullptr, false);
  require(!result.is_discarded(), fn, "metadata, expected JSON, got something else");
  return result;
}
/// An object of texts. Errors: something else.
[[nodiscard]] inline std::map<std::string, std::string> texts_of(std::string_view fn, std::string_view text) {
  const nlohmann::json object = parse_json(fn, text);
  std::map<std::string, std::string> texts;
  for (const auto& [name, value] : object.items()) {
    require(value.is_string(), fn, "metadata, expected texts, got another value of ", std::string_view(name));
    texts[name] = value.get<std::string>();
  }
  return texts;
}
[[nodiscard]] inline WeightFormat weight_format_of(std::string_view fn, std::string_view name) {
  for (const WeightFormat format :
       {WeightFormat::native, WeightFormat::bfloat16, WeightFormat::half, WeightFormat::int8, WeightFormat::int4})
    if (weight_format_name(format) == name) return format;
  fail(fn, "format of a weight, expected native, bfloat16, half, int8 or int4, got ", name);
}

struct ScalingToJson {
  nlohmann::json operator()(std::monostate) const { return nullptr; }
  nlohmann::json operator()(const LinearScaling& s) const { return {{"type", "linear"}, {"factor", s.factor}}; }
  nlohmann::json operator()(const DynamicNtkScaling& s) const {
    return {{"type", "dynamic"}, {"factor", s.factor}, {"original_length", s.original_length}};
  }
  nlohmann::json operator()(const Llama3Scaling& s) const {
    return {{"type", "llama3"},
            {"factor", s.factor},
            {"low_frequency_factor", s.low_frequency_factor},
            {"high_frequency_factor", s.high_frequency_factor},
            {"original_length", s.original_length}};
  }
  nlohmann::json operator()(const YarnScaling& s) const {
    return {
        {"type", "yarn"},           {"factor", s.factor},       {"original_length", s.original_length},
        {"beta_fast", s.beta_fast}, {"beta_slow", s.beta_slow}, {"attention_factor", optional_json(s.attention_factor)},
        {"truncate", s.truncate}};
  }
  nlohmann::json operator()(const LongRopeScaling& s) const {
    return {{"type", "longrope"},
            {"short_factors", s.short_factors},
            {"long_factors", s.long_factors},
            {"original_length", s.original_length},
            {"factor", s.factor},
            {"attention_factor", optional_json(s.attention_factor)}};
  }
};
[[nodiscard]] inline RotaryScaling scaling_of(std::string_view fn, const nlohmann::json& j) {
  if (j.is_null()) return std::monostate{};
  const auto type = j.at("type").get<std::string>();
  const auto number = [&](const char* name) { return j.at(name).get<double>(); };
  const auto length = [&] { return field_of<Index>(fn, j, "original_length"); };
  if (type == "linear") return LinearScaling{number("factor")};
  if (type == "dynamic") return DynamicNtkScaling{number("factor"), length()};
  if (type == "llama3")
    return Llama3Scaling{number("factor"), number("low_frequency_factor"), number("high_frequency_factor"), length()};
  if (type == "yarn")
    return YarnScaling{.factor = number("factor"),
                       .original_length = length(),
                       .beta_fast = number("beta_fast"),
                       .beta_slow = number("beta_slow"),
                       .attention_factor = optional_of<double>(fn, j, "attention_factor"),
                       .truncate = j.at("truncate").get<bool>()};
  if (type == "longrope")
    return LongRopeScaling{.short_factors = j.at("short_factors").get<std::vector<double>>(),
                           .long_factors = j.at("long_factors").get<std::vector<double>>(),
                           .original_length = length(),
                           .factor = number("factor"),
                           .attention_factor = optional_of<double>(fn, j, "attention_factor")};
  fail(fn, "rotary scaling, expected linear, dynamic, llama3, yarn or longrope, got ", std::string_view(type));
}

[[nodiscard]] inline nlohmann::json to_json(const LlamaAttentionConfig& c) {
  nlohmann::json rotary;
  if (c.rotary)
    rotary = {{"interleaved", c.rotary->layout == RotaryLayout::interleaved},
              {"theta", c.rotary->theta},
              {"scaling", std::visit(ScalingToJson(), c.rotary->scaling)},
              {"dimensions", c.rotary->dimensions},
              {"length", optional_json(c.rotary->length)}};
  return {{"hidden_size", c.hidden_size},
          {"num_attention_heads", c.num_attention_heads},
          {"num_key_value_heads", c.num_key_value_heads},
          {"head_dim", c.head_dim},
          {"bias", c.bias},
          {"attention_dropout", c.attention_dropout},
          {"projection_dropout", c.projection_dropout},
          {"rotary", rotary},
          {"window", optional_json(c.window)},
          {"seed", optional_json(c.seed)},
          {"query_bias", optional_json(c.query_bias)},
          {"key_bias", optional_json(c.key_bias)},
          {"value_bias", optional_json(c.value_bias)},
          {"output_bias", optional_json(c.output_bias)},
          {"value_head_dim", c.value_head_dim},
          {"scale", optional_json(c.scale)},
          {"softcap", optional_json(std::optional<double>(c.softcap))},
          {"sinks", c.sinks},
          {"query_key_norm", static_cast<int>(c.query_key_norm)},
          {"norm_epsilon", c.norm_epsilon},
          {"output_gate", c.output_gate},
          {"context_size", c.context_size},
          {"max_length", optional_json(c.max_length)}};
}
/// Errors: fields that are missing or of another type.
[[nodiscard]] inline LlamaAttentionConfig attention_config_of(std::string_view fn, const nlohmann::json& j) {
  LlamaAttentionConfig c;
  try {
    const auto set = [&]<class X>(const char* name, X& field) { field = field_of<X>(fn, j, name); };
    const auto set_optional = [&]<class X>(const char* name, std::optional<X>& field) {
      field = optional_of<X>(fn, j, name);
    };
    set("hidden_size", c.hidden_size), set("num_attention_heads", c.num_attention_heads);
    set("num_key_value_heads", c.num_key_value_heads), set("head_dim", c.head_dim), set("bias", c.bias);
    set("attention_dropout", c.attention_dropout), set("projection_dropout", c.projection_dropout);
    set_optional("window", c.window), set_optional("seed", c.seed);
    set_optional("query_bias", c.query_bias), set_optional("key_bias", c.key_bias);
    set_optional("value_bias", c.value_bias), set_optional("output_bias", c.output_bias);
    set("value_head_dim", c.value_head_dim), set_optional("scale", c.scale);
    if (const nlohmann::json& cap = j.at("softcap"); !cap.is_null()) c.softcap = cap.get<double>();
    set("sinks", c.sinks), set("norm_epsilon", c.norm_epsilon), set("output_gate", c.output_gate);
    c.query_key_norm = static_cast<QueryKeyNorm>(field_of<std::uint8_t>(fn, j, "query_key_norm"));
    set("context_size", c.context_size), set_optional("max_length", c.max_length);
    if (const nlohmann::json& r = j.at("rotary"); !r.is_null())
      c.rotary =
          RotaryConfig{.layout = r.at("interleaved").get<bool>() ? RotaryLayout::interleaved : RotaryLayout::half_split,
                       .theta = r.at("theta").get<double>(),
                       .scaling = scaling_of(fn, r.at("scaling")),
                       .dimensions = field_of<Index>(fn, r, "dimensions"),
                       .length = optional_of<Index>(fn, r, "length")};
  } catch (const nlohmann::json::exception& error) {
    fail(fn, "configuration, expected that of a module that attn saved, got one that is not: ", error.what());
  }
  return c;
}

[[nodiscard]] inline nlohmann::json to_json(const std::array<DropoutState, 2>& states) {
  nlohmann::json all = nlohmann::json::array();
  for (const DropoutState& state : states)
    all.push_back({{"training", state.training}, {"seed", state.seed}, {"given", state.given}, {"call", state.call}});
  return all;
}
[[nodiscard]] inline std::array<DropoutState, 2> dropout_states_of(std::string_view fn, const nlohmann::json& j) {
  std::array<DropoutState, 2> states;
  try {
    for (std::size_t i = 0; i < states.size(); ++i)
      states[i] = {.training = j.at(i).at("training").get<bool>(),
                   .seed = field_of<std::uint64_t>(fn, j.at(i), "seed"),
                   .given = j.at(i).at("given").get<bool>(),
                   .call = field_of<std::uint32_t>(fn, j.at(i), "call")};
  } catch (const nlohmann::json::exception& error) {
    fail(fn, "state of dropouts, expected that of a module that attn saved, got one that is not: ", error.what());
  }
  return states;
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn::detail
