// Edge, outside the umbrella. Hugging Face folders: the attention of each layer, with its weights.
#pragma once

#if !__has_include(<nlohmann/json.hpp>)
#error "attn: hugging_face.hpp needs nlohmann-json 3.11 (Debian: nlohmann-json3-dev)"
#endif

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../llama_attention.hpp"
#include "hugging_face_config.hpp"
#include "hugging_face_files.hpp"
#include "hugging_face_layer.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// A model as Hugging Face folders hold it: config.json, and model.safetensors or several files with their index.
///
///     attn::HuggingFaceFolder model("Qwen3-0.6B");
///     auto attention = model.attention<float>(0);          // the layer's config and weights
///     y = attention.forward(x, attn::Causal{});            // its window is in its config
///
/// Types: weights of F64, F32, F16 and BF16 files are rounded to T. Files are mapped: only what is loaded is read.
/// Conventions: what HuggingFaceConfig says. A loaded module is in evaluation mode.
/// Errors: as HuggingFaceConfig; files that are missing or broken; a layer that lacks a tensor, or has one under self_attn
/// that its model type does not: by name.
class HuggingFaceFolder {
 public:
  /// `unrelated`: keys of config.json, besides those that attn knows, that leave attention alone.
  explicit HuggingFaceFolder(const std::filesystem::path& folder, std::vector<std::string> unrelated = {})
      : config_(detail::read_text(fn, folder / "config.json", most_config_bytes), (folder / "config.json").string(),
                std::move(unrelated)),
        files_(folder) {
    find_prefix();
  }

  [[nodiscard]] const HuggingFaceConfig& config() const { return config_; }
  /// As config.json says it; of a model with parts, as gemma3, that of its text model.
  [[nodiscard]] const std::string& model_type() const { return config_.model_type(); }
  [[nodiscard]] Index layers() const { return config_.layers(); }
  /// Other values of config.json, for the parts around attention. Errors: one that is missing or of another kind.
  [[nodiscard]] Index size(const char* key) const {
    detail::JsonObject json = values();
    return json.required(key, json.integer(key, 0));
  }
  [[nodiscard]] double number(const char* key) const {
    detail::JsonObject json = values();
    return json.required(key, json.number(key));
  }
  [[nodiscard]] bool flag(const char* key, bool otherwise) const { return values().boolean(key).value_or(otherwise); }

  /// What the attention of layer 0, 1, ... is made of. Errors: a layer that does not exist.
  [[nodiscard]] const LlamaAttentionConfig& attention_config(Index layer) const { return config_.attention(layer); }

  /// The attention of a layer. `max_length`: as in LlamaAttentionConfig; dynamic and longrope scaling need it with a cache.
  template <Scalar T>
  [[nodiscard]] LlamaAttention<T> attention(Index layer, std::optional<Index> max_length = {}) const {
    LlamaAttentionConfig config = attention_config(layer);
    if (max_length) config.max_length = max_length;
    LlamaAttention<T> module(config);
    module.eval();
    load_attention(layer, module);
    return module;
  }
  /// Loads the weights of a layer into a module made from its config, in which dropout, the longest length and the rotary
  /// layout may differ: rows of queries and keys are reordered for interleaved rotary.
  /// Errors: besides, a module that computes something else. Names, shapes and types are checked before anything is set.
  template <Scalar T>
  void load_attention(Index layer, LlamaAttention<T>& module) const {
    const detail::HuggingFaceLayer<T> of_layer(files_, layer_prefix(layer), config_.model_type() == "phi3", module);
    of_layer.check(attention_config(layer));
    of_layer.load();
  }

  /// What stands before "layers.0." in names: "model." of most models.
  [[nodiscard]] const std::string& prefix() const { return prefix_; }
  /// All names of tensors, sorted.
  [[nodiscard]] std::vector<std::string> names() const { return files_.names(); }
  [[nodiscard]] bool contains(std::string_view name) const { return files_.contains(name); }
  /// A tensor's type, shape and bytes in its file. Errors: a name that is not there.
  [[nodiscard]] SafetensorsTensor tensor(std::string_view name) const { return files_.at(name).tensor(name); }
  /// Any tensor, as the parts around attention. Errors: a name that is not there, another rank.
  template <Scalar T, int Rank>
  [[nodiscard]] Tensor<T, Rank> read(std::string_view name) const {
    return files_.at(name).template read<T, Rank>(name);
  }

 private:
  static constexpr std::string_view fn = "HuggingFaceFolder";
  static constexpr std::uintmax_t most_config_bytes = std::uintmax_t{1} << 24;

  [[nodiscard]] detail::JsonObject values() const { return {fn, "config.json: ", config_.json()}; }
  [[nodiscard]] std::string layer_prefix(Index layer) const {
    return prefix_ + "layers." + std::to_string(layer) + ".self_attn.";
  }
  /// Models with parts, as gemma3, have their text model inside.
  void find_prefix() {
    for (const char* prefix : {"model.", "language_model.model.", "model.language_model.", "language_model.", ""}) {
      prefix_ = prefix;
      if (!files_.contains(layer_prefix(0) + "o_proj.weight")) continue;
      const std::string beyond = layer_prefix(layers()) + "o_proj.weight";
      detail::require(!files_.contains(beyond), fn, "tensors, expected ", layers(), " layers as config.json says, got ",
                      std::string_view(beyond));
      return;
    }
    detail::fail(fn, "tensors, expected model.layers.0.self_attn.o_proj.weight, got no such name");
  }

  HuggingFaceConfig config_;
  detail::HuggingFaceFiles files_;
  std::string prefix_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
