// Edge, outside the umbrella. One layer's attention weights, from the files of a Hugging Face folder into a module.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../llama_attention.hpp"
#include "../rotary_layout.hpp"
#include "hugging_face_files.hpp"

namespace attn::detail {
inline namespace ATTN_EIGEN_ABI {

/// The weights of a layer, and the module that they are for.
template <Scalar T>
class HuggingFaceLayer {
 public:
  /// `prefix`: of the layer's tensors, to "self_attn."; `fused`: queries, keys and values come from one projection.
  HuggingFaceLayer(const HuggingFaceFiles& files, std::string prefix, bool fused, LlamaAttention<T>& module)
      : files_(files), prefix_(std::move(prefix)), fused_(fused), module_(module), config_(module.config()) {}

  /// Throws unless the module computes what the layer's config says, and the layer has the tensors for it, no more.
  void check(const LlamaAttentionConfig& of_file) const {
    check_module(complete<T>(of_file));
    const std::vector<Wanted> all = wanted();
    for (const Wanted& one : all) check_tensor(one);
    for (const std::string& name : files_.names_from(prefix_)) {
      const auto is_name = [&](const Wanted& one) { return prefix_ + one.name == name; };
      if (std::none_of(all.begin(), all.end(), is_name)) check_surplus(name);
    }
  }

  void load() const {
    const Index H = config_.num_attention_heads, G = config_.num_key_value_heads;
    if (fused_) {
      load_fused();
    } else {
      load_projection("q_proj", module_.query(), H);
      load_projection("k_proj", module_.key(), G);
      load_projection("v_proj", module_.value(), 0);
    }
    load_projection("o_proj", module_.out_proj(), 0);
    if (config_.query_key_norm != QueryKeyNorm::none) {
      const bool whole = config_.query_key_norm == QueryKeyNorm::whole_projection;
      load_norm("q_norm.weight", module_.query_norm(), whole ? H : 1);
      load_norm("k_norm.weight", module_.key_norm(), whole ? G : 1);
    }
    if (config_.sinks) with<1>("sinks", [&](View<const T, 1> sinks) { module_.set_sinks(sinks); });
  }

 private:
  static constexpr std::string_view fn = "HuggingFaceFolder::load_attention";

  // ---- Checks ----

  /// A tensor that the module needs.
  struct Wanted {
    std::string name;          // after the prefix
    std::vector<Index> shape;  // in the file
  };

  [[nodiscard]] std::vector<Wanted> wanted() const {
    const LlamaAttentionConfig& c = config_;
    const Index E = c.hidden_size, H = c.num_attention_heads, G = c.num_key_value_heads, D = c.head_dim;
    std::vector<Wanted> all;
    const auto add = [&](const std::string& name, Index outputs, Index inputs, bool bias) {
      all.push_back({name + ".weight", {outputs, inputs}});
      if (bias) all.push_back({name + ".bias", {outputs}});
    };
    if (fused_) {
      add("qkv_proj", (H + 2 * G) * D, E, false);
    } else {
      add("q_proj", H * D, E, *c.query_bias);
      add("k_proj", G * D, E, *c.key_bias);
      add("v_proj", G * D, E, *c.value_bias);
    }
    add("o_proj", E, H * D, *c.output_bias);
    if (c.query_key_norm != QueryKeyNorm::none) {
      all.push_back({"q_norm.weight", {module_.query_norm().size()}});
      all.push_back({"k_norm.weight", {module_.key_norm().size()}});
    }
    if (c.sinks) all.push_back({"sinks", {H}});
    return all;
  }

  void check_tensor(const Wanted& one) const {
    const std::string name = prefix_ + one.name;
    const SafetensorsTensor tensor = files_.at(name).tensor(name);
    require(tensor.shape == one.shape, fn, std::string_view(name), ", expected ", Shape(one.shape), ", got ",
            Shape(tensor.shape));
    const bool real = tensor.dtype == "F32" || tensor.dtype == "BF16" || tensor.dtype == "F16" || tensor.dtype == "F64";
    require(real, fn, std::string_view(name), ", expected F32, BF16, F16 or F64, got ", std::string_view(tensor.dtype));
  }
  /// The first conversions of Llama stored the frequencies of rotary, too: they must be those of the module.
  void check_surplus(const std::string& name) const {
    const bool frequencies = name == prefix_ + "rotary_emb.inv_freq" && config_.rotary.has_value();
    require(frequencies, fn, std::string_view(name), ", expected no such tensor in this kind of model");
    const auto stored = files_.at(name).template read<double, 1>(name);
    const Rotary rotary(config_.head_dim, *config_.rotary);
    std::vector<double> own(static_cast<std::size_t>(rotary.pairs()));
    rotary.frequencies(0, own);
    constexpr double tolerance = 0x1p-7;  // of bfloat16
    bool same = stored.size() == rotary.pairs();
    for (Index i = 0; same && i < stored.size(); ++i) {
      const double frequency = own[static_cast<std::size_t>(i)];
      same = std::abs(stored(i) - frequency) <= tolerance * frequency + 0x1p-24;  // the step of small halfs
    }
    require(same, fn, std::string_view(name), ", expected the frequencies that config.json gives, got others");
  }

  void check_module(const LlamaAttentionConfig& c) const {
    const LlamaAttentionConfig& m = config_;
    const auto same = [](const char* what, double expected, double got) {
      require(expected == got, fn, "module, expected ", what, " = ", expected, ", got ", got);
    };
    const auto number = [](auto x) { return static_cast<double>(x); };
    const auto unless_set = [&](const auto& x) { return x ? number(*x) : -1.0; };
    same("hidden_size", number(c.hidden_size), number(m.hidden_size));
    same("num_attention_heads", number(c.num_attention_heads), number(m.num_attention_heads));
    same("num_key_value_heads", number(c.num_key_value_heads), number(m.num_key_value_heads));
    same("head_dim", number(c.head_dim), number(m.head_dim));
    same("value_head_dim", number(c.value_head_dim), number(m.value_head_dim));
    same("query_bias", number(*c.query_bias), number(*m.query_bias));
    same("key_bias", number(*c.key_bias), number(*m.key_bias));
    same("value_bias", number(*c.value_bias), number(*m.value_bias));
    same("output_bias", number(*c.output_bias), number(*m.output_bias));
    same("scale", scale_of(c), scale_of(m));
    same("softcap (-1: none)", unless_set(c.softcap), unless_set(m.softcap));
    same("window (-1: none)", unless_set(c.window), unless_set(m.window));
    same("sinks", number(c.sinks), number(m.sinks));
    same("query_key_norm", number(static_cast<int>(c.query_key_norm)), number(static_cast<int>(m.query_key_norm)));
    if (c.query_key_norm != QueryKeyNorm::none) same("norm_epsilon", c.norm_epsilon, m.norm_epsilon);
    same("output_gate", number(c.output_gate), number(m.output_gate));
    same("context_size", number(c.context_size), number(m.context_size));
    same("rotary", number(c.rotary.has_value()), number(m.rotary.has_value()));
    if (c.rotary) check_rotary(*c.rotary, *m.rotary);
  }
  static double scale_of(const LlamaAttentionConfig& c) {
    return c.scale.value_or(1.0 / std::sqrt(static_cast<double>(c.head_dim)));
  }
  void check_rotary(const RotaryConfig& expected, const RotaryConfig& got) const {
    const Rotary rotary(config_.head_dim, expected), own(config_.head_dim, got);
    bool same = rotary.pairs() == own.pairs() && rotary.attention_factor() == own.attention_factor() &&
                expected.scaling.index() == got.scaling.index();
    std::vector<double> frequencies(static_cast<std::size_t>(rotary.pairs())), others = frequencies;
    const Index length = got.length.value_or(0);
    if (same) rotary.frequencies(length, frequencies), own.frequencies(length, others);
    require(same && frequencies == others, fn, "module, expected the rotary that config.json describes, got another");
    require(got.layout == RotaryLayout::half_split || own.pairs() * 2 == config_.head_dim, fn,
            "module, expected half-split rotary where a part of each head is rotated, got interleaved");
  }

  // ---- Loading ----

  /// Calls f with a tensor: as it lies in the file where type and address allow, else a copy.
  template <int Rank, class F>
  void with(const std::string& part, const F& f) const {
    const std::string name = prefix_ + part;
    const SafetensorsFile& file = files_.at(name);
    const SafetensorsTensor tensor = file.tensor(name);
    const bool as_it_lies =
        tensor.dtype == element_name<T> && reinterpret_cast<std::uintptr_t>(tensor.bytes.data()) % alignof(T) == 0;
    if (as_it_lies) return f(file.template view<T, Rank>(name));
    const Tensor<T, Rank> copy = file.template read<T, Rank>(name);
    f(View<const T, Rank>(copy));
  }
  /// Calls f with the same, its rows in the order of the module's rotary. heads: of queries or keys, 0 of what is not rotated.
  template <int Rank, class F>
  void arranged(View<const T, Rank> x, Index heads, const F& f) const {
    const bool interleaved = heads > 0 && config_.rotary && config_.rotary->layout == RotaryLayout::interleaved;
    if (!interleaved) return f(x);
    const Tensor<T, Rank> reordered = to_interleaved(x, heads);
    f(View<const T, Rank>(reordered));
  }
  void load_projection(const std::string& name, Linear<T>& layer, Index heads) const {
    with<2>(name + ".weight",
            [&](View<const T, 2> w) { arranged(w, heads, [&](View<const T, 2> x) { layer.set_weight(x); }); });
    if (!layer.has_bias()) return;
    with<1>(name + ".bias",
            [&](View<const T, 1> b) { arranged(b, heads, [&](View<const T, 1> x) { layer.set_bias(x); }); });
  }
  void load_norm(const std::string& name, RmsNorm<T>& norm, Index heads) const {
    with<1>(name, [&](View<const T, 1> w) { arranged(w, heads, [&](View<const T, 1> x) { norm.set_weight(x); }); });
  }
  /// Rows of queries, then keys, then values.
  void load_fused() const {
    const Index E = config_.hidden_size, H = config_.num_attention_heads, G = config_.num_key_value_heads;
    const Index queries = H * config_.head_dim, keys = G * config_.head_dim;
    with<2>("qkv_proj.weight", [&](View<const T, 2> all) {
      const auto rows = [&](Index first, Index count) { return View<const T, 2>(all.data() + first * E, {count, E}); };
      const auto set = [](Linear<T>& layer) { return [&layer](View<const T, 2> x) { layer.set_weight(x); }; };
      arranged(rows(0, queries), H, set(module_.query()));
      arranged(rows(queries, keys), G, set(module_.key()));
      arranged(rows(queries + keys, keys), 0, set(module_.value()));
    });
  }

  const HuggingFaceFiles& files_;
  std::string prefix_;
  bool fused_;
  LlamaAttention<T>& module_;
  const LlamaAttentionConfig& config_;  // the module's
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn::detail
