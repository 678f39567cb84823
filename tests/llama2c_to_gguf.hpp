#pragma once
// A checkpoint and a tokenizer of llama2.c as a GGUF file, with the names that llama.cpp gives them.
#include "../examples/llama2c.hpp"
#include "gguf_support.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

namespace attn_test::gguf {

/// A matrix in a type: F32, F16 or Q8_0, which becomes F16 where its rows are not whole blocks.
inline void add_matrix(Writer& writer, const std::string& name, GgufType type, attn::View<const float, 2> weight) {
  const attn::Index out = weight.dimension(0), in = weight.dimension(1);
  if (type == GgufType::q8_0 && in % 32 != 0) type = GgufType::f16;
  Bytes bytes;
  if (type == GgufType::q8_0) {
    attn::Linear<float> linear(weight);
    linear.store_weights(attn::WeightFormat::int8);
    bytes = linear.quantised_weight();
  } else {
    for (attn::Index i = 0; i < out * in; ++i) {
      if (type == GgufType::f16)
        put(bytes, Eigen::numext::bit_cast<std::uint16_t>(Eigen::half(weight.data()[i])));
      else
        put(bytes, weight.data()[i]);
    }
  }
  writer.add_tensor(name, type, {out, in}, bytes);
}

/// The pieces and scores of a tokenizer file that has been found to be whole.
inline void add_tokenizer(Writer& writer, const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string file((std::istreambuf_iterator<char>(in)), {});
  std::vector<std::string> pieces;
  std::vector<float> scores;
  std::vector<std::int32_t> kinds;
  for (std::size_t at = 4; at < file.size();) {
    std::int32_t length = 0;
    std::memcpy(&scores.emplace_back(), file.data() + at, 4);
    std::memcpy(&length, file.data() + at + 4, 4);
    const std::string piece = file.substr(at + 8, static_cast<std::size_t>(length));
    at += 8 + piece.size();
    std::string text;
    for (const char c : piece) text += c == ' ' ? std::string("\xE2\x96\x81") : std::string(1, c);
    const std::size_t id = pieces.size();
    const bool is_byte = piece.size() == 6 && piece.starts_with("<0x");
    kinds.push_back(id == 0 ? 2 : id <= 2 ? 3 : is_byte ? 6 : 1);
    pieces.push_back(id == 0 ? "<unk>" : id == 1 ? "<s>" : id == 2 ? "</s>" : text);
  }
  writer.add("tokenizer.ggml.model", "llama");
  writer.add_array("tokenizer.ggml.tokens", pieces).add_array("tokenizer.ggml.scores", scores);
  writer.add_array("tokenizer.ggml.token_type", kinds);
  writer.add("tokenizer.ggml.bos_token_id", std::uint32_t{1}).add("tokenizer.ggml.eos_token_id", std::uint32_t{2});
}

/// Norms stay F32. A llama2.c checkpoint has its queries and keys in the order of interleaved pairs, as GGUF's Llamas
/// have.
inline Bytes llama2c_to_gguf(const std::filesystem::path& checkpoint, const std::filesystem::path& tokenizer,
                             GgufType type) {
  const attn::examples::Llama model = attn::examples::load_checkpoint(checkpoint);
  (void)attn::examples::Tokenizer(tokenizer);  // refuses one that is not whole
  const attn::examples::LlamaConfig& c = model.config;
  const auto u32 = [](attn::Index n) { return static_cast<std::uint32_t>(n); };
  Writer writer;
  writer.add("general.architecture", "llama").add("general.alignment", std::uint32_t{32});
  writer.add("llama.context_length", u32(c.max_length)).add("llama.embedding_length", u32(c.hidden_size));
  writer.add("llama.block_count", u32(c.layers)).add("llama.feed_forward_length", u32(c.feed_forward_size));
  writer.add("llama.attention.head_count", u32(c.heads));
  writer.add("llama.attention.head_count_kv", u32(c.key_value_heads));
  writer.add("llama.attention.layer_norm_rms_epsilon", 1e-5F);
  writer.add("llama.rope.dimension_count", u32(c.hidden_size / c.heads)).add("llama.rope.freq_base", 10000.F);
  add_tokenizer(writer, tokenizer);

  const auto add_norm = [&](const std::string& name, const attn::RmsNorm<float>& norm) {
    const attn::Tensor<float, 1> weight = norm.weight();
    const std::vector<float> numbers(weight.data(), weight.data() + weight.size());
    writer.add_tensor(name, GgufType::f32, {weight.size()}, bytes_of(numbers));
  };
  const auto add = [&](const std::string& name, const attn::Linear<float>& linear) {
    add_matrix(writer, name, type, linear.weight());
  };
  add_matrix(writer, "token_embd.weight", type, model.embedding);
  for (std::size_t l = 0; l < model.layers.size(); ++l) {
    const attn::examples::LlamaLayer& layer = model.layers[l];
    const std::string block = "blk." + std::to_string(l) + '.';
    add_norm(block + "attn_norm.weight", layer.attention_norm);
    add(block + "attn_q.weight", layer.attention.query());
    add(block + "attn_k.weight", layer.attention.key());
    add(block + "attn_v.weight", layer.attention.value());
    add(block + "attn_output.weight", layer.attention.out_proj());
    add_norm(block + "ffn_norm.weight", layer.feed_forward_norm);
    add(block + "ffn_gate.weight", layer.feed_forward.gate);
    add(block + "ffn_up.weight", layer.feed_forward.up);
    add(block + "ffn_down.weight", layer.feed_forward.down);
  }
  add_norm("output_norm.weight", model.final_norm);
  add("output.weight", model.output);
  return writer.bytes();
}

}  // namespace attn_test::gguf
