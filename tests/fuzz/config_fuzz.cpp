// config.json of any bytes, and the configuration in a file of a saved module: read or refused with attn::Error. What is written
// of a layer is what is read back.
#include <attn/io/attention_config_json.hpp>
#include <attn/io/hugging_face_config.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::optional<attn::HuggingFaceConfig> config;
  try {
    config.emplace(text);
  } catch (const attn::Error&) {
  }
  if (config && config->layers() > 0) {
    const auto saved = attn::detail::to_json(config->attention(0));
    if (attn::detail::to_json(attn::detail::attention_config_of("load", saved)) != saved) std::abort();
  }
  try {
    static_cast<void>(attn::detail::attention_config_of("load", attn::detail::parse_json("load", text)));
  } catch (const attn::Error&) {
  }
  return 0;
}
