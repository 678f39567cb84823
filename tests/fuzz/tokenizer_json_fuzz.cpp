// tokenizer.json of any bytes: read or refused with attn::Error, and then a text comes back to the byte.
#include <attn/io/tokenizer_json.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::optional<attn::BytePairTokenizer> tokenizer;
  try {
    tokenizer = attn::tokenizer_from_json({reinterpret_cast<const char*>(data), size});
  } catch (const attn::Error&) {
    return 0;
  }
  for (const std::string_view text : {"a12 a<|end|>", " 1\n"}) {
    std::vector<attn::TokenId> tokens;
    try {
      tokens = tokenizer->encode(text);
    } catch (const attn::Error&) {  // a byte that the vocabulary lacks
      continue;
    }
    if (tokenizer->decode(tokens) != text) std::abort();
  }
  return 0;
}
