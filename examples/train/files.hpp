// What training writes: a checkpoint and a tokenizer of llama2.c, and the state from which it goes on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "trainable_llama.hpp"

namespace attn::examples {

/// A file that is complete or not there: it is written beside its place and moved there at the end.
class FileWriter {
 public:
  FileWriter(std::string_view function, const std::filesystem::path& path)
      : function_(function), path_(path), temporary_(path.string() + ".part"), file_(temporary_, std::ios::binary) {}

  template <class T>
  void write(const T* from, std::int64_t count) {
    file_.write(reinterpret_cast<const char*>(from), count * static_cast<std::int64_t>(sizeof(T)));
  }
  template <class T>
  void number(T value) {
    write(&value, 1);
  }
  /// Errors: a file that could not be written.
  void finish() {
    file_.close();
    std::error_code error;
    if (file_) std::filesystem::rename(temporary_, path_, error);
    if (!file_ || error) fail(function_, path_.string(), ", expected a file that can be written, got an error");
  }

 private:
  std::string_view function_;
  std::filesystem::path path_, temporary_;
  std::ofstream file_;
};

/// Writes a model as a checkpoint of llama2.c, legacy layout, whose output matrix is not the embedding. Errors: a model for
/// half-split rotary; a file that could not be written. Source: llama2.c, export.py, legacy_export.
inline void save_checkpoint(const Llama& model, const std::filesystem::path& path) {
  const LlamaConfig& c = model.config;
  if (c.rotary != RotaryLayout::interleaved)
    fail("save_checkpoint", "rotary layout, expected interleaved, got half-split");
  FileWriter file("save_checkpoint", path);
  for (const Index size :
       {c.hidden_size, c.feed_forward_size, c.layers, c.heads, c.key_value_heads, -c.vocabulary, c.max_length})
    file.number(static_cast<std::int32_t>(size));
  const auto save = [&](const auto& module) {
    const auto weight = module.weight();
    file.write(weight.data(), weight.size());
  };
  file.write(model.embedding.data(), model.embedding.size());
  for (const LlamaLayer& layer : model.layers) save(layer.attention_norm);
  for (const LlamaLayer& layer : model.layers) save(layer.attention.query());
  for (const LlamaLayer& layer : model.layers) save(layer.attention.key());
  for (const LlamaLayer& layer : model.layers) save(layer.attention.value());
  for (const LlamaLayer& layer : model.layers) save(layer.attention.out_proj());
  for (const LlamaLayer& layer : model.layers) save(layer.feed_forward_norm);
  for (const LlamaLayer& layer : model.layers) save(layer.feed_forward.gate);
  for (const LlamaLayer& layer : model.layers) save(layer.feed_forward.down);
  for (const LlamaLayer& layer : model.layers) save(layer.feed_forward.up);
  save(model.final_norm);
  const std::vector<float> tables(static_cast<std::size_t>(c.max_length * (c.hidden_size / c.heads)));
  file.write(tables.data(), std::ssize(tables));  // cosines and sines, which readers compute themselves
  save(model.output);
  file.finish();
}

/// Writes the pieces of a vocabulary as a tokenizer of llama2.c. Errors: a file that could not be written.
inline void save_tokenizer(const std::vector<std::string>& pieces, const std::filesystem::path& path) {
  FileWriter file("save_tokenizer", path);
  std::size_t longest = 0;
  for (const std::string& piece : pieces) longest = std::max(longest, piece.size());
  file.number(static_cast<std::int32_t>(longest));
  for (const std::string& piece : pieces) {
    file.number(0.F);  // characters are never merged
    file.number(static_cast<std::int32_t>(piece.size()));
    file.write(piece.data(), std::ssize(piece));
  }
  file.finish();
}

/// One point of the loss curve.
struct LossPoint {
  std::int64_t step;
  double training, validation;  ///< in nats; validation below 0 where it was not measured
};

/// Parameters, the optimiser's averages, the steps done and the curve so far.
inline void save_state(AdamW& optimiser, std::int64_t step, const std::vector<LossPoint>& curve,
                       const std::filesystem::path& path) {
  FileWriter file("save_state", path);
  file.number(step);
  file.number(static_cast<std::int64_t>(optimiser.first().size()));
  for (const Trained& parameter : optimiser.parameters())
    file.write(parameter.values.data(), std::ssize(parameter.values));
  file.write(optimiser.first().data(), std::ssize(optimiser.first()));
  file.write(optimiser.second().data(), std::ssize(optimiser.second()));
  file.write(curve.data(), std::ssize(curve));
  file.finish();
}
/// Reads what save_state wrote; returns the steps done. Errors: a file that is missing or of another model.
inline std::int64_t load_state(AdamW& optimiser, std::vector<LossPoint>& curve, const std::filesystem::path& path) {
  FileReader file("load_state", path);
  const auto step = file.number<std::int64_t>();
  const auto size = file.number<std::int64_t>();
  const auto floats = std::ssize(optimiser.first());
  const std::int64_t points = file.left() - 3 * floats * 4;
  if (size != floats || points < 0 || points % static_cast<std::int64_t>(sizeof(LossPoint)) != 0)
    fail("load_state", file.name(), ", expected the state of a model of ", floats, " parameters, got ", size);
  for (const Trained& parameter : optimiser.parameters())
    file.read(parameter.values.data(), std::ssize(parameter.values));
  file.read(optimiser.first().data(), floats);
  file.read(optimiser.second().data(), floats);
  curve.resize(static_cast<std::size_t>(points) / sizeof(LossPoint));
  file.read(curve.data(), std::ssize(curve));
  return step;
}

}  // namespace attn::examples
