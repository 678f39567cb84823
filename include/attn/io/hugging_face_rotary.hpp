// Edge, outside the umbrella. The rotary position embedding that a config.json describes.
#pragma once

#include <array>
#include <cmath>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../rotary.hpp"
#include "hugging_face_families.hpp"
#include "json_object.hpp"

namespace attn::detail {
inline namespace ATTN_EIGEN_ABI {

/// Rotary of layers that see all keys, and of those with a window, which has a theta of its own in Gemma 3.
///
/// Read from rope_theta, partial_rotary_factor and rope_scaling, or from rope_parameters, which has all of them inside, in
/// Gemma 3 once for each kind of layer.
class HuggingFaceRotary {
 public:
  HuggingFaceRotary(JsonObject& json, const HuggingFaceFamily& family, Index head_dim)
      : json_(json), family_(family), head_dim_(head_dim) {
    const bool two = family.model_type == "gemma3_text";
    auto scaling = json.object("rope_scaling"), parameters = json.object("rope_parameters");
    if (scaling && parameters) json.refuse("rope_parameters", "none beside rope_scaling");
    if (family.model_type == "gpt_oss" && !scaling && !parameters) json.refuse("rope_scaling", "an object");
    if (two && parameters) {
      whole_ = read(required(*parameters, "full_attention"), "rope_theta", family.theta);
      windowed_ = read(required(*parameters, "sliding_attention"), "rope_local_base_freq", 1e4);
      parameters->refuse_others({}, {});
      return;
    }
    whole_ = read(parameters ? parameters : scaling, "rope_theta", family.theta);
    windowed_ = two ? read(std::nullopt, "rope_local_base_freq", 1e4) : whole_;
  }

  [[nodiscard]] const RotaryConfig& whole() const { return whole_; }
  [[nodiscard]] const RotaryConfig& windowed() const { return windowed_; }

 private:
  static std::optional<JsonObject> required(JsonObject& parent, const char* key) {
    auto object = parent.object(key);
    if (!object) parent.refuse(key, "an object");
    return object;
  }

  /// One config. `inside`: rope_scaling or rope_parameters, if there is one; `theta_key`: theta's name outside of it.
  RotaryConfig read(std::optional<JsonObject> inside, const char* theta_key, double theta) {
    RotaryConfig config{.theta = number(inside, "rope_theta", theta_key, theta)};
    if (!(config.theta > 0.0)) json_.refuse(theta_key, "a positive number");
    const Index dimensions = read_dimensions(inside);
    if (dimensions != head_dim_) config.dimensions = dimensions;
    if (inside) config.scaling = read_scaling(*inside, dimensions);
    return config;
  }
  /// How many elements of a head are rotated.
  Index read_dimensions(std::optional<JsonObject>& inside) {
    constexpr auto key = "partial_rotary_factor";
    const double factor = number(inside, key, key, 1.0);
    const JsonObject& where = inside && inside->take(key) != nullptr ? *inside : json_;
    if (!(0.0 < factor && factor <= 1.0)) where.refuse(key, "a number above 0 and up to 1");
    if (factor == 1.0) return head_dim_;
    if (family_.model_type != "phi3") where.refuse(key, "1 for this model");
    const auto dimensions = static_cast<Index>(static_cast<double>(head_dim_) * factor);
    if (dimensions < 2 || dimensions % 2 != 0)
      where.refuse(key, "one that makes an even part of head_dim = " + std::to_string(head_dim_));
    return dimensions;
  }
  /// A number that stands inside rope_scaling or rope_parameters, or beside them.
  double number(std::optional<JsonObject>& inside, const char* inner_key, const char* outer_key, double otherwise) {
    const bool is_outside = json_.take(outer_key) != nullptr;
    const double outer = json_.number(outer_key).value_or(otherwise);
    if (!inside || inside->take(inner_key) == nullptr) return outer;
    const double inner = inside->number(inner_key).value_or(outer);
    if (is_outside && inner != outer)
      inside->refuse(inner_key, "the same as " + std::string(outer_key) + " outside of it");
    return inner;
  }

  RotaryScaling read_scaling(JsonObject& json, Index dimensions) {
    const auto later = json.text("rope_type"), former = json.text("type");
    if (later && former && *later != *former) json.refuse("type", "the same as rope_type");
    std::string type = later.value_or(former.value_or("default"));
    if (type == "su" || (type == "yarn" && family_.model_type == "phi3"))
      type = "longrope";  // Phi-3's first names of it
    RotaryScaling scaling = read_scaling(json, type, dimensions);
    json.refuse_others({}, {});
    return scaling;
  }
  RotaryScaling read_scaling(JsonObject& json, const std::string& type, Index dimensions) {
    if (type == "default") return {};
    if (type == "linear") return LinearScaling{.factor = positive(json, "factor")};
    if (type == "dynamic") return read_dynamic(json);
    if (type == "llama3")
      return Llama3Scaling{.factor = positive(json, "factor"),
                           .low_frequency_factor = positive(json, "low_freq_factor"),
                           .high_frequency_factor = positive(json, "high_freq_factor"),
                           .original_length = length(json, {})};
    if (type == "yarn")
      return YarnScaling{.factor = positive(json, "factor"),
                         .original_length = length(json, outer_length()),
                         .beta_fast = json.number("beta_fast").value_or(32.0),
                         .beta_slow = json.number("beta_slow").value_or(1.0),
                         .attention_factor = json.number("attention_factor"),
                         .truncate = json.boolean("truncate").value_or(true)};
    if (type == "longrope") return read_longrope(json, dimensions);
    json.refuse(json.contains("rope_type") ? "rope_type" : "type",
                "default, linear, dynamic, llama3, yarn or longrope");
  }
  /// Transformers grows theta beyond max_position_embeddings, whatever an original length says.
  RotaryScaling read_dynamic(JsonObject& json) {
    const Index trained = json_.required("max_position_embeddings", trained_length());
    if (length(json, trained) != trained)
      json.refuse("original_max_position_embeddings", "the same as max_position_embeddings with dynamic scaling");
    return DynamicNtkScaling{.factor = positive(json, "factor"), .original_length = trained};
  }
  /// Phi-3 gives the original length beside rope_scaling, and the factor as the ratio of both lengths.
  RotaryScaling read_longrope(JsonObject& json, Index dimensions) {
    LongRopeScaling s{.short_factors = factors(json, "short_factor", dimensions),
                      .long_factors = factors(json, "long_factor", dimensions),
                      .original_length = 0,
                      .factor = 1.0,
                      .attention_factor = json.number("attention_factor")};
    const auto outer = json_.integer("original_max_position_embeddings"),
               inner = json.integer("original_max_position_embeddings");
    const auto given = json.number("factor");
    if (outer && inner && *outer != *inner)
      json.refuse("original_max_position_embeddings", "the same as outside of it");
    const bool by_lengths = outer || inner || family_.model_type == "phi3" || !given;
    const Index longest = json_.required("max_position_embeddings", trained_length());
    s.original_length = inner ? *inner : outer.value_or(family_.model_type == "phi3" ? 4096 : longest);
    s.factor = by_lengths ? static_cast<double>(longest) / static_cast<double>(s.original_length) : *given;
    return s;
  }

  /// The length that a model was first trained for, as it stands beside rope_scaling.
  std::optional<Index> outer_length() {
    const auto original = json_.integer("original_max_position_embeddings");
    return original ? original : trained_length();
  }
  std::optional<Index> trained_length() { return json_.integer("max_position_embeddings"); }
  static Index length(JsonObject& json, std::optional<Index> otherwise) {
    const auto given = json.integer("original_max_position_embeddings");
    return json.required("original_max_position_embeddings", given ? given : otherwise);
  }
  static double positive(JsonObject& json, const char* key) {
    const double number = json.required(key, json.number(key));
    if (!(number > 0.0)) json.refuse(key, "a positive number");
    return number;
  }
  /// One factor for each pair of elements.
  static std::vector<double> factors(JsonObject& json, const char* key, Index dimensions) {
    const std::string expected = "an array of " + std::to_string(dimensions / 2) + " positive numbers";
    const auto* const array = json.array(key);
    if (array == nullptr || std::ssize(*array) != dimensions / 2) json.refuse(key, expected);
    std::vector<double> all;
    for (const nlohmann::json& number : *array) {
      if (!number.is_number() || !(number.get<double>() > 0.0)) json.refuse(key, expected);
      all.push_back(number.get<double>());
    }
    return all;
  }

  JsonObject& json_;                 // the whole config
  const HuggingFaceFamily& family_;  // of the model
  Index head_dim_;                   // D
  RotaryConfig whole_{}, windowed_{};
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn::detail
