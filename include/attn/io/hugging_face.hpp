// Edge. Folders of Hugging Face's models: the attention of each layer, ready to run.
#pragma once

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../llama_attention.hpp"
#include "../rotary_layout.hpp"
#include "hugging_face_config.hpp"
#include "safetensors.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// A folder with config.json and model.safetensors, or the files that model.safetensors.index.json names.
///
/// Types: weights of any floating-point type are converted. Models: llama, mistral, qwen2, qwen3, gemma2, gemma3, phi3, gpt_oss,
/// smollm3, granite, olmo2. What one of them has besides, in config.json or among the tensors of its attention, is refused by name.
/// Conventions: a layer's window is in its configuration, so the mask of a call is Causal.
/// Errors: files that are missing or not what they should be; a model or a feature that is not known.
class HuggingFaceFolder {
 public:
  explicit HuggingFaceFolder(const std::filesystem::path& folder) : config_(read_json(folder / "config.json")) {
    if (std::filesystem::exists(folder / "model.safetensors"))
      add(folder / "model.safetensors");
    else
      add_shards(folder);
    find_prefix();
  }

  /// As config.json says it; "gemma3_text" for all of Gemma 3.
  [[nodiscard]] const std::string& model_type() const { return config_.model_type(); }
  [[nodiscard]] Index layers() const { return config_.layers(); }
  /// A number of config.json. Errors: one that is missing, or something else.
  [[nodiscard]] Index size(const std::string& name) const { return config_.number<Index>(name); }
  [[nodiscard]] double number(const std::string& name) const { return config_.number<double>(name); }
  [[nodiscard]] bool flag(const std::string& name, bool otherwise) const { return config_.flag(name, otherwise); }

  /// What the attention of a layer is made of. Errors: a layer that does not exist, numbers that do not fit.
  [[nodiscard]] LlamaAttentionConfig attention_config(Index layer) const {
    check_layer("HuggingFaceFolder::attention_config", layer);
    return config_.attention(layer);
  }
  /// The attention of a layer with its weights, in evaluation mode.
  template <Scalar T>
  [[nodiscard]] LlamaAttention<T> attention(Index layer) const {
    LlamaAttention<T> module(attention_config(layer));
    load_attention(layer, module);
    module.eval();
    return module;
  }
  /// Loads the weights of a layer into a module made from its configuration; rotary may be interleaved, unless there are norms
  /// or it is partial. Errors: tensors that are missing, of another shape, or more than the module takes.
  template <Scalar T>
  void load_attention(Index layer, LlamaAttention<T>& module) const;

  /// The tensors of all files, by name.
  [[nodiscard]] bool contains(const std::string& name) const { return file_of_.contains(name); }
  template <Scalar T, int Rank>
  [[nodiscard]] Tensor<T, Rank> read(const std::string& name) const {
    return file(name).template read<T, Rank>(name);
  }
  /// What stands before "layers.0." in names: "model." but for models that see images, too.
  [[nodiscard]] const std::string& prefix() const { return prefix_; }

 private:
  static constexpr auto fn = "HuggingFaceFolder";

  [[nodiscard]] static nlohmann::json read_json(const std::filesystem::path& path) {
    constexpr std::size_t most = 100'000'000;
    const MappedFile file(path);
    const std::string name = path.string();
    detail::require(file.bytes().size() <= most, fn, std::string_view(name), ", expected at most 100 MB");
    const auto* const text = reinterpret_cast<const char*>(file.bytes().data());
    const auto too_deep = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
      detail::require(depth <= 32, fn, std::string_view(name), ", expected at most 32 levels");
      return true;
    };
    nlohmann::json result = nlohmann::json::parse(text, text + file.bytes().size(), too_deep, false);
    detail::require(!result.is_discarded(), fn, std::string_view(name), ", expected JSON, got something else");
    return result;
  }
  void add(const std::filesystem::path& path) {
    files_.emplace_back(path);
    for (const std::string& name : files_.back().names()) file_of_.emplace(name, files_.size() - 1);
  }
  void add_shards(const std::filesystem::path& folder) {
    const nlohmann::json index = read_json(folder / "model.safetensors.index.json");
    detail::require(index.is_object() && index.contains("weight_map") && index["weight_map"].is_object(), fn,
                    "model.safetensors.index.json, expected a weight_map");
    std::set<std::string> names;
    for (const auto& [tensor, file] : index["weight_map"].items()) {
      detail::require(file.is_string(), fn, "weight_map, expected names of files, got something else for ",
                      std::string_view(tensor));
      const std::filesystem::path name = file.get<std::string>();
      detail::require(name == name.filename() && name.extension() == ".safetensors", fn,
                      "weight_map, expected names of safetensors files in the folder, got another for ",
                      std::string_view(tensor));
      names.insert(name.string());
    }
    for (const std::string& name : names) add(folder / name);
    for (const auto& [tensor, file] : index["weight_map"].items())
      detail::require(contains(tensor), fn, "weight_map, expected tensors that the files have, got ",
                      std::string_view(tensor));
  }
  void find_prefix() {
    constexpr std::string_view first = "layers.0.self_attn.o_proj.weight";
    for (const auto& [name, file] : file_of_)
      if (name.ends_with(first)) prefix_ = name.substr(0, name.size() - first.size());
    detail::require(contains(prefix_ + std::string(first)), fn, "tensors, expected one that ends with ", first,
                    ", got none");
  }
  [[nodiscard]] const SafetensorsFile& file(const std::string& name) const {
    const auto found = file_of_.find(name);
    return files_[found == file_of_.end() ? 0 : found->second];  // which then says that it is not there
  }
  void check_layer(std::string_view function, Index layer) const {
    detail::require(layer >= 0 && layer < layers(), function, "layer, expected one of ", layers(), ", got ", layer);
  }

  detail::HuggingFaceConfig config_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, std::size_t> file_of_;
  std::string prefix_;
};

template <Scalar T>
void HuggingFaceFolder::load_attention(Index layer, LlamaAttention<T>& module) const {
  constexpr auto function = "HuggingFaceFolder::load_attention";
  check_layer(function, layer);
  const LlamaAttentionConfig& c = module.config();
  const std::string all = prefix_ + "layers." + std::to_string(layer) + ".self_attn.";
  std::set<std::string> taken;
  const auto take = [&](const std::string& name) {
    taken.insert(all + name);
    return all + name;
  };
  const bool turns = c.rotary && c.rotary->layout == RotaryLayout::interleaved;
  detail::require(!turns || (c.query_key_norm == QueryKeyNorm::none && c.rotary->dimensions == 0), function,
                  "module, expected half-split rotary with norms or partial rotary, got interleaved");
  // Everything is read and converted before the module changes.
  struct Parameters {
    Linear<T>* layer;
    Tensor<T, 2> weight;
    Tensor<T, 1> bias;
  };
  std::vector<Parameters> loaded;
  const auto add = [&](Linear<T>& linear, Tensor<T, 2> weight, const std::string& bias, Index heads) {
    Parameters parameters{&linear, std::move(weight), {}};
    if (linear.has_bias()) parameters.bias = read<T, 1>(take(bias));
    if (turns && heads > 0) {
      parameters.weight = to_interleaved(parameters.weight, heads);
      if (linear.has_bias()) parameters.bias = to_interleaved(parameters.bias, heads);
    }
    const std::array<Index, 2> expected{linear.out_features(), linear.in_features()};
    detail::require(detail::shape_of(parameters.weight) == expected, function, std::string_view(bias),
                    " and its weight, expected [out,in] ", detail::as_shape(expected), ", got ",
                    detail::as_shape(detail::shape_of(parameters.weight)));
    loaded.push_back(std::move(parameters));
  };
  const Index H = c.num_attention_heads, G = c.num_key_value_heads;
  if (model_type() == "phi3") {  // one matrix for queries, keys and values
    const Tensor<T, 2> joined = read<T, 2>(take("qkv_proj.weight"));
    Index first = 0;
    for (Linear<T>* linear : {&module.query(), &module.key(), &module.value()}) {
      detail::require(joined.dimension(0) == (H + 2 * G) * c.head_dim && joined.dimension(1) == linear->in_features(),
                      function, "qkv_proj.weight, expected [", (H + 2 * G) * c.head_dim, ",", linear->in_features(),
                      "], got ", detail::as_shape(detail::shape_of(joined)));
      auto part = detail::make_tensor<T, 2>({linear->out_features(), linear->in_features()});
      std::copy_n(joined.data() + first * joined.dimension(1), part.size(), part.data());
      first += linear->out_features();
      add(*linear, std::move(part), "qkv_proj.bias", linear == &module.value() ? 0 : linear == &module.query() ? H : G);
    }
  } else {
    add(module.query(), read<T, 2>(take("q_proj.weight")), "q_proj.bias", H);
    add(module.key(), read<T, 2>(take("k_proj.weight")), "k_proj.bias", G);
    add(module.value(), read<T, 2>(take("v_proj.weight")), "v_proj.bias", 0);
  }
  add(module.out_proj(), read<T, 2>(take("o_proj.weight")), "o_proj.bias", 0);
  Tensor<T, 1> query_norm, key_norm, sinks;
  const bool norms = c.query_key_norm != QueryKeyNorm::none;
  if (norms) query_norm = read<T, 1>(take("q_norm.weight")), key_norm = read<T, 1>(take("k_norm.weight"));
  if (c.sinks) sinks = read<T, 1>(take("sinks"));
  for (const auto& [name, file] : file_of_)
    detail::require(!name.starts_with(all) || taken.contains(name) || name.ends_with("rotary_emb.inv_freq"), function,
                    "tensors, expected those of ", std::string_view(model_type()), " alone, got ",
                    std::string_view(name));

  if (norms) module.query_norm().set_weight(query_norm), module.key_norm().set_weight(key_norm);
  if (c.sinks) module.set_sinks(sinks);
  for (const Parameters& parameters : loaded) {
    parameters.layer->set_weight(parameters.weight);
    if (parameters.layer->has_bias()) parameters.layer->set_bias(parameters.bias);
  }
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
