// Edge, outside the umbrella. What the attention of each family of models is, where its config.json does not say it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "../llama_attention_config.hpp"

namespace attn::detail {
inline namespace ATTN_EIGEN_ABI {

/// Which layers have a sliding window.
enum class HuggingFaceWindows : std::uint8_t {
  none,
  all_layers,        ///< where sliding_window is not null
  last_layers,       ///< from max_window_layers on, if use_sliding_window
  pattern,           ///< all but every second, sixth, ...
  unrotated_layers,  ///< those without rotary, if use_sliding_window
};

/// Which projections have biases.
enum class HuggingFaceBiases : std::uint8_t {
  none,
  by_key,           ///< all or none: attention_bias
  query_key_value,  ///< not that of the output
};

/// What holds for a model type, and the defaults of its keys in Hugging Face's transformers.
struct HuggingFaceFamily {
  std::string_view model_type;
  HuggingFaceBiases biases = HuggingFaceBiases::by_key;
  bool bias = false;                                      ///< attention_bias
  HuggingFaceWindows windows = HuggingFaceWindows::none;  ///< which layers have one
  std::optional<Index> window = {};                       ///< sliding_window
  Index pattern = 0;                                      ///< every how many layers one sees all keys
  Index heads = 0;                                        ///< num_attention_heads; 0: required
  Index key_value_heads = 0;                              ///< num_key_value_heads; 0: num_attention_heads
  Index head_dim = 0;                                     ///< head_dim; 0: hidden_size / num_attention_heads
  double theta = 1e4;                                     ///< rope_theta
  QueryKeyNorm norm = QueryKeyNorm::none;                 ///< of queries and keys
  double epsilon = 1e-6;                                  ///< rms_norm_eps
  bool sinks = false;                                     ///< a learned sink for each head
};

inline constexpr std::array<HuggingFaceFamily, 11> hugging_face_families{{
    {.model_type = "llama"},
    {.model_type = "mistral",
     .biases = HuggingFaceBiases::none,
     .windows = HuggingFaceWindows::all_layers,
     .window = 4096,
     .key_value_heads = 8},
    {.model_type = "qwen2",
     .biases = HuggingFaceBiases::query_key_value,
     .windows = HuggingFaceWindows::last_layers,
     .window = 4096,
     .key_value_heads = 32},
    {.model_type = "qwen3",
     .windows = HuggingFaceWindows::last_layers,
     .window = 4096,
     .key_value_heads = 32,
     .head_dim = 128,
     .norm = QueryKeyNorm::per_head},
    {.model_type = "gemma2",
     .windows = HuggingFaceWindows::pattern,
     .window = 4096,
     .pattern = 2,
     .key_value_heads = 4,
     .head_dim = 256},
    {.model_type = "gemma3_text",
     .windows = HuggingFaceWindows::pattern,
     .window = 4096,
     .pattern = 6,
     .heads = 8,
     .key_value_heads = 4,
     .head_dim = 256,
     .theta = 1e6,
     .norm = QueryKeyNorm::per_head_one_plus_weight},
    {.model_type = "phi3", .biases = HuggingFaceBiases::none, .windows = HuggingFaceWindows::all_layers},
    {.model_type = "gpt_oss",
     .bias = true,
     .windows = HuggingFaceWindows::pattern,
     .window = 128,
     .pattern = 2,
     .key_value_heads = 8,
     .head_dim = 64,
     .theta = 150000.0,
     .sinks = true},
    {.model_type = "smollm3", .windows = HuggingFaceWindows::unrotated_layers, .key_value_heads = 4, .theta = 2e6},
    {.model_type = "granite"},
    {.model_type = "olmo2", .norm = QueryKeyNorm::whole_projection, .epsilon = 1e-5},
}};

/// The family of a model type, null where attn does not know it.
[[nodiscard]] inline const HuggingFaceFamily* find_hugging_face_family(std::string_view model_type) {
  const auto* const found =
      std::find_if(hugging_face_families.begin(), hugging_face_families.end(),
                   [&](const HuggingFaceFamily& family) { return family.model_type == model_type; });
  return found == hugging_face_families.end() ? nullptr : found;
}
/// All model types, for messages.
[[nodiscard]] inline std::string hugging_face_model_types() {
  std::string all = "gemma3";
  for (const HuggingFaceFamily& family : hugging_face_families) all += ", " + std::string(family.model_type);
  return all;
}

/// Keys that leave attention as it is, or that attention reads in some families and that say nothing in others.
inline constexpr std::string_view hugging_face_unrelated[] = {
    // the file and its origin
    "_name_or_path", "architectures", "auto_map", "dtype", "is_llama_config", "model_type", "name_or_path",
    "torch_dtype", "transformers_version", "unsloth_fixed", "unsloth_version",
    // tokens
    "begin_suppress_tokens", "boi_token_index", "bos_token_id", "decoder_start_token_id", "eoi_token_index",
    "eos_token_id", "image_token_index", "pad_token_id", "prefix", "sep_token_id", "suppress_tokens", "tokenizer_class",
    "vocab_size",
    // the rest of a layer, and of the model
    "embd_pdrop", "embedding_multiplier", "experts_per_token", "final_logit_softcapping", "hidden_act",
    "hidden_activation", "initial_context_length", "initializer_range", "intermediate_size", "lm_head_bias",
    "logits_scaling", "mlp_bias", "num_experts_per_tok", "num_local_experts", "output_router_logits",
    "residual_multiplier", "router_aux_loss_coef", "swiglu_alpha", "swiglu_limit", "tie_word_embeddings",
    // how it is run: numbers differ in their last bits at most
    "_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "cache_implementation", "is_decoder",
    "pretraining_tp", "torchscript", "use_bfloat16", "use_cache",
    // what is returned, classified or generated
    "bad_words_ids", "diversity_penalty", "do_sample", "early_stopping", "finetuning_task", "id2label", "label2id",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "problem_type",
    "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate", "task_specific_params",
    "temperature", "tf_legacy_loss", "top_k", "top_p", "typical_p",
    // of rotary scalings and windows, which are not in use where these were not asked for
    "max_position_embeddings", "max_window_layers", "original_max_position_embeddings"};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn::detail
