// Models from the files of others: GGUF, and folders of Hugging Face. Those whose blocks are Llama's: a norm, attention, a norm,
// SwiGLU. What their attention has besides is LlamaAttentionConfig's business.
// Letters: E hidden size, F feed-forward size, H heads, G key/value heads, D head size, V vocabulary.
#pragma once

#include <attn/io/gguf.hpp>
#include <attn/io/gguf_linear.hpp>
#include <attn/io/gguf_tokenizer.hpp>
#if __has_include(<nlohmann/json.hpp>)
#include <attn/io/hugging_face.hpp>
#include <attn/io/tokenizer_json.hpp>
#endif

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "llama2c.hpp"

namespace attn::examples {

/// The attention of a GGUF file's layers. Errors: an architecture or a rotary scaling that is not one of these.
[[nodiscard]] inline LlamaConfig config_of(const GgufFile& file) {
  constexpr std::string_view fn = "load_gguf";
  const auto architecture = file.get<std::string>("general.architecture");
  const auto is = [&](std::string_view name) { return architecture == name; };
  if (!is("llama") && !is("qwen2") && !is("qwen3") && !is("smollm3"))
    fail(fn, "general.architecture, expected llama, qwen2, qwen3 or smollm3, got ", architecture);
  const auto key = [&](std::string_view name) { return architecture + '.' + std::string(name); };
  const auto size = [&](std::string_view name) { return file.get<Index>(key(name)); };
  if (const auto scaling = file.get_or<std::string>(key("rope.scaling.type"), "none"); scaling != "none")
    fail(fn, key("rope.scaling.type"), ", expected none, got ", scaling);
  if (file.contains("rope_freqs.weight")) fail(fn, "rope_freqs.weight, expected no rotary scaling, got one");

  LlamaConfig c;
  c.hidden_size = size("embedding_length"), c.feed_forward_size = size("feed_forward_length");
  c.layers = size("block_count"), c.max_length = size("context_length");
  c.heads = size("attention.head_count"),
  c.key_value_heads = file.get_or<Index>(key("attention.head_count_kv"), c.heads);
  c.norm_epsilon = file.get<double>(key("attention.layer_norm_rms_epsilon"));
  c.vocabulary = file.tensor("token_embd.weight").shape.front();
  if (c.layers < 1 || c.layers > 1 << 10) fail(fn, key("block_count"), ", expected 1 to 1024, got ", c.layers);
  // Rows of queries and keys were reordered for interleaved pairs when Llama's files were written, and no others'.
  c.rotary = is("llama") || is("smollm3") ? RotaryLayout::interleaved : RotaryLayout::half_split;

  LlamaAttentionConfig attention = c.attention_of(0);
  attention.head_dim = file.get_or<Index>(key("attention.key_length"), 0);
  attention.value_head_dim = file.get_or<Index>(key("attention.value_length"), 0);
  attention.rotary->theta = file.get_or<double>(key("rope.freq_base"), 10000.0);
  attention.rotary->dimensions = file.get_or<Index>(key("rope.dimension_count"), 0);
  attention.norm_epsilon = c.norm_epsilon;
  if (is("qwen2")) attention.query_bias = attention.key_bias = attention.value_bias = true;
  if (is("qwen3")) attention.query_key_norm = QueryKeyNorm::per_head;
  c.attention.assign(static_cast<std::size_t>(c.layers), attention);
  for (std::size_t l = 3; is("smollm3") && l < c.attention.size(); l += 4) c.attention[l].rotary = std::nullopt;
  return c;
}

/// The model in a GGUF file, its weights in as many bits as the file has.
/// Errors: a file that is not GGUF, a model of another kind, tensors that are missing or of another shape.
[[nodiscard]] inline Llama load_gguf(const GgufFile& file) {
  Llama model(config_of(file));
  model.embedding = file.read<float, 2>("token_embd.weight");
  for (std::size_t l = 0; l < model.layers.size(); ++l) {
    LlamaLayer& layer = model.layers[l];
    const std::string block = "blk." + std::to_string(l) + '.';
    const auto load = [&](Linear<float>& linear, const std::string& name) {
      load_weight(linear, file, block + name + ".weight");
      if (linear.has_bias()) load_bias(linear, file, block + name + ".bias");
    };
    load_weight(layer.attention_norm, file, block + "attn_norm.weight");
    load(layer.attention.query(), "attn_q");
    load(layer.attention.key(), "attn_k");
    load(layer.attention.value(), "attn_v");
    load(layer.attention.out_proj(), "attn_output");
    if (layer.attention.config().query_key_norm != QueryKeyNorm::none) {
      load_weight(layer.attention.query_norm(), file, block + "attn_q_norm.weight");
      load_weight(layer.attention.key_norm(), file, block + "attn_k_norm.weight");
    }
    load_weight(layer.feed_forward_norm, file, block + "ffn_norm.weight");
    load(layer.feed_forward.gate, "ffn_gate");
    load(layer.feed_forward.up, "ffn_up");
    load(layer.feed_forward.down, "ffn_down");
  }
  load_weight(model.final_norm, file, "output_norm.weight");
  load_weight(model.output, file, file.contains("output.weight") ? "output.weight" : "token_embd.weight");
  return model;
}

#if __has_include(<nlohmann/json.hpp>)

/// The model in a folder of Hugging Face. Errors: files that are missing, a model whose blocks are not Llama's, tensors that are
/// missing or of another shape.
[[nodiscard]] inline Llama load_hugging_face(const HuggingFaceFolder& folder) {
  constexpr std::array<std::string_view, 5> known{"llama", "mistral", "qwen2", "qwen3", "smollm3"};
  if (std::find(known.begin(), known.end(), folder.model_type()) == known.end())
    fail("load_hugging_face",
         "model_type, expected llama, mistral, qwen2, qwen3 or smollm3, whose blocks are Llama's, got ",
         folder.model_type());
  LlamaConfig c;
  c.hidden_size = folder.size("hidden_size"), c.feed_forward_size = folder.size("intermediate_size");
  c.layers = folder.layers(), c.max_length = folder.size("max_position_embeddings");
  c.vocabulary = folder.size("vocab_size"), c.norm_epsilon = folder.number("rms_norm_eps");
  c.rotary = RotaryLayout::half_split;
  for (Index l = 0; l < c.layers; ++l) {
    c.attention.push_back(folder.attention_config(l));
    c.attention.back().max_length = c.max_length;
  }
  c.heads = c.attention.front().num_attention_heads, c.key_value_heads = c.attention.front().num_key_value_heads;

  Llama model(c);
  const std::string& prefix = folder.prefix();
  const auto load_norm = [&](RmsNorm<float>& norm, const std::string& name) {
    norm.set_weight(folder.read<float, 1>(prefix + name + ".weight"));
  };
  model.embedding = folder.read<float, 2>(prefix + "embed_tokens.weight");
  for (Index l = 0; l < c.layers; ++l) {
    LlamaLayer& layer = model.layers[static_cast<std::size_t>(l)];
    const std::string block = "layers." + std::to_string(l) + '.';
    const auto load = [&](Linear<float>& linear, const std::string& name) {
      linear.set_weight(folder.read<float, 2>(prefix + block + "mlp." + name + "_proj.weight"));
    };
    load_norm(layer.attention_norm, block + "input_layernorm");
    folder.load_attention(l, layer.attention);
    load_norm(layer.feed_forward_norm, block + "post_attention_layernorm");
    load(layer.feed_forward.gate, "gate"), load(layer.feed_forward.up, "up"), load(layer.feed_forward.down, "down");
  }
  load_norm(model.final_norm, "norm");
  if (folder.contains("lm_head.weight"))
    model.output.set_weight(folder.read<float, 2>("lm_head.weight"));
  else
    model.output.set_weight(model.embedding);
  return model;
}

#endif

/// A model, and the tokenizer that came with it, if any.
struct LoadedModel {
  Llama llama;
  std::optional<Tokenizer> tokenizer;
};

/// The model at a path: a folder of Hugging Face, a GGUF file, or a checkpoint of llama2.c, told apart by what they are.
/// Errors: as the functions above.
[[nodiscard]] inline LoadedModel load_model(const std::filesystem::path& path) {
  if (std::filesystem::is_directory(path)) {
#if __has_include(<nlohmann/json.hpp>)
    LoadedModel model{load_hugging_face(HuggingFaceFolder(path)), std::nullopt};
    if (std::filesystem::exists(path / "tokenizer.json"))
      model.tokenizer = Tokenizer(read_tokenizer_json(path / "tokenizer.json"));
    return model;
#else
    fail("load_model", path.string(), ", expected a file: folders need nlohmann-json (Debian: nlohmann-json3-dev)");
#endif
  }
  std::string magic(4, '\0');
  std::ifstream(path, std::ios::binary).read(magic.data(), 4);
  if (magic != "GGUF") return {load_checkpoint(path), std::nullopt};
  const GgufFile file(path);
  LoadedModel model{load_gguf(file), std::nullopt};
  if (file.get_or<std::string>("tokenizer.ggml.model", "") == "llama")
    model.tokenizer = Tokenizer(sentence_piece_tokenizer(file));
  else if (file.has("tokenizer.ggml.model"))
    model.tokenizer = Tokenizer(byte_pair_tokenizer(file));
  return model;
}

}  // namespace attn::examples
