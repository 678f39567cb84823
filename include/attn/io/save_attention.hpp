// Edge. A LlamaAttention as a safetensors file, and back, to the bit.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "../llama_attention.hpp"
#include "../packed_matrix.hpp"
#include "attention_config_json.hpp"
#include "safetensors.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// Writes a module to a safetensors file: weights [out,in] and biases under the names of parameters(), in their own type or
/// format; the configuration, which projections are tied, and what training needs to go on: gradients that are not 0, where
/// each dropout's random numbers stand, and whether the module trains.
///
/// Conventions: bfloat16 and half weights are BF16 and F16, int8 and int4 are GGUF's blocks as U8 [out, bytes].
/// Errors: a place that cannot be written to.
template <Scalar T>
void save(const LlamaAttention<T>& module, const std::filesystem::path& path);

/// Reads what `save` wrote. Errors: a file that `save` did not write, or of a module of another scalar.
template <Scalar T>
[[nodiscard]] LlamaAttention<T> load(const std::filesystem::path& path);

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn

namespace attn::detail {
inline namespace ATTN_EIGEN_ABI {

inline constexpr std::string_view saved_format = "attn.LlamaAttention";

/// The projections of a module, by name.
template <class Module>
[[nodiscard]] auto named_projections(Module& module) {
  using Layer = std::remove_reference_t<decltype(module.query())>;
  return std::array<std::pair<const char*, Layer*>, 4>{{{"query", &module.query()},
                                                        {"key", &module.key()},
                                                        {"value", &module.value()},
                                                        {"out_proj", &module.out_proj()}}};
}

template <class X>
[[nodiscard]] bool all_zero(const X& x) {
  return std::all_of(x.data(), x.data() + x.size(), [](auto element) { return element == 0; });
}

/// A weight in the format in which it is stored.
template <Scalar T>
void save_weight(SafetensorsWriter& writer, const std::string& name, const Linear<T>& layer) {
  const WeightFormat format = layer.weight_format();
  if (format == WeightFormat::native) return writer.add(name, layer.weight());
  if (is_grouped(format)) {
    const std::vector<std::byte> blocks = layer.quantised_weight();
    return writer.add_bytes(name, "U8", {layer.out_features(), std::ssize(blocks) / layer.out_features()}, blocks);
  }
  const auto as = [&]<class Stored>(Stored) {
    const Tensor<T, 2> weight = layer.weight();
    auto stored = make_tensor<Stored, 2>(shape_of(weight));
    for (Index i = 0; i < weight.size(); ++i)
      stored.data()[i] = to_scalar<Stored>(static_cast<float>(weight.data()[i]));
    writer.add(name, stored);
  };
  format == WeightFormat::half ? as(Eigen::half{}) : as(Eigen::bfloat16{});
}
template <Scalar T>
void load_weight(Linear<T>& layer, const std::string& name, WeightFormat format, const SafetensorsFile& file) {
  if (is_grouped(format)) return layer.set_quantised_weight(file.tensor(name).bytes);
  layer.set_weight(file.read<T, 2>(name));
  layer.store_weights(format);
}

/// Throws unless the file may hold the weights of a module whose configuration is complete: each projection is stored in it, or
/// shares one of the same size. So a configuration that somebody made up allocates nothing.
inline void check_weights_fit(const LlamaAttentionConfig& c, const SafetensorsFile& file) {
  Index bytes = 0;
  for (const std::string& name : file.names()) bytes += std::ssize(file.tensor(name).bytes);
  const Index key_inputs = c.context_size == 0 ? c.hidden_size : c.context_size;
  const Index weights = std::max(c.head_dim, c.value_head_dim) *
                        std::max(c.num_attention_heads * c.hidden_size, c.num_key_value_heads * key_inputs);
  require(weights / 2 <= bytes, "load", "configuration, expected one whose weights are in the file, got ", weights,
          " of a projection, for ", bytes, " bytes");  // no format takes less than half a byte
}

/// Gradients by the names of their parameters; those of weights [out,in].
template <Scalar T>
void save_gradients(SafetensorsWriter& writer, const LlamaAttention<T>& module) {
  const auto add = [&](const std::string& name, const auto& gradient) {
    if (!all_zero(gradient)) writer.add(name + ".gradient", gradient);
  };
  for (const auto& [name, layer] : named_projections(module)) {
    add(std::string(name) + ".weight", layer->weight_gradient());
    if (layer->has_bias()) add(std::string(name) + ".bias", layer->bias_gradient());
  }
  if (module.config().query_key_norm != QueryKeyNorm::none) {
    add("query_norm.weight", module.query_norm().weight_gradient());
    add("key_norm.weight", module.key_norm().weight_gradient());
  }
  if (module.config().sinks) add("sinks", module.sinks_gradient());
}
template <Scalar T>
void load_gradients(LlamaAttention<T>& module, const SafetensorsFile& file) {
  using A = Accumulator<T>;
  const auto names = file.names();
  if (std::none_of(names.begin(), names.end(), [](const std::string& name) { return name.ends_with(".gradient"); }))
    return;
  for (const Parameter<T>& parameter : module.parameters()) {
    const std::string name = parameter.name() + ".gradient";
    if (!file.contains(name)) continue;
    std::vector<Index> shape{std::ssize(parameter.gradient())};
    for (const auto& [projection, layer] : named_projections(module))
      if (parameter.name() == std::string(projection) + ".weight")
        shape = {layer->out_features(), layer->in_features()};
    const std::vector<Index> got = file.tensor(name).shape;
    require(got == shape, "load", std::string_view(name), ", expected shape ", Shape(shape), ", got ", Shape(got));
    if (shape.size() == 1) {
      const Tensor<A, 1> gradient = file.read<A, 1>(name);
      std::copy_n(gradient.data(), gradient.size(), parameter.gradient().begin());
    } else {
      const Tensor<A, 2> gradient = file.read<A, 2>(name);
      PackedMatrix<A> packed(gradient.dimension(0), gradient.dimension(1));
      packed.set(gradient);
      std::ranges::copy(packed.elements(), parameter.gradient().begin());
    }
  }
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn::detail

namespace attn {
inline namespace ATTN_EIGEN_ABI {

template <Scalar T>
void save(const LlamaAttention<T>& module, const std::filesystem::path& path) {
  constexpr auto fn = "save";
  SafetensorsWriter writer;
  std::map<std::string, std::string> formats, tied;
  const auto layers = detail::named_projections(module);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const char* const name = layers[i].first;
    const Linear<T>* const layer = layers[i].second;
    const auto same = std::find_if(layers.begin(), layers.begin() + static_cast<std::ptrdiff_t>(i),
                                   [&layer = layer](const auto& other) { return other.second->shares_with(*layer); });
    if (same != layers.begin() + static_cast<std::ptrdiff_t>(i)) {
      tied[name] = same->first;
      continue;
    }
    detail::require(layer->out_features() > 0, fn, "module, expected one with projections, got one moved from");
    detail::save_weight(writer, std::string(name) + ".weight", *layer);
    if (layer->has_bias()) writer.add(std::string(name) + ".bias", layer->bias());
    formats[name] = weight_format_name(layer->weight_format());
  }
  if (module.config().query_key_norm != QueryKeyNorm::none) {
    writer.add("query_norm.weight", module.query_norm().weight());
    writer.add("key_norm.weight", module.key_norm().weight());
  }
  if (module.config().sinks) writer.add("sinks", module.sinks());
  detail::save_gradients(writer, module);
  writer.set_metadata("format", std::string(detail::saved_format));
  writer.set_metadata("scalar", std::string(detail::element_name<T>));
  writer.set_metadata("config", detail::to_json(module.config()).dump());
  writer.set_metadata("formats", nlohmann::json(formats).dump());
  writer.set_metadata("tied", nlohmann::json(tied).dump());
  writer.set_metadata("dropout", detail::to_json(module.dropout_states()).dump());
  writer.write(path);
}

template <Scalar T>
LlamaAttention<T> load(const std::filesystem::path& path) {
  constexpr auto fn = "load";
  const SafetensorsFile file(path);
  const auto text = [&](const char* name) -> std::string_view {
    const auto found = file.metadata().find(name);
    return found == file.metadata().end() ? std::string_view() : std::string_view(found->second);
  };
  detail::require(text("format") == detail::saved_format, fn, "file, expected one that attn::save wrote, got format '",
                  text("format"), "'");
  detail::require(text("scalar") == detail::element_name<T>, fn, "module, expected one of ", detail::element_name<T>,
                  ", got one of ", text("scalar"));
  const auto formats = detail::texts_of(fn, text("formats")), tied = detail::texts_of(fn, text("tied"));
  const LlamaAttentionConfig config = detail::attention_config_of(fn, detail::parse_json(fn, text("config")));
  detail::check_weights_fit(detail::complete<T>(config), file);
  LlamaAttention<T> module(config);
  const auto layers = detail::named_projections(module);
  for (const auto& [name, layer] : layers) {
    if (tied.contains(name)) {
      const std::string& other = tied.at(name);
      for (const auto& [other_name, to] : layers)
        if (other == other_name) layer->share(*to);
      continue;
    }
    detail::require(formats.contains(name), fn, "formats, expected one for each projection, got none for ", name);
    const WeightFormat format = detail::weight_format_of(fn, formats.at(name));
    detail::load_weight(*layer, std::string(name) + ".weight", format, file);
    if (layer->has_bias()) layer->set_bias(file.read<T, 1>(std::string(name) + ".bias"));
  }
  if (module.config().query_key_norm != QueryKeyNorm::none) {
    module.query_norm().set_weight(file.read<T, 1>("query_norm.weight"));
    module.key_norm().set_weight(file.read<T, 1>("key_norm.weight"));
  }
  if (module.config().sinks) module.set_sinks(file.read<T, 1>("sinks"));
  detail::load_gradients(module, file);
  module.set_dropout_states(detail::dropout_states_of(fn, detail::parse_json(fn, text("dropout"))));
  return module;
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
