#pragma once
// A checkpoint of llama2.c as a folder of Hugging Face: its names, half-split rotary.
#include "../examples/llama2c.hpp"

#include <attn/io/safetensors.hpp>

#include <filesystem>
#include <fstream>
#include <string>

namespace attn_test {

inline void llama2c_to_hugging_face(const std::filesystem::path& checkpoint, const std::filesystem::path& folder) {
  using attn::RotaryLayout;
  const attn::examples::Llama model = attn::examples::load_checkpoint(checkpoint, RotaryLayout::half_split);
  attn::SafetensorsWriter writer;
  writer.set_metadata("format", "pt");
  writer.add("model.embed_tokens.weight", model.embedding);
  for (std::size_t l = 0; l < model.layers.size(); ++l) {
    const attn::examples::LlamaLayer& layer = model.layers[l];
    const std::string block = "model.layers." + std::to_string(l) + '.';
    writer.add(block + "input_layernorm.weight", layer.attention_norm.weight());
    writer.add(block + "self_attn.q_proj.weight", layer.attention.query().weight());
    writer.add(block + "self_attn.k_proj.weight", layer.attention.key().weight());
    writer.add(block + "self_attn.v_proj.weight", layer.attention.value().weight());
    writer.add(block + "self_attn.o_proj.weight", layer.attention.out_proj().weight());
    writer.add(block + "post_attention_layernorm.weight", layer.feed_forward_norm.weight());
    writer.add(block + "mlp.gate_proj.weight", layer.feed_forward.gate.weight());
    writer.add(block + "mlp.up_proj.weight", layer.feed_forward.up.weight());
    writer.add(block + "mlp.down_proj.weight", layer.feed_forward.down.weight());
  }
  writer.add("model.norm.weight", model.final_norm.weight());
  writer.write(folder / "model.safetensors");

  const attn::examples::LlamaConfig& c = model.config;
  std::ofstream(folder / "config.json")
      << R"({"model_type": "llama", "tie_word_embeddings": true, "rope_theta": 10000.0, "rms_norm_eps": 1e-05)"
      << R"(, "hidden_size": )" << c.hidden_size << R"(, "intermediate_size": )" << c.feed_forward_size
      << R"(, "num_hidden_layers": )" << c.layers << R"(, "num_attention_heads": )" << c.heads
      << R"(, "num_key_value_heads": )" << c.key_value_heads << R"(, "vocab_size": )" << c.vocabulary
      << R"(, "max_position_embeddings": )" << c.max_length << "}\n";
}

}  // namespace attn_test
